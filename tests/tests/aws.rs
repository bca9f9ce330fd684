//! SES and SNS: what arrives there, and what their answers do to what is waiting. Real broker, real service; AWS is moto.

use std::time::Duration;

use anyhow::{Context, Result};
use end_to_end::world::{AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, store};
use end_to_end::{Broker, Fault, Mode, Moto, Request, Service, SmtpServer, SnsMessage, World, wait};
use mail_parser::{Message, MessageParser};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(60);
const FROM: &str = "ci@example.com";
const DELIVERED: &str = "SELECT COUNT(*) FROM effect WHERE state = 'delivered'";
const SUSPENDED: &str = "SELECT destination || ': ' || CAST(reason AS TEXT) FROM suspension";
const HISTORY: &str = "SELECT number || ' ' || outcome || ': ' || CAST(answer AS TEXT) FROM attempt \
                       WHERE ended_ms IS NOT NULL ORDER BY started_ms, number";

async fn world(plugins: &[&str]) -> Result<(World, Moto)> {
    let (world, moto) = tokio::try_join!(async { World::new(Broker::shared().await?, plugins).await }, Moto::start())?;
    moto.verify(FROM).await?;
    Ok((world, moto))
}

fn ses_service(world: &World, moto: &Moto) -> Result<Service> {
    Ok(world.service_at(moto, &["ses"])?.env("SES_EMAIL", FROM))
}

fn sns_service(world: &World, moto: &Moto, topic: &str, plugins: &[&str]) -> Result<Service> {
    Ok(world.service_at(moto, plugins)?.env("SNS_ARN", topic))
}

async fn started(mut service: Service) -> Result<Service> {
    service.start()?;
    service.wait_for_output("consuming", SOON).await?;
    Ok(service)
}

async fn publish(world: &World, section: &Value) -> Result<String> {
    let (task_id, message) = world.failed_task(section);
    world.publish(&message).await?;
    Ok(task_id)
}

fn mail_to(address: &str) -> Value {
    json!({"plugins": ["ses"], "emails": [address], "subject": "It failed", "message": "{task_id} failed"})
}

fn parsed(mail: &str) -> Result<Message<'_>> {
    MessageParser::default().parse(mail.as_bytes()).context("no mail")
}

async fn all_delivered(service: &Service, expected: i64) -> Result<()> {
    let store = store(service);
    wait::until("all is delivered", SOON, async || Ok(store.count(DELIVERED)? == expected)).await
}

async fn suspended(service: &Service) -> Result<String> {
    let store = store(service);
    wait::until_some("the destination is suspended", SOON, async || Ok(store.rows(SUSPENDED)?.pop())).await
}

#[tokio::test]
async fn ses_gets_one_call_a_recipient_and_each_mail_names_them_all() -> Result<()> {
    let (world, moto) = world(&["ses"]).await?;
    let service = ses_service(&world, &moto)?.env("EMAIL_THREADING_DOMAIN", "ci.example.com").env("LOG_LEVEL", "DEBUG");
    let service = started(service).await?;
    let emails = ["a@example.com", "b@example.com", "c@example.com"];
    let section = json!({"plugins": ["ses"], "emails": emails, "subject": "Broken ☃\n & <b>lost</b>",
        "message": "<script>alert('x')</script> & more\nin {task_id}"});
    let task_id = publish(&world, &section).await?;
    let mails = moto.wait_for_mails(emails.len(), SOON).await?;
    all_delivered(&service, 3).await?;

    let calls = moto.requests("ses");
    assert_eq!((mails.len(), calls.len()), (3, 3));
    let mut recipients: Vec<_> = calls.iter().flat_map(destinations).collect();
    recipients.sort();
    assert_eq!(recipients, emails.map(|email| email.replace('@', "%40")), "one recipient a call");
    let thread = "GroupAAAQxCtesttaskAAA@ci.example.com";
    for mail in &mails {
        assert_eq!(mail.source, FROM);
        let mail = parsed(&mail.data)?;
        let to: Vec<_> = mail.to().context("To")?.iter().filter_map(|address| address.address()).collect();
        assert_eq!(to, emails);
        assert_eq!(mail.from().and_then(|from| from.first()?.address()), Some(FROM));
        assert_eq!(mail.subject(), Some("Broken ☃ & <b>lost</b>"));
        assert_eq!((mail.in_reply_to().as_text(), mail.references().as_text()), (Some(thread), Some(thread)));
        assert!(mail.header_raw("X-Pulse-Notifier-Effect").is_some_and(|id| id.trim().len() == 64));
        let text = mail.body_text(0).context("a text part")?;
        assert!(text.contains("<script>alert('x')</script> & more"), "{text}");
        assert!(text.contains(&format!("in {task_id}")), "{text}");
        let html = mail.body_html(0).context("an HTML part")?;
        assert!(html.contains("&lt;script&gt;alert("), "{html}");
        assert!(!html.contains("<script"), "{html}");
        assert!(html.contains(&format!("/tasks/{task_id}")), "{html}");
    }
    let region = calls.iter().filter_map(|call| call.header("authorization"));
    assert!(region.clone().count() == 3 && region.into_iter().all(|header| header.contains("/us-west-2/ses/")));
    service.tells_no_secret(&[AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY])
}

