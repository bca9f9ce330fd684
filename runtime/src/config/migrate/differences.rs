//! What will be different from the predecessor for one configuration, each with its reason.

use super::super::environment::truth;
use super::super::{Config, Environment};
use super::Writer;

pub(super) fn say(file: &mut Writer, environment: &Environment, config: &Config) {
    let enabled = |plugin: &str| config.tenants.iter().any(|tenant| tenant.plugins.contains_key(plugin));
    let mails = enabled("smtp") || enabled("ses");
    file.comment(
        "The configuration that the environment's variables describe. Secrets are still taken from variables.",
    );
    file.line("#");
    file.comment("What will be different from the earlier service:");
    let mut differs = |concerns: bool, what: &str| {
        if concerns {
            for (index, line) in wrapped(what).iter().enumerate() {
                file.comment(&format!("{} {line}", if index == 0 { "-" } else { " " }));
            }
        }
    };
    for what in ALWAYS {
        differs(true, what);
    }
    differs(
        !config.tenants.iter().all(|tenant| tenant.identities.is_empty()),
        "An id that a section names twice counts once, and one that nobody knows is logged and passed over. No identity \
         may be named `default`: that is the section itself.",
    );
    differs(
        mails,
        "HTML in a message or subject is escaped in mails: whoever can create a task could put any page into them.",
    );
    differs(
        mails,
        "Each recipient of a mail is sent a mail of their own, with the same To: one bad address no longer stops the others.",
    );
    differs(
        mails,
        "Mail may go to anyone, as before, which the grants below say. Narrow `recipients`: whoever can create a task \
         names the recipients.",
    );
    differs(
        enabled("irc"),
        "A message's lines are said as lines, at most 10: a line break in a message was an IRC command.",
    );
    differs(
        enabled("irc"),
        "IRC lines are said no faster than `burst` and `line_seconds` allow: servers throw out who floods them. The \
         connection is kept, and `nicks` are named at the beginning of a line, as was documented.",
    );
    differs(enabled("irc"), "Every channel a task names may be talked in, as before. Narrow `channels`.");
    differs(
        enabled("sns"),
        "SNS works: its code was never reached. A subject is at most 100 characters, as SNS has it.",
    );
    differs(
        enabled("log_collect"),
        "Logs are fetched only for tasks that ask for log_collect: all were, before anybody knew who wanted them.",
    );
    differs(
        enabled("log_collect") && environment.text("S3_ACL").is_none(),
        "Logs get the ACL public-read, as before. A bucket made since April 2023 refuses ACLs: then acl = \"none\".",
    );
    differs(
        enabled("log_collect"),
        "A log is public/logs/live_backing.log of its run: the two services named before are gone. [logs.sources] \
         names others by provisioner.",
    );
    differs(
        enabled("repulse"),
        "repulse works, to an exchange of our own: an event comes back at most 3 times, and its CC routes are dropped, \
         since a message to the exchange that is consumed from would come back for ever.",
    );
    let is_off = |name: &str| environment.text(name).is_some_and(|text| truth(text) == Some(false));
    differs(
        is_off("PULSE_SSL"),
        "PULSE_SSL is read as a truth value (true, false, 1, 0, yes, no) and switches TLS off: make sure that this is meant.",
    );
    differs(is_off("SMTP_TEMPLATE"), "SMTP_TEMPLATE is read as a truth value: mails have text alone.");
    differs(
        config.notes.iter().any(|note| note.starts_with("LOG_LEVEL")),
        "LOG_LEVEL is none of the known names and means INFO.",
    );
    differs(
        config.influx.is_some(),
        "Timings are written to InfluxDB in batches, and dropped while it is away: no delivery waits for it.",
    );
    let unread = config.notes.iter().filter(|note| note.ends_with("nothing reads it"));
    for note in unread {
        differs(true, &format!("{note}."));
    }
}

/// What concerns every configuration.
const ALWAYS: [&str; 6] = [
    "A message is acked once its outcome is on disk, and only then: a failure was acked and nothing of it recorded. One \
     that is no event is kept in the database; it stopped the service for ever.",
    "Up to 256 messages are worked on at once and none waits for another: it was one, and a slow mail held up all. So \
     notifications of different tasks may come in another order.",
    "A plugin that fails stops no other plugin and no other id, and sending is tried again for up to 3 days: retries \
     were meant and never happened.",
    "An event that Taskcluster publishes twice is told once, for `keep_days`.",
    "Both `notification` and `notifications` are read in a task; when it has both, the plural one wins and the log says \
     so.",
    "A section without subject or message gets a text that says what happened: it was an error. `{task_id}` is filled in.",
];

fn wrapped(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.len() + word.len() < LINE_BYTES => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

const LINE_BYTES: usize = 110;
