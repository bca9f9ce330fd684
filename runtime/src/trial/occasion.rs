//! What a plugin on trial is told, and on what terms. Enters: an event as text. Leaves: what the sandbox is given, by
//! the same rules as on the real path. Reads no file.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;

use crate::config::default_root;
use crate::grant::Grant;
use crate::intake::event::{Event, Malformed, TaskId, kind};
use crate::intake::invocation;
use crate::intake::notification::{Identities, wishes};
use crate::intake::source::ndjson::{self, NotAnEvent};
use crate::intake::task::{Definition, MemoryTasks, Tasks};
use crate::sandbox::{Invocation, Limits};
use crate::tenant::{LogCollection, On, PluginTerms};

/// One event with its task, and the plugin's terms.
pub struct Occasion {
    pub(super) event: Event,
    tasks: Arc<Tasks>,
    /// Whether the plugin is told of events whose task does not name it; not unless set.
    pub on: On,
    /// The plugin's settings; none unless set.
    pub settings: BTreeMap<String, String>,
    /// The operator's identities; none unless set.
    pub identities: Identities,
    /// Whom and what the plugin may tell, as patterns; `*` unless set.
    pub recipients: Vec<String>,
    /// Where logs are collected, when they are.
    pub(super) logs: Option<LogCollection>,
}

/// Why there is nothing to tell a plugin.
#[derive(Debug, thiserror::Error)]
pub enum OccasionError {
    /// The text is no event.
    #[error(transparent)]
    NotAnEvent(#[from] NotAnEvent),
    /// Its body is none of an event.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// It came without its task's definition.
    #[error("expected the definition of task {0} as \"task\" beside the body, or in a file of its own (--task)")]
    NoTask(TaskId),
    /// The task wants nothing of this plugin.
    #[error("task {task_id} does not name the plugin {plugin:?}: looked in `plugins` of {place}; {found}")]
    NotNamed {
        /// The task.
        task_id: TaskId,
        /// The plugin's name.
        plugin: String,
        /// The section that was looked for.
        place: String,
        /// What there is instead.
        found: String,
    },
}

impl Occasion {
    /// The occasion that an event is, as text: `{exchange, routing_key, cc, redelivered, body, task}`.
    ///
    /// # Errors
    /// [`OccasionError`] when it is no event.
    pub fn new(event: &str) -> Result<Self, OccasionError> {
        let tasks = MemoryTasks::new(default_root());
        let delivery = ndjson::read_one(event, &tasks)?;
        let event = Event::read(TENANT, Arc::new(delivery))?;
        let (settings, identities) = (BTreeMap::new(), Identities::new());
        let tasks = Arc::new(Tasks::Memory(tasks));
        Ok(Self { event, tasks, on: On::Named, settings, identities, recipients: vec!["*".into()], logs: None })
    }

    pub(super) fn with_definition(self, task: Definition) -> Self {
        if let Tasks::Memory(tasks) = &*self.tasks {
            tasks.define(self.event.task_id.clone(), task);
        }
        self
    }

    /// What the sandbox is given for each notification of the plugin; and what cannot be followed.
    pub(super) async fn requests(&self, plugin: &str) -> Result<(Vec<Invocation>, Vec<String>), OccasionError> {
        let event = &self.event;
        let tasks = &self.tasks;
        let Ok(task) = tasks.definition(&event.tenant, &event.task_id).await else {
            return Err(OccasionError::NoTask(event.task_id.clone()));
        };
        let terms = PluginTerms {
            on: self.on,
            grant: Arc::new(Grant::towards(&self.recipients)),
            settings: Arc::new(self.settings.clone()),
            // Room for an interpreter, as an operator may give it.
            limits: Limits { table_elements_max: Limits::MOST.table_elements_max, ..Limits::default() },
            ..PluginTerms::default()
        };
        let plugins = BTreeMap::from([(plugin.to_owned(), terms.clone())]);
        let wished = wishes(event, &task.value, &self.identities, &plugins, &tasks.task_url(&event.task_id));
        if wished.notifications.is_empty() {
            return Err(self.not_named(plugin, &task.value));
        }
        let request =
            |notification| invocation::request(tasks, &terms, event, &task, notification, self.logs.as_ref(), 0);
        Ok((wished.notifications.iter().map(request).collect(), wished.warnings))
    }

    fn not_named(&self, plugin: &str, task: &Value) -> OccasionError {
        let status = &self.event.status;
        let sections =
            ["notifications", "notification"].iter().find_map(|&name| Some((name, task.get("extra")?.get(name)?)));
        let name = sections.map_or("notifications", |(name, _)| name);
        let found = match sections.map(|(_, sections)| (sections.as_object(), kind(sections))) {
            None => "the task has neither extra.notifications nor extra.notification".to_owned(),
            Some((None, kind)) => format!("found {kind} as extra.{name}"),
            Some((Some(sections), _)) => match sections.get(status) {
                None => format!("found sections for {:?}", sections.keys().collect::<Vec<_>>()),
                Some(section) => match section.get("plugins") {
                    None => format!("found no `plugins` in {}", kind(section)),
                    Some(plugins) => format!("found {plugins}"),
                },
            },
        };
        let found = found.chars().take(FOUND_CHARS_MAX).collect();
        let place = format!("extra.{name}.{status}");
        OccasionError::NotNamed { task_id: self.event.task_id.clone(), plugin: plugin.to_owned(), place, found }
    }
}

const TENANT: &str = "default";
const FOUND_CHARS_MAX: usize = 400;
