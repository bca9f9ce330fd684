//! `[accounts.NAME]`: who we are somewhere, of one kind each.

use std::time::Duration;

use url::Url;

use super::super::document::Section;
use super::super::value::{
    ACL, AMQP_NAME, BUCKET, DOMAIN, HOST, LINE, LINE_EVERY, MAIL_ADDRESS, NICK, REGION, line_every,
};
use super::super::{Account, AwsAccount, Broker, IrcAccount, S3Account, Sender, SesAccount, SmtpAccount, SmtpSecurity};

/// The kinds of accounts.
#[derive(Clone, Copy)]
enum Kind {
    Smtp,
    Ses,
    Sns,
    S3,
    Irc,
    Amqp,
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

const KINDS: [(&str, Kind); 6] = [
    ("smtp", Kind::Smtp),
    ("ses", Kind::Ses),
    ("sns", Kind::Sns),
    ("s3", Kind::S3),
    ("irc", Kind::Irc),
    ("amqp", Kind::Amqp),
];
