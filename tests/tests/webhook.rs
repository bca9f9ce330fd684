//! Webhooks: what a receiver is told, and what its answers do to what is waiting. Real broker, real service, real HTTPS.

use std::time::Duration;

use anyhow::{Context, Result};
use aws_lc_rs::hmac;
use end_to_end::world::store;
use end_to_end::{Broker, Reply, Request, Service, WebhookReceiver, World, wait};
use pulse_notifier::config::{Secret, WebhookAccount};
use pulse_notifier::courier::Receipt;
use pulse_notifier::courier::sinks::Sink;
use pulse_notifier::courier::sinks::webhook::Webhook;
use pulse_notifier::effect::{self, Effect, Hash, Receiver};
use pulse_notifier::store::Claimed;
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(60);
const PATH: &str = "services/T0SECRETT/B0SECRETB/secretpathsecretpath";
const TOKEN: &str = "secrettokensecrettoken";
const HMAC: &str = "secrethmacsecrethmac";
const SECRETS: [&str; 5] = ["secretpath", "SECRETT", "SECRETB", TOKEN, HMAC];
const DELIVERED: &str = "SELECT COUNT(*) FROM effect WHERE state = 'delivered'";
const SUSPENDED: &str = "SELECT destination || ': ' || CAST(reason AS TEXT) FROM suspension";
const ENDED: &str = "SELECT state || ' ' || CAST(reason AS TEXT) FROM effect WHERE state NOT IN ('pending', 'claimed')";
const HISTORY: &str = "SELECT number || ' ' || outcome || ': ' || CAST(answer AS TEXT) FROM attempt \
                       WHERE ended_ms IS NOT NULL ORDER BY started_ms, number";

// ---- the service, with the plugin `slack`

struct Place {
    world: World,
    receiver: WebhookReceiver,
}

impl Place {
    async fn new() -> Result<Self> {
        let world = World::new(Broker::shared().await?, &["slack", "smtp"]).await?;
        Ok(Self { world, receiver: WebhookReceiver::start().await? })
    }

    /// The service with one account for the receiver, at this address, and these lines more in the account.
    async fn running(&self, address: &str, account: &str) -> Result<Service> {
        let World { vhost, account: user, taskcluster, .. } = &self.world;
        let mut service = Service::new(&["run", "--config", "pn.toml"])?
            .env("PULSE_PASSWORD", &user.password)
            .env("SLACK_URL", address)
            .env("SLACK_TOKEN", TOKEN)
            .env("SLACK_HMAC", HMAC)
            .env("SSL_CERT_FILE", self.receiver.ca_file().display())
            .env("LOG_LEVEL", "DEBUG");
        let (login, host, port, root) = (&user.login, vhost.name(), vhost.port(), taskcluster.root_url());
        let plugins = self.world.plugin_folder().display();
        let text = format!(
            r#"
            [broker]
            host = "127.0.0.1"
            port = {port}
            tls = false
            vhost = "{host}"
            login = "{login}"
            password = "${{PULSE_PASSWORD}}"
            [taskcluster]
            root_url = "{root}"
            [plugins]
            directory = "{plugins}"
            [admin]
            listen = "127.0.0.1:0"
            [tenants.one.queue]
            name = "notifications"
            [tenants.one.accounts.hooks]
            kind = "webhook"
            url = "${{SLACK_URL}}"
            headers = {{ Authorization = "Bearer ${{SLACK_TOKEN}}" }}
            hmac_secret = "${{SLACK_HMAC}}"
            {account}
            [tenants.one.plugins.slack.grant.webhook]
            endpoints = {{ slack = "hooks" }}
            "#
        );
        std::fs::write(service.directory().join("pn.toml"), text)?;
        service.start()?;
        service.wait_for_output("consuming", SOON).await?;
        Ok(service)
    }

    fn url(&self) -> String {
        format!("https://localhost:{}/{PATH}", self.receiver.port())
    }

