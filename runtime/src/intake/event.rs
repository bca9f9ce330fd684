//! A delivery's bytes become an event: status from the exchange, ids and times from the body. Pure and lenient: what the
//! body lacks stays unknown, and only a body that names no task at all is malformed.

use std::sync::Arc;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::effect::{EventKey, Hash};
pub use crate::task_id::TaskId;

/// A message as the broker handed it over.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivery {
    /// The exchange it was published to.
    pub exchange: String,
    /// Its own routing key.
    #[serde(default)]
    pub routing_key: String,
    /// The further routing keys it was sent under.
    #[serde(default)]
    pub cc_routes: Vec<String>,
    /// Whether the broker had delivered it before.
    #[serde(default)]
    pub redelivered: bool,
    /// How often a plugin has relayed it.
    #[serde(default)]
    pub hops: u32,
    /// Its body, as published.
    #[serde(with = "crate::effect::text_or_bytes")]
    pub body: Vec<u8>,
}

/// What happened to one task.
#[derive(Clone, Debug)]
pub struct Event {
    /// What makes a repeat the same event.
    pub key: EventKey,
    /// The tenant whose queue it came through.
    pub tenant: String,
    /// The exchange's last word: `task-completed` and so on.
    pub status: String,
    /// The message.
    pub delivery: Arc<Delivery>,
    /// The task it is about.
    pub task_id: TaskId,
    /// The run it is about, when it is about one.
    pub run_id: Option<u32>,
    /// The task's group, when the message names it.
    pub task_group_id: Option<TaskId>,
    /// When the run was resolved, else started, else scheduled.
    pub time: Option<Timestamp>,
    /// The task's runs.
    pub runs: Vec<Run>,
}

/// One run of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Its number.
    pub id: u32,
    /// Whether a worker began it and it has come to an end.
    pub has_ended_work: bool,
}

/// Why a body is no event.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Malformed {
    /// Not JSON, or JSON that is no object.
    #[error("expected a JSON object as the body: {0}")]
    NotAnObject(String),
    /// No `status.taskId`.
    #[error("expected a task id at status.taskId, found none")]
    NoTaskId,
    /// A `status.taskId` that cannot be one.
    #[error("expected 1 to 38 characters of A-Z a-z 0-9 - _ at status.taskId, found {0:?}")]
    BadTaskId(String),
}

impl Event {
    /// Reads a delivery.
    ///
    /// # Errors
    /// [`Malformed`] when the body names no task.
    pub fn read(tenant: &str, delivery: Arc<Delivery>) -> Result<Self, Malformed> {
        let body: Value =
            serde_json::from_slice(&delivery.body).map_err(|error| Malformed::NotAnObject(error.to_string()))?;
        if !body.is_object() {
            return Err(Malformed::NotAnObject(format!("found {}", kind(&body))));
        }
        let task_id = text(&body, "/status/taskId").ok_or(Malformed::NoTaskId)?;
        let task_id = TaskId::new(task_id).ok_or_else(|| Malformed::BadTaskId(shortened(task_id)))?;
        let run_id = body.get("runId").and_then(Value::as_u64).and_then(|run| u32::try_from(run).ok());
        Ok(Self {
            key: key(tenant, &delivery.exchange, &task_id, run_id, &body),
            tenant: tenant.to_owned(),
            status: status_of(&delivery.exchange).to_owned(),
            task_group_id: text(&body, "/status/taskGroupId").and_then(TaskId::new),
            time: time(&body, run_id),
            runs: runs(&body),
            task_id,
            run_id,
            delivery,
        })
    }
}

/// The status an exchange stands for: the last word of its name.
#[must_use]
pub fn status_of(exchange: &str) -> &str {
    exchange.rsplit('/').next().unwrap_or(exchange)
}

/// The text at a place in a JSON value, such as `/status/taskId`, when there is a text.
#[must_use]
pub fn text<'a>(value: &'a Value, place: &str) -> Option<&'a str> {
    value.pointer(place)?.as_str()
}

/// What a JSON value is, in words.
#[must_use]
pub const fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

fn key(tenant: &str, exchange: &str, task: &TaskId, run: Option<u32>, body: &Value) -> EventKey {
    let run = run.map(|run| run.to_string()).unwrap_or_default();
    let artifact = text(body, "/artifact/name").unwrap_or_default();
    let storage_type = text(body, "/artifact/storageType").unwrap_or_default();
    let fields = [tenant, exchange, task.as_str(), &run, artifact, storage_type];
    Hash::of(fields.map(str::as_bytes))
}

fn time(body: &Value, run_id: Option<u32>) -> Option<Timestamp> {
    let run_id = run_id.map(u64::from)?;
    let runs = body.pointer("/status/runs")?.as_array()?;
    let run = runs.iter().find(|run| run.get("runId").and_then(Value::as_u64) == Some(run_id))?;
    ["/resolved", "/started", "/scheduled"].iter().find_map(|field| text(run, field)?.parse().ok())
}