/// Whom a call mails, as it is written there.
fn destinations(call: &Request) -> Vec<String> {
    let body = String::from_utf8_lossy(&call.body).into_owned();
    let fields = body.split('&').filter_map(|field| field.strip_prefix("Destinations.member."));
    fields.filter_map(|field| Some(field.split_once('=')?.1.to_owned())).collect()
}

#[tokio::test]
async fn sns_gets_the_message_and_as_much_of_the_subject_as_it_takes() -> Result<()> {
    let (world, moto) = world(&["sns", "log_collect"]).await?;
    let topic = moto.create_topic("builds").await?;
    let service = started(sns_service(&world, &moto, &topic, &["sns"])?).await?;
    let section = json!({"plugins": ["sns"], "subject": "ü".repeat(150), "message": "{task_id}\n<b>failed</b>"});
    let (task_id, message) = with_a_log(&world, &section);
    world.publish(&message).await?;
    let expected = SnsMessage { subject: Some("ü".repeat(100)), message: format!("{task_id}\n<b>failed</b>") };
    assert_eq!(moto.wait_for_published(&topic, 1, SOON).await?, [expected]);
    all_delivered(&service, 1).await?;
    service.tells_no_secret(&[AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY])
}

#[tokio::test]
async fn sns_says_where_the_logs_are_when_they_are_collected() -> Result<()> {
    let (world, moto) = world(&["sns", "log_collect"]).await?;
    let topic = moto.create_topic("builds").await?;
    let service = sns_service(&world, &moto, &topic, &["sns", "log_collect"])?.env("S3_BUCKET", "logs");
    let _service = started(service).await?;
    let (task_id, message) =
        with_a_log(&world, &json!({"plugins": ["sns"], "subject": "It failed", "message": "Have a look."}));
    world.publish(&message).await?;
    let url = format!("https://logs.s3.amazonaws.com/{task_id}_run0_log");
    let text = format!("Have a look.\nThere should be some logs at \n{url}");
    let expected = SnsMessage { subject: Some("It failed".into()), message: text };
    assert_eq!(moto.wait_for_published(&topic, 1, SOON).await?, [expected]);
    Ok(())
}

/// A task whose run has left a log.
fn with_a_log(world: &World, section: &Value) -> (String, end_to_end::Message) {
    let (task_id, mut message) = world.failed_task(section);
    let (started, resolved) = ("2026-11-02T09:30:00.000Z", "2026-11-02T09:40:00.000Z");
    if let Some(runs) = message.body.pointer_mut("/status/runs") {
        *runs = json!([{"runId": 0, "state": "failed", "started": started, "resolved": resolved}]);
    }
    (task_id, message)
}

#[tokio::test]
async fn what_is_said_to_a_topic_that_is_gone_is_dead_and_says_why() -> Result<()> {
    let (world, moto) = world(&["sns"]).await?;
    let gone = "arn:aws:sns:us-west-2:123456789012:gone";
    let service = started(sns_service(&world, &moto, gone, &["sns"])?).await?;
    publish(&world, &json!({"plugins": ["sns"], "message": "to nobody"})).await?;
    let store = store(&service);
    let ended = "SELECT state || ' ' || CAST(reason AS TEXT) FROM effect WHERE state NOT IN ('pending', 'claimed')";
    let state = wait::until_some("it has ended", SOON, async || Ok(store.rows(ended)?.pop())).await?;
    assert!(state.starts_with("dead NotFound (404): "), "{state}");
    assert!(store.rows(SUSPENDED)?.is_empty(), "others may be there");
    Ok(())
}