    async fn failed(&self) -> Result<String> {
        let section = json!({"plugins": ["slack"], "subject": "<!channel> It failed", "message": "{task_id} failed"});
        let (task_id, message) = self.world.failed_task(&section);
        self.world.publish(&message).await?;
        Ok(task_id)
    }
}

async fn all_delivered(service: &Service, expected: i64) -> Result<()> {
    let store = store(service);
    wait::until("all is delivered", SOON, async || Ok(store.count(DELIVERED)? == expected)).await
}

async fn ended(service: &Service) -> Result<String> {
    let store = store(service);
    wait::until_some("it has ended", SOON, async || Ok(store.rows(ENDED)?.pop())).await
}

/// As a receiver would check it: the signature is ours, over the time and the body.
fn is_signed(post: &Request) -> Result<()> {
    let time = post.header("x-pulse-notifier-timestamp").context("no time")?;
    let signature = post.header("x-pulse-notifier-signature").context("no signature")?;
    let digits = signature.strip_prefix("sha256=").context("another signature")?;
    let bytes: Vec<u8> = (0..digits.len())
        .step_by(2)
        .map(|at| Ok(u8::from_str_radix(digits.get(at..at + 2).context("an odd digit")?, 16)?))
        .collect::<Result<_>>()?;
    let signed = [time.as_bytes(), b".", &post.body].concat();
    let key = hmac::Key::new(hmac::HMAC_SHA256, HMAC.as_bytes());
    hmac::verify(&key, &signed, &bytes).map_err(|_| anyhow::anyhow!("another's signature"))
}

#[tokio::test]
async fn a_receiver_is_told_once_with_a_key_and_a_signature_and_nobody_else_sees_a_secret() -> Result<()> {
    let place = Place::new().await?;
    let service = place.running(&place.url(), "private = true").await?;
    let task_id = place.failed().await?;
    let posts = place.receiver.wait_for_posts(1, SOON).await?;
    all_delivered(&service, 1).await?;
    let [post] = &posts[..] else { anyhow::bail!("{} posts", posts.len()) };
    assert!(post.head.starts_with(&format!("POST /{PATH} HTTP/1.1\r\n")), "{}", post.head);
    let id = store(&service).rows("SELECT lower(hex(id)) FROM effect")?;
    assert_eq!(post.header("idempotency-key"), id.first().map(String::as_str));
    assert_eq!(post.header("x-pulse-notifier-effect"), post.header("idempotency-key"));
    assert_eq!(post.header("authorization"), Some(format!("Bearer {TOKEN}").as_str()));
    assert_eq!(post.header("content-type"), Some("application/json"));
    is_signed(post)?;
    let said: Value = serde_json::from_slice(&post.body)?;
    assert_eq!(said["text"], "&lt;!channel&gt; It failed");
    assert!(said["attachments"][0]["text"].as_str().is_some_and(|text| text.starts_with(&task_id)), "{said}");
    assert_eq!(store(&service).rows(HISTORY)?, ["1 delivered: 200 OK"]);
    service.tells_no_secret(&SECRETS)
}

#[tokio::test]
async fn a_receiver_in_trouble_is_told_again_with_the_same_key() -> Result<()> {
    let place = Place::new().await?;
    place.receiver.reply(Reply::Status(500, "on its tea break".into()));
    let service = place.running(&place.url(), "private = true").await?;
    place.failed().await?;
    let posts = place.receiver.wait_for_posts(2, SOON).await?;
    all_delivered(&service, 1).await?;
    assert_eq!(place.receiver.posts().len(), 2);
    let [first, second] = &posts[..] else { anyhow::bail!("{} posts", posts.len()) };
    assert_eq!(first.header("idempotency-key"), second.header("idempotency-key"));
    let history = store(&service).rows(HISTORY)?;
    assert_eq!(history, ["1 transient: 500 Internal Server Error: on its tea break", "2 delivered: 200 OK"]);
    service.tells_no_secret(&SECRETS)
}

