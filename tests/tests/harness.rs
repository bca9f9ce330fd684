//! The harness itself, before anything is tested with it.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use end_to_end::{
    Answer, Artifact, Behaviour, Broker, Content, Fault, Message, Mode, Moto, Phase, Queue, Service, SmtpServer,
    Taskcluster, corpus, request,
};
use lapin::options::BasicGetOptions;
use lapin::types::{AMQPValue, FieldTable};
use serde_json::{Value, json};

const EXCHANGE: &str = "exchange/taskcluster-queue/v1/task-failed";

#[tokio::test]
async fn a_published_message_arrives_with_its_cc_header() -> Result<()> {
    let vhost = Broker::shared().await?.vhost().await?;
    vhost.declare_exchanges(&[EXCHANGE]).await?;
    vhost.declare_queue("all", Queue::Classic).await?;
    vhost.bind("all", EXCHANGE, "route.#").await?;

    vhost.publish(EXCHANGE, "primary.a", &["route.index.b"], b"{}").await?;
    let depth = vhost.depth("all").await?.context("no such queue")?;
    assert_eq!((depth.ready, depth.unacked, depth.consumers), (1, 0, 0));

    let channel = vhost.channel(vhost.owner()).await?;
    let message = channel.basic_get("all".into(), BasicGetOptions { no_ack: true }).await?.context("no message")?;
    let headers = message.delivery.properties.headers().clone().context("no headers")?;
    let Some(AMQPValue::FieldArray(routes)) = headers.inner().get("CC") else { panic!("no CC in {headers:?}") };
    assert_eq!(routes.as_slice(), [AMQPValue::LongString("route.index.b".into())]);
    assert_eq!(message.delivery.data, b"{}");
    Ok(())
}

#[tokio::test]
async fn the_depth_of_a_queue_is_exact_at_once() -> Result<()> {
    let vhost = Broker::shared().await?.vhost().await?;
    vhost.declare_queue("work", Queue::Quorum).await?;
    let message = Message {
        exchange: String::new(),
        routing_key: "work".into(),
        body: json!({}),
        cc: Vec::new(),
        redelivered: false,
    };
    vhost.publisher().await?.publish_many(std::iter::repeat_n(message, 3_000)).await?;
    assert_eq!(vhost.ready("work").await?, Some(3_000));

    let channel = vhost.channel(vhost.owner()).await?;
    channel.basic_get("work".into(), BasicGetOptions::default()).await?.context("no message")?;
    let depth = vhost.depth("work").await?.context("no such queue")?;
    assert_eq!((depth.ready, depth.unacked), (2_999, 1));

    vhost.close_all_connections().await?;
    assert!(!channel.status().connected());
    vhost.delete_queue("work").await?;
    assert_eq!((vhost.ready("work").await?, vhost.depth("work").await?), (None, None));
    Ok(())
}

#[tokio::test]
async fn a_pulse_user_declares_their_own_queue_and_no_foreign_exchange() -> Result<()> {
    let vhost = Broker::shared().await?.vhost().await?;
    vhost.declare_exchanges(&[EXCHANGE]).await?;
    let account = vhost.pulse_user("someone").await?;

    let channel = vhost.channel(&account).await?;
    channel.queue_declare("queue/someone/own".into(), Default::default(), FieldTable::default()).await?;
    vhost.bind("queue/someone/own", EXCHANGE, "#").await?;
    let kind = lapin::ExchangeKind::Topic;
    let foreign = channel.exchange_declare(EXCHANGE.into(), kind, Default::default(), FieldTable::default()).await;
    assert!(foreign.is_err_and(|error| error.to_string().contains("ACCESS_REFUSED")));
    Ok(())
}

#[tokio::test]
async fn a_broker_freezes_thaws_dies_and_starts_again_with_its_durable_message() -> Result<()> {
    let mut broker = Broker::private().await?;
    let vhost = broker.vhost().await?;
    vhost.declare_queue("kept", Queue::Classic).await?;
    vhost.publish("", "kept", &[], b"{}").await?;

    broker.freeze().await?;
    assert!(tokio::time::timeout(Duration::from_millis(100), vhost.ready("kept")).await.is_err());
    broker.thaw()?;
    assert_eq!(vhost.ready("kept").await?, Some(1));

    broker.kill().await?;
    assert!(vhost.ready("kept").await.is_err());
    broker.start_again().await?;
    assert_eq!(vhost.ready("kept").await?, Some(1));
    Ok(())
}

#[tokio::test]
async fn a_mail_is_journalled_with_its_envelope_its_user_and_its_headers() -> Result<()> {
    for (mode, secure) in [(Mode::StartTls, true), (Mode::Tls, true), (Mode::Plain, false)] {
        let server = SmtpServer::start(mode).await?;
        send(&server, mode)?;
        let mails = server.wait_for_mails(1, Duration::from_secs(5)).await?;
        let mail = &mails[0];
        assert_eq!((mail.from.as_str(), mail.to.as_slice()), ("a@localhost", &["b@localhost".to_owned()][..]));
        assert_eq!((mail.tls, mail.user.as_deref()), (secure, secure.then(|| server.user())));
        assert_eq!(mail.header("SUBJECT").as_deref(), Some("folded subject"));
        assert_eq!((mail.body(), mail.connection, server.connections()?), (".dot\r\n", 1, 1));
    }
    Ok(())
}

