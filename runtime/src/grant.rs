//! What a plugin may ask for, argument by argument: (request, grant) → effects or a refusal. Pure.
//!
//! Checked when the guest asks, and again by the courier before it sends.

use std::collections::BTreeSet;
use std::str::FromStr;
use std::sync::Arc;

use email_address::EmailAddress;

use crate::effect::{Effect, Email, Irc, Origin, Planned};

/// What one plugin of one tenant may ask for. Reads, settings and log lines need no grant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Grant {
    /// Mail, when it may send any.
    pub email: Option<EmailGrant>,
    /// IRC, when it may say anything there.
    pub irc: Option<IrcGrant>,
}

impl Grant {
    /// Every capability, towards whom or what one of the patterns matches, by accounts that nobody has: to look at what a
    /// plugin asks for, not to do it.
    #[must_use]
    pub fn towards(recipients: &[String]) -> Self {
        let patterns: Vec<_> = recipients.iter().map(|pattern| Pattern::new(pattern)).collect();
        Self {
            email: Some(EmailGrant { account: "trial".into(), recipients: patterns.clone() }),
            irc: Some(IrcGrant { account: "trial".into(), channels: patterns }),
        }
    }

    /// Whether a component that imports this capability may be let in.
    #[must_use]
    pub fn covers(&self, capability: &str) -> bool {
        match capability {
            "email" => self.email.is_some(),
            "irc" => self.irc.is_some(),
            _ => FREE.contains(&capability),
        }
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
            Effect::Irc(irc) => match &self.irc {
                Some(grant) if grant.account == irc.account => grant.channel(&irc.channel),
                _ => Err(not_granted("irc")),
            },
        }
    }
}

/// To whom mail may go, and through which account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EmailGrant {
    /// The account that sends it.
    pub account: String,
    /// Patterns, of which a recipient must match one.
    pub recipients: Vec<Pattern>,
}

/// Where lines may be said, and through which account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IrcGrant {
    /// The account that says them.
    pub account: String,
    /// Patterns, of which a channel must match one.
    pub channels: Vec<Pattern>,
}

/// A text in which `*` stands for anything; letter case does not matter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern(String);

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

/// Lines as a guest asks for them.
#[derive(Clone, Debug, Default)]
pub struct IrcRequest {
    /// The channel.
    pub channel: String,
    /// The lines.
    pub lines: Vec<String>,
}

/// Makes lines for one channel an effect.
///
/// # Errors
/// A [`Refusal`] when the channel is none or not granted, or a line is not well-formed.
pub fn irc(grant: &Grant, origin: &Origin, index: u32, request: IrcRequest) -> Result<Vec<Planned>, Refusal> {
    let grant = grant.irc.as_ref().ok_or_else(|| not_granted("irc"))?;
    let IrcRequest { channel, lines } = request;
    grant.channel(&channel)?;
    if lines.is_empty() || lines.len() > IRC_LINES_MAX {
        return Err(Refusal::Invalid(format!("expected 1 to {IRC_LINES_MAX} lines, found {}", lines.len())));
    }
    for line in &lines {
        check_irc_line(line)?;
    }
    Ok(vec![Planned {
        id: origin.effect(index, &channel),
        call: origin.call(index),
        effect: Effect::Irc(Irc { account: grant.account.clone(), channel, lines }),
        refused: None,
    }])
}

impl IrcGrant {
    fn channel(&self, channel: &str) -> Result<(), Refusal> {
        let strange = |c: char| c.is_control() || c.is_whitespace() || matches!(c, ',' | ':');
        let named = channel.strip_prefix(['#', '&']).is_some_and(|name| !name.is_empty());
        if !named || channel.len() > IRC_CHANNEL_BYTES_MAX || channel.contains(strange) {
            let shown: String = channel.chars().take(60).collect();
            return Err(Refusal::Invalid(format!("expected a channel such as #ci, found {shown:?}")));
        }
        if self.channels.iter().any(|pattern| pattern.matches(channel)) {
            Ok(())
        } else {
            Err(Refusal::NotGranted(format!("lines in {channel}")))
        }
    }
}

fn check_irc_line(line: &str) -> Result<(), Refusal> {
    // \x01 would make it a request to the channel's clients (CTCP).
    if line.contains(['\r', '\n', '\0', '\u{1}']) {
        return Err(Refusal::Invalid("a line break, NUL or \\x01 in a line".into()));
    }
    if line.trim().is_empty() || line.len() > IRC_LINE_BYTES_MAX {
        return Err(Refusal::Invalid(format!(
            "expected a line of 1 to {IRC_LINE_BYTES_MAX} bytes, found {}",
            line.len()
        )));
    }
    Ok(())
}

/// Expands a mail into one effect for each recipient. A recipient that is no address, or outside the grant, refuses
/// only its own; `To:` names the others.
///
/// # Errors
/// A [`Refusal`] when the mail is not well-formed or no recipient is left.
pub fn email(grant: &Grant, origin: &Origin, index: u32, mail: MailRequest) -> Result<Vec<Planned>, Refusal> {
    let grant = grant.email.as_ref().ok_or_else(|| not_granted("mail"))?;
    check_mail(&mail)?;
    let mut seen = BTreeSet::new();
    let checked: Vec<(&String, Result<(), Refusal>)> = mail
        .to
        .iter()
        .filter(|recipient| seen.insert(*recipient))
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
    fn recipient(&self, recipient: &str) -> Result<(), Refusal> {
        check_address(recipient)?;
        if self.recipients.iter().any(|pattern| pattern.matches(recipient)) {
            Ok(())
        } else {
            Err(Refusal::NotGranted(format!("mail to {recipient}")))
        }
    }
}

