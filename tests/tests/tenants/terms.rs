//! What a tenant may do changes: its accounts, bindings, grants and quotas.

use super::*;

#[tokio::test]
async fn an_account_that_changes_has_what_waits_for_it_and_one_that_goes_has_it_refused() -> Result<()> {
    let world = world().await?;
    let service = running(&world, &["red"]).await?;
    let store = store(&service);
    // Its server turns us away for good.
    world.smtp.behave(Phase::Auth, Behaviour::Reply("535 5.7.8 no".into()))?;
    tell(&world, "red", "a").await?;
    wait::until("it is suspended", SOON, async || {
        Ok(readiness(&service).await?.1["suspended"]["email/red.mail"].as_str().is_some())
    })
    .await?;
    let other = SmtpServer::start(Mode::Plain).await?;
    let elsewhere = tenant(&world, "red")
        .replace(&format!("port = {}", world.smtp.port()), &format!("port = {}\nsecurity = \"none\"", other.port()))
        .replace("password = \"${SMTP_PASSWD}\"\n", "");
    put_tenant(&service, "red", &elsewhere)?;
    let mails = other.wait_for_mails(1, SOON).await?;
    assert_eq!(mails[0].to, ["a@red.example.com"]);
    // Then the account goes, while a mail waits for it; the tenant has another.
    other.behave_for("busy@red.example.com", Behaviour::Reply("451 later".into()))?;
    tell(&world, "red", "busy").await?;
    let waits = "SELECT COUNT(*) FROM effect WHERE state = 'pending' AND failures > 0";
    wait::until("one waits", SOON, async || Ok(store.count(waits)? == 1)).await?;
    put_tenant(
        &service,
        "red",
        &elsewhere.replace("[accounts.mail]", "[accounts.post]").replace("account = \"mail\"", "account = \"post\""),
    )?;
    let refused = "SELECT CAST(recipient AS TEXT) || ' ' || CAST(reason AS TEXT) FROM effect WHERE state = 'refused'";
    wait::until("it is refused", SOON, async || Ok(store.rows(refused)? == ["busy@red.example.com account removed"]))
        .await?;
    tell(&world, "red", "b").await?;
    wait::until("by the other account", SOON, async || {
        Ok(other.mails()?.iter().any(|mail| mail.to == ["b@red.example.com"]))
    })
    .await?;
    assert_eq!(lines(&service, "consuming").len(), 1, "its queue is consumed as before");
    Ok(())
}

#[tokio::test]
async fn bindings_that_change_are_made_and_taken_back_and_no_event_is_lost() -> Result<()> {
    let world = world().await?;
    let service = running(&world, &["red"]).await?;
    let store = store(&service);
    // One is in hand while its consumer changes.
    world.smtp.behave_for("slow@red.example.com", Behaviour::DelayMs(500))?;
    for _ in 0..50 {
        tell(&world, "red", "slow").await?;
    }
    put_tenant(&service, "red", &tenant(&world, "red").replace("[\"red.#\"]", "[\"crimson.#\"]"))?;
    wait::until("it consumes again", SOON, async || Ok(lines(&service, "consuming").len() == 2)).await?;
    consuming(&service, &["red"]).await?;
    // Nothing is bound for it any more.
    tell(&world, "red", "nobody").await?;
    let crimson = world.failed_task_of("crimson", &mail_to("a@red.example.com")).1;
    world.publish(&crimson).await?;
    told(&world, "a@red.example.com").await?;
    let planned = "SELECT COUNT(*) FROM event WHERE state = 'planned'";
    wait::until("every event is planned", SOON, async || Ok(store.count(planned)? == 51)).await?;
    let depth = world.vhost.depth(&world.queue_of("red")).await?.context("the queue")?;
    assert_eq!((depth.ready, depth.unacked, depth.consumers), (0, 0, 1));
    Ok(())
}

