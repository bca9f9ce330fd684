//! What is promised: nothing is lost, and nothing is sent twice except what is flagged in doubt. Counted by comparing
//! what was published with the mail server's own journal, while the service or the broker is killed under load.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use end_to_end::world::{definition, failure, mail_to, store};
use end_to_end::{Broker, Message, Service, World, wait};
use serde_json::Value;
use tokio::net::TcpStream;

const SOON: Duration = Duration::from_secs(60);
const LONG: Duration = Duration::from_secs(240);

/// Every task exists and wants one mail to an address made of its id.
async fn world(broker: &Broker) -> Result<World> {
    let world = World::new(broker, &["smtp"]).await?;
    world.taskcluster.define_all(|task_id| definition(&mail_to(&address(task_id))));
    Ok(world)
}

fn address(task_id: &str) -> String {
    format!("{}@example.com", task_id.to_lowercase())
}

fn messages(numbers: std::ops::Range<u32>) -> impl Iterator<Item = Message> {
    numbers.map(|number| failure(number).1)
}

/// How often each task's mail was accepted.
fn accepted(world: &World) -> Result<BTreeMap<String, u32>> {
    let mut accepted = BTreeMap::new();
    for mail in world.smtp.mails()? {
        *accepted.entry(mail.to.concat()).or_default() += 1;
    }
    Ok(accepted)
}

async fn everything_arrives(world: &World, service: &Service, published: u32) -> Result<()> {
    let expected: BTreeSet<_> = (0..published).map(|number| address(&failure(number).0)).collect();
    wait::until("every mail has come", LONG, async || Ok(accepted(world)?.len() >= expected.len())).await?;
    assert_eq!(accepted(world)?.into_keys().collect::<BTreeSet<_>>(), expected);
    let store = store(service);
    let open = "SELECT COUNT(*) FROM effect WHERE state <> 'delivered'";
    wait::until("every effect is delivered", SOON, async || Ok(store.count(open)? == 0)).await?;
    assert_eq!(store.count("SELECT COUNT(*) FROM effect")?, i64::from(published));
    world.queue_is_empty().await
}

/// The addresses whose mail came twice, and those whose effect is flagged.
async fn twice_and_flagged(world: &World, service: &Service) -> Result<(BTreeSet<String>, BTreeSet<String>)> {
    let twice = accepted(world)?.into_iter().filter(|(_, times)| *times > 1).map(|(address, _)| address).collect();
    let flagged = "SELECT CAST(recipient AS TEXT) FROM effect WHERE in_doubt > 0";
    Ok((twice, store(service).rows(flagged)?.into_iter().collect()))
}

#[tokio::test]
async fn killed_thirty_times_under_load_it_loses_nothing_and_flags_what_came_twice() -> Result<()> {
    const KILLS: u32 = 30;
    const EACH: u32 = 40;
    let world = world(Broker::shared().await?).await?;
    let mut service = world.running(&["smtp"]).await?;
    let publisher = world.vhost.publisher().await?;
    for kill in 0..KILLS {
        let before = world.smtp.mails()?.len();
        publisher.publish_many(messages(kill * EACH..(kill + 1) * EACH)).await?;
        // At another moment each time: from the first message taken to the last mail sent.
        let moment = before + usize::try_from(kill * 7 % EACH)?;
        wait::until("it is in the middle of it", SOON, async || Ok(world.smtp.mails()?.len() >= moment)).await?;
        service.kill()?;
        service.start()?;
        if kill % 3 != 0 {
            service.wait_for_output("consuming", SOON).await?;
        }
    }
    everything_arrives(&world, &service, KILLS * EACH).await?;
    let (twice, flagged) = twice_and_flagged(&world, &service).await?;
    assert!(twice.is_subset(&flagged), "came twice and was not flagged: {:?}", twice.difference(&flagged));
    Ok(())
}

#[tokio::test]
async fn told_to_stop_under_load_it_finishes_what_it_has_in_hand_and_nothing_comes_twice() -> Result<()> {
    const ALL: u32 = 600;
    let world = world(Broker::shared().await?).await?;
    let mut service = world.running(&["smtp"]).await?;
    world.vhost.publisher().await?.publish_many(messages(0..ALL)).await?;
    wait::until("it is in the middle of it", SOON, async || Ok(world.smtp.mails()?.len() >= 20)).await?;
    service.terminate()?;
    let status = service.wait_exit(Duration::from_secs(30)).await?;
    assert_eq!(status.code(), Some(0));
    let held = "SELECT COUNT(*) FROM effect WHERE state = 'claimed'";
    assert_eq!(store(&service).count(held)?, 0, "what was begun was finished");
    service.start()?;
    everything_arrives(&world, &service, ALL).await?;
    let (twice, flagged) = twice_and_flagged(&world, &service).await?;
    assert_eq!((twice, flagged), (BTreeSet::new(), BTreeSet::new()));
    Ok(())
}

