//! What the values of a configuration look like, whether a variable or a file says them. Pure.

use std::time::Duration;

use url::Url;

use crate::grant::irc::is_channel;
use crate::grant::sns;

/// A form that a text must have.
#[derive(Clone, Copy)]
pub(super) struct Check {
    /// What is expected, in words.
    pub(super) what: &'static str,
    /// Whether it is so.
    pub(super) fits: fn(&str) -> bool,
}

pub(super) const HOST: Check = Check {
    what: "a host alone, without scheme, user and password",
    fits: |text| !text.contains(|c: char| c.is_control() || c.is_whitespace() || matches!(c, '/' | '@')),
};
pub(super) const MAIL_ADDRESS: Check =
    Check { what: "a mail address", fits: |text| text.parse::<lettre::Address>().is_ok() };
pub(super) const DOMAIN: Check =
    Check { what: "a domain", fits: |text| text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'.' || b == b'-') };
pub(super) const TOPIC: Check = Check {
    what: "the ARN of a topic, arn:aws:sns:<region>:<account>:<name>",
    fits: |text| sns::region(text).is_some(),
};
pub(super) const BUCKET: Check = Check {
    what: "the name of a bucket",
    fits: |text| text.len() <= 255 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_".contains(&b)),
};
pub(super) const ACL: Check = Check {
    what: "a canned ACL such as public-read, or none",
    fits: |text| text.bytes().all(|b| b.is_ascii_lowercase() || b == b'-'),
};
pub(super) const REGION: Check = Check {
    what: "a region such as us-west-2",
    fits: |text| text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'),
};
pub(super) const LINE: Check = Check { what: "one line", fits: |text| !text.contains(char::is_control) };
pub(super) const NICK: Check = Check {
    what: "a nickname of A-Z a-z 0-9 - _ [ ] \\ ` ^ { | }, not beginning with a digit or -",
    fits: |text| {
        let first = text.bytes().next();
        text.len() <= 64
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_[]\\`^{|}".contains(&b))
            && first.is_none_or(|b| !b.is_ascii_digit() && b != b'-')
    },
};
pub(super) const CHANNEL: Check = Check { what: "a channel such as #ci", fits: is_channel };
/// The time between two lines on IRC.
pub(super) fn line_every(seconds: f64) -> Option<Duration> {
    (0.0..=3_600.0).contains(&seconds).then(|| Duration::from_secs_f64(seconds))
}
pub(super) const LINE_EVERY: &str = "a number of seconds from 0 to 3600";
/// The names of plugins, tenants and accounts.
pub(super) const NAME: Check = Check {
    what: "a name of A-Z a-z 0-9 - _, at most 64 of them",
    fits: |text| {
        (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
    },
};
pub(super) const AMQP_NAME: Check = Check {
    what: "a name of at most 255 bytes, without control characters",
    fits: |text| text.len() <= 255 && !text.contains(char::is_control),
};
pub(super) const STORE: Check = Check {
    what: "sqlite:<path>, a file",
    fits: |text| {
        text.strip_prefix("sqlite:").is_some_and(|path| !path.is_empty() && !path.contains([':', '?']) && path != ".")
    },
};

/// What is wrong with Taskcluster's address.
pub(super) fn root_problem(root: &Url) -> Option<&'static str> {
    if !matches!(root.scheme(), "http" | "https") {
        Some("expected an http or https URL")
    } else if !root.username().is_empty() || root.password().is_some() {
        Some("expected a URL without user and password: it is shown to everybody")
    } else if root.query().is_some() || root.fragment().is_some() {
        Some("expected a URL that ends with its path")
    } else {
        None
    }
}

/// The exchange that a status, or the name of an exchange itself, stands for.
pub(super) fn exchange(status: &str) -> String {
    if status.contains('/') { status.to_owned() } else { format!("exchange/taskcluster-queue/v1/{status}") }
}

/// Whether this is a status Taskcluster knows, or the full name of an exchange.
pub(super) fn is_known_status(status: &str) -> bool {
    status.contains('/') || STATUSES.contains(&status)
}

pub(super) const STATUSES: [&str; 7] = [
    "task-defined",
    "task-pending",
    "task-running",
    "artifact-created",
    "task-completed",
    "task-failed",
    "task-exception",
];
pub(super) const DEFAULT_STATUSES: [&str; 3] = ["task-completed", "task-failed", "task-exception"];

/// The address of an InfluxDB, which may be written as its host alone.
pub(super) fn influx_url(text: &str) -> Option<Url> {
    let port = if text.contains(':') { "" } else { ":8086" };
    let url = if text.contains("://") { text.to_owned() } else { format!("http://{text}{port}") };
    Url::parse(&url).ok().filter(is_plain)
}

/// The address of a receiver of posts.
pub(super) fn receiver(text: &str) -> Option<Url> {
    let fits = |url: &Url| matches!(url.scheme(), "http" | "https") && url.has_host() && url.fragment().is_none();
    Url::parse(text).ok().filter(fits)
}

pub(super) const RECEIVER: &str = "an https URL";

/// An address of the web that holds nobody's password.
fn is_plain(url: &Url) -> bool {
    matches!(url.scheme(), "http" | "https") && url.has_host() && url.username().is_empty() && url.password().is_none()
}

pub(super) const INFLUX_URL: &str = "a host, host:port or http URL, without user and password";
