//! Logs on their way from Taskcluster into a bucket: whole, gzipped once, in little memory, whatever happens on the way.

use std::io::Read;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use end_to_end::world::{mail_to, store};
use end_to_end::{Artifact, Broker, Content, Fault, Message, Moto, PIECE_BYTES, Raw, Service, World, wait};
use flate2::read::GzDecoder;
use futures_util::future::try_join_all;
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(60);
const LONG: Duration = Duration::from_secs(240);
const BUCKET: &str = "logs";
const LOG: &str = "public/logs/live_backing.log";
const STATES: &str = "SELECT state || ': ' || COALESCE(CAST(reason AS TEXT), '') FROM effect ORDER BY seq";
const DELIVERED: &str = "SELECT COUNT(*) FROM effect WHERE state = 'delivered'";
const SUSPENDED: &str = "SELECT CAST(reason AS TEXT) FROM suspension";

/// A world with a bucket for its logs.
struct Logs {
    world: World,
    aws: Moto,
}

impl Logs {
    async fn new() -> Result<Self> {
        let aws = Moto::start().await?;
        aws.create_bucket(BUCKET).await?;
        Ok(Self { world: World::new(Broker::shared().await?, &["log_collect", "smtp"]).await?, aws })
    }

    fn service(&self) -> Result<Service> {
        Ok(self.world.service_at(&self.aws, &["log_collect", "smtp"])?.env("S3_BUCKET", BUCKET))
    }

    async fn running(&self) -> Result<Service> {
        let mut service = self.service()?;
        service.start()?;
        service.wait_for_output("consuming", SOON).await?;
        Ok(service)
    }

    /// A failed task that wants its log collected; not published.
    fn task(&self, log: impl Into<Option<Content>>) -> (String, Message) {
        let (task_id, mut message) = self.world.failed_task(&json!({"plugins": ["log_collect"]}));
        if let Some(status) = message.body.get_mut("status").and_then(Value::as_object_mut) {
            status.insert("runs".into(), ended_runs(1));
        }
        if let Some(content) = log.into() {
            self.leave(&task_id, 0, content);
        }
        (task_id, message)
    }

    fn leave(&self, task_id: &str, run_id: u32, content: Content) {
        let content_type = "text/plain; charset=utf-8".into();
        self.world.taskcluster.add_artifact(task_id, run_id, Artifact { name: LOG.into(), content_type, content });
    }

    async fn object(&self, key: &str) -> Result<Raw> {
        self.aws.object(BUCKET, key).await?.with_context(|| format!("no object {key}"))
    }

    /// What is asked of S3, in short, oldest first.
    fn calls(&self) -> Vec<String> {
        let requests = self.aws.requests("s3");
        requests.iter().map(|request| request.head.lines().next().unwrap_or_default().to_owned()).collect()
    }
}

fn ended_runs(runs: u32) -> Value {
    let (started, resolved) = ("2026-11-02T09:30:00.000Z", "2026-11-02T09:40:00.000Z");
    (0..runs).map(|id| json!({"runId": id, "state": "failed", "started": started, "resolved": resolved})).collect()
}

fn by_id(task_id: &str) -> String {
    format!("{task_id}_run0_log")
}

async fn until_delivered(service: &Service, effects: i64, timeout: Duration) -> Result<()> {
    let store = store(service);
    wait::until("all is delivered", timeout, async || Ok(store.count(DELIVERED)? == effects)).await
}

fn gunzipped(object: &Raw) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    GzDecoder::new(&*object.body).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Whether an object is this content, packed once, and nothing more.
fn is_gzip_of(object: &Raw, content: &Content) -> Result<()> {
    let mut unpacked = GzDecoder::new(&*object.body);
    for (number, piece) in content.pieces().enumerate() {
        let mut found = vec![0; piece.len()];
        unpacked.read_exact(&mut found).with_context(|| format!("piece {number}"))?;
        ensure!(found == piece, "piece {number} is another");
    }
    ensure!(unpacked.read(&mut [0])? == 0, "there is more in the object than in the log");
    Ok(())
}

