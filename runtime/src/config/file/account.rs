//! `[accounts.NAME]`: who we are somewhere, of one kind each.

use std::path::Path;
use std::time::Duration;

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use url::Url;

use super::super::document::{OUT_OF_SIGHT, Section};
use super::super::value::{
    ACL, AMQP_NAME, BUCKET, DOMAIN, HOST, LINE, LINE_EVERY, MAIL_ADDRESS, NICK, RECEIVER, REGION, line_every, receiver,
};
use super::super::{
    Account, AwsAccount, Broker, IrcAccount, Role, S3Account, Secret, Sender, SesAccount, SmtpAccount, SmtpSecurity,
    WebhookAccount, read_file,
};
use crate::grant::webhook::{is_header_name, is_hosts_own};
use crate::place::Reach;

/// The kinds of accounts.
#[derive(Clone, Copy)]
enum Kind {
    Smtp,
    Ses,
    Sns,
    S3,
    Irc,
    Amqp,
    Webhook,
}

pub(super) fn account(section: &Section<'_>, broker: &Broker) -> Option<Account> {
    if !section.has("kind") {
        section.expected("kind", &format!("one of {}", KINDS.map(|(word, _)| word).join(", ")));
    }
    let Some(kind) = section.one_of("kind", &KINDS) else {
        section.forgive();
        return None;
    };
    Some(match kind {
        Kind::Smtp => Account::Smtp(smtp(section)),
        Kind::Ses => Account::Ses(SesAccount { aws: aws(section), sender: sender(section) }),
        Kind::Sns => Account::Sns(aws(section)),
        Kind::S3 => Account::S3(s3(section)),
        Kind::Irc => Account::Irc(irc(section)),
        Kind::Amqp => Account::Amqp(amqp(section, broker)),
        Kind::Webhook => Account::Webhook(webhook(section)),
    })
}

fn smtp(section: &Section<'_>) -> SmtpAccount {
    let kinds = [("starttls", SmtpSecurity::StartTls), ("tls", SmtpSecurity::Tls), ("none", SmtpSecurity::None)];
    let sender = sender(section);
    let login = section.text("login", "a user's name");
    let password = section.secret("password", "password_file", "the password");
    let security = section.one_of("security", &kinds).unwrap_or_default();
    let port = section.port("port", 587);
    if login.is_some() && !section.has("password") && !section.has("password_file") {
        section.problem("login", "expected a password beside it, found nothing");
    }
    if !section.has("password") && !section.has("password_file") {
        section.note("password", "not set: mails are sent without logging in");
    }
    if password.is_some() && security == SmtpSecurity::None {
        section.note("security", "the password crosses the network in the clear");
    }
    if port == 465 && security == SmtpSecurity::StartTls {
        section.note("port", "465 usually means security = \"tls\"");
    }
    let user = login.unwrap_or_else(|| sender.from.clone());
    SmtpAccount {
        host: section.checked("host", HOST, None),
        port,
        security,
        login: password.map(|password| (user, password)),
        sender,
    }
}

fn sender(section: &Section<'_>) -> Sender {
    Sender {
        from: section.checked("from", MAIL_ADDRESS, None),
        threading_domain: section.checked("threading_domain", DOMAIN, Some("mozilla.com")),
    }
}

fn aws(section: &Section<'_>) -> AwsAccount {
    let id = section.text("access_key_id", "the id of an access key");
    let secret = section.secret("secret_access_key", "secret_access_key_file", "the secret access key");
    let has_secret = section.has("secret_access_key") || section.has("secret_access_key_file");
    if section.has("access_key_id") != has_secret {
        let (there, missing) = match has_secret {
            true => ("secret_access_key", "access_key_id"),
            false => ("access_key_id", "secret_access_key"),
        };
        section.problem(missing, format!("expected it beside {there}, found nothing"));
    }
    if section.has("profile") && section.has("access_key_id") {
        section.problem("profile", "expected a profile or a key, found both");
    }
    AwsAccount {
        region: section.has("region").then(|| section.checked("region", REGION, None)),
        endpoint: endpoint(section),
        profile: section.has("profile").then(|| section.checked("profile", LINE, None)),
        keys: id.zip(secret),
    }
}

fn endpoint(section: &Section<'_>) -> Option<Url> {
    let what = "an http or https URL without user and password";
    let url = section.text("endpoint", what)?.parse::<Url>().ok().filter(|url| {
        matches!(url.scheme(), "http" | "https") && url.username().is_empty() && url.password().is_none()
    });
    if url.is_none() {
        section.expected_unseen("endpoint", what);
    }
    url
}

fn s3(section: &Section<'_>) -> S3Account {
    let acl = section.checked("acl", ACL, Some("none"));
    S3Account {
        aws: aws(section),
        bucket: section.checked("bucket", BUCKET, None),
        acl: Some(acl).filter(|acl| acl != "none"),
    }
}

