//! Effects as the people they reach would see them, and foreign text made safe to show. What a terminal would obey
//! passes through here before it is printed.

use serde_json::Value;

use crate::effect::{Effect, Email, S3Body, Sns};

/// An effect under a line that says what it is about and what became of it; alone with the reason when it is not done.
pub(super) fn effect(about: &str, state: &str, why_not: Option<&str>, effect: &Effect) -> String {
    let (what, seen) = match effect {
        Effect::Email(mail) => (format!("mail to {}", mail.recipient), seen_mail(mail)),
        Effect::Sns(sns) => (format!("SNS {}", sns.topic), seen_message(sns)),
        Effect::S3(s3) => (format!("S3 {}", s3.key), vec![s3.content_type.clone(), seen_body(&s3.body)]),
        Effect::Amqp(amqp) => {
            let lines = vec![amqp.routing_key.clone(), String::from_utf8_lossy(&amqp.body).into_owned()];
            (format!("AMQP {}", amqp.exchange), lines)
        }
        Effect::Webhook(webhook) => {
            let headers = webhook.headers.iter().map(|(name, value)| format!("{name}: {value}"));
            let body = String::from_utf8_lossy(&webhook.body).into_owned();
            (format!("webhook {}", webhook.to.name()), headers.chain([webhook.content_type.clone(), body]).collect())
        }
        Effect::Irc(irc) => (format!("IRC {}", irc.channel), irc.lines.iter().map(|line| uncoloured(line)).collect()),
    };
    let lines = why_not.map_or(seen, |why| vec![why.to_owned()]);
    let head = format!("── {} ─ {} ─ {state}\n", printable(about), printable(&what));
    head + &indented(&lines)
}

/// A mail as its reader sees it.
fn seen_mail(mail: &Email) -> Vec<String> {
    let mut lines = vec![format!("To: {}", mail.to.join(", ")), format!("Subject: {}", mail.subject)];
    lines.extend(mail.thread.as_ref().map(|thread| format!("Thread: {thread}")));
    lines.push(String::new());
    lines.extend(mail.text.lines().map(str::to_owned));
    lines
}

/// A message as a topic's subscriber sees it.
fn seen_message(sns: &Sns) -> Vec<String> {
    let subject = sns.subject.iter().flat_map(|subject| [format!("Subject: {subject}"), String::new()]);
    subject.chain(sns.text.lines().map(str::to_owned)).collect()
}

/// Where an object comes from, or how large it is.
fn seen_body(body: &S3Body) -> String {
    match body {
        S3Body::Bytes(bytes) => format!("{} bytes", bytes.len()),
        S3Body::Artifact(of) => format!("gzipped: {} of run {}", of.name, of.run_id),
        S3Body::Address(address) => format!("gzipped: {address}"),
    }
}

/// A line of IRC without its colour codes: `\x03` and two digits.
fn uncoloured(line: &str) -> String {
    let mut parts = line.split('\u{3}');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |line, part| line + part.get(2..).unwrap_or_default())
}

/// A moment, to the second, UTC.
pub(super) fn moment(ms: i64) -> String {
    jiff::Timestamp::from_millisecond(ms).map_or_else(|_| "?".to_owned(), |time| time.strftime("%FT%TZ").to_string())
}

/// Foreign lines below the line they belong to.
pub(super) fn indented(lines: &[String]) -> String {
    lines.iter().map(|line| format!("   {}", printable(line)).trim_end().to_owned() + "\n").collect()
}

/// Foreign text on one line, with nothing in it that a terminal would obey.
pub(super) fn printable(text: &str) -> String {
    text.chars().map(|c| if is_obeyed(c) { '\u{fffd}' } else { c }).collect()
}

/// The same for text of several lines.
pub(super) fn printable_lines(text: &str) -> String {
    text.split('\n').map(printable).collect::<Vec<_>>().join("\n")
}

/// JSON on one line, in which what a terminal would obey stands as escapes.
pub(super) fn json(value: &Value) -> String {
    let mut text = String::new();
    for c in value.to_string().chars() {
        if is_obeyed(c) {
            text.push_str(&format!("\\u{:04x}", u32::from(c)));
        } else {
            text.push(c);
        }
    }
    text
}

/// Control characters, and those that turn the direction of a text.
fn is_obeyed(c: char) -> bool {
    c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn mail() -> Effect {
        Effect::Email(Email {
            account: "smtp".into(),
            recipient: "a@example.com".into(),
            to: ["a@example.com".into(), "b@example.com".into()].into(),
            subject: "s\u{1b}[2J".into(),
            text: "one\n\n\u{202e}two\u{9b}\n".into(),
            html: None,
            thread: Some("t".into()),
        })
    }

    #[test]
    fn a_mail_is_seen_without_what_a_terminal_would_obey() {
        assert_eq!(
            effect("task\rfailed", "asked", None, &mail()),
            "── task\u{fffd}failed ─ mail to a@example.com ─ asked\n   To: a@example.com, b@example.com\n   \
             Subject: s\u{fffd}[2J\n   Thread: t\n\n   one\n\n   \u{fffd}two\u{fffd}\n"
        );
    }

    #[test]
    fn what_is_not_done_is_seen_with_its_reason_alone() {
        assert_eq!(
            effect("default", "refused", Some("not\ngranted"), &mail()),
            "── default ─ mail to a@example.com ─ refused\n   not\u{fffd}granted\n"
        );
    }

    #[test]
    fn json_stays_the_same_json() {
        let value = json!({"text": "\u{1b}[2J\u{9b}\u{202e}☃\n"});
        let shown = json(&value);
        assert!(!shown.contains(is_obeyed), "{shown}");
        assert_eq!(serde_json::from_str::<Value>(&shown).unwrap(), value);
    }
}
