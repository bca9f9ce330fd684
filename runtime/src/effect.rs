//! What a plugin asked for, checked and ready to be done: one effect, one destination.
//!
//! Enters: what `grant` let through. Leaves: rows of the store, work for a sink. Pure.

pub(crate) mod text_or_bytes;

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::task_id::TaskId;

/// 32 bytes that name a thing by its content; written as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hash([u8; 32]);

impl Hash {
    /// The hash of a sequence of fields. No two sequences share their input: each field goes in after its length.
    #[must_use]
    pub fn of<'a>(fields: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut hasher = Sha256::new();
        for field in fields {
            hasher.update((field.len() as u64).to_le_bytes());
            hasher.update(field);
        }
        Self(hasher.finalize().into())
    }

    /// The plain SHA-256 of some bytes, as other tools compute it.
    #[must_use]
    pub fn of_bytes(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// The hash whose bytes these are, as the store keeps them.
    #[must_use]
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// Its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digit = |half: u8| if half < 10 { b'0' + half } else { b'a' + half - 10 };
        let mut digits = [0; 64];
        for (pair, byte) in digits.chunks_exact_mut(2).zip(self.0) {
            pair.copy_from_slice(&[digit(byte >> 4), digit(byte & 15)]);
        }
        f.write_str(str::from_utf8(&digits).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// What makes a redelivered or re-published message the same event.
pub type EventKey = Hash;

/// Names one effect, the same each time the same event is handled.
pub type EffectId = Hash;

/// One thing to be done in the world. Each variant has its capability, its sink and its file in both folders.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "capability", rename_all = "lowercase")]
pub enum Effect {
    /// A mail to one recipient.
    Email(Email),
    /// A message to one topic.
    Sns(Sns),
    /// An object in a bucket.
    S3(S3),
    /// Lines in one channel.
    Irc(Irc),
    /// A message to one exchange.
    Amqp(Amqp),
    /// A post to one receiver.
    Webhook(Webhook),
}

impl Effect {
    /// The capability a plugin asked with, as the store and the figures name it.
    #[must_use]
    pub const fn capability(&self) -> &'static str {
        match self {
            Self::Email(_) => "email",
            Self::Sns(_) => "sns",
            Self::S3(_) => "s3",
            Self::Irc(_) => "irc",
            Self::Amqp(_) => "amqp",
            Self::Webhook(_) => "webhook",
        }
    }

    /// The account it is performed with.
    #[must_use]
    pub fn account(&self) -> &str {
        match self {
            Self::Email(email) => &email.account,
            Self::Sns(sns) => &sns.account,
            Self::S3(s3) => &s3.account,
            Self::Irc(irc) => &irc.account,
            Self::Amqp(amqp) => &amqp.account,
            Self::Webhook(webhook) => &webhook.account,
        }
    }

    /// Whom the sink talks to: capability and account.
    #[must_use]
    pub fn destination(&self) -> String {
        destination(self.capability(), self.account())
    }

    /// Who or what is told.
    #[must_use]
    pub fn recipient(&self) -> &str {
        match self {
            Self::Email(email) => &email.recipient,
            Self::Sns(sns) => &sns.topic,
            Self::S3(s3) => &s3.key,
            Self::Irc(irc) => &irc.channel,
            Self::Amqp(amqp) => &amqp.exchange,
            Self::Webhook(webhook) => webhook.to.name(),
        }
    }

    /// Reads one back from its JSON and its recipient: what the copies of one mail share is kept once, as the first of
    /// them, so the recipient in it may be another's.
    ///
    /// # Errors
    /// When this is not the JSON of an effect.
    pub fn from_payload(payload: &[u8], recipient: &[u8]) -> Result<Self, serde_json::Error> {
        let mut effect = serde_json::from_slice(payload)?;
        if let Self::Email(email) = &mut effect {
            email.recipient = String::from_utf8_lossy(recipient).into_owned();
        }
        Ok(effect)
    }

    /// How many bytes its content has.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match self {
            Self::Email(email) => {
                let header = email.to.iter().map(String::len).sum::<usize>() + email.subject.len();
                header + email.text.len() + email.html.as_ref().map_or(0, |html| html.len())
            }
            Self::Sns(sns) => sns.topic.len() + sns.subject.as_ref().map_or(0, String::len) + sns.text.len(),
            Self::S3(s3) => s3.key.len() + s3.content_type.len() + s3.body.bytes(),
            Self::Irc(irc) => irc.channel.len() + irc.lines.iter().map(String::len).sum::<usize>(),
            Self::Amqp(amqp) => {
                amqp.exchange.len() + amqp.routing_key.len() + amqp.content_type.len() + amqp.body.len()
            }
            Self::Webhook(webhook) => {
                let headers = webhook.headers.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
                webhook.to.name().len() + webhook.content_type.len() + headers + webhook.body.len()
            }
        }
    }
}

