//! Recorded Taskcluster messages and the task definitions they speak of. They are read where they lie, never copied.

use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::workspace;

/// A directory with `messages.ndjson` and `tasks/<task id>.json`.
pub struct Corpus {
    directory: PathBuf,
}

/// One message as it came from Pulse.
#[derive(Clone, Debug, Deserialize)]
pub struct Message {
    /// The exchange it was published to.
    pub exchange: String,
    /// Its routing key.
    pub routing_key: String,
    /// Its body.
    pub body: Value,
    /// The routes of its CC header; empty if none was recorded.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub cc: Vec<String>,
    /// Whether the broker had delivered it before.
    #[serde(default)]
    pub redelivered: bool,
}

/// A message of a stream; the first of a task brings its definition.
#[derive(Clone, Debug, Deserialize)]
pub struct Streamed {
    /// The message.
    #[serde(flatten)]
    pub message: Message,
    /// The task's definition.
    pub task: Option<Value>,
}

/// The corpus at `PULSE_CORPUS`, or beside the workspace. Where it is absent, says so: the caller's test is skipped.
pub fn corpus() -> Option<Corpus> {
    #[expect(clippy::disallowed_methods, reason = "it configures the tests, not the program")]
    let place = std::env::var_os("PULSE_CORPUS");
    let directory = place.map_or_else(|| workspace().join("../shared/corpus"), PathBuf::from);
    if directory.is_dir() {
        return Some(Corpus { directory });
    }
    crate::say(&format!("skipped: no corpus at {}", directory.display()));
    None
}

impl Corpus {
    /// Where it lies.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Every recorded message.
    pub fn messages(&self) -> Result<Vec<Message>> {
        let text = std::fs::read_to_string(self.directory.join("messages.ndjson"))?;
        let parse =
            |(index, line)| serde_json::from_str(line).with_context(|| format!("messages.ndjson:{}", index + 1));
        text.lines().enumerate().map(parse).collect()
    }

    /// The messages of one whole push in the order of time.
    pub fn stream(&self) -> Result<Vec<Streamed>> {
        let packed = std::fs::File::open(self.directory.join("stream.ndjson.gz"))?;
        let mut text = String::new();
        flate2::read::GzDecoder::new(packed).read_to_string(&mut text)?;
        let parse = |(index, line)| serde_json::from_str(line).with_context(|| format!("stream.ndjson:{}", index + 1));
        text.lines().enumerate().map(parse).collect()
    }

    /// The definition of a task, if it was recorded.
    pub fn task(&self, task_id: &str) -> Option<Value> {
        let text = std::fs::read(self.directory.join("tasks").join(format!("{task_id}.json"))).ok()?;
        serde_json::from_slice(&text).ok()
    }
}

fn null_is_empty<'de, D: Deserializer<'de>>(value: D) -> Result<Vec<String>, D::Error> {
    Ok(Option::deserialize(value)?.unwrap_or_default())
}