#[tokio::test]
async fn an_smtp_server_misbehaves_at_each_phase_as_told() -> Result<()> {
    let server = SmtpServer::start(Mode::StartTls).await?;
    let phases = [
        (Phase::Greeting, "421 go away", "go away"),
        (Phase::Ehlo, "550 who are you", "SMTPHeloError"),
        (Phase::StartTls, "454 not today", "not today"),
        (Phase::Auth, "535 wrong password", "wrong password"),
        (Phase::Mail, "530 log in first", "log in first"),
        (Phase::Rcpt, "550 no such user", "no such user"),
        (Phase::Data, "451 too busy", "too busy"),
        (Phase::Dot, "554 looks like spam", "looks like spam"),
    ];
    for (phase, reply, complaint) in phases {
        let misbehaviours = [
            (Behaviour::Reply(reply.into()), complaint),
            (Behaviour::Drop, "SMTPServerDisconnected"),
            (Behaviour::Hang, "timed out"),
        ];
        server.behave_well()?;
        for (misbehaviour, complaint) in misbehaviours {
            server.behave(phase, misbehaviour.clone())?;
            let error = send(&server, Mode::StartTls).expect_err("a misbehaving server takes no mail").to_string();
            assert!(error.contains(complaint), "{phase:?}, {misbehaviour:?}: {error}");
        }
    }
    assert_eq!((server.mails()?.len(), server.count(Phase::Dot)?, server.connections()?), (0, 3, 24));
    Ok(())
}

#[tokio::test]
async fn an_smtp_server_accepts_a_mail_and_never_says_so_or_refuses_one_recipient() -> Result<()> {
    let server = SmtpServer::start(Mode::Plain).await?;
    server.behave(Phase::Dot, Behaviour::AcceptThenDrop)?;
    assert!(send(&server, Mode::Plain).is_err());
    assert_eq!(server.mails()?.len(), 1);

    server.behave_well()?;
    server.behave(Phase::Mail, Behaviour::DelayMs(1))?;
    server.behave_for("c@localhost", Behaviour::Reply("550 not c".into()))?;
    send(&server, Mode::Plain)?;
    server.behave_for("b@localhost", Behaviour::Reply("550 not b".into()))?;
    assert!(send(&server, Mode::Plain).is_err_and(|error| error.to_string().contains("not b")));
    assert_eq!(server.mails()?.len(), 2);
    Ok(())
}

