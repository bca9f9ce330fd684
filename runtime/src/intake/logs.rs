//! Which logs of a task are collected: (event, task, the operator's table) → key and address of each. Pure.

use serde_json::Value;

use super::event::{Event, text};
use super::task::Definition;
use crate::grant::s3::is_path;
use crate::sandbox::types::CollectedLog;
use crate::taskcluster::below;
use crate::tenant::LogCollection;

/// The logs of all runs that have left one: those that were started and have come to an end.
#[must_use]
pub(super) fn collected(event: &Event, task: &Definition, collection: Option<&LogCollection>) -> Vec<CollectedLog> {
    let Some(collection) = collection else { return Vec::new() };
    let ended = event.runs.iter().filter(|run| run.has_ended_work).take(RUNS_MAX);
    let log = |run_id: u32| {
        let s3_key = key(event, &task.value, run_id);
        let url = below(&collection.url_base, &s3_key.split('/').collect::<Vec<_>>());
        // S3 takes a plus for a space.
        let url = url.as_str().replace('+', "%2B");
        CollectedLog { run_id, artifact: source(event, &task.value, collection, run_id), s3_key, url }
    };
    ended.map(|run| log(run.id)).collect()
}

/// The artifact that is the run's log, or the address it is at.
fn source(event: &Event, task: &Value, collection: &LogCollection, run_id: u32) -> String {
    let provisioner = text(task, "/provisionerId").unwrap_or_default();
    let source = collection.sources.get(provisioner).unwrap_or(&collection.source);
    source.replace("{task_id}", event.task_id.as_str()).replace("{run_id}", &run_id.to_string())
}

/// By release and platform when the task says which, else by its id.
fn key(event: &Event, task: &Value, run_id: u32) -> String {
    let by_release = ["/extra/build_props", "/payload/properties"].iter().find_map(|place| {
        let properties = task.pointer(place).filter(|properties| properties.is_object())?;
        release_key(event, task, properties, run_id).filter(|key| is_path(key))
    });
    by_release.unwrap_or_else(|| format!("{}_run{run_id}_log", event.task_id))
}

