//! The predecessor's contract as its users see it: one task that names all six plugins, its environment file, its identity
//! file, real definitions of its time. Real servers throughout; AWS is moto.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use end_to_end::world::{AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, exchange, store};
use end_to_end::{
    Artifact, Broker, Content, InfluxServer, IrcServer, Message, Moto, Queue, Service, World, corpus, wait,
};
use flate2::read::GzDecoder;
use mail_parser::MessageParser;
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(90);
const PLUGINS: [&str; 6] = ["irc", "log_collect", "repulse", "ses", "smtp", "sns"];
const SES_FROM: &str = "release@example.com";
const BUCKET: &str = "logs";

/// Everything the predecessor talked to.
struct Place {
    broker: &'static Broker,
    world: World,
    irc: IrcServer,
    influx: InfluxServer,
    /// SES and SNS.
    aws: Moto,
    /// S3: its own server, since the other shows no mails once there are objects.
    s3: Moto,
    topic: String,
}

impl Place {
    async fn new() -> Result<Self> {
        let broker = Broker::shared().await?;
        let (world, irc, influx, aws, s3) = tokio::try_join!(
            World::new(broker, &PLUGINS),
            IrcServer::start(),
            InfluxServer::start(),
            Moto::start(),
            Moto::start()
        )?;
        aws.verify(SES_FROM).await?;
        let topic = aws.create_topic("builds").await?;
        s3.create_bucket(BUCKET).await?;
        Ok(Self { broker, world, irc, influx, aws, s3, topic })
    }