#[tokio::test]
async fn what_a_receiver_turns_down_is_dead_and_says_why_without_a_secret() -> Result<()> {
    let place = Place::new().await?;
    place.receiver.reply(Reply::Status(400, "invalid_payload".into()));
    let service = place.running(&place.url(), "private = true").await?;
    place.failed().await?;
    assert_eq!(ended(&service).await?, "dead 400 Bad Request: invalid_payload");
    let store = store(&service);
    // As the post says them all, and at the very place where what is kept of an answer ends.
    let cut = format!("{}secretpathsecretpath", "x".repeat(285));
    for (reply, expected) in [(Reply::Echo(400), 1), (Reply::Status(400, cut), 2)] {
        place.receiver.reply(reply);
        place.failed().await?;
        wait::until("another is dead", SOON, async || {
            Ok(store.rows(ENDED)?.iter().filter(|row| *row == "dead 400 Bad Request").count() == expected)
        })
        .await?;
    }
    place.failed().await?;
    all_delivered(&service, 1).await?;
    service.tells_no_secret(&SECRETS)
}

#[tokio::test]
async fn a_wrong_secret_suspends_the_receiver_until_the_right_one_is_there() -> Result<()> {
    let place = Place::new().await?;
    for _ in 0..2 {
        place.receiver.reply(Reply::Status(401, format!("{TOKEN} is none")));
    }
    let mut service = place.running(&place.url(), "private = true").await?;
    place.failed().await?;
    let store = store(&service);
    let suspended = async || Ok(store.rows(SUSPENDED)?.pop());
    let reason = wait::until_some("the receiver is suspended", SOON, suspended).await?;
    assert_eq!(reason, "webhook/one.hooks: 401 Unauthorized");
    place.failed().await?;
    service.tells_no_secret(&SECRETS)?;
    service.terminate()?;
    service.wait_exit(SOON).await?;
    service.start_with(&[("SLACK_TOKEN", "mended")])?;
    all_delivered(&service, 2).await?;
    let posts = place.receiver.posts();
    let mended = posts.iter().filter(|post| post.header("authorization") == Some("Bearer mended"));
    assert!(mended.count() >= 2, "{posts:?}");
    assert!(store.rows(SUSPENDED)?.is_empty());
    Ok(())
}

#[tokio::test]
async fn a_name_that_leads_to_this_machine_is_not_connected_to_unless_the_operator_wishes() -> Result<()> {
    let place = Place::new().await?;
    let service = place.running(&place.url(), "").await?;
    place.failed().await?;
    let store = store(&service);
    let suspended = async || Ok(store.rows(SUSPENDED)?.pop());
    let reason = wait::until_some("the receiver is suspended", SOON, suspended).await?;
    assert!(reason.contains("it has no address out in the world: set private = true"), "{reason}");
    assert!(place.receiver.posts().is_empty());
    service.tells_no_secret(&SECRETS)
}