#[tokio::test]
async fn it_consumes_again_within_five_seconds_of_the_brokers_return_and_loses_nothing() -> Result<()> {
    const BEFORE: u32 = 600;
    const ALL: u32 = 800;
    let mut broker = Broker::private().await?;
    let world = world(&broker).await?;
    let service = world.running(&["smtp"]).await?;
    world.vhost.publisher().await?.publish_many(messages(0..BEFORE)).await?;
    wait::until("it is in the middle of it", SOON, async || Ok(world.smtp.mails()?.len() >= 20)).await?;
    broker.kill().await?;
    wait::until("it notices", SOON, async || Ok(service.output().contains("not consuming"))).await?;

    let port = broker.port();
    let returned = async {
        wait::until("the port is open", SOON, async || Ok(TcpStream::connect(("127.0.0.1", port)).await.is_ok()))
            .await?;
        Ok::<_, anyhow::Error>(Instant::now())
    };
    let consuming = async {
        wait::until("it consumes again", SOON, async || Ok(says_consuming(&service) >= 2)).await?;
        Ok::<_, anyhow::Error>(Instant::now())
    };
    let (started, returned, consuming) = tokio::join!(broker.start_again(), returned, consuming);
    started?;
    let took = consuming?.duration_since(returned?);
    assert!(took < Duration::from_secs(5), "it took {took:?}");

    world.vhost.publisher().await?.publish_many(messages(BEFORE..ALL)).await?;
    everything_arrives(&world, &service, ALL).await?;
    let (twice, _) = twice_and_flagged(&world, &service).await?;
    assert_eq!(twice, BTreeSet::new(), "a broker's death is no reason to send anything twice");
    Ok(())
}

fn says_consuming(service: &Service) -> usize {
    let lines = service.output();
    let message = |line: &str| serde_json::from_str::<Value>(line).ok()?.get("message")?.as_str().map(str::to_owned);
    lines.lines().filter_map(message).filter(|message| message == "consuming").count()
}

#[tokio::test]
async fn a_deleted_queue_is_declared_again_and_the_loss_is_said() -> Result<()> {
    let world = world(Broker::shared().await?).await?;
    let mut service = world.running(&["smtp"]).await?;
    world.vhost.delete_queue(&world.queue()).await?;
    service.wait_for_output("the queue was deleted: messages were lost there", SOON).await?;
    wait::until("it consumes again", SOON, async || Ok(says_consuming(&service) >= 2)).await?;
    world.vhost.publisher().await?.publish_many(messages(0..1)).await?;
    everything_arrives(&world, &service, 1).await
}

#[tokio::test]
async fn closed_connections_are_opened_again() -> Result<()> {
    let world = world(Broker::shared().await?).await?;
    let service = world.running(&["smtp"]).await?;
    let publisher = world.vhost.publisher().await?;
    publisher.publish_many(messages(0..200)).await?;
    world.vhost.close_all_connections().await?;
    wait::until("it consumes again", SOON, async || Ok(says_consuming(&service) >= 2)).await?;
    world.vhost.publisher().await?.publish_many(messages(200..300)).await?;
    everything_arrives(&world, &service, 300).await
}

#[tokio::test]
async fn a_full_or_locked_database_stops_consuming_and_loses_nothing() -> Result<()> {
    let world = world(Broker::shared().await?).await?;
    let mut service = world.running(&["smtp"]).await?;
    // Another process takes the database for itself, for longer than the service waits for it.
    let lock = store(&service).connect()?;
    lock.execute_batch("BEGIN EXCLUSIVE")?;
    world.vhost.publisher().await?.publish_many(messages(0..500)).await?;
    service.wait_for_output("database unavailable", LONG).await?;
    let depth = world.vhost.depth(&world.queue()).await?.context("the queue")?;
    assert_eq!(depth.ready + depth.unacked, 500, "nothing is acked");
    drop(lock);
    everything_arrives(&world, &service, 500).await
}