fn runs(body: &Value) -> Vec<Run> {
    let runs = body.pointer("/status/runs").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let run = |run: &Value| {
        let id = u32::try_from(run.get("runId")?.as_u64()?).ok()?;
        Some(Run { id, has_ended_work: text(run, "/started").is_some() && text(run, "/resolved").is_some() })
    };
    runs.iter().filter_map(run).collect()
}

fn shortened(text: &str) -> String {
    text.chars().take(40).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(body: &Value) -> Result<Event, Malformed> {
        let exchange = "exchange/taskcluster-queue/v1/task-exception".into();
        Event::read(
            "default",
            Arc::new(Delivery { exchange, body: body.to_string().into_bytes(), ..Delivery::default() }),
        )
    }

    fn body() -> Value {
        json!({"runId": 0, "status": {"taskId": "A35mWTRuQmyj88yMnIF0fA", "taskGroupId": "XrWNyFwpT2in-wLY9frb-w",
            "state": "pending", "runs": [{"runId": 0, "scheduled": "2019-06-26T19:36:10.316Z",
            "resolved": "2019-06-26T21:36:10.316+02:00"}, {"runId": 1}]}})
    }

    #[test]
    fn the_status_comes_from_the_exchange_and_the_time_from_the_run() {
        let event = read(&body()).unwrap();
        assert_eq!(event.status, "task-exception");
        assert_eq!(event.time.unwrap().to_string(), "2019-06-26T19:36:10.316Z");
        assert_eq!(event.task_group_id.unwrap().as_str(), "XrWNyFwpT2in-wLY9frb-w");
    }

    #[test]
    fn another_run_is_another_event_and_a_repeat_is_the_same() {
        let mut other = body();
        other["runId"] = json!(1);
        assert_eq!(read(&body()).unwrap().key, read(&body()).unwrap().key);
        assert_ne!(read(&body()).unwrap().key, read(&other).unwrap().key);
    }

    #[test]
    fn each_artifact_of_a_run_is_an_event_of_its_own() {
        let with = |name: &str| {
            let mut body = body();
            body["artifact"] = json!({"name": name, "storageType": "link"});
            read(&body).unwrap().key
        };
        assert_ne!(with("public/a"), with("public/b"));
    }

    #[test]
    fn what_a_body_lacks_or_has_wrong_stays_unknown() {
        for (field, wrong) in [("runId", json!("0")), ("runId", json!(-1)), ("runId", json!(1u64 << 40))] {
            let mut body = body();
            body[field] = wrong;
            assert_eq!(read(&body).unwrap().run_id, None);
        }
        for runs in [json!(null), json!([]), json!([3, null]), json!("x"), json!([{"runId": 0, "resolved": 7}])] {
            let mut body = body();
            body["status"]["runs"] = runs;
            assert_eq!(read(&body).unwrap().time, None);
        }
    }

    #[test]
    fn a_body_that_names_no_task_is_malformed() {
        for (text, expected) in [
            ("", "expected a JSON object as the body: EOF while parsing a value at line 1 column 0"),
            ("[]", "expected a JSON object as the body: found a list"),
            ("{}", "expected a task id at status.taskId, found none"),
            (r#"{"status": "x"}"#, "expected a task id at status.taskId, found none"),
        ] {
            let delivery = Delivery { body: text.into(), ..Delivery::default() };
            assert_eq!(Event::read("default", Arc::new(delivery)).unwrap_err().to_string(), expected, "{text}");
        }
        let hostile = json!({"status": {"taskId": "../../../../etc/passwd"}});
        assert_eq!(read(&hostile).unwrap_err(), Malformed::BadTaskId("../../../../etc/passwd".into()));
        let latin1 = Delivery { body: b"{\"status\": \"\xe9\"}".to_vec(), ..Delivery::default() };
        assert!(matches!(Event::read("default", Arc::new(latin1)), Err(Malformed::NotAnObject(_))));
    }

    #[test]
    fn a_delivery_survives_the_store_whatever_its_body() {
        for body in [b"{}".to_vec(), b"\xff\x00".to_vec()] {
            let delivery = Delivery { exchange: "e".into(), body, ..Delivery::default() };
            let stored = serde_json::to_vec(&delivery).unwrap();
            assert_eq!(serde_json::from_slice::<Delivery>(&stored).unwrap(), delivery);
        }
    }

    proptest::proptest! {
        #![proptest_config(crate::hostile::thousands())]

        #[test]
        fn whatever_a_body_holds_an_event_is_safe_to_work_with(
            status in crate::hostile::json(),
            task_id in proptest::prop_oneof!["[A-Za-z0-9_-]{1,38}", crate::hostile::text()],
            noise in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..64),
        ) {
            let mut body = json!({"runId": status["runId"], "status": status, "artifact": status["artifact"]});
            if let Some(status) = body["status"].as_object_mut() {
                status.insert("taskId".into(), json!(task_id));
            }
            for body in [body.to_string().into_bytes(), noise] {
                let Ok(event) = Event::read("t", Arc::new(Delivery { body, ..Delivery::default() })) else { continue };
                proptest::prop_assert!(TaskId::new(event.task_id.as_str()).is_some());
                proptest::prop_assert_eq!(event.status.as_str(), "");
            }
        }
    }
}
