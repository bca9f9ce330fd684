//! One plugin, told of one event and looked at. Enters: a `.wasm` file and an occasion. Leaves: what was asked for,
//! notification by notification. Through the rooms of the real path, but nothing is sent and nothing is kept.

mod case;
mod difference;
mod occasion;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Serialize, Serializer};

pub use case::Case;
pub use difference::Difference;
pub use occasion::{Occasion, OccasionError};

use crate::effect::{Effect, Plan};
use crate::grant::Grant;
use crate::intake::event::TaskId;
use crate::intake::task::Definition;
use crate::sandbox::{AdmissionError, ComponentLimits, Ending, Report, Sandbox, Version};

/// A plugin on trial, whatever it imports. Its name is its file's, without `.wasm`.
pub struct Trial {
    sandbox: Arc<Sandbox>,
    version: Version,
}

/// What a plugin did about one event.
#[derive(Debug)]
pub struct Told {
    /// The event's status.
    pub status: String,
    /// The task it is about.
    pub task_id: TaskId,
    /// What the task wishes and cannot have.
    pub warnings: Vec<String>,
    /// One run for each notification; at least one.
    pub runs: Vec<Run>,
}

/// One notification's run: what came of it, and what it took.
#[derive(Debug, Serialize)]
pub struct Run {
    /// What came of it.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// CPU time it took.
    #[serde(rename = "cpu_us", serialize_with = "as_micros")]
    pub cpu: Duration,
    /// The most memory it held, in bytes.
    pub memory_bytes_max: u64,
}

/// What came of a run: the same each time the same plugin is told the same.
#[derive(Debug, Default, Serialize)]
pub struct Outcome {
    /// The identity whose notification it was.
    pub identity: String,
    /// How it ended, in the store's words: done, retry, failed, faulted.
    pub ending: &'static str,
    /// Why it is not done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What would be done; nothing, unless it ended as done.
    pub effects: Vec<Asked>,
    /// What was asked for and not accepted.
    pub refusals: Vec<String>,
    /// What it logged.
    pub log: Vec<String>,
}

/// One effect, accepted or not.
#[derive(Debug, Serialize)]
pub struct Asked {
    /// What is asked for.
    #[serde(flatten)]
    pub effect: Effect,
    /// Why it would not be done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

/// Why nothing could be tried: which file is not usable, and what was expected of it. Each says its cause itself.
#[derive(Debug, thiserror::Error)]
pub enum TrialError {
    /// A file or folder that cannot be read or written.
    #[error("{path}: expected {expected}: {why}")]
    File {
        /// Which.
        path: PathBuf,
        /// What was expected there.
        expected: &'static str,
        /// What the system says.
        why: std::io::Error,
    },
    /// A file that holds something else.
    #[error("{path}: expected {expected}: {why}")]
    Content {
        /// Which.
        path: PathBuf,
        /// What was expected in it.
        expected: &'static str,
        /// What is wrong with it.
        why: String,
    },
    /// A file whose event is none, or none for this plugin.
    #[error("{path}: {why}")]
    Occasion {
        /// Which.
        path: PathBuf,
        /// Why.
        why: OccasionError,
    },
    /// The plugin is not let in.
    #[error("{path}: {why}")]
    Admission {
        /// Its file.
        path: PathBuf,
        /// Why.
        why: AdmissionError,
    },
}

impl Trial {
    /// Lets a plugin in. Blocks for as long as compiling takes.
    ///
    /// # Errors
    /// When the file cannot be read, or is no plugin.
    pub fn new(sandbox: &Arc<Sandbox>, wasm: &Path) -> Result<Self, TrialError> {
        let path = wasm.to_owned();
        let bytes = match std::fs::read(wasm) {
            Ok(bytes) => bytes,
            Err(why) => return Err(TrialError::File { path, expected: "a plugin's .wasm file", why }),
        };
        let name = wasm.file_stem().unwrap_or_default().to_string_lossy();
        match sandbox.admit(&name, &bytes, &Grant::towards(&[]), &ComponentLimits::MOST) {
            Ok(version) => Ok(Self { sandbox: Arc::clone(sandbox), version }),
            Err(why) => Err(TrialError::Admission { path, why }),
        }
    }