/// The name of the destination that an account of a capability is.
#[must_use]
pub fn destination(capability: &str, account: &str) -> String {
    format!("{capability}/{account}")
}

/// A mail to one recipient. The copies of one mail share everything but `recipient`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Email {
    /// The account whose server takes it and whose address it is from.
    pub account: String,
    /// The one address this copy goes to.
    pub recipient: String,
    /// What stands in `To:`.
    pub to: Arc<[String]>,
    /// One line.
    pub subject: Arc<str>,
    /// The mail as plain text.
    pub text: Arc<str>,
    /// The mail as HTML.
    pub html: Option<Arc<str>>,
    /// Mails of one thread are shown together.
    pub thread: Option<String>,
}

/// A message to one topic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sns {
    /// The account that publishes it.
    pub account: String,
    /// The topic's ARN.
    pub topic: String,
    /// One line.
    pub subject: Option<String>,
    /// The message.
    pub text: String,
}

/// An object in the bucket of an account.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct S3 {
    /// The account, which has one bucket.
    pub account: String,
    /// The object's key.
    pub key: String,
    /// Its content type.
    pub content_type: String,
    /// What is in it.
    pub body: S3Body,
}

/// What is in an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum S3Body {
    /// These bytes.
    Bytes(#[serde(with = "text_or_bytes")] Vec<u8>),
    /// An artifact, gzipped: by reference, since it may be of any size.
    Artifact(ArtifactOf),
    /// What is at this address, gzipped. The operator's log table says so, never a guest.
    Address(String),
}

impl S3Body {
    fn bytes(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Artifact(artifact) => artifact.name.len(),
            Self::Address(address) => address.len(),
        }
    }
}

/// An artifact of a run of a task.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArtifactOf {
    /// The task.
    pub task_id: TaskId,
    /// Its run.
    pub run_id: u32,
    /// The artifact's name.
    pub name: String,
}

/// A message to one exchange.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Amqp {
    /// The account that publishes it.
    pub account: String,
    /// The exchange.
    pub exchange: String,
    /// The routing key.
    pub routing_key: String,
    /// Its content type.
    pub content_type: String,
    /// Its body.
    #[serde(with = "text_or_bytes")]
    pub body: Vec<u8>,
    /// How often it has been relayed, this time included.
    pub hops: u32,
    /// Whether it counts as delivered when no queue is bound for it.
    pub unrouted: bool,
}

/// A post to one receiver.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Webhook {
    /// The account that makes it, with its secrets.
    pub account: String,
    /// Who is told.
    pub to: Receiver,
    /// Its content type.
    pub content_type: String,
    /// Further headers, their names in small letters.
    pub headers: Vec<(String, String)>,
    /// Its body.
    #[serde(with = "text_or_bytes")]
    pub body: Vec<u8>,
}

/// Who a post is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Receiver {
    /// The one whose address the account has; this is what the plugin calls it.
    Endpoint(String),
    /// The one at this address.
    Url(String),
}

impl Receiver {
    /// What a plugin calls it: its name or its address.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Endpoint(name) => name,
            Self::Url(url) => url,
        }
    }
}

/// Lines in one channel, in this order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Irc {
    /// The account that says them.
    pub account: String,
    /// The channel.
    pub channel: String,
    /// The lines, formatting codes included.
    pub lines: Vec<String>,
}

/// What one invocation asked for, in the order it asked.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// The effects, accepted and refused.
    pub effects: Vec<Planned>,
}

impl Plan {
    /// How many bytes there are to keep.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.effects.chunk_by(|one, next| one.call == next.call).map(bytes_of_call).sum()
    }
}

