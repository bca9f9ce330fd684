//! AWS: `moto`, with a [`Proxy`] before it that misbehaves when told to. The service under test speaks to the proxy;
//! what the tests themselves arrange and read goes past it.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::http::{Raw, raw_request};
use crate::keeper::Keeper;
use crate::proxy::{Fault, Proxy, Request};
use crate::{python, wait};

/// One running server. Dropping it ends it.
pub struct Moto {
    _keeper: Keeper,
    directory: TempDir,
    proxy: Proxy,
    port: u16,
}

/// A mail that SES has taken.
#[derive(Clone, Debug, Deserialize)]
pub struct SesMail {
    /// Who it is from, as the call said.
    pub source: String,
    /// The mail as it was sent.
    #[serde(rename = "raw_data")]
    pub data: String,
}

/// What a subscriber of a topic has received.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "PascalCase")]
pub struct SnsMessage {
    /// The subject, when there is one.
    pub subject: Option<String>,
    /// The text.
    pub message: String,
}

impl Moto {
    /// Starts a server that has nothing.
    pub async fn start() -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("moto-").tempdir()?;
        let arguments = ["-m", "moto.server", "-H", "127.0.0.1", "-p", "0"];
        let mut keeper = Keeper::spawn(directory.path(), &python(), &arguments, &[])?;
        let port = wait::until_some("moto listens", START_TIMEOUT, async || {
            let said = Keeper::output(directory.path());
            if let Some(status) = keeper.exit_status()? {
                bail!("moto ended with {status}:\n{said}");
            }
            let address = said.split_once("Running on http://127.0.0.1:").and_then(|(_, rest)| rest.lines().next());
            Ok(address.and_then(|port| port.trim().parse().ok()))
        })
        .await?;
        let proxy = Proxy::start(port)?;
        Ok(Self { _keeper: keeper, directory, proxy, port })
    }

    /// What goes into `AWS_ENDPOINT_URL`.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.proxy.port())
    }

    /// Lets the next `times` calls of a service, like `ses`, fail.
    pub fn fail(&self, service: &str, times: usize, fault: &Fault) {
        self.proxy.fail(service, times, fault);
    }

    /// Lets no further call fail.
    pub fn behave_well(&self) {
        self.proxy.behave_well();
    }

    /// The calls of a service so far, those that failed among them, oldest first.
    pub fn requests(&self, service: &str) -> Vec<Request> {
        self.proxy.requests(service)
    }

    /// Lets SES send from this address.
    pub async fn verify(&self, address: &str) -> Result<()> {
        let form = form(&[("Action", "VerifyEmailIdentity"), ("EmailAddress", address)]);
        self.call("ses", "POST", "/", &[FORM], form.as_bytes()).await.map(drop)
    }

    /// The mails SES has taken, oldest first. Not once there is an object in a bucket.
    pub async fn mails(&self) -> Result<Vec<SesMail>> {
        let mut data: Value =
            serde_json::from_slice(&self.call("ses", "GET", "/moto-api/data.json", &[], b"").await?.body)?;
        match data.pointer_mut("/ses/RawMessage") {
            Some(mails) => Ok(serde_json::from_value(mails.take())?),
            None => Ok(Vec::new()),
        }
    }

    /// Waits until SES has taken at least `count` mails, and returns them all.
    pub async fn wait_for_mails(&self, count: usize, timeout: Duration) -> Result<Vec<SesMail>> {
        wait::until_some(&format!("SES has taken {count} mails"), timeout, async || {
            Ok(Some(self.mails().await?).filter(|mails| mails.len() >= count))
        })
        .await
    }

    /// Creates a topic and a queue that hears what is published there; returns the topic's ARN.
    pub async fn create_topic(&self, name: &str) -> Result<String> {
        let topic = format!("arn:aws:sns:{REGION}:{ACCOUNT}:{name}");
        let mut queue = BTreeMap::from([("VisibilityTimeout", "0")]);
        let mut create = vec![("Action", "CreateTopic"), ("Name", name)];
        if name.ends_with(".fifo") {
            queue.insert("FifoQueue", "true");
            create.extend([("Attributes.entry.1.key", "FifoTopic"), ("Attributes.entry.1.value", "true")]);
        }
        let subscriber = format!("arn:aws:sqs:{REGION}:{ACCOUNT}:{name}");
        let subscribe = [("Action", "Subscribe"), ("TopicArn", &topic), ("Protocol", "sqs"), ("Endpoint", &subscriber)];
        self.call("sns", "POST", "/", &[FORM], form(&create).as_bytes()).await?;
        self.sqs("CreateQueue", &json!({"QueueName": name, "Attributes": queue})).await?;
        self.call("sns", "POST", "/", &[FORM], form(&subscribe).as_bytes()).await?;
        Ok(topic)
    }

    /// What was published to a topic, oldest first, at most ten.
    pub async fn published(&self, topic: &str) -> Result<Vec<SnsMessage>> {
        let name = topic.rsplit(':').next().context("a topic ends in its name")?;
        let url = format!("http://127.0.0.1:{}/{ACCOUNT}/{name}", self.port);
        let answer = self.sqs("ReceiveMessage", &json!({"QueueUrl": url, "MaxNumberOfMessages": 10})).await?;
        let messages = answer.get("Messages").and_then(Value::as_array).into_iter().flatten();
        let bodies = messages.filter_map(|message| message.get("Body")?.as_str());
        bodies.map(|body| Ok(serde_json::from_str(body)?)).collect()
    }

    /// Waits until at least `count` messages were published to a topic, and returns them.
    pub async fn wait_for_published(&self, topic: &str, count: usize, timeout: Duration) -> Result<Vec<SnsMessage>> {
        wait::until_some(&format!("{count} messages to {topic}"), timeout, async || {
            Ok(Some(self.published(topic).await?).filter(|messages| messages.len() >= count))
        })
        .await
    }

    /// Creates a bucket.
    pub async fn create_bucket(&self, name: &str) -> Result<()> {
        self.call("s3", "PUT", &format!("/{name}"), &[], b"").await.map(drop)
    }

    /// The keys in a bucket, in their order.
    pub async fn keys(&self, bucket: &str) -> Result<Vec<String>> {
        let listing = self.call("s3", "GET", &format!("/{bucket}?list-type=2"), &[], b"").await?;
        let listing = String::from_utf8(listing.body)?;
        let keys = listing.split("<Key>").skip(1).filter_map(|rest| rest.split_once("</Key>"));
        Ok(keys.map(|(key, _)| key.to_owned()).collect())
    }

    /// An object with its headers and the bytes as they are kept, or nothing. The key is spelled as in a URL.
    pub async fn object(&self, bucket: &str, key: &str) -> Result<Option<Raw>> {
        let path = format!("/{bucket}/{key}");
        let object = raw_request(self.port, "GET", &path, &[&credential("s3")], b"").await?;
        Ok((object.status == 200).then_some(object))
    }

    /// Who may read an object, as S3's XML has it.
    pub async fn acl(&self, bucket: &str, key: &str) -> Result<String> {
        let acl = self.call("s3", "GET", &format!("/{bucket}/{key}?acl"), &[], b"").await?;
        Ok(String::from_utf8(acl.body)?)
    }

    /// What the server has said, a line for each request among it.
    pub fn output(&self) -> String {
        Keeper::output(self.directory.path())
    }

    async fn sqs(&self, action: &str, parameters: &Value) -> Result<Value> {
        let target = format!("x-amz-target: AmazonSQS.{action}");
        let headers = ["content-type: application/x-amz-json-1.0", &target];
        let answer = self.call("sqs", "POST", "/", &headers, parameters.to_string().as_bytes()).await?;
        Ok(serde_json::from_slice(&answer.body)?)
    }

    async fn call(&self, service: &str, method: &str, path: &str, headers: &[&str], body: &[u8]) -> Result<Raw> {
        let credential = credential(service);
        let headers = [headers, &[credential.as_str()]].concat();
        let answer = raw_request(self.port, method, path, &headers, body).await?;
        let said = String::from_utf8_lossy(&answer.body);
        ensure!(answer.status < 300, "{service}: {method} {path}: {}: {said}", answer.status);
        Ok(answer)
    }
}

/// No signature is verified, but which service is meant stands here.
fn credential(service: &str) -> String {
    // A bucket made in this region needs no location.
    let region = if service == "s3" { "us-east-1" } else { REGION };
    let credential = format!("tests/20260101/{region}/{service}/aws4_request");
    format!("authorization: AWS4-HMAC-SHA256 Credential={credential}, SignedHeaders=host, Signature=0")
}

fn form(parameters: &[(&str, &str)]) -> String {
    let escaped = |text: &str| -> String {
        let keep = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~".contains(byte);
        let escape = |byte: u8| if keep(&byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
        text.bytes().map(escape).collect()
    };
    let pairs: Vec<_> =
        parameters.iter().map(|(name, value)| format!("{}={}", escaped(name), escaped(value))).collect();
    pairs.join("&")
}

const FORM: &str = "content-type: application/x-www-form-urlencoded";
const REGION: &str = "us-west-2";
const ACCOUNT: &str = "123456789012";
const START_TIMEOUT: Duration = Duration::from_secs(60);
