//! The whole path, on a real broker and a real mail server: what arrives, what is on record, and that the queue is empty.

use std::time::Duration;

use anyhow::{Context, Result};
use end_to_end::world::{mail_to, store};
use end_to_end::{Behaviour, Broker, Mode, Phase, Queue, Service, SmtpServer, World, corpus, wait};
use serde_json::json;

const SOON: Duration = Duration::from_secs(30);

async fn world() -> Result<World> {
    World::new(Broker::shared().await?, &["smtp", "hostile"]).await
}

#[tokio::test]
async fn a_recorded_message_becomes_a_mail_over_starttls() -> Result<()> {
    let Some(corpus) = corpus() else { return Ok(()) };
    let world = world().await?;
    let mut service = world.service(&["smtp"])?;
    service.start()?;
    let recorded = corpus.messages()?.into_iter().filter(|message| message.exchange.ends_with("task-completed"));
    let task_of = |message: &end_to_end::Message| message.body["status"]["taskId"].as_str().map(str::to_owned);
    let (mut message, task_id) = recorded
        .filter_map(|message| task_of(&message).map(|task_id| (message, task_id)))
        .find(|(_, task_id)| corpus.task(task_id).is_some())
        .context("the corpus has a completed task with its definition")?;
    let mut task = corpus.task(&task_id).context("its definition")?;
    task["extra"]["notifications"] = json!({"task-completed": {
        "plugins": ["smtp"], "emails": ["a@example.com", "b@example.com"],
        "subject": "Shipped ☃\n", "message": "<b>out</b> & about"}});
    world.taskcluster.define(&task_id, task);
    message.cc = vec!["route.index.releases.v1.example".into()];
    service.wait_for_output("consuming", SOON).await?;
    world.publish(&message).await?;

    let mails = world.smtp.wait_for_mails(2, SOON).await?;
    let group = message.body["status"]["taskGroupId"].as_str().context("the group")?;
    for mail in &mails {
        assert!(mail.tls);
        assert_eq!(mail.user.as_deref(), Some(world.smtp.user()));
        assert_eq!(mail.to.len(), 1, "one recipient an envelope");
        assert_eq!(mail.header("To").as_deref(), Some("a@example.com, b@example.com"));
        assert_eq!(mail.header("From").as_deref(), Some(world.smtp.user()));
        assert_eq!(mail.header("References"), Some(format!("<{group}@mozilla.com>")));
        assert_eq!(mail.header("In-Reply-To"), mail.header("References"));
        assert_eq!(mail.header("Subject").as_deref(), Some("Shipped =?utf-8?b?4piD?="));
        let unfolded = mail.body().replace("=\r\n", "");
        assert!(unfolded.contains("&lt;b&gt;out&lt;/b&gt; &amp; about"), "{unfolded}");
        assert!(mail.header("X-Pulse-Notifier-Effect").is_some_and(|id| id.len() == 64));
    }
    assert_eq!(mails[0].header("Message-ID"), mails[1].header("Message-ID"));
    assert_ne!(mails[0].header("X-Pulse-Notifier-Effect"), mails[1].header("X-Pulse-Notifier-Effect"));

    let store = store(&service);
    let delivered = "SELECT COUNT(*) FROM effect WHERE state = 'delivered' AND attempt = 1 AND in_doubt = 0";
    wait::until("both are on record as delivered", SOON, async || Ok(store.count(delivered)? == 2)).await?;
    let states = "SELECT e.state || ' ' || i.state FROM event e JOIN invocation i ON i.event_id = e.id";
    assert_eq!(store.rows(states)?, ["planned done"]);
    let depth = world.vhost.depth(&world.queue()).await?.context("the queue")?;
    assert_eq!((depth.ready, depth.unacked), (0, 0));
    Ok(())
}

