//! What a plugin may ask for, argument by argument: (request, grant) → effects or a refusal. Pure.
//!
//! Checked when the guest asks, and again by the courier before it sends. One file for each capability.

pub mod amqp;
pub mod email;
pub mod irc;
mod pattern;
pub mod quota;
pub mod s3;
pub mod sns;
pub mod webhook;

use crate::effect::Effect;
use crate::task_id::TaskId;
pub use amqp::{AmqpGrant, AmqpRequest};
pub use email::{EmailGrant, MailRequest};
pub use irc::{IrcGrant, IrcRequest};
pub use pattern::Pattern;
pub use s3::{S3Grant, S3Request, S3RequestBody};
pub use sns::{SnsGrant, SnsRequest};
pub use webhook::{Endpoint, UrlGrant, UrlPattern, WebhookGrant, WebhookRequest};

/// What one plugin of one tenant may ask for. Reads, settings and log lines need no grant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grant {
    /// Mail, when it may send any.
    pub email: Option<EmailGrant>,
    /// SNS, when it may publish there.
    pub sns: Option<SnsGrant>,
    /// S3, when it may put anything there.
    pub s3: Option<S3Grant>,
    /// IRC, when it may say anything there.
    pub irc: Option<IrcGrant>,
    /// The broker, when it may publish there.
    pub amqp: Option<AmqpGrant>,
    /// The web, when it may post anything there.
    pub webhook: Option<WebhookGrant>,
}

/// What the host knows of the event that a request is about.
#[derive(Clone, Debug)]
pub struct About {
    /// Its task.
    pub task_id: TaskId,
    /// How often its message had been relayed before it came here.
    pub hops: u32,
    /// Where the operator's log table says that logs of this task are, when they are no artifacts.
    pub log_addresses: Vec<String>,
}

impl Grant {
    /// Every capability, towards whom or what one of the patterns matches, by accounts that nobody has: to look at what a
    /// plugin asks for, not to do it.
    #[must_use]
    pub fn towards(recipients: &[String]) -> Self {
        let account = || "trial".to_owned();
        let patterns = |pattern: fn(&str) -> Pattern| recipients.iter().map(|text| pattern(text)).collect::<Vec<_>>();
        let to_the_letter = || patterns(Pattern::to_the_letter);
        Self {
            email: Some(EmailGrant { account: account(), recipients: patterns(Pattern::new) }),
            sns: Some(SnsGrant { account: account(), topics: to_the_letter() }),
            s3: Some(S3Grant { account: account(), keys: to_the_letter() }),
            irc: Some(IrcGrant { account: account(), channels: patterns(Pattern::new) }),
            amqp: Some(AmqpGrant {
                account: account(),
                exchanges: to_the_letter(),
                routing_keys: vec![Pattern::to_the_letter("*")],
                ..AmqpGrant::default()
            }),
            webhook: Some(WebhookGrant {
                endpoints: to_the_letter().into_iter().map(|name| Endpoint { name, account: account() }).collect(),
                urls: Some(UrlGrant {
                    account: account(),
                    patterns: recipients.iter().filter_map(|text| UrlPattern::new(text)).collect(),
                }),
            }),
        }
    }

    /// Whether a component that imports this capability may be let in.
    #[must_use]
    pub fn covers(&self, capability: &str) -> bool {
        match capability {
            "email" => self.email.is_some(),
            "sns" => self.sns.is_some(),
            "s3" => self.s3.is_some(),
            "irc" => self.irc.is_some(),
            "amqp" => self.amqp.is_some(),
            "webhook" => self.webhook.is_some(),
            _ => FREE.contains(&capability),
        }
    }

    /// What stands in a tenant's file to grant a capability, for whoever has forgotten to.
    #[must_use]
    pub fn example(capability: &str) -> Option<&'static str> {
        Some(match capability {
            "email" => "account = \"mail\"\nrecipients = [\"*@example.com\"]",
            "sns" => "account = \"topics\"\ntopics = [\"arn:aws:sns:us-west-2:123456789012:releases\"]",
            "s3" => "account = \"logs\"\nkeys = [\"*\"]",
            "irc" => "account = \"chat\"\nchannels = [\"#ci\"]",
            "amqp" => "account = \"pulse\"\nexchanges = [\"exchange/ci/again\"]",
            "webhook" => {
                "endpoints = { slack = \"slack\" }\n# or, for a plugin that names addresses:\n# account = \"web\"\n\
                 # urls = [\"https://hooks.example.com/builds/*\"]"
            }
            _ => return None,
        })
    }

    /// Whether the grant still allows an effect that was accepted earlier.
    ///
    /// # Errors
    /// The [`Refusal`] that asking for it now would get.
    pub fn allows(&self, effect: &Effect) -> Result<(), Refusal> {
        match effect {
            Effect::Email(email) => match &self.email {
                Some(grant) if grant.account == email.account => grant.recipient(&email.recipient),
                _ => Err(not_granted("mail")),
            },
            Effect::Sns(sns) => match &self.sns {
                Some(grant) if grant.account == sns.account => grant.topic(&sns.topic),
                _ => Err(not_granted("sns")),
            },
            Effect::S3(s3) => match &self.s3 {
                Some(grant) if grant.account == s3.account => grant.key(&s3.key),
                _ => Err(not_granted("s3")),
            },
            Effect::Irc(irc) => match &self.irc {
                Some(grant) if grant.account == irc.account => grant.channel(&irc.channel),
                _ => Err(not_granted("irc")),
            },
            Effect::Amqp(amqp) => match &self.amqp {
                Some(grant) if grant.account == amqp.account => grant.target(&amqp.exchange, &amqp.routing_key),
                _ => Err(not_granted("amqp")),
            },
            Effect::Webhook(webhook) => match self.webhook.as_ref().map(|grant| grant.account(&webhook.to)) {
                Some(Ok(account)) if account != webhook.account => Err(not_granted("webhook by that account")),
                Some(granted) => granted.map(drop),
                None => Err(not_granted("webhook")),
            },
        }
    }
}

