//! A version that faults again and again is not run any more, until somebody does something about it.

use std::time::Duration;

use anyhow::{Context, Result};
use end_to_end::stamped::said;
use end_to_end::tenants::{lines, readiness};
use end_to_end::world::store;
use end_to_end::{Broker, Service, World, wait};
use serde_json::json;

const SOON: Duration = Duration::from_secs(60);
const QUARANTINED: &str = "plugin quarantined: it is not run";
const RELEASED: &str = "plugin released: it is run again";

/// Tasks that want the plugin `hostile` to do something, each in one of some task groups; waits until it is settled.
async fn ask(world: &World, service: &Service, what: &str, groups: &[&str], times: usize) -> Result<()> {
    let store = store(service);
    let settled = "SELECT COUNT(*) FROM invocation";
    let before = store.count(settled)?;
    for (number, group) in groups.iter().cycle().take(times).enumerate() {
        let section = json!({"plugins": {"hostile": {"message": what}}, "emails": ["a@example.com"]});
        let (_, mut message) = world.failed_task(&section);
        let its_group = message.body.pointer_mut("/status/taskGroupId").context("it has a task group")?;
        *its_group = format!("Group{group}AQxCtesttaskAAA").into();
        world.publish(&message).await?;
        // One after the other, so that "in a row" means something.
        let expected = before + number as i64 + 1;
        wait::until("it is settled", SOON, async || Ok(store.count(settled)? >= expected)).await?;
    }
    Ok(())
}

/// How the invocations ended, the last so many.
async fn ends(service: &Service, last: usize) -> Result<Vec<String>> {
    let mut ends = store(service).rows("SELECT state FROM invocation ORDER BY id")?;
    Ok(ends.split_off(ends.len().saturating_sub(last)))
}

async fn world() -> Result<World> {
    World::new(Broker::shared().await?, &["hostile"]).await
}

const THREE: [&str; 3] = ["AAA", "BBB", "CCC"];

#[tokio::test]
async fn ten_faults_in_three_task_groups_end_a_version_and_a_person_or_another_version_brings_the_plugin_back()
-> Result<()> {
    let world = world().await?;
    let mut service = world.running(&["hostile"]).await?;
    ask(&world, &service, "trap", &THREE, 10).await?;
    let line = said(&service, QUARANTINED, 1).await?;
    assert!(line["reason"].as_str().is_some_and(|why| why.contains("10 times in a row")), "{line}");
    ask(&world, &service, "behave", &THREE, 3).await?;
    assert_eq!(ends(&service, 3).await?, ["refused"; 3]);
    let (status, said_ready) = readiness(&service).await?;
    assert_eq!(status, 200, "the others are none the worse for it");
    assert!(said_ready["quarantined"]["default/hostile"].as_str().is_some_and(|why| why.contains("trap")));
    let seen = service.command(&["plugin", "inspect", "hostile"])?;
    assert!(seen.contains("quarantined  since") && seen.contains("fault        task T"), "{seen}");
    // A start is no reason to try again.
    service.terminate()?;
    service.wait_exit(SOON).await?;
    service.start()?;
    said(&service, QUARANTINED, 1).await?;
    ask(&world, &service, "behave", &THREE, 1).await?;
    assert_eq!(ends(&service, 1).await?, ["refused"]);
    // Of those that come, one is let through when it is time.
    store(&service).change("UPDATE quarantine SET probe_ms = 1")?;
    let probed = "SELECT COUNT(*) FROM quarantine WHERE probes = 1";
    wait::until("one is let through", SOON, async || {
        ask(&world, &service, "behave", &THREE, 1).await?;
        Ok(store(&service).count(probed)? == 1)
    })
    .await?;
    ask(&world, &service, "behave", &THREE, 2).await?;
    assert_eq!(ends(&service, 3).await?, ["done", "refused", "refused"]);
    assert!(service.command(&["plugin", "release", "hostile"])?.contains("released"));
    said(&service, RELEASED, 1).await?;
    ask(&world, &service, "behave", &THREE, 1).await?;
    assert_eq!(ends(&service, 1).await?, ["done"]);
    // By order, and no probe ends that.
    service.command(&["plugin", "quarantine", "hostile"])?;
    said(&service, QUARANTINED, 2).await?;
    ask(&world, &service, "behave", &THREE, 1).await?;
    assert_eq!(ends(&service, 1).await?, ["refused"]);
    Ok(())
}

#[tokio::test]
async fn nobody_can_have_a_plugin_put_away_by_failing_or_within_one_task_group() -> Result<()> {
    let world = world().await?;
    let service = world.running(&["hostile"]).await?;
    ask(&world, &service, "fail", &THREE, 12).await?;
    ask(&world, &service, "trap", &["AAA", "BBB"], 12).await?;
    ask(&world, &service, "behave", &["AAA"], 1).await?;
    assert_eq!(ends(&service, 1).await?, ["done"]);
    // Nine are not ten.
    ask(&world, &service, "trap", &THREE, 9).await?;
    ask(&world, &service, "fail", &THREE, 1).await?;
    ask(&world, &service, "trap", &THREE, 9).await?;
    ask(&world, &service, "behave", &THREE, 1).await?;
    assert_eq!(ends(&service, 1).await?, ["done"]);
    assert!(lines(&service, QUARANTINED).is_empty());
    assert_eq!(store(&service).count("SELECT COUNT(*) FROM quarantine")?, 0);
    Ok(())
}
