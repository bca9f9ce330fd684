//! Everything that was recorded of real traffic goes through, and as many effects come out as a count of our own says.
#![expect(clippy::indexing_slicing, reason = "JSON values answer null for what they lack")]

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result};
use end_to_end::world::{STATUSES, definition, store};
use end_to_end::{Broker, Message, World, corpus, wait};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(120);

/// The definition as it is, with one mail wished for at every status.
fn wishing(mut task: Value) -> Value {
    let section = json!({"plugins": ["smtp"], "emails": ["a@example.com"]});
    let sections: serde_json::Map<_, _> =
        STATUSES.iter().map(|status| ((*status).to_owned(), section.clone())).collect();
    if !task["extra"].is_object() {
        task["extra"] = json!({});
    }
    task["extra"]["notifications"] = Value::Object(sections);
    task
}

/// What makes a message another event than any other, by the fields the rules name.
fn identity(message: &Message) -> String {
    let body = &message.body;
    let artifact = &body["artifact"];
    json!([message.exchange, body["status"]["taskId"], body["runId"], artifact["name"], artifact["storageType"]])
        .to_string()
}

#[tokio::test]
async fn all_recorded_traffic_becomes_as_many_effects_as_counted_apart() -> Result<()> {
    let Some(corpus) = corpus() else { return Ok(()) };
    let world = World::new(Broker::shared().await?, &["smtp"]).await?;
    world.taskcluster.define_all(|_| wishing(definition(&json!(null))));
    let mut messages = corpus.messages()?;
    for message in &messages {
        let task_id = message.body["status"]["taskId"].as_str().context("a task id")?;
        if let Some(task) = corpus.task(task_id) {
            world.taskcluster.define(task_id, wishing(task));
        }
    }
    for streamed in corpus.stream()? {
        let task_id = streamed.message.body["status"]["taskId"].as_str().context("a task id")?;
        if let Some(task) = streamed.task {
            world.taskcluster.define(task_id, wishing(task));
        }
        messages.push(streamed.message);
    }
    assert_eq!(messages.len(), 97 + 644);
    let expected: BTreeSet<_> = messages.iter().map(identity).collect();

    let mut service =
        world.service(&["smtp"])?.env("PULSE_EXCHANGES", STATUSES.join(":")).env("PN_DELIVERY", "capture");
    service.start()?;
    service.wait_for_output("consuming", SOON).await?;
    world.vhost.publisher().await?.publish_many(messages).await?;
    world.queue_is_empty().await?;
    let store = store(&service);
    let delivered = "SELECT COUNT(*) FROM effect WHERE state = 'delivered'";
    let expected = i64::try_from(expected.len())?;
    wait::until("every effect is delivered", SOON, async || Ok(store.count(delivered)? == expected)).await?;
    assert_eq!(store.count("SELECT COUNT(*) FROM effect")?, expected);
    assert_eq!(store.rows("SELECT DISTINCT state FROM event")?, ["planned"]);
    assert_eq!(store.count("SELECT COUNT(*) FROM dead_delivery")?, 0);
    Ok(())
}
