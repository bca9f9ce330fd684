//! Tenants that go: what waits for them is ended, and nothing of anybody else.

use super::*;

/// Leaves something of the tenant `red` in every state it can wait in: two mails, an event, an invocation.
async fn leave_waiting(world: &World, service: &Service) -> Result<()> {
    world.smtp.behave_for("busy@red.example.com", Behaviour::Reply("451 later".into()))?;
    tell(world, "red", "busy").await?;
    let again = json!({"plugins": {"hostile": {"message": "retry"}}, "emails": ["a@red.example.com"]});
    world.publish(&world.failed_task_of("red", &again).1).await?;
    let (task_id, later) = world.failed_task_of("red", &json!({}));
    world.taskcluster.answer(&task_id, Answer::Error(500));
    world.publish(&later).await?;
    let waiting = "SELECT (SELECT COUNT(*) FROM effect WHERE state = 'pending' AND failures > 0) \
                   + (SELECT COUNT(*) FROM invocation WHERE state = 'retry') \
                   + (SELECT COUNT(*) FROM event WHERE state = 'deferred')";
    let store = store(service);
    wait::until("all wait", SOON, async || Ok(store.count(waiting)? == 3)).await
}

async fn nothing_waits_any_more(service: &Service) -> Result<()> {
    let states = "SELECT 'effect ' || state || ': ' || CAST(reason AS TEXT) FROM effect WHERE tenant = 'red' UNION \
                  SELECT 'invocation ' || state || ': ' || CAST(reason AS TEXT) FROM invocation WHERE state <> 'done' \
                  UNION SELECT 'event ' || state || ': ' || CAST(reason AS TEXT) FROM event WHERE state <> 'planned' \
                  ORDER BY 1";
    let expected =
        ["effect refused: tenant removed", "event dead: tenant removed", "invocation refused: tenant removed"];
    let store = store(service);
    wait::until("all are ended", SOON, async || Ok(store.rows(states)? == expected)).await
}

#[tokio::test]
async fn what_waits_for_a_tenant_that_went_is_ended_and_its_queue_stays() -> Result<()> {
    let world = world().await?;
    let service = running(&world, &["red", "blue"]).await?;
    put_tenant(&service, "red", &with_hostile(&world, "red"))?;
    wait::until("it has changed", SOON, async || Ok(lines(&service, "tenant changed").len() == 1)).await?;
    leave_waiting(&world, &service).await?;
    remove_tenant(&service, "red")?;
    consuming(&service, &["blue"]).await?;
    nothing_waits_any_more(&service).await?;
    // Its queue still takes what is published, and nobody takes it out.
    wait::until("nobody consumes", SOON, async || {
        Ok(world.vhost.depth(&world.queue_of("red")).await?.is_some_and(|depth| depth.consumers == 0))
    })
    .await?;
    tell(&world, "red", "later").await?;
    tell(&world, "blue", "a").await?;
    told(&world, "a@blue.example.com").await?;
    assert_eq!(world.vhost.ready(&world.queue_of("red")).await?, Some(1));
    // Back again, it gets what came meanwhile.
    put_tenant(&service, "red", &tenant(&world, "red"))?;
    told(&world, "later@red.example.com").await
}

#[tokio::test]
async fn what_waits_for_a_tenant_that_went_while_the_service_was_down_is_ended_at_the_start() -> Result<()> {
    let world = world().await?;
    let mut service =
        world.service_of_tenants(&[("red", &with_hostile(&world, "red")), ("blue", &tenant(&world, "blue"))])?;
    service.start()?;
    consuming(&service, &["blue", "red"]).await?;
    leave_waiting(&world, &service).await?;
    service.terminate()?;
    service.wait_exit(SOON).await?;
    remove_tenant(&service, "red")?;
    service.start()?;
    nothing_waits_any_more(&service).await
}

#[tokio::test]
async fn that_all_tenants_go_at_once_is_believed_only_when_it_is_asked_for() -> Result<()> {
    let world = world().await?;
    let mut service = world.service_of_tenants(&[("red", &with_hostile(&world, "red"))])?;
    service.start()?;
    consuming(&service, &["red"]).await?;
    leave_waiting(&world, &service).await?;
    let waiting = "SELECT COUNT(*) FROM effect WHERE state = 'refused'";
    remove_tenant(&service, "red")?;
    problems(&service, &["the tenants that ran stay"]).await?;
    consuming(&service, &["red"]).await?;
    // Nor at a start.
    service.terminate()?;
    service.wait_exit(SOON).await?;
    service.start()?;
    consuming(&service, &[]).await?;
    assert_eq!(store(&service).count(waiting)?, 0, "what waits for red waits on");
    put_tenant(&service, "red", &with_hostile(&world, "red"))?;
    consuming(&service, &["red"]).await?;
    remove_tenant(&service, "red")?;
    problems(&service, &["SIGHUP takes all of them away"]).await?;
    service.signal("HUP")?;
    consuming(&service, &[]).await?;
    nothing_waits_any_more(&service).await
}

#[tokio::test]
async fn an_attempt_under_way_is_finished_although_its_tenant_went() -> Result<()> {
    let world = world().await?;
    let service = running(&world, &["red", "blue"]).await?;
    world.smtp.behave(Phase::Dot, Behaviour::DelayMs(3_000))?;
    tell(&world, "red", "slow").await?;
    let store = store(&service);
    let claimed = "SELECT COUNT(*) FROM effect WHERE state = 'claimed'";
    wait::until("it is under way", SOON, async || Ok(store.count(claimed)? == 1)).await?;
    remove_tenant(&service, "red")?;
    consuming(&service, &["blue"]).await?;
    let states = "SELECT state || ' ' || attempt FROM effect";
    wait::until("it has ended", SOON, async || Ok(store.count(claimed)? == 0)).await?;
    assert_eq!(store.rows(states)?, ["delivered 1"]);
    assert_eq!(world.smtp.mails()?.len(), 1);
    Ok(())
}