#[tokio::test]
async fn taskcluster_answers_as_told_and_counts() -> Result<()> {
    let taskcluster = Taskcluster::start().await?;
    let port = taskcluster.root_url().rsplit(':').next().context("a port")?.parse()?;
    let ask = async |task_id: &str| request(port, "GET", &format!("/api/queue/v1/task/{task_id}"), &[], "").await;

    let unknown = ask("unknown").await?;
    assert_eq!(unknown.status, 404);
    assert_eq!(serde_json::from_str::<Value>(&unknown.body)?["code"], "ResourceNotFound");

    taskcluster.define("late", json!({ "metadata": {} }));
    taskcluster.answer_once("late", Answer::Error(404));
    taskcluster.answer_once("late", Answer::Html(503));
    for status in [404, 503, 200, 200] {
        assert_eq!(ask("late").await?.status, status);
    }
    assert_eq!((taskcluster.requests("late"), taskcluster.requests("never")), (4, 0));

    taskcluster.answer("bomb", Answer::GzipBomb(3 << 20));
    ensure!(ask("bomb").await?.body.len() < 10_000, "a bomb is small before it explodes");
    taskcluster.answer("big", Answer::Big(3 << 20));
    ensure!(ask("big").await?.body.len() > 3 << 20);
    taskcluster.answer("hanging", Answer::Hang);
    assert!(tokio::time::timeout(Duration::from_millis(50), ask("hanging")).await.is_err());

    taskcluster.define_all(|task_id| json!({ "name": task_id }));
    assert_eq!(ask("any").await?.body, r#"{"name":"any"}"#);
    Ok(())
}

#[tokio::test]
async fn an_artifact_is_listed_located_and_served() -> Result<()> {
    let taskcluster = Taskcluster::start().await?;
    let port = taskcluster.root_url().rsplit(':').next().context("a port")?.parse()?;
    let content = Content::Bytes(b"line".into());
    let log = Artifact { name: "public/live.log".into(), content_type: "text/plain".into(), content };
    taskcluster.add_artifact("task", 0, log);
    let ask = async |path: &str| request(port, "GET", path, &[], "").await;

    let runs = "/api/queue/v1/task/task/runs";
    let list: Value = serde_json::from_str(&ask(&format!("{runs}/0/artifacts")).await?.body)?;
    assert_eq!(list["artifacts"][0]["name"], "public/live.log");
    assert_eq!(ask(&format!("{runs}/0/artifacts/public/live.log")).await?.status, 303);
    assert_eq!(ask(&format!("{runs}/1/artifacts/public/live.log")).await?.status, 404);
    let content: Value = serde_json::from_str(&ask(&format!("{runs}/0/artifact-content/public/live.log")).await?.body)?;
    let url = content["url"].as_str().context("no address")?;
    let path = url.strip_prefix(taskcluster.root_url()).context("a foreign address")?;
    assert_eq!(ask(path).await?.body, "line");
    Ok(())
}

#[tokio::test]
async fn a_service_says_its_version_as_often_as_it_is_started() -> Result<()> {
    let mut service = Service::new(&["--version"])?;
    for _ in 0..2 {
        service.start()?;
        service.wait_for_output("pulse-notifier", Duration::from_secs(10)).await?;
        assert!(service.wait_exit(Duration::from_secs(10)).await?.success());
        assert_eq!(service.output().matches("pulse-notifier").count(), 1);
    }
    Ok(())
}

#[test]
fn the_corpus_parses() -> Result<()> {
    let Some(corpus) = corpus() else { return Ok(()) };
    let messages = corpus.messages()?;
    let known = |message: &&Message| message.body["status"]["taskId"].as_str().and_then(|id| corpus.task(id)).is_some();
    assert!(messages.iter().any(|message| !message.cc.is_empty()));
    assert!(messages.iter().filter(known).count() > 10);
    Ok(())
}

/// Sends one mail with the client of Python's standard library; its last word is the error.
fn send(server: &SmtpServer, mode: Mode) -> Result<()> {
    let connect_and_log_in = match mode {
        Mode::StartTls => {
            "client = smtplib.SMTP('localhost', port, timeout=0.3)
client.starttls(context=context)
client.login(user, password)"
        }
        Mode::Tls => {
            "client = smtplib.SMTP_SSL('localhost', port, timeout=0.3, context=context)
client.login(user, password)"
        }
        Mode::Plain => "client = smtplib.SMTP('localhost', port, timeout=0.3)",
    };
    let program = format!(
        r"import smtplib, ssl, sys
port, (ca, user, password) = int(sys.argv[1]), sys.argv[2:]
context = ssl.create_default_context(cafile=ca)
{connect_and_log_in}
client.sendmail('a@localhost', 'b@localhost', 'Subject: folded\r\n subject\r\n\r\n.dot\r\n')"
    );
    let output = Command::new("python3")
        .args(["-c", &program, &server.port().to_string()])
        .arg(server.ca_file())
        .args([server.user(), server.password()])
        .output()?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}", complaint.lines().last().unwrap_or_default());
    Ok(())
}

#[tokio::test]
async fn aws_keeps_what_it_gets_and_fails_when_told_to() -> Result<()> {
    let moto = Moto::start().await?;
    let topic = moto.create_topic("news").await?;
    let port = moto.endpoint().rsplit(':').next().context("a port")?.parse()?;
    let signed = "authorization: AWS4-HMAC-SHA256 Credential=x/20260101/us-west-2/sns/aws4_request, SignedHeaders=host, Signature=0";
    let headers = [signed, "content-type: application/x-www-form-urlencoded"];
    let publish = |text: &str| format!("Action=Publish&TopicArn={topic}&Subject=s&Message={text}");
    let send = async |text: &str| request(port, "POST", "/", &headers, &publish(text)).await;

    moto.fail("sns", 1, &Fault::Error(400, "Throttling", "Rate exceeded"));
    moto.fail("sns", 1, &Fault::Reset);
    moto.fail("sns", 1, &Fault::AcceptThenReset);
    moto.fail("ses", 1, &Fault::Hang);
    let throttled = send("throttled").await?;
    assert_eq!(throttled.status, 400);
    assert!(throttled.body.contains("<Code>Throttling</Code>"), "{}", throttled.body);
    assert!(send("reset").await.is_err());
    assert!(send("accepted").await.is_err());
    let fine = send("fine").await?;
    assert_eq!(fine.status, 200, "{}\n{}", fine.body, moto.output());
    let texts: Vec<_> = moto.published(&topic).await?.into_iter().map(|message| message.message).collect();
    assert_eq!(texts, ["accepted", "fine"]);
    assert_eq!((moto.requests("sns").len(), moto.requests("ses").len()), (4, 0));

    moto.verify("ci@example.com").await?;
    assert!(moto.mails().await?.is_empty());
    moto.create_bucket("logs").await?;
    assert!(moto.keys("logs").await?.is_empty());
    assert!(moto.object("logs", "a").await?.is_none());
    Ok(())
}