/// How many bytes there are to keep of what one call asked for: what the copies of a mail share counts once.
#[must_use]
pub fn bytes_of_call(copies: &[Planned]) -> usize {
    let shared = copies.first().map_or(0, |planned| planned.effect.bytes());
    shared + copies.iter().map(|planned| planned.effect.recipient().len()).sum::<usize>()
}

/// One effect of a plan.
#[derive(Clone, Debug)]
pub struct Planned {
    /// Its own id.
    pub id: EffectId,
    /// The id of the call that asked for it, shared by the copies of one mail.
    pub call: EffectId,
    /// What is to be done.
    pub effect: Effect,
    /// Why it will not be done, when the grant does not cover it.
    pub refused: Option<String>,
}

/// The invocation an effect belongs to, as far as its id goes.
#[derive(Clone, Debug)]
pub struct Origin {
    /// The event.
    pub event: EventKey,
    /// 0 for the delivery, then one more for each replay.
    pub generation: u32,
    /// The identity whose notification it is.
    pub identity: String,
    /// The plugin.
    pub plugin: String,
}

impl Origin {
    /// The id of the `index`-th call that asked for an effect.
    #[must_use]
    pub fn call(&self, index: u32) -> EffectId {
        self.hash(index, None)
    }

    /// The id of that call's effect on one recipient.
    #[must_use]
    pub fn effect(&self, index: u32, recipient: &str) -> EffectId {
        self.hash(index, Some(recipient))
    }

    fn hash(&self, index: u32, recipient: Option<&str>) -> Hash {
        let (generation, index) = (self.generation.to_le_bytes(), index.to_le_bytes());
        let fields = [self.event.as_bytes(), &generation[..], self.identity.as_bytes(), self.plugin.as_bytes(), &index];
        Hash::of(fields.into_iter().chain(recipient.map(str::as_bytes)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin() -> Origin {
        Origin { event: Hash::of([b"e".as_slice()]), generation: 0, identity: "default".into(), plugin: "smtp".into() }
    }

    #[test]
    fn the_same_effect_keeps_its_id_and_any_other_has_another() {
        let id = origin().effect(0, "a@example.com");
        assert_eq!(id, origin().effect(0, "a@example.com"));
        assert_ne!(id, origin().effect(1, "a@example.com"));
        assert_ne!(id, origin().effect(0, "b@example.com"));
        assert_ne!(id, origin().call(0));
        assert_ne!(id, Origin { generation: 1, ..origin() }.effect(0, "a@example.com"));
        assert_ne!(id, Origin { plugin: "ses".into(), ..origin() }.effect(0, "a@example.com"));
    }

    #[test]
    fn moving_a_character_between_fields_changes_the_hash() {
        assert_ne!(Hash::of([b"ab".as_slice(), b"c"]), Hash::of([b"a".as_slice(), b"bc"]));
    }

    fn mail(recipient: &str) -> Effect {
        Effect::Email(Email {
            account: "smtp".into(),
            recipient: recipient.into(),
            to: ["a@example.com".into(), "bb@example.com".into()].into(),
            subject: "s".into(),
            text: "t".into(),
            html: None,
            thread: None,
        })
    }

    #[test]
    fn the_copies_of_a_mail_share_its_text() {
        let first = serde_json::to_vec(&mail("a@example.com")).unwrap();
        let second = Effect::from_payload(&first, b"bb@example.com").unwrap();
        assert_eq!(second, mail("bb@example.com"));
        let copy = |to: &str, call| Planned {
            id: origin().effect(call, to),
            call: origin().call(call),
            effect: mail(to),
            refused: None,
        };
        let effects = vec![copy("a@example.com", 0), copy("bb@example.com", 0), copy("a@example.com", 1)];
        let shared = mail("a@example.com").bytes();
        assert_eq!(Plan { effects }.bytes(), 2 * shared + 13 + 14 + 13);
    }

    #[test]
    fn an_effect_says_its_capability_in_its_json() {
        let effect = mail("a@example.com");
        let json = serde_json::to_value(&effect).unwrap();
        assert_eq!(json["capability"], effect.capability());
        assert_eq!(serde_json::from_value::<Effect>(json).unwrap(), effect);
    }
}