#[tokio::test]
async fn the_log_of_each_run_is_put_gzipped_under_the_key_of_its_release_or_its_task() -> Result<()> {
    let logs = Logs::new().await?;
    let service = logs.running().await?;
    let text = |text: &str| text.repeat(100).into_bytes();
    let (of_release, mut release) = logs.task(Content::Bytes(text("as it is\n")));
    let mut definition = end_to_end::world::definition(&json!({"plugins": ["log_collect"]}));
    definition["metadata"]["name"] = "push to/beta".into();
    definition["extra"]["build_props"] = json!({"product": "firefox", "version": "59.0b5", "build_number": 2,
        "repo_path": "releases/mozilla-beta", "platform": ""});
    logs.world.taskcluster.define(&of_release, definition);
    release.body["status"]["runs"] = ended_runs(2);
    logs.leave(&of_release, 1, Content::Gzipped(text("stored gzipped\n")));
    let (by_itself, other) = logs.task(Content::Object(text("\u{fe} of the object service\n")));
    logs.world.publish(&release).await?;
    logs.world.publish(&other).await?;
    until_delivered(&service, 3, SOON).await?;

    let release = format!("mozilla-beta/firefox-59.0b5/build2/push_to_beta-all-{of_release}");
    let mut expected = vec![format!("{release}-0"), format!("{release}-1"), by_id(&by_itself)];
    expected.sort();
    assert_eq!(logs.aws.keys(BUCKET).await?, expected);
    for (key, content) in [
        (format!("{release}-0"), text("as it is\n")),
        (format!("{release}-1"), text("stored gzipped\n")),
        (by_id(&by_itself), text("\u{fe} of the object service\n")),
    ] {
        let object = logs.object(&key).await?;
        assert_eq!(object.header("content-type"), Some("text/plain"), "{key}");
        assert_eq!(object.header("content-encoding"), Some("gzip"), "{key}");
        assert_eq!(gunzipped(&object)?, content, "{key}");
        let acl = logs.aws.acl(BUCKET, &key).await?;
        assert!(acl.contains("AllUsers") && acl.contains("READ"), "{acl}");
    }
    Ok(())
}

#[tokio::test]
async fn a_log_of_any_size_goes_through_in_little_memory() -> Result<()> {
    let logs = Logs::new().await?;
    let service = logs.running().await?;
    let (_, small) = logs.task(Content::Bytes(b"small".into()));
    logs.world.publish(&small).await?;
    until_delivered(&service, 1, SOON).await?;
    let process = format!("/proc/{}", service.pid().context("it runs")?);
    // From here on the peak is a new one.
    std::fs::write(format!("{process}/clear_refs"), "5")?;
    let before = kib(&process, "VmRSS")?;

    let pieces = |mebibytes: usize| u32::try_from((mebibytes << 20) / PIECE_BYTES);
    let (lines, noise) = (Content::Lines(pieces(300)?), Content::Noise(pieces(40)?));
    let more = Content::Noise(pieces(20)?);
    // As many as are copied at the same time.
    let tasks = [&lines, &noise, &more, &more].map(|content| logs.task(content.clone()));
    for (_, message) in &tasks {
        logs.world.publish(message).await?;
    }
    until_delivered(&service, 5, LONG).await?;
    let grown = kib(&process, "VmHWM")?.saturating_sub(before);
    #[expect(clippy::disallowed_macros, reason = "a figure for whoever asks to see it")]
    {
        eprintln!("300 MiB of lines and 40, 20 and 20 MiB of noise at once: {before} KiB grew by {grown} KiB");
    }
    assert!(grown < 64 << 10, "{grown} KiB");

    for ((task_id, _), content) in tasks.iter().zip([lines, noise]) {
        let object = logs.object(&by_id(task_id)).await?;
        assert_eq!(object.header("content-encoding"), Some("gzip"));
        is_gzip_of(&object, &content)?;
    }
    let calls = logs.calls();
    let begun: Vec<_> = calls.iter().filter(|call| call.starts_with("POST") && call.contains("uploads")).collect();
    assert!(begun.len() >= 3, "large ones go in parts: {calls:?}");
    for number in 1..=5 {
        assert!(calls.iter().any(|call| call.contains(&format!("partNumber={number}"))), "{number}: {calls:?}");
    }
    Ok(())
}

fn kib(process: &str, field: &str) -> Result<u64> {
    let status = std::fs::read_to_string(format!("{process}/status"))?;
    let line = status.lines().find(|line| line.starts_with(field)).context("no such field")?;
    Ok(line.split_whitespace().nth(1).context("no figure")?.parse()?)
}

#[tokio::test]
async fn what_taskcluster_says_about_a_log_decides_what_becomes_of_it() -> Result<()> {
    let logs = Logs::new().await?;
    let service = logs.running().await?;
    let private = "http://127.0.0.1:1/".to_owned();
    let reference = Content::At("reference", "https://example.com/live.log".into());
    for (content, expected) in [
        (reference, "dead: may not be read: stored as reference"),
        (Content::At("s3", private), "dead: may not be read: a place that is not out in the world"),
        (Content::Error(410), "dead: no such run or artifact: 410 Gone"),
        (Content::Error(424), "dead: no such run or artifact: 424 Failed Dependency"),
        (Content::Error(403), "dead: may not be read: 403 Forbidden"),
        (Content::Error(429), "pending: unavailable: 429 Too Many Requests"),
        (Content::Error(500), "pending: unavailable: 500 Internal Server Error"),
        (Content::StorageError(403), "pending: no such run or artifact: 403 Forbidden where it is stored"),
        (Content::StorageError(404), "pending: no such run or artifact: 404 Not Found"),
        (Content::StorageError(503), "pending: unavailable: 503 Service Unavailable"),
    ] {
        let (task_id, message) = logs.task(content);
        logs.world.publish(&message).await?;
        let store = store(&service);
        wait::until(&format!("{task_id} is {expected}"), SOON, async || {
            Ok(store.rows(STATES)?.last().is_some_and(|state| state == expected))
        })
        .await?;
    }
    assert!(logs.aws.keys(BUCKET).await?.is_empty());
    Ok(())
}