#[tokio::test]
async fn a_task_that_names_addresses_reaches_what_is_granted_and_nothing_near_us() -> Result<()> {
    let world = World::new(Broker::shared().await?, &["poster"]).await?;
    let (receiver, other) = (WebhookReceiver::start().await?, WebhookReceiver::start_plain().await?);
    let (port, other_port) = (receiver.port(), other.port());
    let tenant = world.tenant("one", &[])
        + &format!(
            "[accounts.near]\nkind = \"webhook\"\nprivate = true\n\
             [accounts.far]\nkind = \"webhook\"\nurl = \"https://hooks.example.com/secret\"\n\
             [plugins.poster.grant.webhook]\naccount = \"near\"\nendpoints = {{ mine = \"far\" }}\n\
             urls = [\"https://localhost:{port}/hooks/*\", \"http://169.254.169.254\"]\n"
        );
    let mut service = world.service_of_tenants(&[("one", &tenant)])?.env("SSL_CERT_FILE", receiver.ca_file().display());
    service.start()?;
    service.wait_for_output("consuming", SOON).await?;
    let urls = [
        format!("https://localhost:{port}/hooks/1"),
        "http://169.254.169.254/latest/meta-data/iam/security-credentials/".into(),
        format!("https://localhost:{port}/other"),
        format!("https://localhost:{port}/hooks/../other"),
        format!("https://localhost:{port}/hooks/..%2fother"),
        format!("http://localhost:{other_port}/hooks/1"),
        format!("https://localhost:{port}@127.0.0.1:{other_port}/hooks/1"),
        "https://hooks.example.com/secret".into(),
    ];
    let section = json!({"plugins": ["poster"], "message": urls.join("\n")});
    world.publish(&world.failed_task_of("one", &section).1).await?;
    let store = store(&service);
    let ended = async || Ok(Some(store.rows(ENDED)?).filter(|rows| rows.len() == 2));
    let mut states = wait::until_some("both effects have ended", SOON, ended).await?;
    states.sort();
    assert_eq!(states, ["dead it has no address out in the world", "delivered 200 OK"]);
    let posts = receiver.posts();
    let lines: Vec<_> = posts.iter().filter_map(|post| post.head.lines().next()).collect();
    assert_eq!(lines, ["POST /hooks/1 HTTP/1.1"]);
    assert!(other.posts().is_empty());
    Ok(())
}

// ---- the sink alone

fn sink(url: Option<&str>, private: bool) -> Result<Sink> {
    let url = url.map(|url| anyhow::Ok(Secret::new(url.parse()?))).transpose()?;
    let headers = std::iter::empty().collect();
    Ok(Sink::Webhook(Box::new(Webhook::new(WebhookAccount { url, headers, hmac_secret: None, private })?)))
}

fn claimed(to: Receiver) -> Claimed {
    let effect = Effect::Webhook(effect::Webhook {
        account: "web".into(),
        to,
        content_type: "application/json".into(),
        headers: vec![("x-team".into(), "ci".into())],
        body: b"{}".to_vec(),
    });
    let (id, tenant, plugin) = (Hash::of_bytes(b"e"), "default".into(), "slack".into());
    Claimed { seq: 1, id, call: id, tenant, plugin, attempt: 1, failures: 0, in_doubt: 0, created_ms: 0, effect }
}

fn to_url(url: &str) -> Claimed {
    claimed(Receiver::Url(url.into()))
}

/// The service installs one when it starts.
fn with_tls() {
    drop(tokio_rustls::rustls::crypto::aws_lc_rs::default_provider().install_default());
}

#[tokio::test]
async fn no_redirect_is_followed_wherever_it_leads() -> Result<()> {
    with_tls();
    let (receiver, other) = (WebhookReceiver::start_plain().await?, WebhookReceiver::start_plain().await?);
    let url = format!("http://localhost:{}/hook", receiver.port());
    let sink = sink(Some(&url), true)?;
    let elsewhere = format!("http://localhost:{}/", other.port());
    for place in ["http://169.254.169.254/latest/meta-data/", &elsewhere, "/hook", "file:///etc/passwd"] {
        for status in [301, 302, 303, 307, 308] {
            receiver.reply(Reply::Redirect(status, place.to_owned()));
            let receipt = sink.perform(&claimed(Receiver::Endpoint("hook".into()))).await;
            let is_permanent =
                matches!(&receipt, Receipt::Permanent(why) if why.ends_with(": redirects are not followed"));
            assert!(is_permanent, "{status} {place}: {receipt:?}");
        }
    }
    assert_eq!((receiver.posts().len(), other.posts().len()), (20, 0));
    Ok(())
}

