//! `email`: to whom mail may go.

use std::collections::BTreeSet;
use std::str::FromStr;
use std::sync::Arc;

use email_address::EmailAddress;

use super::{Grant, Pattern, Refusal, not_granted};
use crate::effect::{Effect, Email, Origin, Planned};

/// To whom mail may go, and through which account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EmailGrant {
    /// The account that sends it.
    pub account: String,
    /// Patterns, of which a recipient must match one.
    pub recipients: Vec<Pattern>,
}

/// A mail as a guest asks for it.
#[derive(Clone, Debug, Default)]
pub struct MailRequest {
    /// Recipients.
    pub to: Vec<String>,
    /// One line.
    pub subject: String,
    /// Plain text.
    pub text: String,
    /// HTML.
    pub html: Option<String>,
    /// Thread.
    pub thread: Option<String>,
}

/// Expands a mail into one effect for each recipient. A recipient that is no address, or outside the grant, refuses
/// only its own; `To:` names the others.
///
/// # Errors
/// A [`Refusal`] when the mail is not well-formed or no recipient is left.
pub fn plan(grant: &Grant, origin: &Origin, index: u32, mail: MailRequest) -> Result<Vec<Planned>, Refusal> {
    let grant = grant.email.as_ref().ok_or_else(|| not_granted("mail"))?;
    check_mail(&mail)?;
    let mut seen = BTreeSet::new();
    let checked: Vec<(&String, Result<(), Refusal>)> = mail
        .to
        .iter()
        .filter(|recipient| seen.insert(recipient.to_lowercase()))
        .map(|recipient| (recipient, grant.recipient(recipient)))
        .collect();
    let to: Arc<[String]> = checked.iter().filter(|(_, check)| check.is_ok()).map(|(to, _)| (*to).clone()).collect();
    if let (true, Some((_, Err(refusal)))) = (to.is_empty(), checked.first()) {
        return Err(refusal.clone());
    }
    let (subject, text): (Arc<str>, Arc<str>) = (mail.subject.into(), mail.text.into());
    let html: Option<Arc<str>> = mail.html.map(Into::into);
    let thread = mail.thread;
    let planned = checked.into_iter().map(|(recipient, check)| Planned {
        id: origin.effect(index, recipient),
        call: origin.call(index),
        effect: Effect::Email(Email {
            account: grant.account.clone(),
            recipient: recipient.clone(),
            to: Arc::clone(&to),
            subject: Arc::clone(&subject),
            text: Arc::clone(&text),
            html: html.clone(),
            thread: thread.clone(),
        }),
        refused: check.err().map(|refusal| refusal.to_string()),
    });
    Ok(planned.collect())
}

impl EmailGrant {
    pub(super) fn recipient(&self, recipient: &str) -> Result<(), Refusal> {
        check_address(recipient)?;
        if self.recipients.iter().any(|pattern| pattern.matches(recipient)) {
            Ok(())
        } else {
            Err(Refusal::NotGranted(format!("mail to {recipient}")))
        }
    }
}

fn check_mail(mail: &MailRequest) -> Result<(), Refusal> {
    if mail.to.is_empty() {
        return Err(Refusal::Invalid("a mail without a recipient".into()));
    }
    if mail.to.len() > RECIPIENTS_MAX {
        return Err(Refusal::OverLimit(format!("a mail to more than {RECIPIENTS_MAX} recipients")));
    }
    if mail.subject.chars().any(char::is_control) {
        return Err(Refusal::Invalid("a control character in the subject".into()));
    }
    if mail.subject.len() > SUBJECT_BYTES_MAX {
        return Err(Refusal::Invalid(format!("a subject of more than {SUBJECT_BYTES_MAX} bytes")));
    }
    if mail.text.contains('\0') || mail.html.as_ref().is_some_and(|html| html.contains('\0')) {
        return Err(Refusal::Invalid("a NUL in the text".into()));
    }
    match mail.thread.as_deref() {
        Some(thread) if !is_word(thread) => {
            Err(Refusal::Invalid("a thread that is no word of 1 to 100 letters".into()))
        }
        _ => Ok(()),
    }
}

fn check_address(address: &str) -> Result<(), Refusal> {
    // A quoted local part or a domain in brackets may hold nearly anything, and nobody has one.
    let strange = |c: char| c.is_control() || c.is_whitespace() || matches!(c, '"' | '<' | '>' | ',' | ';' | '[' | ']');
    if address.len() > ADDRESS_BYTES_MAX || address.contains(strange) || EmailAddress::from_str(address).is_err() {
        let shown: String = address.chars().take(60).collect();
        return Err(Refusal::Invalid(format!("expected a mail address, found {shown:?}")));
    }
    Ok(())
}

fn is_word(text: &str) -> bool {
    (1..=100).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_".contains(&b))
}