#[tokio::test]
async fn a_log_that_comes_late_is_waited_for() -> Result<()> {
    let logs = Logs::new().await?;
    let service = logs.running().await?;
    let (task_id, message) = logs.task(None);
    logs.world.publish(&message).await?;
    let store = store(&service);
    let waits = ["pending: no such run or artifact: 404 Not Found"];
    wait::until("it is looked for in vain", SOON, async || Ok(store.rows(STATES)? == waits)).await?;
    logs.leave(&task_id, 0, Content::Bytes(b"late".into()));
    until_delivered(&service, 1, SOON).await?;
    assert_eq!(gunzipped(&logs.object(&by_id(&task_id)).await?)?, b"late");
    Ok(())
}

#[tokio::test]
async fn a_log_that_is_cut_off_is_fetched_again_and_never_there_in_part() -> Result<()> {
    let logs = Logs::new().await?;
    let service = logs.running().await?;
    // One is cut off when its first part is in the bucket, one before.
    let pieces = u32::try_from((12 << 20) / PIECE_BYTES)?;
    let (long, short) = (Content::Noise(pieces), Content::Lines(3));
    let tasks = [logs.task(long.clone()), logs.task(short.clone())];
    logs.world.taskcluster.cut_once(&tasks[0].0, (11 << 20) / PIECE_BYTES);
    logs.world.taskcluster.cut_once(&tasks[1].0, 2);
    for (_, message) in &tasks {
        logs.world.publish(message).await?;
    }
    let store = store(&service);
    let cut = "SELECT COUNT(*) FROM attempt WHERE outcome = 'transient'";
    wait::until("both are cut off", SOON, async || Ok(store.count(cut)? == 2)).await?;
    let calls = logs.calls();
    assert!(calls.iter().any(|call| call.contains("partNumber=1")), "{calls:?}");
    assert!(calls.iter().any(|call| call.starts_with("DELETE") && call.contains("uploadId=")), "{calls:?}");
    until_delivered(&service, 2, LONG).await?;
    let calls = logs.calls();
    assert_eq!(calls.iter().filter(|call| call.contains("uploads")).count(), 2, "{calls:?}");
    let ended = |call: &&String| call.starts_with("POST") && call.contains("uploadId=");
    assert_eq!(calls.iter().filter(ended).count(), 1, "only what is whole: {calls:?}");
    for ((task_id, _), content) in tasks.iter().zip([long, short]) {
        is_gzip_of(&logs.object(&by_id(task_id)).await?, &content)?;
    }
    Ok(())
}

#[tokio::test]
async fn what_s3_answers_decides_what_becomes_of_a_log() -> Result<()> {
    let logs = Logs::new().await?;
    let service = logs.running().await?;
    let faults = [
        (Fault::Error(503, "SlowDown", "Please reduce your request rate."), "delivered"),
        (Fault::Error(400, "RequestTimeout", "Idle."), "delivered"),
        (Fault::Html(502), "delivered"),
        (Fault::Reset, "delivered"),
        (Fault::AcceptThenReset, "delivered"),
        (Fault::Error(400, "EntityTooLarge", "No."), "dead"),
        (Fault::Error(400, "KeyTooLongError", "No."), "dead"),
        (Fault::Error(400, "InvalidArgument", "No."), "dead"),
    ];
    for (number, (fault, expected)) in faults.into_iter().enumerate() {
        logs.aws.fail("s3", 1, &fault);
        let (task_id, message) = logs.task(Content::Bytes(b"a log".into()));
        logs.world.publish(&message).await?;
        let store = store(&service);
        let ended = wait::until_some(&format!("{fault:?} has an end"), SOON, async || {
            let states = store.rows(STATES)?;
            Ok(states
                .get(number)
                .filter(|state| !state.starts_with("pending") && !state.starts_with("claimed"))
                .cloned())
        })
        .await?;
        let is_there = logs.aws.object(BUCKET, &by_id(&task_id)).await?.is_some();
        assert!(ended.starts_with(expected), "{fault:?}: {ended}");
        assert_eq!(is_there, expected == "delivered", "{fault:?}");
    }
    assert_eq!(store(&service).count("SELECT COUNT(*) FROM effect WHERE in_doubt > 0")?, 0);
    Ok(())
}