    /// The plugin: its name, as a task writes it, its digest and what it imports.
    #[must_use]
    pub fn plugin(&self) -> &Version {
        &self.version
    }

    /// Tells the plugin of an event that stands in a file: once for each notification its task makes for the plugin.
    ///
    /// # Errors
    /// [`TrialError`] when there is nothing to tell it.
    pub async fn tell_of(&self, path: &Path, occasion: &Occasion) -> Result<Told, TrialError> {
        let requests = occasion.requests(&self.version.name).await;
        let (requests, warnings) = requests.map_err(|why| TrialError::Occasion { path: path.to_owned(), why })?;
        let mut runs = Vec::with_capacity(requests.len());
        for request in requests {
            let identity = request.origin.identity.clone();
            runs.push(Run::new(identity, self.sandbox.invoke(&self.version, request).await));
        }
        Ok(Told { status: occasion.event.status.clone(), task_id: occasion.event.task_id.clone(), warnings, runs })
    }
}

impl Run {
    fn new(identity: String, report: Report) -> Self {
        let (ending, reason, plan) = match report.ending {
            Ending::Planned(plan) => ("done", None, plan),
            Ending::Retry(reason) => ("retry", Some(reason), Plan::default()),
            Ending::Failed(reason) => ("failed", Some(reason), Plan::default()),
            Ending::Faulted(fault) => ("faulted", Some(fault.to_string()), Plan::default()),
        };
        let effects =
            plan.effects.into_iter().map(|planned| Asked { effect: planned.effect, refused: planned.refused });
        let (refusals, log) = (report.refusals, report.log);
        let outcome = Outcome { identity, ending, reason, effects: effects.collect(), refusals, log };
        Self { outcome, cpu: report.cpu, memory_bytes_max: report.memory_max }
    }
}

impl Occasion {
    /// The occasion in a file: one event, as a line of the demo's, or a golden case.
    ///
    /// # Errors
    /// [`TrialError`] when it holds neither.
    pub fn from_file(path: &Path) -> Result<Self, TrialError> {
        let text = read(path, "an event as JSON")?;
        let occasion = Case::parse(&text).map_or_else(|_| Self::new(&text), |case| case.occasion());
        occasion.map_err(|why| TrialError::Occasion { path: path.to_owned(), why })
    }

    /// With a task's definition from a file, whichever the event brought along.
    ///
    /// # Errors
    /// [`TrialError`] when it holds none.
    pub fn with_task(self, path: &Path) -> Result<Self, TrialError> {
        let expected = "a task's definition as JSON";
        let task = Definition::parse(read(path, expected)?);
        let task = task.map_err(|why| TrialError::Content { path: path.to_owned(), expected, why })?;
        Ok(self.with_definition(task))
    }

    /// With the plugin's settings from a file.
    ///
    /// # Errors
    /// [`TrialError`] when it holds something else.
    pub fn with_settings(mut self, path: &Path) -> Result<Self, TrialError> {
        self.settings = read_json(path, "settings as a JSON object of texts")?;
        Ok(self)
    }
}

fn read_json<T: DeserializeOwned>(path: &Path, expected: &'static str) -> Result<T, TrialError> {
    serde_json::from_str(&read(path, expected)?).map_err(|error| TrialError::Content {
        path: path.to_owned(),
        expected,
        why: error.to_string(),
    })
}

fn read(path: &Path, expected: &'static str) -> Result<String, TrialError> {
    std::fs::read_to_string(path).map_err(|why| TrialError::File { path: path.to_owned(), expected, why })
}

fn as_micros<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(u64::try_from(time.as_micros()).unwrap_or(u64::MAX))
}
