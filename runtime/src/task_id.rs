//! A task's or a task group's id. Pure.

use serde::{Deserialize, Serialize};

/// A task's or a task group's id: Taskcluster makes 22 characters of `A-Z a-z 0-9 - _`; up to 38, as its other names have,
/// are taken. It is therefore safe in a URL, a header and a log.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TaskId(String);

/// A text is no task id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected 1 to 38 characters of A-Z a-z 0-9 - _")]
pub struct NoTaskId;

impl TaskId {
    /// The id, when the text is one.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        let fits =
            (1..=38).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        fits.then(|| Self(text.to_owned()))
    }

    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for TaskId {
    type Error = NoTaskId;

    fn try_from(text: String) -> Result<Self, NoTaskId> {
        Self::new(&text).ok_or(NoTaskId)
    }
}

impl From<TaskId> for String {
    fn from(id: TaskId) -> Self {
        id.0
    }
}

impl std::fmt::Display for TaskId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}