#[tokio::test]
async fn what_a_person_has_to_mend_suspends_the_bucket_and_kills_nothing() -> Result<()> {
    let codes = ["NoSuchBucket", "InvalidBucketName", "PermanentRedirect", "AuthorizationHeaderMalformed"];
    let each = codes.map(async |code| {
        let logs = Logs::new().await?;
        let service = logs.running().await?;
        logs.aws.fail("s3", 1, &Fault::Error(400, code, "As the test wishes."));
        let (_, message) = logs.task(Content::Bytes(b"a log".into()));
        logs.world.publish(&message).await?;
        let store = store(&service);
        wait::until(&format!("{code} suspends it"), SOON, async || {
            Ok(store.rows(SUSPENDED)?.concat().starts_with(code))
        })
        .await?;
        until_delivered(&service, 1, SOON).await
    });
    try_join_all(each).await.map(drop)
}

#[tokio::test]
async fn wrong_keys_suspend_the_bucket_and_everything_goes_out_once_they_are_right() -> Result<()> {
    let logs = Logs::new().await?;
    let mut service = logs.service()?.env("AWS_ACCESS_KEY_ID", "AKIAWRONGWRONGWRONG0");
    logs.aws.fail("s3", 1_000, &Fault::Error(403, "InvalidAccessKeyId", "AKIAWRONGWRONGWRONG0 does not exist."));
    service.start()?;
    service.wait_for_output("consuming", SOON).await?;
    for text in ["one", "two", "three"] {
        let (_, message) = logs.task(Content::Bytes(text.into()));
        logs.world.publish(&message).await?;
    }
    let store = store(&service);
    wait::until("all wait", SOON, async || {
        let waiting = store.count("SELECT COUNT(*) FROM effect WHERE state = 'pending' AND failures = 0")?;
        Ok(waiting == 3 && store.rows(SUSPENDED)? == ["InvalidAccessKeyId (403)"])
    })
    .await?;
    assert!(!service.output().contains("AKIAWRONG"));
    service.terminate()?;
    assert!(service.wait_exit(SOON).await?.success());
    logs.aws.behave_well();
    service.start_with(&[("AWS_ACCESS_KEY_ID", end_to_end::world::AWS_ACCESS_KEY_ID)])?;
    until_delivered(&service, 3, SOON).await?;
    assert_eq!(logs.aws.keys(BUCKET).await?.len(), 3);
    wait::until("none is suspended", SOON, async || Ok(store.rows(SUSPENDED)?.is_empty())).await
}

#[tokio::test]
async fn a_bucket_that_takes_no_acls_says_what_to_set_and_takes_logs_once_it_is_set() -> Result<()> {
    let logs = Logs::new().await?;
    let mut service = logs.running().await?;
    let refusal = Fault::Error(400, "AccessControlListNotSupported", "The bucket does not allow ACLs");
    logs.aws.fail("s3", 1_000, &refusal);
    let (task_id, message) = logs.task(Content::Bytes(b"a log".into()));
    logs.world.publish(&message).await?;
    let store = store(&service);
    wait::until("it is suspended with advice", SOON, async || {
        Ok(store.rows(SUSPENDED)?.concat().starts_with("the bucket takes no ACLs: set S3_ACL=none"))
    })
    .await?;
    assert_eq!(logs.aws.requests("s3")[0].header("x-amz-acl"), Some("public-read"));
    service.terminate()?;
    assert!(service.wait_exit(SOON).await?.success());
    logs.aws.behave_well();
    service.start_with(&[("S3_ACL", "none")])?;
    until_delivered(&service, 1, SOON).await?;
    let put = logs.aws.requests("s3").pop().context("it was put")?;
    assert_eq!(put.header("x-amz-acl"), None);
    assert_eq!(gunzipped(&logs.object(&by_id(&task_id)).await?)?, b"a log");
    Ok(())
}

#[tokio::test]
async fn no_log_is_fetched_that_nobody_asked_to_collect() -> Result<()> {
    let logs = Logs::new().await?;
    let _service = logs.running().await?;
    let (task_id, mut message) = logs.world.failed_task(&mail_to("a@example.com"));
    message.body["status"]["runs"] = ended_runs(1);
    logs.leave(&task_id, 0, Content::Bytes(b"a log".into()));
    logs.world.publish(&message).await?;
    let mail = logs.world.smtp.wait_for_mails(1, SOON).await?.remove(0);
    let text = mail.body().replace("=\r\n", "");
    assert!(text.contains(&format!("https://{BUCKET}.s3.amazonaws.com/{}", by_id(&task_id))), "{text}");
    assert_eq!(logs.world.taskcluster.artifact_requests(&task_id), 0);
    assert!(logs.calls().is_empty());
    Ok(())
}
