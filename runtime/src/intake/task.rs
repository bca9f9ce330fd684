//! What Taskcluster knows of a task: its definition, and for guests its artifacts.
//!
//! Enters: a task id. Leaves: a definition, or which of the ways it could not be had. Nothing is retried here: whoever
//! asks decides what an absence means.

mod breaker;
mod http;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::Value;
use url::Url;

use super::event::{TaskId, kind};
use crate::taskcluster::{Artifact, ReadError, TaskError, below};
pub use http::HttpTasks;

/// Where task definitions come from.
pub enum Tasks {
    /// Taskcluster's queue service.
    Http(HttpTasks),
    /// What the events themselves brought along.
    Memory(MemoryTasks),
}

/// A task's definition.
#[derive(Debug)]
pub struct Definition {
    /// As Taskcluster sent it.
    pub json: String,
    /// The same, parsed: an object.
    pub value: Value,
}

impl Definition {
    /// Reads a definition.
    ///
    /// # Errors
    /// What it is instead of a JSON object.
    pub fn parse(json: String) -> Result<Self, String> {
        let value: Value = serde_json::from_str(&json).map_err(|error| format!("not JSON: {error}"))?;
        if value.is_object() { Ok(Self { json, value }) } else { Err(format!("not an object but {}", kind(&value))) }
    }
}

impl Tasks {
    /// A task's definition, on behalf of a tenant.
    ///
    /// # Errors
    /// [`TaskError`].
    pub async fn definition(&self, tenant: &str, task_id: &TaskId) -> Result<Arc<Definition>, TaskError> {
        match self {
            Self::Http(tasks) => tasks.definition(tenant, task_id).await,
            Self::Memory(tasks) => tasks.definition(task_id),
        }
    }

    /// Where people look at a task.
    #[must_use]
    pub fn task_url(&self, task_id: &TaskId) -> String {
        self.page(&["tasks", task_id.as_str()])
    }

    /// Where people look at a task group.
    #[must_use]
    pub fn task_group_url(&self, task_group_id: &TaskId) -> String {
        self.page(&["tasks", "groups", task_group_id.as_str()])
    }

    fn page(&self, path: &[&str]) -> String {
        let root = match self {
            Self::Http(tasks) => tasks.taskcluster.root(),
            Self::Memory(tasks) => &tasks.root,
        };
        below(root, path).into()
    }
}

/// Definitions held in memory: those that came with the events of a file.
pub struct MemoryTasks {
    root: Url,
    definitions: Mutex<HashMap<TaskId, Arc<Definition>>>,
}

impl MemoryTasks {
    /// None yet; `root` is the Taskcluster whose pages are linked to.
    #[must_use]
    pub fn new(root: Url) -> Self {
        Self { root, definitions: Mutex::default() }
    }

    /// Adds one.
    pub fn define(&self, task_id: TaskId, definition: Definition) {
        self.definitions.lock().unwrap_or_else(PoisonError::into_inner).insert(task_id, Arc::new(definition));
    }

    fn definition(&self, task_id: &TaskId) -> Result<Arc<Definition>, TaskError> {
        let definitions = self.definitions.lock().unwrap_or_else(PoisonError::into_inner);
        // It came with an event or never will.
        let absent = || TaskError::Unusable("the events brought no definition of this task".into());
        definitions.get(task_id).map(Arc::clone).ok_or_else(absent)
    }
}

/// One task's artifacts, for the guest that is told about it.
#[derive(Clone)]
pub struct TaskReads {
    tasks: Arc<Tasks>,
    task_id: TaskId,
    /// Guests run on threads of their own, which do no I/O.
    io: tokio::runtime::Handle,
}

impl TaskReads {
    /// Reads of one task, done on the runtime this is called from.
    #[must_use]
    pub fn new(tasks: Arc<Tasks>, task_id: TaskId) -> Self {
        Self { tasks, task_id, io: tokio::runtime::Handle::current() }
    }

    /// The artifacts of a run.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn artifacts(&self, run_id: u32) -> Result<Vec<Artifact>, ReadError> {
        let (tasks, task_id) = (Arc::clone(&self.tasks), self.task_id.clone());
        self.on_io(async move {
            match &*tasks {
                Tasks::Http(tasks) => tasks.taskcluster.artifacts(&task_id, run_id).await,
                Tasks::Memory(_) => Ok(Vec::new()),
            }
        })
        .await
    }

    /// The content of a small artifact.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn read_artifact(&self, run_id: u32, name: &str) -> Result<Vec<u8>, ReadError> {
        let (tasks, task_id, name) = (Arc::clone(&self.tasks), self.task_id.clone(), name.to_owned());
        self.on_io(async move {
            match &*tasks {
                Tasks::Http(tasks) => tasks.taskcluster.read_artifact(&task_id, run_id, &name).await,
                Tasks::Memory(_) => Err(ReadError::Gone("events from a file bring no artifacts".into())),
            }
        })
        .await
    }

    async fn on_io<T: Send + 'static>(
        &self,
        read: impl Future<Output = Result<T, ReadError>> + Send + 'static,
    ) -> Result<T, ReadError> {
        let read = self.io.spawn(tokio::time::timeout(READ_TIMEOUT, read));
        match read.await {
            Ok(Ok(read)) => read,
            Ok(Err(_)) => Err(ReadError::Unavailable("no answer in time".into())),
            Err(error) => Err(ReadError::Unavailable(error.to_string())),
        }
    }
}

/// Well below the time a guest has, so that it learns of it and can ask to be run again.
const READ_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(4);
