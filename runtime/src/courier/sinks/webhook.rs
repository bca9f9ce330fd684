//! Posts to receivers on the web: one post, one request. Its secrets are put in here, where no guest sees them.
//!
//! Redirects are not followed, and no connection is made to an address out of reach, whatever a name resolves to.

use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::hmac;
use jiff::Timestamp;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Client, Response, StatusCode, redirect};
use tokio::time::timeout;
use url::Url;

use crate::causes::{causes, find};
use crate::config::{Secret, WebhookAccount};
use crate::courier::Receipt;
use crate::effect::{self, EffectId, Hash, Receiver};
use crate::place::{OutOfReach, Reach};
use crate::tls::is_about_tls;

/// Posts at the same time.
pub(super) const POSTS_MAX: usize = 16;

/// One account: a receiver, or how to post to those that plugins name.
pub struct Webhook {
    account: WebhookAccount,
    reach: Reach,
    client: Client,
    /// What no answer that is kept may repeat.
    unspeakable: Vec<Secret>,
}

impl Webhook {
    /// A client of this account. Nothing is connected yet.
    ///
    /// # Errors
    /// When the platform's certificates cannot be read.
    pub fn new(account: WebhookAccount) -> Result<Self, reqwest::Error> {
        let reach = if account.private { Reach::Private } else { Reach::World };
        let client = Client::builder()
            .user_agent(concat!("pulse-notifier/", env!("CARGO_PKG_VERSION")))
            .redirect(redirect::Policy::none())
            .referer(false)
            .no_gzip()
            // A proxy would resolve names for us, and then nobody checks where they lead.
            .no_proxy()
            .dns_resolver(Arc::new(reach))
            .connect_timeout(CONNECT_TIMEOUT)
            .pool_idle_timeout(IDLE_TIMEOUT)
            .build()?;
        let unspeakable = unspeakable(&account);
        Ok(Self { account, reach, client, unspeakable })
    }

    pub(super) async fn perform(&self, id: EffectId, webhook: &effect::Webhook) -> Receipt {
        let url = match (&webhook.to, &self.account.url) {
            (Receiver::Endpoint(_), Some(url)) => url.expose().clone(),
            (Receiver::Url(text), None) => match text.parse::<Url>() {
                Ok(url) => url,
                Err(_) => return Receipt::Refused("the address is none".into()),
            },
            (Receiver::Endpoint(_), None) => return Receipt::Refused("the account has no receiver of its own".into()),
            (Receiver::Url(_), Some(_)) => return Receipt::Refused("the account has a receiver of its own".into()),
        };
        if !self.reach.covers_place(&url) {
            return out_of_reach(&webhook.to);
        }
        let Some(headers) = self.headers(id, webhook) else {
            return Receipt::Refused("a header is none".into());
        };
        let request = self.client.post(url).headers(headers).body(webhook.body.clone());
        match timeout(ANSWER_TIMEOUT, request.send()).await {
            Ok(Ok(answer)) => self.answered(&webhook.to, answer).await,
            Ok(Err(error)) => not_answered(&webhook.to, error.without_url()),
            Err(_) => Receipt::InDoubt(format!("no answer within {} s", ANSWER_TIMEOUT.as_secs())),
        }
    }

    /// The guest's, then the operator's over them, then ours.
    fn headers(&self, id: EffectId, webhook: &effect::Webhook) -> Option<HeaderMap> {
        let mut headers = HeaderMap::new();
        for (name, value) in &webhook.headers {
            headers.insert(HeaderName::from_bytes(name.as_bytes()).ok()?, HeaderValue::from_str(value).ok()?);
        }
        headers.insert(CONTENT_TYPE, HeaderValue::from_str(&webhook.content_type).ok()?);
        headers.extend(self.account.headers.clone());
        let key = HeaderValue::from_str(&id.to_string()).ok()?;
        headers.insert(IDEMPOTENCY_KEY, key.clone());
        headers.insert(EFFECT, key);
        if let Some(secret) = &self.account.hmac_secret {
            let time = Timestamp::now().as_second().to_string();
            let signature = signature(secret, &time, &webhook.body);
            headers.insert(SIGNATURE, HeaderValue::from_str(&signature).ok()?);
            headers.insert(TIMESTAMP, HeaderValue::from_str(&time).ok()?);
        }
        Some(headers)
    }