fn release_key(event: &Event, task: &Value, properties: &Value, run_id: u32) -> Option<String> {
    let word = |name: &str| match properties.get(name)? {
        Value::String(text) => Some(text.clone()).filter(|text| !text.trim().is_empty()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    };
    let branch = word("branch").or_else(|| Some(word("repo_path")?.replace("releases/", "")))?;
    let (product, version, build) = (word("product")?, word("version")?, word("build_number")?);
    let platform = word("platform").unwrap_or_else(|| "all".into());
    let name = text(task, "/metadata/name")?.replace(['/', '\\'], "_");
    let key = format!("{branch}/{product}-{version}/build{build}/{name}-{platform}-{}-{run_id}", event.task_id);
    Some(key.chars().map(|c| if c.is_whitespace() || c.is_control() { '_' } else { c }).collect())
}

/// As many as a task can have.
const RUNS_MAX: usize = 50;

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::intake::event::Delivery;

    const ID: &str = "A35mWTRuQmyj88yMnIF0fA";

    fn logs(task: Value, runs: &Value) -> Vec<CollectedLog> {
        let body = json!({"runId": 0, "status": {"taskId": ID, "runs": runs}}).to_string().into_bytes();
        let event = Event::read("t", Arc::new(Delivery { body, ..Delivery::default() })).unwrap();
        let collection = LogCollection {
            url_base: "https://logs.s3.amazonaws.com/".parse().unwrap(),
            sources: BTreeMap::from([("old".to_owned(), "https://old.example.com/{task_id}/{run_id}".to_owned())]),
            source: LogCollection::SOURCE.into(),
        };
        collected(&event, &Definition::parse(task.to_string()).unwrap(), Some(&collection))
    }

    fn one_run() -> Value {
        json!([{"runId": 0, "started": "2018-01-30T14:25:17Z", "resolved": "2018-01-30T14:26:17Z"}])
    }

    fn key_of(task: Value) -> String {
        logs(task, &one_run()).remove(0).s3_key
    }

    fn release(changes: &Value) -> Value {
        let mut properties = json!({"product": "firefox", "version": "59.0b5", "build_number": 2,
            "repo_path": "releases/mozilla-beta", "platform": "win32"});
        for (name, value) in changes.as_object().unwrap() {
            properties[name] = value.clone();
        }
        json!({"metadata": {"name": "push to/beta \\ now"}, "extra": {"build_props": properties}})
    }

    #[test]
    fn the_key_names_the_release_when_the_task_does() {
        assert_eq!(
            key_of(release(&json!({}))),
            format!("mozilla-beta/firefox-59.0b5/build2/push_to_beta___now-win32-{ID}-0")
        );
        assert!(key_of(release(&json!({"branch": "date"}))).starts_with("date/firefox"));
        assert!(key_of(release(&json!({"platform": ""}))).contains("-all-"));
        assert!(key_of(release(&json!({"platform": null}))).contains("-all-"));
        let in_payload =
            json!({"metadata": {"name": "n"}, "payload": {"properties": release(&json!({}))["extra"]["build_props"]}});
        assert!(key_of(in_payload).starts_with("mozilla-beta/"));
    }

    #[test]
    fn the_address_of_a_key_is_one_that_s3_takes_for_that_key() {
        let url = logs(release(&json!({"platform": "a+b c%&?#ü"})), &one_run()).remove(0).url;
        assert!(url.contains("-a%2Bb_c%25&%3F%23%C3%BC-"), "{url}");
    }

    #[test]
    fn without_a_release_the_key_is_the_task_and_its_run() {
        let by_id = format!("{ID}_run0_log");
        assert_eq!(key_of(json!({})), by_id);
        for wrong in
            [json!({"product": null}), json!({"version": {}}), json!({"repo_path": ".."}), json!({"branch": "../.."})]
        {
            assert_eq!(key_of(release(&wrong)), by_id, "{wrong}");
        }
        for place in [json!(null), json!("x"), json!([1])] {
            assert_eq!(key_of(json!({"extra": {"build_props": place}})), by_id);
        }
    }

    #[test]
    fn a_key_has_nothing_in_it_that_does_not_belong_there() {
        let key = key_of(release(&json!({"platform": "a\r\nb\u{0}c"})));
        assert!(key.contains("-a__b_c-"), "{key}");
    }

    #[test]
    fn a_run_that_never_started_or_still_runs_has_no_log() {
        let runs = json!([
            {"runId": 0, "resolved": "2018-01-30T14:26:17Z"},
            {"runId": 1, "started": "2018-01-30T14:25:17Z"},
            {"runId": 2, "started": "2018-01-30T14:25:17Z", "resolved": "2018-01-30T14:26:17Z"},
            {"runId": "x"}, null, 7,
        ]);
        let logs = logs(json!({}), &runs);
        assert_eq!(logs.iter().map(|log| log.run_id).collect::<Vec<_>>(), [2]);
        assert_eq!(logs[0].artifact, "public/logs/live_backing.log");
        assert_eq!(logs[0].url, format!("https://logs.s3.amazonaws.com/{ID}_run2_log"));
    }

    #[test]
    fn the_operators_table_says_where_the_logs_of_a_provisioner_are() {
        let logs = logs(json!({"provisionerId": "old"}), &one_run());
        assert_eq!(logs[0].artifact, format!("https://old.example.com/{ID}/0"));
    }

    proptest::proptest! {
        #![proptest_config(crate::hostile::thousands())]

        #[test]
        fn whatever_a_task_says_of_its_release_a_key_is_a_path(
            properties in crate::hostile::json(),
            words in proptest::collection::vec(crate::hostile::text(), 6),
        ) {
            let mut task = json!({"metadata": {"name": words[0]}, "extra": {"build_props": properties}});
            if let Some(properties) = task["extra"]["build_props"].as_object_mut() {
                for (name, word) in ["branch", "product", "version", "build_number", "platform"].iter().zip(&words[1..]) {
                    properties.entry(*name).or_insert_with(|| json!(word));
                }
            }
            for log in logs(task, &one_run()) {
                proptest::prop_assert!(is_path(&log.s3_key), "{:?}", log.s3_key);
                proptest::prop_assert!(!log.s3_key.contains(char::is_whitespace));
                proptest::prop_assert!(log.url.starts_with("https://logs.s3.amazonaws.com/"));
                proptest::prop_assert!(log.url.bytes().all(|b| b.is_ascii_graphic()), "{}", log.url);
            }
        }
    }
}