#[tokio::test]
async fn no_address_that_a_plugin_names_leads_to_this_machine_or_what_is_near_it() -> Result<()> {
    with_tls();
    let receiver = WebhookReceiver::start_plain().await?;
    let sink = sink(None, false)?;
    let port = receiver.port();
    for host in ["localhost", "127.0.0.1", "127.1", "2130706433", "0x7f.1", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0"] {
        let receipt = sink.perform(&to_url(&format!("http://{host}:{port}/"))).await;
        let expected = Receipt::Permanent("it has no address out in the world".into());
        assert_eq!(receipt, expected, "{host}");
    }
    for host in ["169.254.169.254", "10.0.0.1", "[fd00:ec2::254]", "[64:ff9b::a9fe:a9fe]", "[2002:a9fe:a9fe::1]"] {
        let receipt = sink.perform(&to_url(&format!("http://{host}/latest/meta-data/"))).await;
        assert!(matches!(receipt, Receipt::Permanent(_)), "{host}: {receipt:?}");
    }
    assert!(receiver.posts().is_empty());
    Ok(())
}

#[tokio::test]
async fn even_where_private_networks_are_open_what_is_link_local_is_not() -> Result<()> {
    with_tls();
    let sink = sink(None, true)?;
    for host in ["169.254.169.254", "[fd00:ec2::254]", "[fe80::1]", "0.0.0.0"] {
        let receipt = sink.perform(&to_url(&format!("http://{host}/latest/meta-data/"))).await;
        assert!(matches!(receipt, Receipt::Permanent(_)), "{host}: {receipt:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_large_or_silent_answer_takes_neither_memory_nor_time() -> Result<()> {
    with_tls();
    let receiver = WebhookReceiver::start_plain().await?;
    let sink = sink(Some(&format!("http://localhost:{}/", receiver.port())), true)?;
    let to = || claimed(Receiver::Endpoint("hook".into()));
    receiver.reply(Reply::Endless);
    assert_eq!(sink.perform(&to()).await, Receipt::Delivered("200 OK".into()));
    assert!(receiver.bytes_sent() < 16 << 20, "{}", receiver.bytes_sent());
    receiver.reply(Reply::Silent(200));
    assert_eq!(sink.perform(&to()).await, Receipt::Delivered("200 OK".into()));
    receiver.reply(Reply::Silent(400));
    assert_eq!(sink.perform(&to()).await, Receipt::Permanent("400 Bad Request".into()));
    receiver.reply(Reply::Status(400, "x".repeat(1 << 20)));
    let Receipt::Permanent(said) = sink.perform(&to()).await else { anyhow::bail!("not permanent") };
    assert!(said.len() < 400, "{said}");
    Ok(())
}

#[tokio::test]
async fn an_answer_that_is_lost_leaves_a_doubt_and_a_receiver_that_is_away_leaves_none() -> Result<()> {
    with_tls();
    let receiver = WebhookReceiver::start_plain().await?;
    let port = receiver.port();
    let sink = sink(Some(&format!("http://localhost:{port}/")), true)?;
    let to = || claimed(Receiver::Endpoint("hook".into()));
    receiver.reply(Reply::TakeThenClose);
    let receipt = sink.perform(&to()).await;
    assert!(matches!(receipt, Receipt::InDoubt(_)), "{receipt:?}");
    assert_eq!(receiver.posts().len(), 1, "not repeated behind our back");
    drop(receiver);
    let gone = async || Ok(std::net::TcpStream::connect(("127.0.0.1", port)).is_err());
    wait::until("nobody listens", SOON, gone).await?;
    let receipt = sink.perform(&to()).await;
    assert!(matches!(receipt, Receipt::Transient(_)), "{receipt:?}");
    Ok(())
}

#[tokio::test]
async fn whoever_cannot_prove_to_be_the_receiver_gets_nothing() -> Result<()> {
    with_tls();
    let receiver = WebhookReceiver::start().await?;
    let url = format!("https://localhost:{}/", receiver.port());
    let receipt = sink(Some(&url), true)?.perform(&claimed(Receiver::Endpoint("hook".into()))).await;
    assert!(matches!(&receipt, Receipt::Suspended(why) if why.contains("certificate")), "{receipt:?}");
    let receipt = sink(None, true)?.perform(&to_url(&url)).await;
    assert!(matches!(&receipt, Receipt::Transient(_)), "others are not to wait: {receipt:?}");
    assert!(receiver.posts().is_empty());
    Ok(())
}