    async fn answered(&self, to: &Receiver, answer: Response) -> Receipt {
        let status = answer.status();
        let kind = kind(to, status);
        let beginning = timeout(BODY_TIMEOUT, beginning(answer)).await.unwrap_or_default();
        // Before anything is cut off: the half of a secret is one too.
        let is_speakable = !self.unspeakable.iter().any(|secret| beginning.contains(secret.expose()));
        let beginning = shortened(&beginning);
        let text = if status.is_redirection() {
            format!("{status}: redirects are not followed")
        } else if status.is_success() || beginning.is_empty() || !is_speakable {
            status.to_string()
        } else {
            format!("{status}: {beginning}")
        };
        kind(text)
    }
}

/// What an answer means. Where the address is the operator's, so is the secret that does not fit it; where a plugin named
/// it, there is nobody to mend it, and others who are told by this account must not wait.
fn kind(to: &Receiver, status: StatusCode) -> fn(String) -> Receipt {
    match (status.as_u16(), to) {
        (200..=299, _) => Receipt::Delivered,
        (408 | 425 | 429 | 500.., _) | (401 | 403 | 407, Receiver::Url(_)) => Receipt::Transient,
        (401 | 403 | 407, Receiver::Endpoint(_)) => Receipt::Suspended,
        (..=199 | 300..=499, _) => Receipt::Permanent,
    }
}

/// What it means that there is no answer.
fn not_answered(to: &Receiver, error: reqwest::Error) -> Receipt {
    if find::<OutOfReach>(&error).is_some() {
        return out_of_reach(to);
    }
    let why = shortened(&causes(&error));
    match to {
        Receiver::Endpoint(_) if error.is_builder() || (error.is_connect() && is_about_tls(&error)) => {
            Receipt::Suspended(why)
        }
        Receiver::Url(_) if error.is_builder() => Receipt::Permanent(why),
        // No connection was made, so nothing can have been received.
        Receiver::Endpoint(_) | Receiver::Url(_) if error.is_connect() => Receipt::Transient(why),
        Receiver::Endpoint(_) | Receiver::Url(_) => Receipt::InDoubt(why),
    }
}

fn out_of_reach(to: &Receiver) -> Receipt {
    match to {
        Receiver::Endpoint(_) => {
            Receipt::Suspended(format!("{OutOfReach}: set private = true if the receiver is in a private network"))
        }
        Receiver::Url(_) => Receipt::Permanent(OutOfReach.to_string()),
    }
}

/// `sha256=` and, in hexadecimal, HMAC-SHA256 over the time, a full stop and the body.
fn signature(secret: &Secret, time: &str, body: &[u8]) -> String {
    let mut signed = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, secret.expose().as_bytes()));
    signed.update(time.as_bytes());
    signed.update(b".");
    signed.update(body);
    let digits = Hash::from_slice(signed.sign().as_ref()).map(|hash| hash.to_string());
    format!("sha256={}", digits.unwrap_or_default())
}

/// The first of what a receiver says, when it is text.
async fn beginning(mut answer: Response) -> String {
    let mut bytes = Vec::new();
    while let Ok(Some(chunk)) = answer.chunk().await {
        bytes.extend(chunk.iter().take(ANSWER_BYTES_MAX - bytes.len()));
        if bytes.len() == ANSWER_BYTES_MAX {
            break;
        }
    }
    String::from_utf8_lossy(&bytes).trim().to_owned()
}