impl Pattern {
    /// The pattern this text is.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(text.to_ascii_lowercase())
    }

    /// Whether all of the text matches.
    #[must_use]
    pub fn matches(&self, text: &str) -> bool {
        let text = text.to_ascii_lowercase();
        let mut parts = self.0.split('*');
        let Some(mut rest) = parts.next().and_then(|first| text.strip_prefix(first)) else { return false };
        let Some(last) = parts.next_back() else { return rest.is_empty() };
        for part in parts {
            let Some((_, after)) = rest.split_once(part) else { return false };
            rest = after;
        }
        rest.ends_with(last)
    }
}

impl std::fmt::Display for Pattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
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

fn not_granted(what: &str) -> Refusal {
    Refusal::NotGranted(format!("the plugin's grant has no {what}"))
}

/// What every plugin may import.
const FREE: [&str; 4] = ["types", "taskcluster", "settings", "log"];
const RECIPIENTS_MAX: usize = 256;
const IRC_LINES_MAX: usize = 32;
/// What is left of a message's 512 bytes once the server has put the sender and the channel before it.
const IRC_LINE_BYTES_MAX: usize = 420;
const IRC_CHANNEL_BYTES_MAX: usize = 50;
const SUBJECT_BYTES_MAX: usize = 2_000;
const ADDRESS_BYTES_MAX: usize = 254;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::effect::Hash;

    fn ask(patterns: &[&str], mail: MailRequest) -> Result<Vec<Planned>, Refusal> {
        let recipients = patterns.iter().map(|pattern| Pattern::new(pattern)).collect();
        let grant = Grant { email: Some(EmailGrant { account: "smtp".into(), recipients }), irc: None };
        let event = Hash::of_bytes(b"event");
        email(&grant, &Origin { event, generation: 0, identity: "default".into(), plugin: "smtp".into() }, 0, mail)
    }

    fn mail(to: &[&str]) -> MailRequest {
        MailRequest { to: to.iter().map(|&to| to.to_owned()).collect(), subject: "s".into(), ..MailRequest::default() }
    }

    #[test]
    fn a_pattern_matches_the_whole_text() {
        for (pattern, text, matches) in [
            ("*", "anyone@example.com", true),
            ("*@example.com", "a@EXAMPLE.com", true),
            ("*@example.com", "a@example.com.evil.org", false),
            ("*@example.com", "a@notexample.com", false),
            ("team-*@*.example.com", "team-a@ci.example.com", true),
            ("team-*@*.example.com", "team-a@example.com", false),
            ("a@example.com", "a@example.com", true),
            ("a@example.com", "ba@example.com", false),
            ("a*a", "a", false),
            ("a*b*c", "abbc", true),
            ("", "", true),
            ("", "a", false),
        ] {
            assert_eq!(Pattern::new(pattern).matches(text), matches, "{pattern} {text}");
        }
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
    fn without_a_grant_there_is_no_mail() {
        let origin = Origin { event: Hash::of_bytes(b""), generation: 0, identity: "i".into(), plugin: "p".into() };
        assert!(matches!(email(&Grant::default(), &origin, 0, mail(&["a@b.cd"])), Err(Refusal::NotGranted(_))));
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
            MailRequest { subject: "a".repeat(2_001), ..mail(&["a@b.cd"]) },
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
        assert!(Grant { email: Some(narrower), irc: None }.allows(&planned[0].effect).is_err());
        assert!(Grant::default().allows(&planned[0].effect).is_err());
    }

    fn say(channel: &str, lines: &[&str]) -> Result<Vec<Planned>, Refusal> {
        let channels = vec![Pattern::new("#ci*")];
        let grant = Grant { email: None, irc: Some(IrcGrant { account: "irc".into(), channels }) };
        let event = Hash::of_bytes(b"event");
        let origin = Origin { event, generation: 0, identity: "default".into(), plugin: "irc".into() };
        let lines = lines.iter().map(|&line| line.to_owned()).collect();
        irc(&grant, &origin, 0, IrcRequest { channel: channel.to_owned(), lines })
    }

    #[test]
    fn lines_go_to_granted_channels_only_and_to_nobody_else() {
        assert_eq!(say("#ci-builds", &["a", "\u{3}03b\u{3}03"]).unwrap().len(), 1);
        assert!(matches!(say("#other", &["a"]), Err(Refusal::NotGranted(_))));
        for channel in ["NickServ", "somebody", "#", "", "#ci,#other", "#ci x", "#ci\r\nQUIT", "#ci\u{7}", ":#ci"] {
            assert!(matches!(say(channel, &["a"]), Err(Refusal::Invalid(_))), "{channel:?}");
        }
    }

    #[test]
    fn a_line_cannot_become_two() {
        let long = "x".repeat(421);
        for lines in
            [&["a\r\nQUIT"][..], &["a\nb"], &["a\0"], &["\u{1}VERSION\u{1}"], &[""], &[" "], &[&long], &[], &["a"; 33]]
        {
            assert!(matches!(say("#ci", lines), Err(Refusal::Invalid(_))), "{lines:?}");
        }
    }
}