#[tokio::test]
async fn what_passes_by_itself_is_tried_again_and_suspends_nothing() -> Result<()> {
    let (world, moto) = world(&["ses", "sns"]).await?;
    let topic = moto.create_topic("builds").await?;
    moto.fail("ses", 1, &Fault::Error(400, "Throttling", "Maximum sending rate exceeded."));
    moto.fail("ses", 1, &Fault::Error(500, "InternalFailure", "We are sorry."));
    moto.fail("ses", 1, &Fault::Html(503));
    moto.fail("sns", 1, &Fault::Error(429, "Throttled", "Rate exceeded"));
    moto.fail("sns", 1, &Fault::Error(400, "Throttling", "Rate exceeded"));
    let service = sns_service(&world, &moto, &topic, &["ses", "sns"])?.env("SES_EMAIL", FROM);
    let service = started(service).await?;
    for number in 0..3 {
        publish(&world, &mail_to(&format!("{number}@example.com"))).await?;
    }
    for number in 0..2 {
        publish(&world, &json!({"plugins": ["sns"], "subject": "It failed", "message": format!("{number}")})).await?;
    }
    let store = store(&service);
    let failed = "SELECT COUNT(*) FROM attempt WHERE outcome = 'transient'";
    wait::until("each has failed once", SOON, async || Ok(store.count(failed)? == 5)).await?;
    assert!(store.rows(SUSPENDED)?.is_empty());
    all_delivered(&service, 5).await?;
    assert_eq!(moto.mails().await?.len(), 3);
    assert_eq!(moto.published(&topic).await?.len(), 2);
    let outcomes = "SELECT outcome || ' ' || COUNT(*) FROM attempt GROUP BY outcome ORDER BY 1";
    assert_eq!(store.rows(outcomes)?, ["delivered 5", "transient 5"]);
    assert_eq!(store.count("SELECT COUNT(*) FROM effect WHERE in_doubt > 0")?, 0);
    let history = store.rows(HISTORY)?;
    for code in
        ["Throttling (400): Maximum sending rate exceeded.", "InternalFailure (500)", "(503)", "Throttled (429)"]
    {
        assert!(history.iter().any(|line| line.starts_with("1 transient: ") && line.contains(code)), "{history:?}");
    }
    Ok(())
}

#[tokio::test]
async fn wrong_keys_kill_nothing_and_everything_goes_out_with_the_right_ones() -> Result<()> {
    let (world, moto) = world(&["ses"]).await?;
    let (wrong_id, wrong_secret) = ("AKIAWRONGWRONGWRONG0", "wrong/SecretAccessKeyThatNobodyHas/00000");
    // What is said here repeats who we are.
    let refused = Fault::Error(403, "InvalidClientTokenId", "The token AKIAWRONGWRONGWRONG0 is invalid.");
    moto.fail("ses", 1_000, &refused);
    let service = ses_service(&world, &moto)?
        .env("LOG_LEVEL", "DEBUG")
        .env("AWS_ACCESS_KEY_ID", wrong_id)
        .env("AWS_SECRET_ACCESS_KEY", wrong_secret);
    let mut service = started(service).await?;
    for number in 0..5 {
        publish(&world, &mail_to(&format!("{number}@example.com"))).await?;
    }
    assert_eq!(suspended(&service).await?, "email/ses: InvalidClientTokenId (403)");
    let store = store(&service);
    let waiting = "SELECT COUNT(*) FROM effect WHERE state = 'pending' AND failures = 0";
    wait::until("all wait", SOON, async || Ok(store.count(waiting)? == 5)).await?;
    let calls = moto.requests("ses").len();
    assert!(calls <= 8, "suspended means that nobody keeps knocking: {calls} calls");
    service.tells_no_secret(&[wrong_id, wrong_secret])?;

    service.terminate()?;
    assert!(service.wait_exit(SOON).await?.success());
    moto.behave_well();
    let right = [("AWS_ACCESS_KEY_ID", AWS_ACCESS_KEY_ID), ("AWS_SECRET_ACCESS_KEY", AWS_SECRET_ACCESS_KEY)];
    service.start_with(&right)?;
    all_delivered(&service, 5).await?;
    assert_eq!(moto.mails().await?.len(), 5);
    assert!(store.rows(SUSPENDED)?.is_empty());
    let last = moto.requests("ses").pop().context("a call")?;
    assert!(last.head.contains(AWS_ACCESS_KEY_ID));
    service.tells_no_secret(&[AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, wrong_id, wrong_secret])
}

#[tokio::test]
async fn without_any_keys_everything_waits() -> Result<()> {
    let (world, moto) = world(&["ses"]).await?;
    let service = world.service(&["ses"])?.env("SES_EMAIL", FROM).env("AWS_ENDPOINT_URL", moto.endpoint());
    let mut service = started(service).await?;
    publish(&world, &mail_to("a@example.com")).await?;
    assert_eq!(suspended(&service).await?, "email/ses: credentials: none that could be used were found");
    assert!(moto.requests("ses").is_empty());
    service.terminate()?;
    assert!(service.wait_exit(SOON).await?.success());
    let right = [("AWS_ACCESS_KEY_ID", AWS_ACCESS_KEY_ID), ("AWS_SECRET_ACCESS_KEY", AWS_SECRET_ACCESS_KEY)];
    service.start_with(&right)?;
    all_delivered(&service, 1).await
}

