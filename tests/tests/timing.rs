//! Timings, on a real InfluxDB, and what becomes of deliveries when there is none.

use std::time::Duration;

use anyhow::Result;
use end_to_end::world::mail_to;
use end_to_end::{Broker, InfluxServer, World, wait};

const SOON: Duration = Duration::from_secs(60);

#[tokio::test]
async fn each_event_and_each_plugin_is_timed() -> Result<()> {
    let (world, influx) = (World::new(Broker::shared().await?, &["smtp"]).await?, InfluxServer::start().await?);
    let mut service = world
        .service(&["smtp"])?
        .env("INFLUXDB_HOST", format!("127.0.0.1:{}", influx.port()))
        .env("INFLUXDB_NAME", InfluxServer::DATABASE);
    service.start()?;
    service.wait_for_output("consuming", SOON).await?;
    for number in 0..3 {
        world.publish(&world.failed_task(&mail_to(&format!("{number}@example.com"))).1).await?;
    }
    let points = "SELECT COUNT(elapsed_time) FROM notify_timing WHERE elapsed_time > 0 GROUP BY service, host";
    let all_are_there = async || {
        let found = influx.query(points).await?;
        Ok(["consumer", "smtp"].iter().all(|service| {
            let of_service =
                found.split("\"tags\"").find(|series| series.contains(&format!("\"service\":\"{service}\"")));
            of_service.is_some_and(|series| {
                series.contains("\"1970-01-01T00:00:00Z\",3]") && !series.contains("\"host\":\"\"")
            })
        }))
    };
    wait::until("three points of each are there", SOON, all_are_there).await
}

#[tokio::test]
async fn no_delivery_waits_for_a_database_that_is_away() -> Result<()> {
    let world = World::new(Broker::shared().await?, &["smtp"]).await?;
    // Nobody listens there.
    let mut service = world.service(&["smtp"])?.env("INFLUXDB_HOST", "127.0.0.1:1").env("INFLUXDB_NAME", "x");
    service.start()?;
    service.wait_for_output("consuming", SOON).await?;
    world.publish(&world.failed_task(&mail_to("a@example.com")).1).await?;
    wait::until("the mail is there", SOON, async || Ok(world.smtp.mails()?.len() == 1)).await?;
    service.wait_for_output("InfluxDB takes no points: they are dropped", SOON).await?;
    world.queue_is_empty().await
}

#[tokio::test]
async fn nothing_is_recorded_when_the_predecessors_switch_is_off() -> Result<()> {
    let world = World::new(Broker::shared().await?, &["smtp"]).await?;
    let mut service = world.service(&["smtp"])?;
    let off = [("FLUX_RECORD", "0"), ("INFLUXDB_HOST", "127.0.0.1:1"), ("INFLUXDB_NAME", "x")];
    service.start_with(&off)?;
    service.wait_for_output("consuming", SOON).await?;
    world.publish(&world.failed_task(&mail_to("a@example.com")).1).await?;
    wait::until("the mail is there", SOON, async || Ok(world.smtp.mails()?.len() == 1)).await?;
    service.terminate()?;
    service.wait_exit(SOON).await?;
    assert!(!service.output().contains("InfluxDB"), "{}", service.output());
    Ok(())
}
