//! An email effect as the bytes of a mail. The same effect always gives the same bytes, whichever attempt it is.

use std::time::{Duration, SystemTime};

use lettre::Address;
use lettre::address::Envelope;
use lettre::message::header::{Header, HeaderName, HeaderValue};
use lettre::message::{Mailbox, Message, MultiPart, MultiPartKind, SinglePart};

use crate::config::Sender;
use crate::courier::Receipt;
use crate::effect::{Email, Hash};
use crate::pace::USUAL_BYTES;
use crate::store::Claimed;

#[derive(Debug, thiserror::Error)]
pub(super) enum BuildError {
    #[error("an address: {0}")]
    Address(#[from] lettre::address::AddressError),
    #[error("{0}")]
    Mail(#[from] lettre::error::Error),
    #[error("it was left halfway")]
    Left,
}

impl BuildError {
    /// What it means for the effect.
    pub(super) fn receipt(&self) -> Receipt {
        match self {
            Self::Address(_) | Self::Mail(_) => Receipt::Refused(format!("build the mail: {self}")),
            Self::Left => Receipt::Transient(format!("build the mail: {self}")),
        }
    }
}

/// Builds it where that delays no other attempt: encoding a large one takes milliseconds.
pub(super) async fn built(sender: &Sender, claimed: &Claimed, email: &Email) -> Result<Vec<u8>, BuildError> {
    if claimed.effect.bytes() <= USUAL_BYTES {
        return build(sender, claimed, email);
    }
    let (sender, claimed, email) = (sender.clone(), claimed.clone(), email.clone());
    let building = tokio::task::spawn_blocking(move || build(&sender, &claimed, &email));
    building.await.unwrap_or(Err(BuildError::Left))
}

fn build(sender: &Sender, claimed: &Claimed, email: &Email) -> Result<Vec<u8>, BuildError> {
    let domain = &sender.threading_domain;
    let asked_at = SystemTime::UNIX_EPOCH + Duration::from_millis(claimed.created_ms.unsigned_abs());
    let from: Address = sender.from.parse()?;
    let mut message = Message::builder()
        .from(Mailbox::new(None, from.clone()))
        .subject(&*email.subject)
        .date(asked_at)
        .message_id(Some(format!("<{}@{domain}>", claimed.call)))
        .header(EffectHeader(claimed.id.to_string()))
        .header(AutoSubmitted);
    // An address outside ASCII would keep the copies of the others from servers that take none.
    let shown = email.to.iter().filter(|to| to.is_ascii() || !email.recipient.is_ascii());
    let to = shown.map(|to| to.parse()).collect::<Result<Vec<Address>, _>>()?;
    message = message.header(To(to)).envelope(Envelope::new(Some(from), vec![email.recipient.parse()?])?);
    if let Some(thread) = &email.thread {
        let thread = format!("<{thread}@{domain}>");
        message = message.in_reply_to(thread.clone()).references(thread);
    }
    let text = SinglePart::plain(with_plain_ends(&email.text));
    let message = match &email.html {
        Some(html) => {
            // Made of the parts themselves, so that no part can hold it; drawn at random it would change each time.
            let boundary = Hash::of([email.text.as_bytes(), html.as_bytes()]);
            let parts = MultiPart::builder().kind(MultiPartKind::Alternative).boundary(boundary.to_string());
            message.multipart(parts.singlepart(text).singlepart(SinglePart::html(with_plain_ends(html))))
        }
        None => message.singlepart(text),
    };
    Ok(message?.formatted())
}

/// A text whose lines all end in LF, which become CR LF: alone, a CR is a line's end to some servers and not to others,
/// and what follows it could pass for a command.
fn with_plain_ends(text: &str) -> String {
    text.replace("\r\n", "\n").replace('\r', "\n")
}

/// `To:`, an address on each line: the library writes them all on one, and servers take 998 bytes of a line.
#[derive(Clone)]
struct To(Vec<Address>);

impl Header for To {
    fn name() -> HeaderName {
        HeaderName::new_from_ascii_str("To")
    }

    fn parse(text: &str) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        Ok(Self(text.split(',').map(|address| address.trim().parse()).collect::<Result<_, _>>()?))
    }

    fn display(&self) -> HeaderValue {
        let addresses: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        HeaderValue::dangerous_new_pre_encoded(Self::name(), addresses.join(", "), addresses.join(",\r\n "))
    }
}

/// `X-Pulse-Notifier-Effect`: the effect's id, by which a repeated mail can be told.
#[derive(Clone)]
struct EffectHeader(String);

impl Header for EffectHeader {
    fn name() -> HeaderName {
        HeaderName::new_from_ascii_str("X-Pulse-Notifier-Effect")
    }

