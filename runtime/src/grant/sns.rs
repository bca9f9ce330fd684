//! `sns`: to which topics messages may be published.

use super::{Grant, Pattern, Refusal, not_granted, shown};
use crate::effect::{Effect, Origin, Planned, Sns};

/// To which topics messages may be published, and through which account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnsGrant {
    /// The account that publishes them.
    pub account: String,
    /// Patterns, of which a topic's ARN must match one.
    pub topics: Vec<Pattern>,
}

/// A message as a guest asks for it.
#[derive(Clone, Debug, Default)]
pub struct SnsRequest {
    /// The topic's ARN.
    pub topic: String,
    /// One line.
    pub subject: Option<String>,
    /// The message.
    pub text: String,
}

/// Makes a message to a topic an effect.
///
/// # Errors
/// A [`Refusal`] when the topic is none or not granted, or a part is not well-formed.
pub fn plan(grant: &Grant, origin: &Origin, index: u32, request: SnsRequest) -> Result<Vec<Planned>, Refusal> {
    let grant = grant.sns.as_ref().ok_or_else(|| not_granted("sns"))?;
    let SnsRequest { topic, subject, text } = request;
    grant.topic(&topic)?;
    if let Some(subject) = &subject {
        let length = subject.chars().count();
        if !(1..=SUBJECT_CHARS_MAX).contains(&length) {
            return Err(Refusal::Invalid(format!(
                "expected a subject of 1 to {SUBJECT_CHARS_MAX} characters, found {length}"
            )));
        }
        if subject.chars().any(char::is_control) {
            return Err(Refusal::Invalid("a control character in the subject".into()));
        }
    }
    if text.is_empty() || text.len() > TEXT_BYTES_MAX {
        return Err(Refusal::Invalid(format!("expected a text of 1 to {TEXT_BYTES_MAX} bytes, found {}", text.len())));
    }
    Ok(vec![Planned {
        id: origin.effect(index, &topic),
        call: origin.call(index),
        effect: Effect::Sns(Sns { account: grant.account.clone(), topic, subject, text }),
        refused: None,
    }])
}

impl SnsGrant {
    pub(super) fn topic(&self, topic: &str) -> Result<(), Refusal> {
        if region(topic).is_none() {
            return Err(Refusal::Invalid(format!("expected the ARN of a topic, found {}", shown(topic))));
        }
        if self.topics.iter().any(|pattern| pattern.matches(topic)) {
            Ok(())
        } else {
            Err(Refusal::NotGranted(format!("messages to {topic}")))
        }
    }
}

/// The region in a topic's ARN; none when it is no such ARN.
#[must_use]
pub fn region(topic: &str) -> Option<&str> {
    let word = |text: &str| {
        (1..=256).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
    };
    let mut parts = topic.split(':');
    let mut next = || parts.next().filter(|part| word(part));
    let (arn, partition, service, region, account, name) = (next()?, next()?, next()?, next()?, next()?, next()?);
    let is_topic = arn == "arn" && partition.starts_with("aws") && service == "sns" && parts.next().is_none();
    let is_account = account.len() == 12 && account.bytes().all(|b| b.is_ascii_digit());
    (is_topic && is_account && !name.is_empty()).then_some(region)
}

const SUBJECT_CHARS_MAX: usize = 100;
const TEXT_BYTES_MAX: usize = 256 << 10;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grant::tests::origin;

    const TOPIC: &str = "arn:aws:sns:us-east-1:123456789012:builds";

    fn publish(topic: &str, subject: Option<&str>, text: &str) -> Result<Vec<Planned>, Refusal> {
        let topics = vec![Pattern::to_the_letter("arn:aws:sns:*:123456789012:build*")];
        let grant = Grant { sns: Some(SnsGrant { account: "aws".into(), topics }), ..Grant::default() };
        let subject = subject.map(str::to_owned);
        plan(&grant, &origin(), 0, SnsRequest { topic: topic.into(), subject, text: text.into() })
    }

    #[test]
    fn messages_go_to_granted_topics_only() {
        assert!(publish(TOPIC, Some("It failed"), "text").is_ok());
        assert!(publish(TOPIC, None, "text").is_ok());
        let other = "arn:aws:sns:us-east-1:999999999999:builds";
        assert!(matches!(publish(other, None, "text"), Err(Refusal::NotGranted(_))));
        for topic in [
            "",
            "builds",
            "arn:aws:sqs:us-east-1:123456789012:builds",
            "arn:aws:sns:us-east-1:1:builds",
            "arn:aws:sns::123456789012:b",
        ] {
            assert!(matches!(publish(topic, None, "text"), Err(Refusal::Invalid(_))), "{topic}");
        }
        assert!(matches!(publish(&format!("{TOPIC}\n"), None, "text"), Err(Refusal::Invalid(_))));
    }

    #[test]
    fn a_subject_is_one_line_of_at_most_100_characters() {
        assert!(publish(TOPIC, Some(&"ü".repeat(100)), "text").is_ok());
        for subject in ["", "a\nb", "\u{7}", &"x".repeat(101)] {
            assert!(matches!(publish(TOPIC, Some(subject), "text"), Err(Refusal::Invalid(_))), "{subject:?}");
        }
    }

    #[test]
    fn a_message_has_something_to_say_and_not_too_much() {
        assert!(publish(TOPIC, None, &"x".repeat(256 << 10)).is_ok());
        for text in ["", &"x".repeat((256 << 10) + 1)] {
            assert!(matches!(publish(TOPIC, None, text), Err(Refusal::Invalid(_))), "{} bytes", text.len());
        }
    }

    #[test]
    fn the_region_is_in_the_arn() {
        assert_eq!(region(TOPIC), Some("us-east-1"));
        assert_eq!(region("arn:aws-cn:sns:cn-north-1:123456789012:x.fifo"), Some("cn-north-1"));
    }
}