const RECIPIENTS_MAX: usize = 256;
/// Without a space to fold at, a line of a header may still not be longer than 998 bytes.
const SUBJECT_BYTES_MAX: usize = 900;
const ADDRESS_BYTES_MAX: usize = 254;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::effect::Hash;

    fn ask(patterns: &[&str], mail: MailRequest) -> Result<Vec<Planned>, Refusal> {
        let recipients = patterns.iter().map(|pattern| Pattern::new(pattern)).collect();
        let grant = Grant { email: Some(EmailGrant { account: "smtp".into(), recipients }), ..Grant::default() };
        let event = Hash::of_bytes(b"event");
        plan(&grant, &Origin { event, generation: 0, identity: "default".into(), plugin: "smtp".into() }, 0, mail)
    }

    fn mail(to: &[&str]) -> MailRequest {
        MailRequest { to: to.iter().map(|&to| to.to_owned()).collect(), subject: "s".into(), ..MailRequest::default() }
    }

    #[test]
    fn a_recipient_outside_the_grant_refuses_only_its_own() {
        let planned = ask(&["*@example.com"], mail(&["a@example.com", "b@evil.org", "a@example.com"])).unwrap();
        let refused: Vec<_> = planned.iter().map(|p| (p.effect.recipient(), p.refused.as_deref())).collect();
        assert_eq!(refused, [("a@example.com", None), ("b@evil.org", Some("not granted: mail to b@evil.org"))]);
        let Effect::Email(email) = &planned[0].effect else { panic!() };
        assert_eq!(*email.to, ["a@example.com".to_owned()], "who is not told is not shown as told");
        assert_eq!(planned[0].call, planned[1].call);
        assert_ne!(planned[0].id, planned[1].id);
    }

    #[test]
    fn a_recipient_that_is_no_address_refuses_only_its_own() {
        let planned = ask(&["*"], mail(&["a@b.cd\r\nBcc: x@y.zz", "a@example.com"])).unwrap();
        assert!(planned[0].refused.as_ref().unwrap().starts_with("invalid: expected a mail address"));
        assert_eq!(planned[1].refused, None);
    }

    #[test]
    fn a_mail_goes_to_at_most_256_recipients() {
        let to: Vec<_> = (0..257).map(|number| format!("{number}@example.com")).collect();
        let to: Vec<&str> = to.iter().map(String::as_str).collect();
        assert_eq!(ask(&["*"], mail(&to[..256])).unwrap().len(), 256);
        assert!(matches!(ask(&["*"], mail(&to)), Err(Refusal::OverLimit(_))));
    }

    #[test]
    fn without_a_grant_there_is_no_mail() {
        let origin = Origin { event: Hash::of_bytes(b""), generation: 0, identity: "i".into(), plugin: "p".into() };
        assert!(matches!(plan(&Grant::default(), &origin, 0, mail(&["a@b.cd"])), Err(Refusal::NotGranted(_))));
    }

    #[test]
    fn what_could_break_out_of_a_header_is_invalid() {
        let hostile = [
            mail(&[]),
            mail(&["a@b.cd\r\nBcc: x@y.zz"]),
            mail(&["a@b.cd, x@y.zz"]),
            mail(&["Name <a@b.cd>"]),
            mail(&["\"a b\"@b.cd"]),
            mail(&["nobody"]),
            mail(&["x@[foo]"]),
            mail(&["x@[127.0.0.1]"]),
            mail(&[&format!("{}@b.cd", "a".repeat(300))]),
            MailRequest { subject: "a\r\nBcc: x@y.zz".into(), ..mail(&["a@b.cd"]) },
            MailRequest { subject: "a\0".into(), ..mail(&["a@b.cd"]) },
            MailRequest { subject: "a".repeat(901), ..mail(&["a@b.cd"]) },
            MailRequest { text: "\0".into(), ..mail(&["a@b.cd"]) },
            MailRequest { thread: Some("a>\r\n".into()), ..mail(&["a@b.cd"]) },
            MailRequest { thread: Some(String::new()), ..mail(&["a@b.cd"]) },
        ];
        for mail in hostile {
            assert!(matches!(ask(&["*"], mail.clone()), Err(Refusal::Invalid(_))), "{mail:?}");
        }
    }

    #[test]
    fn a_grant_withdrawn_later_no_longer_allows_the_effect() {
        let planned = ask(&["*"], mail(&["a@example.com"])).unwrap();
        let narrower = EmailGrant { account: "smtp".into(), recipients: vec![Pattern::new("*@other.org")] };
        assert!(Grant { email: Some(narrower), ..Grant::default() }.allows(&planned[0].effect).is_err());
        assert!(Grant::default().allows(&planned[0].effect).is_err());
    }
}
