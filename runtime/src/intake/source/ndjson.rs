//! Events from text, one JSON object a line: `{exchange, routing_key, body, cc, redelivered, task}`. `task`, a
//! definition, is needed only once for each task.

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use tokio::io::{AsyncBufRead, AsyncBufReadExt};
use tokio::sync::mpsc;

use super::{Received, Settler};
use crate::intake::event::{self, Delivery, TaskId};
use crate::intake::task::{Definition, MemoryTasks};

#[derive(Deserialize)]
struct Line {
    exchange: String,
    #[serde(default)]
    routing_key: String,
    body: Box<RawValue>,
    #[serde(default)]
    cc: Option<Vec<String>>,
    #[serde(default)]
    redelivered: bool,
    #[serde(default)]
    hops: u32,
    #[serde(default)]
    task: Option<Box<RawValue>>,
}

/// Why a line is no event.
#[derive(Debug, thiserror::Error)]
#[error("line {number}: {why}")]
pub struct LineError {
    number: usize,
    why: NotAnEvent,
}

/// Why a text is no event.
#[derive(Debug, thiserror::Error)]
#[error("expected {{\"exchange\": …, \"body\": …}}: {0}")]
pub struct NotAnEvent(String);

/// Reads lines until there are no more, or nobody wants them. Lines that are no events are logged and passed over.
pub async fn run(lines: impl AsyncBufRead + Unpin, tasks: &MemoryTasks, out: &mpsc::Sender<Received>) {
    let mut lines = lines.lines();
    let mut number = 0;
    loop {
        let line = match lines.next_line().await {
            Ok(Some(line)) => line,
            Ok(None) => return,
            Err(error) => {
                tracing::error!(%error, "read events");
                return;
            }
        };
        number += 1;
        if line.trim().is_empty() {
            continue;
        }
        match read(number, &line, tasks) {
            Ok(delivery) => {
                if out.send(Received { delivery, settler: Settler::Nobody }).await.is_err() {
                    return;
                }
            }
            Err(error) => tracing::error!(%error, "not an event"),
        }
    }
}

/// One line's delivery; a definition that comes along goes to `tasks`.
///
/// # Errors
/// [`LineError`].
pub fn read(number: usize, line: &str, tasks: &MemoryTasks) -> Result<Delivery, LineError> {
    read_one(line, tasks).map_err(|why| LineError { number, why })
}

/// The delivery a text is, which may be laid out over several lines; a definition that comes along goes to `tasks`.
///
/// # Errors
/// [`NotAnEvent`].
pub fn read_one(text: &str, tasks: &MemoryTasks) -> Result<Delivery, NotAnEvent> {
    let line: Line = serde_json::from_str(text).map_err(|error| NotAnEvent(error.to_string()))?;
    if let Some(task) = line.task {
        let body: Value = serde_json::from_str(line.body.get()).map_err(|error| NotAnEvent(error.to_string()))?;
        let task_id = event::text(&body, "/status/taskId").and_then(TaskId::new);
        let definition = Definition::parse(task.get().to_owned()).map_err(|why| NotAnEvent(format!("task: {why}")))?;
        if let Some(task_id) = task_id {
            tasks.define(task_id, definition);
        }
    }
    Ok(Delivery {
        exchange: line.exchange,
        routing_key: line.routing_key,
        cc_routes: line.cc.unwrap_or_default(),
        redelivered: line.redelivered,
        hops: line.hops,
        body: line.body.get().as_bytes().to_vec(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tasks() -> MemoryTasks {
        MemoryTasks::new(url::Url::parse("https://tc.example.com").unwrap())
    }

    #[tokio::test]
    async fn lines_become_deliveries_and_others_are_passed_over() {
        let text =
            "nonsense\n\n{\"exchange\": \"e/task-failed\", \"body\": {\"a\":  1}, \"cc\": null}\n{\"exchange\": 3}\n";
        let (out, mut received) = mpsc::channel(8);
        run(text.as_bytes(), &tasks(), &out).await;
        drop(out);
        let delivery = received.recv().await.unwrap().delivery;
        assert_eq!((delivery.exchange.as_str(), delivery.body.as_slice()), ("e/task-failed", &b"{\"a\":  1}"[..]));
        assert!(received.recv().await.is_none());
    }

    #[test]
    fn what_is_wrong_with_a_line_is_said_with_its_number() {
        let error = read(7, "{\"exchange\": \"e\"}", &tasks()).unwrap_err().to_string();
        assert!(error.starts_with("line 7: expected {\"exchange\": …, \"body\": …}: missing field `body`"), "{error}");
    }
}