    fn parse(text: &str) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        Ok(Self(text.into()))
    }

    fn display(&self) -> HeaderValue {
        HeaderValue::new(Self::name(), self.0.clone())
    }
}

/// `Auto-Submitted: auto-generated` (RFC 3834): nobody's holiday replies come back.
#[derive(Clone)]
struct AutoSubmitted;

impl Header for AutoSubmitted {
    fn name() -> HeaderName {
        HeaderName::new_from_ascii_str("Auto-Submitted")
    }

    fn parse(_: &str) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        Ok(Self)
    }

    fn display(&self) -> HeaderValue {
        HeaderValue::new(Self::name(), "auto-generated".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::effect::Effect;
    use crate::grant::{Grant, MailRequest, email};

    fn built(email: &Email) -> String {
        let claimed = Claimed {
            seq: 1,
            id: Hash::of_bytes(b"id"),
            call: Hash::of_bytes(b"call"),
            tenant: "t".into(),
            plugin: "p".into(),
            attempt: 1,
            failures: 0,
            in_doubt: 0,
            created_ms: 0,
            effect: Effect::Email(email.clone()),
        };
        let sender = Sender { from: "ci@example.com".into(), threading_domain: "example.com".into() };
        String::from_utf8(build(&sender, &claimed, email).unwrap()).unwrap()
    }

    #[test]
    fn no_carriage_return_stands_alone_on_the_wire() {
        let email = Email {
            account: "smtp".into(),
            recipient: "a@example.com".into(),
            to: ["a@example.com".into()].into(),
            subject: "s".into(),
            text: "A\r.\r\nMAIL FROM:<evil@example.org>\r\r\n.\rB".into(),
            html: Some("a\rb".into()),
            thread: None,
        };
        let mail = built(&email);
        assert!(!mail.replace("\r\n", "").contains(['\r', '\n']), "{mail:?}");
    }

    #[test]
    fn however_many_are_told_no_line_is_longer_than_servers_take() {
        let to: Vec<String> =
            (0..256).map(|number| format!("somebody-with-a-long-name-{number}@example.com")).collect();
        let email = Email {
            account: "smtp".into(),
            recipient: to[0].clone(),
            to: to.clone().into(),
            subject: "x".repeat(900).into(),
            text: "x".repeat(5_000).into(),
            html: None,
            thread: Some("group".into()),
        };
        let mail = built(&email);
        assert!(mail.split("\r\n").all(|line| line.len() <= 998), "{mail}");
        let unfolded = mail.replace(",\r\n ", ", ");
        assert!(unfolded.contains(&format!("To: {}\r\n", to.join(", "))), "{mail}");
    }

    proptest::proptest! {
        #![proptest_config(crate::hostile::thousands())]

        #[test]
        fn whatever_a_mail_says_its_header_holds_our_fields_alone(
            to in proptest::collection::vec(crate::hostile::text(), 1..4),
            subject in crate::hostile::text(),
            text in crate::hostile::text(),
            html in crate::hostile::text(),
        ) {
            let to = to.into_iter().chain(["a@example.com".to_owned()]).collect();
            let request = MailRequest { to, subject, text, html: Some(html), thread: Some("group".into()) };
            let grant = Grant::towards(&["*".into()]);
            let Ok(planned) = email::plan(&grant, &crate::grant::tests::origin(), 0, request) else { return Ok(()) };
            for planned in planned.into_iter().filter(|planned| planned.refused.is_none()) {
                let Effect::Email(email) = planned.effect else { continue };
                let mail = built(&email);
                proptest::prop_assert!(!mail.replace("\r\n", "").contains(['\r', '\n', '\0']), "{mail:?}");
                let (header, _) = mail.split_once("\r\n\r\n").unwrap();
                for line in header.split("\r\n").filter(|line| !line.starts_with([' ', '\t'])) {
                    let name = line.split_once(':').map(|(name, _)| name);
                    proptest::prop_assert!(name.is_some_and(|name| FIELDS.contains(&name)), "{line:?}");
                }
                let mails_to = header.lines().filter(|line| line.starts_with("To:")).count();
                proptest::prop_assert_eq!(mails_to, 1);
            }
        }
    }

    const FIELDS: [&str; 11] = [
        "From",
        "Subject",
        "Date",
        "Message-ID",
        "X-Pulse-Notifier-Effect",
        "Auto-Submitted",
        "To",
        "In-Reply-To",
        "References",
        "MIME-Version",
        "Content-Type",
    ];
}