#[tokio::test]
async fn a_sender_that_nobody_has_verified_waits_until_it_is() -> Result<()> {
    let (world, moto) = world(&["ses"]).await?;
    let service = started(ses_service(&world, &moto)?.env("SES_EMAIL", "new@example.com")).await?;
    publish(&world, &mail_to("a@example.com")).await?;
    let why = suspended(&service).await?;
    assert!(why.starts_with("email/ses: MessageRejected (400): "), "{why}");
    moto.verify("new@example.com").await?;
    all_delivered(&service, 1).await
}

#[tokio::test]
async fn a_mail_whose_answer_was_lost_is_sent_again_with_the_same_bytes_and_flagged() -> Result<()> {
    let (world, moto) = world(&["ses", "sns"]).await?;
    let topic = moto.create_topic("builds").await?;
    for service in ["ses", "sns"] {
        moto.fail(service, 1, &Fault::AcceptThenReset);
    }
    let service = sns_service(&world, &moto, &topic, &["ses", "sns"])?.env("SES_EMAIL", FROM);
    let service = started(service).await?;
    publish(&world, &mail_to("a@example.com")).await?;
    publish(&world, &json!({"plugins": ["sns"], "subject": "It failed", "message": "twice"})).await?;
    all_delivered(&service, 2).await?;
    let mails = moto.mails().await?;
    assert_eq!(mails.len(), 2);
    assert_eq!(mails[0].data, mails[1].data, "whoever gets both can tell");
    let calls = moto.requests("ses");
    assert_eq!(calls[0].body, calls[1].body);
    let published = moto.published(&topic).await?;
    assert_eq!(published.len(), 2);
    assert_eq!(published[0], published[1]);
    let store = store(&service);
    assert_eq!(store.count("SELECT COUNT(*) FROM effect WHERE in_doubt = 1 AND attempt = 2")?, 2);
    assert!(service.output().contains("resent in doubt"));
    Ok(())
}

#[tokio::test]
async fn a_call_that_never_arrived_is_in_no_doubt() -> Result<()> {
    let (world, moto) = world(&["ses"]).await?;
    let closed = std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?;
    let service = ses_service(&world, &moto)?.env("AWS_ENDPOINT_URL", format!("http://{closed}"));
    let mut service = started(service).await?;
    publish(&world, &mail_to("a@example.com")).await?;
    let store = store(&service);
    let failed = "SELECT COUNT(*) FROM effect WHERE state = 'pending' AND failures > 0";
    wait::until("it has failed", SOON, async || Ok(store.count(failed)? == 1)).await?;
    let history = store.rows(HISTORY)?;
    assert!(history[0].starts_with("1 transient: "), "{history:?}");
    assert!(store.rows(SUSPENDED)?.is_empty());
    service.terminate()?;
    assert!(service.wait_exit(SOON).await?.success());
    service.start_with(&[("AWS_ENDPOINT_URL", &moto.endpoint())])?;
    all_delivered(&service, 1).await?;
    assert_eq!(store.count("SELECT COUNT(*) FROM effect WHERE in_doubt > 0")?, 0);
    Ok(())
}

#[tokio::test]
async fn a_call_that_hangs_keeps_no_other_waiting() -> Result<()> {
    let (world, moto) = world(&["ses"]).await?;
    moto.fail("ses", 1, &Fault::Hang);
    let service = started(ses_service(&world, &moto)?).await?;
    publish(&world, &mail_to("slow@example.com")).await?;
    wait::until("the call hangs", SOON, async || Ok(moto.requests("ses").len() == 1)).await?;
    publish(&world, &mail_to("quick@example.com")).await?;
    all_delivered(&service, 1).await?;
    assert_eq!(destinations(&moto.requests("ses")[1]), ["quick%40example.com"]);
    let claimed = "SELECT CAST(recipient AS TEXT) FROM effect WHERE state = 'claimed'";
    assert_eq!(store(&service).rows(claimed)?, ["slow@example.com"]);
    Ok(())
}

#[tokio::test]
async fn a_server_that_cannot_prove_who_it_is_gets_nothing_and_kills_nothing() -> Result<()> {
    let (world, moto) = world(&["ses"]).await?;
    // Any server with a certificate that nobody here vouches for.
    let stranger = SmtpServer::start(Mode::Tls).await?;
    let service = ses_service(&world, &moto)?.env("AWS_ENDPOINT_URL", format!("https://localhost:{}", stranger.port()));
    let mut service = started(service).await?;
    publish(&world, &mail_to("a@example.com")).await?;
    let why = suspended(&service).await?;
    assert!(why.contains("certificate"), "{why}");
    service.terminate()?;
    assert!(service.wait_exit(SOON).await?.success());
    service.start_with(&[("AWS_ENDPOINT_URL", &moto.endpoint())])?;
    all_delivered(&service, 1).await
}