#[tokio::test]
async fn a_plugin_whose_grant_no_longer_covers_it_is_refused_until_it_does_again() -> Result<()> {
    let world = world().await?;
    let mut service = running(&world, &["red"]).await?;
    let store = store(&service);
    let whole = tenant(&world, "red");
    let narrow = whole.split("[plugins.smtp.grant.email]").next().context("what comes before")?;
    put_tenant(&service, "red", &format!("{narrow}[plugins.smtp]\n"))?;
    wait::until("it is refused", SOON, async || {
        let (status, said) = readiness(&service).await?;
        assert_eq!(status, 200);
        let why = said["refused"]["red/smtp"].as_str();
        Ok(why.is_some_and(|why| why.contains("its grant does not cover what it imports: email")))
    })
    .await?;
    tell(&world, "red", "a").await?;
    let states = "SELECT plugin || ' ' || state || ' ' || CAST(reason AS TEXT) FROM invocation";
    wait::until("its invocation is refused", SOON, async || {
        Ok(store.rows(states)? == ["smtp refused no version of the plugin is live"])
    })
    .await?;
    // Nor does it keep anybody from starting.
    service.terminate()?;
    service.wait_exit(SOON).await?;
    service.start()?;
    consuming(&service, &["red"]).await?;
    assert!(readiness(&service).await?.1["refused"]["red/smtp"].is_string());
    put_tenant(&service, "red", &whole)?;
    wait::until("it runs again", SOON, async || {
        Ok(readiness(&service).await?.1["refused"].as_object().is_some_and(|refused| refused.is_empty()))
    })
    .await?;
    tell(&world, "red", "b").await?;
    told(&world, "b@red.example.com").await
}

#[tokio::test]
async fn a_plugin_on_every_event_is_told_of_what_no_task_wants_said() -> Result<()> {
    let world = world().await?;
    let file = tenant(&world, "red");
    let red = file.replace("[plugins.smtp.", "[plugins.smtp]\non = \"every\"\n[plugins.smtp.");
    let mut service = world.service_of_tenants(&[("red", &red)])?;
    service.start()?;
    consuming(&service, &["red"]).await?;
    let store = store(&service);
    let states = "SELECT identity || ' ' || plugin || ' ' || state FROM invocation";
    // Nobody to tell, and told of all the same.
    let (task_id, message) = world.failed_task_of("red", &json!({}));
    world.taskcluster.define(&task_id, json!({"metadata": {"name": "a task that says nothing"}}));
    world.publish(&message).await?;
    wait::until("it was told", SOON, async || Ok(store.rows(states)? == ["default smtp done"])).await?;
    world.publish(&world.failed_task_of("red", &json!({"emails": ["a@red.example.com"]})).1).await?;
    told(&world, "a@red.example.com").await?;
    // It is on every event no longer.
    put_tenant(&service, "red", &file)?;
    wait::until("it has changed", SOON, async || Ok(lines(&service, "tenant changed").len() == 1)).await?;
    world.publish(&world.failed_task_of("red", &json!({"emails": ["nobody@red.example.com"]})).1).await?;
    tell(&world, "red", "b").await?;
    told(&world, "b@red.example.com").await?;
    assert_eq!(world.smtp.mails()?.len(), 2);
    Ok(())
}

#[tokio::test]
async fn what_is_over_a_plugins_quota_is_sent_later_or_refused_and_no_other_tenant_waits() -> Result<()> {
    let world = world().await?;
    let quota = |name: &str, over: &str| {
        tenant(&world, name).replace("recipients", &format!("per_hour = 2\nover_quota = \"{over}\"\nrecipients"))
    };
    let (red, green, blue) = (quota("red", "wait"), quota("green", "refuse"), tenant(&world, "blue"));
    let mut service = world.service_of_tenants(&[("red", &red), ("green", &green), ("blue", &blue)])?;
    service.start()?;
    consuming(&service, &["blue", "green", "red"]).await?;
    // All of it within one hour.
    let is_early = || SystemTime::now().duration_since(UNIX_EPOCH).is_ok_and(|now| now.as_secs() % 3_600 < 3_570);
    wait::until("the hour is not about to end", SOON, async || Ok(is_early())).await?;
    for tenant in ["red", "green", "blue"] {
        for _ in 0..4 {
            // The same message twice is one event.
            let message = world.failed_task_of(tenant, &mail_to(&format!("a@{tenant}.example.com"))).1;
            world.publish(&message).await?;
            world.publish(&message).await?;
        }
    }
    let store = store(&service);
    let states = "SELECT tenant || ' ' || state || ' ' || COUNT(*) FROM effect GROUP BY tenant, state ORDER BY 1";
    let expected = ["blue delivered 4", "green delivered 2", "green refused 2", "red delivered 2", "red pending 2"];
    let all = async || Ok(store.rows(states)? == expected);
    wait::until("each has had its share", SOON, all).await?;
    let why = "SELECT DISTINCT tenant || ' ' || CAST(reason AS TEXT) || ' ' || (due_ms % 3600000 = 0) FROM effect \
               WHERE state IN ('pending', 'refused') ORDER BY 1";
    let due_with_the_hour = store.rows(why)?;
    assert!(due_with_the_hour.contains(&"red over quota: 2 an hour 1".to_owned()), "{due_with_the_hour:?}");
    assert!(
        due_with_the_hour.iter().any(|why| why.starts_with("green over quota: 2 an hour")),
        "{due_with_the_hour:?}"
    );
    Ok(())
}