fn irc(section: &Section<'_>) -> IrcAccount {
    let nick = section.checked("nick", NICK, None);
    let line_seconds = section.number("line_seconds", "a number of seconds").unwrap_or(2.0);
    let line_every = line_every(line_seconds).unwrap_or_else(|| {
        section.expected("line_seconds", LINE_EVERY);
        Duration::from_secs(2)
    });
    IrcAccount {
        host: section.checked("host", HOST, None),
        port: section.port("port", 6697),
        tls: section.truth("tls", true),
        real_name: section.checked("real_name", LINE, Some(&nick)),
        nick,
        password: section.secret("password", "password_file", "the server's password"),
        burst: section.whole("burst", "a number of lines", 0..=u32::MAX.into()).unwrap_or(4),
        line_every,
    }
}

/// The service's own broker, or another one.
fn amqp(section: &Section<'_>, own: &Broker) -> Broker {
    let keys = ["host", "port", "tls", "vhost", "login", "password", "password_file"];
    // Each is asked for, so that each is known.
    let is_another = keys.map(|key| section.has(key)).contains(&true);
    if !is_another {
        if section.findings().role() == Role::Courier && own.password.expose().is_empty() {
            section.own_problem("expected the password of the service's broker, which this account is, found none");
        }
        return own.clone();
    }
    Broker {
        host: section.checked("host", HOST, None),
        port: section.port("port", 5671),
        tls: section.truth("tls", true),
        vhost: section.checked("vhost", AMQP_NAME, Some("/")),
        login: section.checked("login", AMQP_NAME, None),
        password: section.required_secret("password", "password_file", "the user's password"),
    }
}

fn webhook(section: &Section<'_>) -> WebhookAccount {
    let private = section.truth("private", false);
    let key = if section.has("url_file") { "url_file" } else { "url" };
    let secret = section.secret("url", "url_file", RECEIVER);
    let url = secret.as_ref().and_then(|text| receiver(text.expose()));
    if url.is_none() && secret.is_some() {
        section.expected_unseen(key, RECEIVER);
    }
    let reach = if private { Reach::Private } else { Reach::World };
    if url.as_ref().is_some_and(|url| !reach.covers_place(url)) {
        section.problem(key, format!("expected {RECEIVER} out in the world, or private = true for a private network"));
    }
    if url.as_ref().is_some_and(|url| url.scheme() == "http") {
        section.note(key, "posts, and what is secret in them, cross the network in the clear");
    }
    if private {
        section.note("private", "posts may go to private networks and to this machine");
    }
    WebhookAccount {
        url: match url {
            Some(url) => Some(Secret::new(url)),
            // It has one, whatever it is: it is for the other half to see, or what is wrong with it is said.
            None if section.has("url") || section.has("url_file") => UNSEEN.parse().ok().map(Secret::new),
            None => None,
        },
        headers: headers(section),
        hmac_secret: section.secret("hmac_secret", "hmac_secret_file", "the secret that posts are signed with"),
        private,
    }
}

/// Headers with their values, here or in files. No value is shown.
fn headers(section: &Section<'_>) -> HeaderMap {
    let (table, files) = (section.section("headers"), section.section("headers_files"));
    let mut headers = HeaderMap::new();
    if section.hides_secrets() && !section.must_see_none() {
        table.forgive();
        files.forgive();
        return headers;
    }
    if section.hides_secrets() {
        table.hide_texts();
        for (name, path) in files.named_texts() {
            if read_file(Path::new(&path)).is_ok() {
                files.problem(&name, OUT_OF_SIGHT);
            }
        }
        return headers;
    }
    let mut insert = |section: &Section<'_>, name: &str, text: &str| {
        if !is_header_name(name) || is_not_ours(&name.to_ascii_lowercase()) {
            return section.problem(name, "expected the name of a header that is not set otherwise");
        }
        match (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(text)) {
            (Ok(header), Ok(_)) if headers.contains_key(&header) => section.problem(name, "expected it once"),
            (Ok(header), Ok(mut value)) => {
                value.set_sensitive(true);
                headers.insert(header, value);
            }
            (Err(_), _) | (_, Err(_)) => section.problem(name, "expected one line of printable ASCII characters"),
        }
    };
    for (name, text) in table.named_texts() {
        insert(&table, &name, &text);
    }
    for (name, path) in files.named_texts() {
        match read_file(Path::new(&path)) {
            Ok(text) => insert(&files, &name, text.trim_end_matches(['\r', '\n'])),
            Err(why) => files.problem(&name, why),
        }
    }
    headers
}

/// What guests may not set is the operator's where it says who we are, and nobody's where it says how a post travels.
fn is_not_ours(name: &str) -> bool {
    is_hosts_own(name) && !matches!(name, "authorization" | "cookie" | "user-agent")
}

const KINDS: [(&str, Kind); 7] = [
    ("smtp", Kind::Smtp),
    ("ses", Kind::Ses),
    ("sns", Kind::Sns),
    ("s3", Kind::S3),
    ("irc", Kind::Irc),
    ("amqp", Kind::Amqp),
    ("webhook", Kind::Webhook),
];

/// Stands for a receiver that is not known.
const UNSEEN: &str = "https://unseen.invalid";