/// Whatever in an account is secret, piece by piece, since an answer may repeat a piece of it.
fn unspeakable(account: &WebhookAccount) -> Vec<Secret> {
    let url = account.url.as_ref().map(Secret::expose);
    let of_url = url.into_iter().flat_map(|url| {
        let path = url.path_segments().into_iter().flatten();
        let query = url.query().into_iter().flat_map(|query| query.split(['&', '=']));
        path.chain(query).chain(url.password())
    });
    let of_headers = account.headers.values().filter_map(|value| value.to_str().ok()).flat_map(|text| text.split(' '));
    let pieces = of_url.chain(of_headers).chain(account.hmac_secret.as_ref().map(|secret| secret.expose().as_str()));
    pieces.filter(|piece| piece.len() >= PIECE_BYTES_MIN).map(|piece| Secret::new(piece.to_owned())).collect()
}

/// Foreign words as part of a receipt.
fn shortened(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(ANSWER_CHARS_MAX).collect()
}

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const EFFECT: HeaderName = HeaderName::from_static("x-pulse-notifier-effect");
const TIMESTAMP: HeaderName = HeaderName::from_static("x-pulse-notifier-timestamp");
const SIGNATURE: HeaderName = HeaderName::from_static("x-pulse-notifier-signature");
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
const BODY_TIMEOUT: Duration = Duration::from_secs(2);
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
const ANSWER_BYTES_MAX: usize = 4 << 10;
const ANSWER_CHARS_MAX: usize = 300;
/// Shorter pieces are in too many words.
const PIECE_BYTES_MIN: usize = 6;

#[cfg(test)]
mod tests {
    use super::*;

    fn kind_of(to: &Receiver, status: u16) -> &'static str {
        match kind(to, StatusCode::from_u16(status).unwrap())(String::new()) {
            Receipt::Delivered(_) => "delivered",
            Receipt::Transient(_) => "transient",
            Receipt::Permanent(_) => "permanent",
            Receipt::Suspended(_) => "suspended",
            Receipt::InDoubt(_) | Receipt::Refused(_) => "another",
        }
    }

    #[test]
    fn each_status_has_its_consequence() {
        let (endpoint, url) = (Receiver::Endpoint("a".into()), Receiver::Url("https://a".into()));
        for (status, by_name, by_address) in [
            (200, "delivered", "delivered"),
            (204, "delivered", "delivered"),
            (301, "permanent", "permanent"),
            (307, "permanent", "permanent"),
            (400, "permanent", "permanent"),
            (401, "suspended", "transient"),
            (403, "suspended", "transient"),
            (404, "permanent", "permanent"),
            (408, "transient", "transient"),
            (410, "permanent", "permanent"),
            (429, "transient", "transient"),
            (500, "transient", "transient"),
            (503, "transient", "transient"),
            (999, "transient", "transient"),
        ] {
            assert_eq!((kind_of(&endpoint, status), kind_of(&url, status)), (by_name, by_address), "{status}");
        }
    }

    /// As `printf '1764000000.{"a":1}' | openssl dgst -sha256 -hmac secret` has it.
    #[test]
    fn a_signature_is_what_other_tools_compute() {
        let signed = signature(&Secret::new("secret".into()), "1764000000", br#"{"a":1}"#);
        assert_eq!(signed, "sha256=112dc1736ad0328f094ebdad63c8bde5936ce7d0bb7ae467f9f8d481a26df51c");
    }

    #[test]
    fn each_piece_of_a_secret_is_one() {
        let url = "https://hooks.example.com/services/T000/B00000000/secretpath?key=secretquery".parse().unwrap();
        let account = WebhookAccount {
            url: Some(Secret::new(url)),
            headers: HeaderMap::from_iter([(IDEMPOTENCY_KEY, HeaderValue::from_static("Bearer secrettoken"))]),
            hmac_secret: Some(Secret::new("secretkey".into())),
            private: false,
        };
        let pieces = unspeakable(&account);
        let pieces: Vec<_> = pieces.iter().map(|piece| piece.expose().as_str()).collect();
        assert_eq!(
            pieces,
            ["services", "B00000000", "secretpath", "secretquery", "Bearer", "secrettoken", "secretkey"]
        );
    }
}