    /// The service, with nothing set but what the predecessor's environment file holds, in the words it used: lists with
    /// colons, quoted values, True and 0. Around it, where the tests' servers are.
    fn service(&self) -> Result<Service> {
        let World { account, smtp, vhost, taskcluster, .. } = &self.world;
        let service = self.world.service_at(&self.aws, &PLUGINS)?;
        let read = |path: &Path| fs::read_to_string(path);
        let authorities = service.directory().join("authorities.pem");
        let trusted = read(&smtp.ca_file())? + &read(&self.irc.ca_file())? + &read(&self.broker.ca_file())?;
        fs::write(&authorities, trusted)?;
        let file = [
            ("PN_SERVICES", "\"ses:smtp:sns:log_collect:irc:repulse\"".to_owned()),
            ("PULSE_HOST", "'localhost'".to_owned()),
            ("PULSE_PORT", self.broker.tls_port().to_string()),
            ("PULSE_SSL", "True".to_owned()),
            ("PULSE_LOGIN", format!("\"{}\"", account.login)),
            ("PULSE_PASSWORD", format!("\"{}\"", account.password)),
            ("PULSE_QUEUE", "notifications".to_owned()),
            ("ROUTING_KEYS", "\"primary.#:route.index.releases.v1.#\"".to_owned()),
            ("SMTP_HOST", "localhost".to_owned()),
            ("SMTP_PORT", smtp.port().to_string()),
            ("SMTP_EMAIL", smtp.user().to_owned()),
            ("SMTP_PASSWD", format!("'{}'", smtp.password())),
            ("SMTP_TEMPLATE", "True".to_owned()),
            ("SES_EMAIL", SES_FROM.to_owned()),
            ("SNS_ARN", self.topic.clone()),
            ("S3_BUCKET", BUCKET.to_owned()),
            ("IRC_HOST", "localhost".to_owned()),
            ("IRC_PORT", self.irc.port().to_string()),
            ("IRC_NICK", "pulse".to_owned()),
            ("IRC_NAME", "\"Pulse Notifier\"".to_owned()),
            ("IRC_PASS", format!("\"{}\"", self.irc.password())),
            ("IRC_CHAN", "\"#ci\"".to_owned()),
            ("EMAIL_THREADING_DOMAIN", "example.com".to_owned()),
            ("AWS_ACCESS_KEY_ID", AWS_ACCESS_KEY_ID.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", AWS_SECRET_ACCESS_KEY.to_owned()),
            ("FLUX_RECORD", "1".to_owned()),
            ("INFLUXDB_HOST", format!("http://127.0.0.1:{}", self.influx.port())),
            ("INFLUXDB_NAME", InfluxServer::DATABASE.to_owned()),
            ("LOG_LEVEL", "INFO".to_owned()),
            // Not the predecessor's: where the tests are, and what it did not have.
            ("REPULSE_EXCHANGE", "again".to_owned()),
            ("PULSE_VHOST", vhost.name().to_owned()),
            ("TASKCLUSTER_ROOT_URL", taskcluster.root_url().to_owned()),
            ("AWS_ENDPOINT_URL_S3", self.s3.endpoint()),
            ("SSL_CERT_FILE", authorities.display().to_string()),
        ];
        Ok(file.into_iter().fold(service, |service, (name, value)| service.env(name, value)))
    }
}

#[tokio::test]
async fn one_task_that_names_all_six_plugins_is_told_everywhere() -> Result<()> {
    let place = Place::new().await?;
    let again = format!("exchange/{}/again", place.world.account.login);
    place.world.vhost.declare_exchanges(&[&again]).await?;
    place.world.vhost.declare_queue("heard", Queue::Classic).await?;
    place.world.vhost.bind("heard", &again, "primary.#").await?;
    let reader = place.irc.reader("reader", "#ci").await?;
    let mut service = place.service()?;
    service.start()?;
    service.wait_for_output("consuming", SOON).await?;

    let (task_id, mut message) = place.world.failed_task(&json!({
        "plugins": PLUGINS, "emails": ["a@example.com", "b@example.com"],
        "subject": "It <failed>\n", "message": "{task_id} failed & {braces} stay"}));
    let definition = json!({"metadata": {"name": "build/linux"}, "taskGroupId": "GroupAAAQxCtesttaskAAA",
        "extra": {"notifications": {"task-failed": section(&PLUGINS)},
            "build_props": {"product": "firefox", "version": "59.0", "build_number": 2, "branch": "mozilla-beta",
                "platform": "win 32"}}});
    place.world.taskcluster.define(&task_id, definition);
    message.body["status"]["runs"] = json!([{"runId": 0, "state": "failed", "started": "2018-01-30T14:25:17Z",
        "resolved": "2018-01-30T14:26:17Z"}]);
    message.cc = vec!["route.index.releases.v1.beta".into()];
    let log = Artifact {
        name: "public/logs/live_backing.log".into(),
        content_type: "text/plain".into(),
        content: Content::Bytes(b"one line\n".to_vec()),
    };
    place.world.taskcluster.add_artifact(&task_id, 0, log);
    place.world.publish(&message).await?;

    // The log, under the template's key.
    let key = format!("mozilla-beta/firefox-59.0/build2/build_linux-win_32-{task_id}-0");
    let object = wait::until_some("the log is there", SOON, async || place.s3.object(BUCKET, &key).await).await?;
    let headers = object.head.to_ascii_lowercase();
    ensure!(headers.contains("content-encoding: gzip") && headers.contains("content-type: text/plain"), "{headers}");
    assert_eq!(std::io::read_to_string(GzDecoder::new(object.body.as_slice()))?, "one line\n");
    ensure!(place.s3.acl(BUCKET, &key).await?.contains("AllUsers"), "everybody may read it");
    let log_url = format!("https://{BUCKET}.s3.amazonaws.com/{key}");

    // Mail, twice: by SES and by SMTP, each recipient with a copy of its own.
    let by_ses = place.aws.wait_for_mails(2, SOON).await?;
    let by_smtp = place.world.smtp.wait_for_mails(2, SOON).await?;
    let raw = by_ses.iter().map(|mail| mail.data.as_str()).chain(by_smtp.iter().map(|mail| mail.data.as_str()));
    for (raw, from) in raw.zip([SES_FROM, SES_FROM, place.world.smtp.user(), place.world.smtp.user()]) {
        let mail = MessageParser::default().parse(raw.as_bytes()).context("no mail")?;
        let to: Vec<_> = mail.to().context("To")?.iter().filter_map(|to| to.address()).collect();
        assert_eq!(to, ["a@example.com", "b@example.com"]);
        assert_eq!(mail.from().and_then(|from| from.first()?.address()), Some(from));
        assert_eq!(mail.subject(), Some("It <failed>"));
        assert_eq!(mail.in_reply_to().as_text(), Some("GroupAAAQxCtesttaskAAA@example.com"));
        assert_eq!(mail.references().as_text(), Some("GroupAAAQxCtesttaskAAA@example.com"));
        let (text, html) = (mail.body_text(0).context("text")?, mail.body_html(0).context("HTML")?);
        let said = format!("{task_id} failed & {{braces}} stay");
        ensure!(text.contains(&said) && html.contains(&said.replace('&', "&amp;")), "{text}\n{html}");
        ensure!(text.contains(&log_url) && html.contains(&log_url), "{text}\n{html}");
        ensure!(text.contains(&format!("/tasks/{task_id}")) && text.contains("Jan 30, 2018"), "{text}");
    }

    // SNS, through a subscription.
    let published = place.aws.wait_for_published(&place.topic, 1, SOON).await?;
    assert_eq!(published[0].subject.as_deref(), Some("It <failed>"));
    let expected = format!("{task_id} failed & {{braces}} stay\nThere should be some logs at \n{log_url}");
    assert_eq!(published[0].message, expected);

    // IRC, over TLS.
    let said: Vec<_> = reader.wait_for(2, SOON).await?.into_iter().map(|said| said.text).collect();
    let coloured = |line: &str| format!("\u{3}04{line}\u{3}04");
    assert_eq!(
        said,
        [coloured(&format!("{task_id}: {task_id} failed & {{braces}} stay")), coloured(&format!("\t\t{log_url}")),]
    );

    // Published again, as it came, without its routes.
    let heard = wait::until_some("it is heard again", SOON, async || place.world.vhost.take("heard").await).await?;
    assert_eq!(serde_json::from_slice::<Value>(&heard.data)?, message.body);
    assert_eq!(heard.routing_key.as_str(), message.routing_key);
    ensure!(
        heard.properties.headers().as_ref().is_none_or(|headers| !headers.contains_key("CC")),
        "routes are dropped"
    );

    // All on record, nothing left, timings taken.
    let store = store(&service);
    let open = "SELECT COUNT(*) FROM effect WHERE state <> 'delivered' OR in_doubt > 0";
    wait::until("all is delivered", SOON, async || {
        Ok(store.count("SELECT COUNT(*) FROM effect")? == 8 && store.count(open)? == 0)
    })
    .await?;
    place.world.queue_is_empty().await?;
    wait::until("all are timed", SOON, async || {
        let points = place.influx.query("SELECT COUNT(elapsed_time) FROM notify_timing GROUP BY service").await?;
        Ok(PLUGINS.iter().chain(&["consumer"]).all(|service| points.contains(&format!("\"service\":\"{service}\""))))
    })
    .await
}

fn section(plugins: &[&str]) -> Value {
    json!({"plugins": plugins, "emails": ["a@example.com", "b@example.com"],
        "subject": "It <failed>\n", "message": "{task_id} failed & {braces} stay"})
}

#[tokio::test]
async fn an_identity_supplies_the_plugins_of_a_release_task_and_a_section_with_its_own_counts_once_more() -> Result<()>
{
    let world = World::new(Broker::shared().await?, &["smtp"]).await?;
    let service = world.service(&["smtp"])?;
    let identities = service.directory().join("production.yml");
    fs::write(
        &identities,
        "releasetasks:\n  plugins: [smtp]\n  emails: [tasks@example.com]\n\
         release-drivers:\n  plugins: [smtp]\n  emails: [drivers@example.com]\n",
    )?;
    let mut service = service.env("PN_IDENTITIES", identities.display());
    service.start()?;
    service.wait_for_output("consuming", SOON).await?;
    // As releases were written: texts and ids, and no plugins.
    let release = json!({"subject": "Shipped", "message": "It is out", "ids": ["releasetasks", "release-drivers"]});
    world.publish(&world.failed_task(&release).1).await?;
    let both = json!({"subject": "Both", "message": "m", "ids": ["releasetasks", "release-drivers"],
        "plugins": ["smtp"], "emails": ["own@example.com"]});
    world.publish(&world.failed_task(&both).1).await?;
    let mails = world.smtp.wait_for_mails(5, SOON).await?;
    let mut told: Vec<_> = mails
        .iter()
        .map(|mail| format!("{} {}", mail.header("Subject").unwrap_or_default(), mail.to.join(" ")))
        .collect();
    told.sort();
    assert_eq!(
        told,
        [
            "Both drivers@example.com",
            "Both own@example.com",
            "Both tasks@example.com",
            "Shipped drivers@example.com",
            "Shipped tasks@example.com",
        ]
    );
    let store = store(&service);
    let by_identity = "SELECT identity || ' ' || COUNT(*) FROM invocation GROUP BY identity ORDER BY 1";
    wait::until("each is on record", SOON, async || {
        Ok(store.rows(by_identity)? == ["default 1", "release-drivers 2", "releasetasks 2"])
    })
    .await
}

#[tokio::test]
async fn a_release_task_of_2018_says_by_ses_what_it_says_and_nothing_when_it_names_no_plugin() -> Result<()> {
    let Some(corpus) = corpus() else { return Ok(()) };
    let name = "with-notifications-shipit_mark_as_shipped_EXTRA_NOTIFICATIONS";
    let task = corpus.task(name).context("the recorded definition")?;
    let (world, aws) = tokio::try_join!(World::new(Broker::shared().await?, &["ses", "smtp"]), Moto::start())?;
    aws.verify(SES_FROM).await?;
    let mut service = world.service_at(&aws, &["ses", "smtp"])?.env("SES_EMAIL", SES_FROM);
    service.start()?;
    service.wait_for_output("consuming", SOON).await?;
    let (task_id, message) = world.unknown_task();
    world.taskcluster.define(&task_id, task);
    for status in ["task-completed", "task-failed", "task-exception"] {
        world.publish(&Message { exchange: exchange(status), ..message.clone() }).await?;
    }
    let mails = aws.wait_for_mails(2, SOON).await?;
    world.queue_is_empty().await?;
    let mut subjects: Vec<_> = mails
        .iter()
        .filter_map(|mail| Some(MessageParser::default().parse(mail.data.as_bytes())?.subject()?.to_owned()))
        .collect();
    subjects.sort();
    let of = |word: &str| format!("{word}: [devedition 59.0b4 build1/maple] release-mark-as-shipped-devedition task");
    assert_eq!(subjects, [of("EXCEPTION"), of("FAILED")]);
    let told = "SELECT status || ' ' || plugin FROM invocation i JOIN event e ON e.id = i.event_id ORDER BY 1";
    assert_eq!(store(&service).rows(told)?, ["task-exception ses", "task-failed ses"]);
    Ok(())
}
