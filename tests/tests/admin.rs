//! What the service says of itself: alive, ready, and figures that add up.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use end_to_end::world::mail_to;
use end_to_end::{Behaviour, Broker, Phase, Service, World, request, wait};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(60);

async fn started(world: &World) -> Result<(Service, u16)> {
    let mut service = world.service(&["smtp", "hostile"])?;
    service.start()?;
    service.wait_for_output("consuming", SOON).await?;
    let address = |line: &str| serde_json::from_str::<Value>(line).ok()?.get("address")?.as_str().map(str::to_owned);
    let address = service.output().lines().find_map(address).context("it says where it serves health")?;
    Ok((service, address.rsplit(':').next().context("a port")?.parse()?))
}

async fn metrics(port: u16) -> Result<String> {
    Ok(request(port, "GET", "/metrics", &[], "").await?.body)
}

#[tokio::test]
async fn the_figures_add_up_and_prometheus_finds_them_clean() -> Result<()> {
    let world = World::new(Broker::shared().await?, &["smtp", "hostile"]).await?;
    let (_service, port) = started(&world).await?;
    world.smtp.behave_for("gone@example.com", Behaviour::Reply("550 no such user".into()))?;
    let hostile = json!({"plugins": {"hostile": {"message": "trap"}}, "emails": ["a@example.com"]});
    for section in [mail_to("a@example.com"), mail_to("gone@example.com"), hostile, json!({}), json!(null)] {
        let (_, message) = world.failed_task(&section);
        world.publish(&message).await?;
    }
    let (_, twice) = world.failed_task(&mail_to("b@example.com"));
    world.publish(&twice).await?;
    world.publish(&twice).await?;
    world.vhost.publish(&twice.exchange, "primary", &[], b"no event").await?;
    let expected = [
        "pulse_notifier_deliveries_total{outcome=\"planned\",tenant=\"default\"} 4",
        "pulse_notifier_deliveries_total{outcome=\"unasked\",tenant=\"default\"} 2",
        "pulse_notifier_deliveries_total{outcome=\"duplicate\",tenant=\"default\"} 1",
        "pulse_notifier_deliveries_total{outcome=\"malformed\",tenant=\"default\"} 1",
        "pulse_notifier_invocations_total{outcome=\"faulted\",plugin=\"hostile\",tenant=\"default\"} 1",
        "pulse_notifier_attempts_total{answer=\"delivered\",capability=\"email\",tenant=\"default\"} 2",
        "pulse_notifier_attempts_total{answer=\"permanent\",capability=\"email\",tenant=\"default\"} 1",
        "pulse_notifier_effects{state=\"dead\"} 1",
        "pulse_notifier_effects{state=\"pending\"} 0",
        "pulse_notifier_source_queue_messages{tenant=\"default\"} ",
        "pulse_notifier_build_info{version=",
    ];
    wait::until("the figures add up", SOON, async || {
        let metrics = metrics(port).await?;
        Ok(expected.iter().all(|line| metrics.contains(line)))
    })
    .await?;
    let metrics = metrics(port).await?;
    let mut promtool =
        Command::new("promtool").args(["check", "metrics"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    promtool.stdin.take().context("its input")?.write_all(metrics.as_bytes())?;
    let checked = promtool.wait_with_output()?;
    ensure!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    Ok(())
}

#[tokio::test]
async fn it_is_ready_while_it_consumes_and_says_what_keeps_it_from_it() -> Result<()> {
    let mut broker = Broker::private().await?;
    let world = World::new(&broker, &["smtp", "hostile"]).await?;
    let (_service, port) = started(&world).await?;
    let ready = async || request(port, "GET", "/readyz", &[], "").await;
    let now = ready().await?;
    let said: Value = serde_json::from_str(&now.body)?;
    assert_eq!((now.status, &said["ready"], &said["queues"]["default"]), (200, &json!(true), &json!("consuming")));
    assert_eq!(request(port, "GET", "/healthz", &[], "").await?.status, 200);
    assert_eq!(request(port, "GET", "/nothing", &[], "").await?.status, 404);

    world.smtp.behave(Phase::Auth, Behaviour::Reply("535 5.7.8 no".into()))?;
    let (_, message) = world.failed_task(&mail_to("a@example.com"));
    world.publish(&message).await?;
    wait::until("the suspended destination is shown", SOON, async || {
        let said: Value = serde_json::from_str(&ready().await?.body)?;
        Ok(said["suspended"]["email/smtp"].as_str().is_some_and(|why| why.contains("535")))
    })
    .await?;
    assert_eq!(ready().await?.status, 200, "what waits for a person does not make it unready");

    broker.kill().await?;
    wait::until("it is not ready", SOON, async || Ok(ready().await?.status == 503)).await?;
    let said: Value = serde_json::from_str(&ready().await?.body)?;
    assert_eq!(said["queues"]["default"], "not consuming");
    assert_eq!(request(port, "GET", "/healthz", &[], "").await?.status, 200);
    broker.start_again().await?;
    wait::until("it is ready again", SOON, async || Ok(ready().await?.status == 200)).await
}