#[tokio::test]
async fn a_queue_that_exists_is_used_as_it_is() -> Result<()> {
    for kind in [Queue::Classic, Queue::Quorum] {
        let world = world().await?;
        world.vhost.declare_queue(&world.queue(), kind).await?;
        let service = world.running(&["smtp"]).await?;
        let (_, message) = world.failed_task(&mail_to("a@example.com"));
        world.publish(&message).await?;
        world.smtp.wait_for_mails(1, SOON).await?;
        assert!(!service.output().contains("queue declared"), "{kind:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_message_published_twice_is_mailed_once() -> Result<()> {
    let world = world().await?;
    let service = world.running(&["smtp"]).await?;
    let (_, message) = world.failed_task(&mail_to("a@example.com"));
    let (_, last) = world.failed_task(&mail_to("last@example.com"));
    for message in [&message, &message, &last] {
        world.publish(message).await?;
    }
    world.queue_is_empty().await?;
    let store = store(&service);
    let open = "SELECT COUNT(*) FROM effect WHERE state <> 'delivered'";
    wait::until("every effect is delivered", SOON, async || Ok(store.count(open)? == 0)).await?;
    let mut to: Vec<_> = world.smtp.mails()?.into_iter().map(|mail| mail.to.concat()).collect();
    to.sort();
    assert_eq!(to, ["a@example.com", "last@example.com"]);
    Ok(())
}

#[tokio::test]
async fn mails_one_after_another_go_over_one_connection() -> Result<()> {
    let world = world().await?;
    let service = world.running(&["smtp"]).await?;
    let store = store(&service);
    let delivered = "SELECT COUNT(*) FROM effect WHERE state = 'delivered'";
    for number in 1..=5 {
        let (_, message) = world.failed_task(&mail_to("a@example.com"));
        world.publish(&message).await?;
        wait::until("it is delivered", SOON, async || Ok(store.count(delivered)? == number)).await?;
    }
    assert_eq!(world.smtp.connections()?, 1);
    Ok(())
}

#[tokio::test]
async fn a_plugin_that_faults_or_fails_sends_nothing_and_harms_no_other() -> Result<()> {
    let world = world().await?;
    let service = world.running(&["smtp", "hostile"]).await?;
    let attacks = ["loop", "eat memory", "trap", "fail"];
    for attack in attacks {
        let plugins = json!({"hostile": {"message": attack}, "smtp": {"subject": format!("beside {attack}")}});
        let (_, message) = world.failed_task(&json!({"plugins": plugins, "emails": ["a@example.com"]}));
        world.publish(&message).await?;
    }
    let mails = world.smtp.wait_for_mails(attacks.len(), SOON).await?;
    let mut subjects: Vec<_> = mails.iter().filter_map(|mail| mail.header("Subject")).collect();
    subjects.sort();
    assert_eq!(subjects, ["beside eat memory", "beside fail", "beside loop", "beside trap"]);
    let store = store(&service);
    let ended = "SELECT state || ': ' || CAST(reason AS TEXT) FROM invocation WHERE plugin = 'hostile' ORDER BY 1";
    let ended = store.rows(ended)?;
    for (ended, expected) in ended.iter().zip([
        "failed: as the task wished",
        "faulted: out of CPU time: more than 50 ms",
        "faulted: out of memory: more than 67108864 bytes",
        "faulted: trap: ",
    ]) {
        assert!(ended.starts_with(expected), "{ended}");
    }
    assert_eq!(ended.len(), attacks.len());
    assert_eq!(store.count("SELECT COUNT(*) FROM effect WHERE plugin = 'hostile'")?, 0);
    Ok(())
}

#[tokio::test]
async fn a_plugin_that_asks_to_be_run_again_is_alone_run_again() -> Result<()> {
    let world = world().await?;
    let service = world.running(&["smtp", "hostile"]).await?;
    let plugins = json!({"hostile": {"message": "retry"}, "smtp": {}});
    let (_, message) = world.failed_task(&json!({"plugins": plugins, "emails": ["a@example.com"]}));
    world.publish(&message).await?;
    let store = store(&service);
    let tries = "SELECT COALESCE(MAX(tries), 0) FROM invocation WHERE plugin = 'hostile' AND state = 'retry'";
    wait::until("it has run twice", SOON, async || Ok(store.count(tries)? == 2)).await?;
    assert_eq!(world.smtp.wait_for_mails(1, SOON).await?.len(), 1);
    assert_eq!(store.count("SELECT COUNT(*) FROM invocation")?, 2);
    Ok(())
}

#[tokio::test]
async fn what_the_mail_server_answers_decides_what_becomes_of_a_mail() -> Result<()> {
    let world = world().await?;
    let service = world.service(&["smtp"])?;
    answers_decide(&world, &world.smtp, service).await
}

#[tokio::test]
async fn so_it_does_where_each_command_waits_for_its_answer() -> Result<()> {
    let world = world().await?;
    let server = SmtpServer::start(Mode::Plain).await?;
    let service = world.service(&["smtp"])?.env("SMTP_PORT", server.port()).env("SMTP_SECURITY", "none");
    answers_decide(&world, &server, service.env("SMTP_PASSWD", "")).await
}

async fn answers_decide(world: &World, server: &SmtpServer, mut service: Service) -> Result<()> {
    let reply = |text: &str| Behaviour::Reply(text.to_owned());
    service.start()?;
    service.wait_for_output("consuming", SOON).await?;
    let store = store(&service);
    let becomes = async |address: &str, expected: &str| {
        let (_, message) = world.failed_task(&mail_to(&format!("{address}@example.com")));
        world.publish(&message).await?;
        let states = format!(
            "SELECT state || ' ' || COALESCE(CAST(reason AS TEXT), '') FROM effect \
             WHERE CAST(recipient AS TEXT) = '{address}@example.com'"
        );
        wait::until(&format!("{address} is {expected}"), SOON, async || Ok(store.rows(&states)? == [expected])).await
    };
    server.behave_for("gone@example.com", reply("550 5.1.1 no such user"))?;
    server.behave_for("busy@example.com", reply("451 4.7.1 later"))?;
    becomes("gone", "dead RCPT: permanent error (550): 5.1.1 no such user").await?;
    becomes("busy", "pending RCPT: transient error (451): 4.7.1 later").await?;
    becomes("fine", "delivered 250 2.0.0 accepted").await?;
    assert_eq!(server.connections()?, 1, "a recipient that is turned down leaves the connection as it is");
    server.behave(Phase::Data, reply("554 5.7.1 not now"))?;
    becomes("spam", "dead DATA: permanent error (554): 5.7.1 not now").await?;
    // A server that would take a mail to nobody.
    server.behave(Phase::Data, reply("354 go on"))?;
    server.behave_for("nobody@example.com", reply("550 5.1.1 no such user"))?;
    becomes("nobody", "dead RCPT: permanent error (550): 5.1.1 no such user").await?;
    server.behave_well()?;
    becomes("next", "delivered 250 2.0.0 accepted").await?;
    let mails = server.wait_for_mails(3, SOON).await?;
    let mut to: Vec<_> = mails.iter().flat_map(|mail| &mail.to).collect();
    to.sort();
    assert_eq!(to, ["busy@example.com", "fine@example.com", "next@example.com"]);
    Ok(())
}

#[tokio::test]
async fn a_wrong_password_kills_nothing_and_everything_goes_out_once_it_is_mended() -> Result<()> {
    let world = world().await?;
    let mut service = world.service(&["smtp"])?.env("SMTP_PASSWD", "wrong-secret");
    service.start()?;
    service.wait_for_output("consuming", SOON).await?;
    for number in 0..5 {
        let (_, message) = world.failed_task(&mail_to(&format!("{number}@example.com")));
        world.publish(&message).await?;
    }
    let store = store(&service);
    let waiting = "SELECT COUNT(*) FROM effect WHERE state = 'pending' AND failures = 0";
    wait::until("all wait", SOON, async || {
        let suspended = store.count("SELECT COUNT(*) FROM suspension WHERE destination = 'email/smtp'")?;
        Ok(suspended == 1 && store.count(waiting)? == 5)
    })
    .await?;
    assert!(!service.output().contains("wrong-secret"));
    let logins = world.smtp.count(Phase::Auth)?;
    assert!(logins <= 5, "suspended means that nobody keeps knocking: {logins} logins");
    service.terminate()?;
    assert!(service.wait_exit(SOON).await?.success());
    service.start_with(&[("SMTP_PASSWD", world.smtp.password())])?;
    world.smtp.wait_for_mails(5, SOON).await?;
    wait::until("none is suspended", SOON, async || Ok(store.count("SELECT COUNT(*) FROM suspension")? == 0)).await
}

#[tokio::test]
async fn a_mail_whose_acceptance_was_lost_is_sent_again_and_flagged_in_doubt() -> Result<()> {
    let world = world().await?;
    world.smtp.behave(Phase::Dot, Behaviour::AcceptThenDrop)?;
    let service = world.running(&["smtp"]).await?;
    let (_, message) = world.failed_task(&mail_to("a@example.com"));
    world.publish(&message).await?;
    world.smtp.wait_for_mails(1, SOON).await?;
    world.smtp.behave_well()?;
    let mails = world.smtp.wait_for_mails(2, SOON).await?;
    assert_eq!(mails[0].data, mails[1].data, "whoever gets both can tell");
    let store = store(&service);
    let flagged = "SELECT COUNT(*) FROM effect WHERE state = 'delivered' AND in_doubt = 1 AND attempt = 2";
    wait::until("it is flagged", SOON, async || Ok(store.count(flagged)? == 1)).await
}

#[tokio::test]
async fn a_server_that_cannot_prove_who_it_is_gets_no_mail() -> Result<()> {
    let world = world().await?;
    let other = World::new(Broker::shared().await?, &["smtp"]).await?;
    let mut service = world.service(&["smtp"])?.env("SSL_CERT_FILE", other.smtp.ca_file().display());
    service.start()?;
    service.wait_for_output("consuming", SOON).await?;
    let (_, message) = world.failed_task(&mail_to("a@example.com"));
    world.publish(&message).await?;
    let store = store(&service);
    let reason = "SELECT CAST(reason AS TEXT) FROM suspension";
    wait::until("it is suspended", SOON, async || Ok(!store.rows(reason)?.is_empty())).await?;
    let reason = store.rows(reason)?.concat();
    assert!(reason.contains("certificate"), "{reason}");
    assert_eq!(world.smtp.count(Phase::Auth)?, 0);
    Ok(())
}

#[tokio::test]
async fn bindings_configured_no_longer_are_taken_back() -> Result<()> {
    let world = world().await?;
    let mut service = world.service(&["smtp"])?.env("PULSE_EXCHANGES", "task-failed:task-running");
    service.start()?;
    service.wait_for_output("consuming", SOON).await?;
    service.terminate()?;
    assert!(service.wait_exit(SOON).await?.success());
    service.start_with(&[("PULSE_EXCHANGES", "task-failed")])?;
    service.wait_for_output("consuming", SOON).await?;
    service.terminate()?;
    assert!(service.wait_exit(SOON).await?.success());
    let (_, failed) = world.failed_task(&mail_to("a@example.com"));
    world.vhost.publish(&end_to_end::world::exchange("task-running"), "primary.x", &[], b"{}").await?;
    world.publish(&failed).await?;
    assert_eq!(world.vhost.ready(&world.queue()).await?, Some(1));
    Ok(())
}

#[tokio::test]
async fn an_exchange_that_is_not_there_yet_keeps_no_other_from_being_bound_and_is_bound_once_it_is() -> Result<()> {
    let world = world().await?;
    let other = "exchange/other-queue/v1/task-failed";
    let mut service = world.service(&["smtp"])?.env("PULSE_EXCHANGES", format!("{other}:task-failed"));
    service.start()?;
    service.wait_for_output("cannot bind", SOON).await?;
    service.wait_for_output("consuming", SOON).await?;
    let (_, message) = world.failed_task(&mail_to("a@example.com"));
    world.publish(&message).await?;
    world.smtp.wait_for_mails(1, SOON).await?;
    world.vhost.declare_exchanges(&[other]).await?;
    let (_, mut message) = world.failed_task(&mail_to("b@example.com"));
    message.exchange = other.into();
    wait::until("what is published there arrives", SOON, async || {
        world.publish(&message).await?;
        Ok(world.smtp.mails()?.len() == 2)
    })
    .await
}