/// Why a request is not followed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The grant does not allow it.
    #[error("not granted: {0}")]
    NotGranted(String),
    /// It is not well-formed.
    #[error("invalid: {0}")]
    Invalid(String),
    /// Too much of it.
    #[error("over the limit: {0}")]
    OverLimit(String),
}

fn not_granted(what: &str) -> Refusal {
    Refusal::NotGranted(format!("the plugin's grant has no {what}"))
}

/// A guest's text in a refusal: short, and nothing in it that a terminal would obey.
fn shown(text: &str) -> String {
    format!("{:?}", text.chars().take(60).collect::<String>())
}

/// `text/plain`, `application/json; charset=utf-8` and the like.
fn is_content_type(text: &str) -> bool {
    let is_printable = |b: u8| b == b' ' || b.is_ascii_graphic();
    text.len() <= CONTENT_TYPE_BYTES_MAX
        && text.bytes().all(is_printable)
        && text.split_once('/').is_some_and(|(kind, rest)| !kind.is_empty() && !rest.is_empty())
}

/// What every plugin may import.
const FREE: [&str; 4] = ["types", "taskcluster", "settings", "log"];
const CONTENT_TYPE_BYTES_MAX: usize = 100;

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::effect::{Hash, Origin, Receiver};

    pub(crate) fn origin() -> Origin {
        let event = Hash::of_bytes(b"event");
        Origin { event, generation: 0, identity: "default".into(), plugin: "plugin".into() }
    }

    pub(super) fn about() -> About {
        About {
            task_id: TaskId::new("A35mWTRuQmyj88yMnIF0fA").unwrap(),
            hops: 0,
            log_addresses: vec!["https://logs.example.com/0".into()],
        }
    }

    proptest::proptest! {
        #![proptest_config(crate::hostile::thousands())]

        #[test]
        fn whatever_a_guest_asks_for_no_effect_can_break_out_of_its_place(
            one in crate::hostile::text(),
            other in crate::hostile::text(),
            more in proptest::collection::vec(crate::hostile::text(), 0..4),
            hops in 0_u32..5,
        ) {
            let (grant, origin) = (Grant::towards(&["*".into()]), origin());
            let about = About { hops, ..about() };
            let mail = MailRequest {
                to: more.clone(),
                subject: one.clone(),
                text: other.clone(),
                html: Some(other.clone()),
                thread: Some(one.clone()),
            };
            let asked = [
                email::plan(&grant, &origin, 0, mail.clone()),
                email::plan(&grant, &origin, 1, MailRequest { thread: None, ..mail }),
                irc::plan(&grant, &origin, 2, IrcRequest { channel: one.clone(), lines: more.clone() }),
                irc::plan(&grant, &origin, 3, IrcRequest { channel: "#ci".into(), lines: more.clone() }),
                sns::plan(&grant, &origin, 4, SnsRequest {
                    topic: format!("arn:aws:sns:us-east-1:123456789012:{one}"),
                    subject: Some(other.clone()),
                    text: one.clone(),
                }),
                s3::plan(&grant, &origin, &about, 5, S3Request {
                    key: one.clone(),
                    content_type: format!("text/{other}"),
                    body: S3RequestBody::GzippedArtifact { run_id: 0, name: other.clone() },
                }),
                amqp::plan(&grant, &origin, &about, 6, AmqpRequest {
                    exchange: one.clone(),
                    routing_key: other.clone(),
                    content_type: format!("text/{one}"),
                    body: other.clone().into_bytes(),
                }),
                webhook::plan(&grant, &origin, 7, WebhookRequest {
                    to: Receiver::Url(format!("https://{one}")),
                    content_type: format!("text/{other}"),
                    headers: vec![("x-a".into(), other.clone())],
                    body: one.clone().into_bytes(),
                }),
                webhook::plan(&grant, &origin, 8, WebhookRequest {
                    to: Receiver::Endpoint(one.clone()),
                    content_type: "text/plain".into(),
                    headers: vec![(one, other)],
                    body: Vec::new(),
                }),
            ];
            for planned in asked.into_iter().flatten().flatten().filter(|planned| planned.refused.is_none()) {
                let recipient = planned.effect.recipient();
                proptest::prop_assert!(!recipient.is_empty() && !recipient.contains(char::is_control), "{recipient:?}");
                let lines: Vec<&str> = match &planned.effect {
                    Effect::Email(mail) => vec![&mail.subject],
                    Effect::Irc(irc) => irc.lines.iter().map(|line| line.trim_matches(|c| c != '\r' && c != '\n' && c != '\0' && c != '\u{1}')).collect(),
                    Effect::Sns(sns) => sns.subject.as_deref().into_iter().collect(),
                    Effect::S3(s3) => vec![&s3.content_type],
                    Effect::Amqp(amqp) => vec![&amqp.routing_key, &amqp.content_type],
                    Effect::Webhook(webhook) => {
                        let headers = webhook.headers.iter().flat_map(|(name, value)| [name.as_str(), value]);
                        headers.chain([webhook.content_type.as_str()]).collect()
                    }
                };
                for line in lines {
                    proptest::prop_assert!(!line.contains(char::is_control), "{line:?}");
                }
                let kept = serde_json::to_vec(&planned.effect).unwrap();
                proptest::prop_assert_eq!(serde_json::from_slice::<Effect>(&kept).unwrap(), planned.effect.clone());
                proptest::prop_assert!(grant.allows(&planned.effect).is_ok());
            }
        }
    }
}
