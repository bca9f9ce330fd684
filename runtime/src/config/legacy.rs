//! The predecessor's variables and identity file, and the few variables that are new, as a configuration: one tenant,
//! `default`, with the predecessor's grants.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use url::Url;

use super::environment::{Environment, Reader, truth};
use super::file::DEFAULT_STORE;
use super::value::{
    ACL, AMQP_NAME, BUCKET, CHANNEL, DEFAULT_STATUSES, DOMAIN, HOST, INFLUX_URL, LINE, LINE_EVERY, MAIL_ADDRESS, NAME,
    NICK, STATUSES, STORE, TOPIC, exchange, influx_url, is_known_status, line_every, root_problem,
};
use super::{
    Account, AwsAccount, Broker, Config, ConfigError, DeliveryMode, InfluxAccount, IrcAccount, Role, S3Account, Secret,
    Sender, SesAccount, SmtpAccount, SmtpSecurity, default_cache, default_plugins, identities, read_file, surroundings,
};
use crate::effect::destination;
use crate::grant::{AmqpGrant, EmailGrant, Grant, IrcGrant, Pattern, S3Grant, SnsGrant};
use crate::intake::notification::Identities;
use crate::sandbox::Limits;
use crate::store::Binding;
use crate::tenant::{LogCollection, On, PluginTerms, Queue, QueueKind, Tenant};

pub(super) fn read(environment: &Environment, role: Role) -> Result<Config, ConfigError> {
    let reader = Reader::new(environment);
    let mut notes = Vec::new();
    let broker = broker(&reader, role);
    let services = services(&reader);
    let uses = |service: &str| services.iter().any(|one| one == service);
    let queue = queue(&reader, &broker.login, &mut notes);
    let world = World {
        smtp: smtp(&reader, uses("smtp"), &mut notes),
        ses: ses(&reader, uses("ses")),
        topic: topic(&reader, uses("sns")),
        s3: s3(&reader, uses("log_collect")),
        irc: irc(&reader, uses("irc")),
        exchange: repulse_exchange(&reader, uses("repulse"), &broker.login),
    };
    if let Some(exchange) = world.exchange.as_ref().filter(|name| queue.bindings.iter().any(|it| it.exchange == **name))
    {
        notes.push(format!("REPULSE_EXCHANGE: {exchange} is consumed from, so publishing there is refused"));
    }
    let logs = world.s3.as_ref().filter(|_| uses("log_collect")).and_then(|s3| LogCollection::in_bucket(&s3.bucket));
    let tenant = Tenant {
        name: "default".into(),
        identities: identities(&reader),
        plugins: plugins(&reader, &services, &world, &queue),
        queue,
        logs,
    };
    let store = reader.text("PN_STORE").unwrap_or(DEFAULT_STORE);
    let config = Config {
        taskcluster_root: reader.parsed("TASKCLUSTER_ROOT_URL", "a URL", default_root()),
        plugins: reader.text("PN_PLUGINS").map_or_else(default_plugins, PathBuf::from),
        cache: reader.text("PN_CACHE").map_or_else(|| default_cache(store), PathBuf::from),
        store: store.to_owned(),
        delivery: reader.one_of(
            "PN_DELIVERY",
            &[("send", DeliveryMode::Send), ("capture", DeliveryMode::Capture)],
            DeliveryMode::Send,
        ),
        accounts: world.accounts(&broker),
        broker,
        tenants: vec![tenant],
        tenants_folder: None,
        admin: admin(&reader),
        influx: influx(&reader),
        drain: Duration::from_secs(reader.parsed("PN_DRAIN_SECONDS", "a number of seconds", 30)),
        keep: Duration::from_secs(60 * 60 * 24 * keep_days(&reader)),
        notes: Vec::new(),
        left_out: Vec::new(),
    };
    if let Some(why) = root_problem(&config.taskcluster_root) {
        reader.problem("TASKCLUSTER_ROOT_URL", why);
    }
    if !(STORE.fits)(&config.store) {
        // Another database's address may hold a password.
        reader.problem("PN_STORE", format!("expected {}", STORE.what));
    }
    let found = surroundings::look(environment, role, Some(&config.store));
    for (place, what) in found.problems {
        reader.problem(place, what);
    }
    notes.extend(found.notes);
    // The one is read by `cli` before anything else; the other would have named a file to read instead.
    for name in ["LOG_LEVEL", "PN_CONFIG"] {
        reader.text(name);
    }
    if config.delivery == DeliveryMode::Capture {
        notes.push("PN_DELIVERY=capture: effects are kept and shown, nothing is sent".into());
    }
    notes.push(
        "the predecessor's grants apply: every plugin may mail anyone and talk in any channel a task names".into(),
    );
    for name in reader.unread(&OURS) {
        notes.push(format!("{name} is set, but nothing reads it"));
    }
    reader.finish(Config { notes, ..config })
}

fn keep_days(reader: &Reader<'_>) -> u64 {
    let days = reader.parsed("PN_KEEP_DAYS", "a number of days", 30);
    if !(1..=10_000).contains(&days) {
        reader.problem("PN_KEEP_DAYS", format!("expected a number of days from 1 to 10000, found {days}"));
    }
    days.clamp(1, 10_000)
}

/// `PN_ADMIN`: an address, or `none`.
fn admin(reader: &Reader<'_>) -> Option<SocketAddr> {
    let default = SocketAddr::from((Ipv4Addr::LOCALHOST, 8787));
    match reader.text("PN_ADMIN") {
        Some(text) if text.eq_ignore_ascii_case("none") => None,
        _ => Some(reader.parsed("PN_ADMIN", "an address such as 127.0.0.1:8787, or none", default)),
    }
}

/// `INFLUXDB_RECORD` or, older, `FLUX_RECORD` switch it; without either it is on when there is a host.
fn influx(reader: &Reader<'_>) -> Option<InfluxAccount> {
    let (host, database) = (reader.text("INFLUXDB_HOST"), reader.text("INFLUXDB_NAME"));
    let (user, password) = (reader.text("INFLUXDB_USER"), reader.text("INFLUXDB_PASSWORD"));
    let switch = ["INFLUXDB_RECORD", "FLUX_RECORD"].into_iter().find(|name| reader.text(name).is_some());
    if !switch.map_or(host.is_some(), |name| reader.truth(name, false)) {
        return None;
    }
    let host = host.unwrap_or_else(|| reader.required("INFLUXDB_HOST", "the InfluxDB server"));
    let database = database.unwrap_or_else(|| reader.required("INFLUXDB_NAME", "the name of the database"));
    let url = influx_url(host);
    if url.is_none() && !host.is_empty() {
        reader.problem("INFLUXDB_HOST", format!("expected {INFLUX_URL}"));
    }
    let login = user.map(|user| (user.to_owned(), Secret::new(password.unwrap_or_default().to_owned())));
    Some(InfluxAccount { url: url?, database: database.to_owned(), login })
}

fn broker(reader: &Reader<'_>, role: Role) -> Broker {
    for name in ["PULSE_VHOST", "PULSE_LOGIN"] {
        if reader.text(name).is_some_and(|text| !(AMQP_NAME.fits)(text)) {
            reader.problem(name, format!("expected {}", AMQP_NAME.what));
        }
    }
    for name in ["PULSE_HOST", "SMTP_HOST", "IRC_HOST"] {
        if let Some(text) = reader.text(name).filter(|text| !(HOST.fits)(text)) {
            // Whoever pastes an address there may paste a password with it.
            let found = if text.contains(['@', '/']) { "an address".to_owned() } else { format!("{text:?}") };
            reader.problem(name, format!("expected {}, found {found}", HOST.what));
        }
    }
    let is_for_effects = || reader.list("PN_SERVICES").unwrap_or_default().contains(&"repulse".into());
    let needs_password = role.takes_in() || (role.delivers() && is_for_effects());
    let password = match needs_password {
        true => reader.required("PULSE_PASSWORD", "the Pulse user's password"),
        false => reader.text("PULSE_PASSWORD").unwrap_or_default(),
    };
    Broker {
        host: reader.text("PULSE_HOST").unwrap_or("pulse.mozilla.org").to_owned(),
        port: reader.port("PULSE_PORT", 5671),
        tls: reader.truth("PULSE_SSL", true),
        vhost: reader.text("PULSE_VHOST").unwrap_or("/").to_owned(),
        login: reader.required("PULSE_LOGIN", "the Pulse user").to_owned(),
        password: Secret::new(password.to_owned()),
    }
}

fn queue(reader: &Reader<'_>, login: &str, notes: &mut Vec<String>) -> Queue {
    let name = reader.required("PULSE_QUEUE", "the name of the queue, without queue/<login>/");
    let exchanges = reader.list("PULSE_EXCHANGES");
    let exchanges = exchanges.unwrap_or_else(|| DEFAULT_STATUSES.map(str::to_owned).to_vec());
    let routing_keys = reader.list("ROUTING_KEYS").unwrap_or_else(|| vec!["#".into()]);
    for status in exchanges.iter().filter(|status| !is_known_status(status)) {
        notes.push(format!("PULSE_EXCHANGES: {status:?} is none of {}", STATUSES.join(", ")));
    }
    let full = |status: &String| exchange(status);
    let bindings = exchanges.iter().map(full).flat_map(|exchange| {
        routing_keys.iter().map(move |key| Binding { exchange: exchange.clone(), routing_key: key.clone() })
    });
    for (variable, text) in [("PULSE_QUEUE", format!("queue/{login}/{name}"))]
        .into_iter()
        .chain(exchanges.iter().map(|exchange| ("PULSE_EXCHANGES", full(exchange))))
        .chain(routing_keys.iter().map(|key| ("ROUTING_KEYS", key.clone())))
    {
        if !(AMQP_NAME.fits)(&text) {
            reader.problem(variable, format!("expected {}", AMQP_NAME.what));
        }
    }
    let kinds = [("classic", QueueKind::Classic), ("quorum", QueueKind::Quorum)];
    let kind = reader.one_of("PULSE_QUEUE_TYPE", &kinds, QueueKind::Plain);
    Queue { name: format!("queue/{login}/{name}"), kind, bindings: bindings.collect() }
}

fn services(reader: &Reader<'_>) -> Vec<String> {
    reader.required("PN_SERVICES", "the plugins to enable, separated by colons, such as smtp");
    let mut services = reader.list("PN_SERVICES").unwrap_or_default();
    for service in &services {
        if !(NAME.fits)(service) {
            reader.problem("PN_SERVICES", format!("expected each to be {}, found {service:?}", NAME.what));
        }
    }
    services.sort();
    services.dedup();
    services
}

fn smtp(reader: &Reader<'_>, needed: bool, notes: &mut Vec<String>) -> Option<SmtpAccount> {
    let kinds = [("starttls", SmtpSecurity::StartTls), ("tls", SmtpSecurity::Tls), ("none", SmtpSecurity::None)];
    let security = reader.one_of("SMTP_SECURITY", &kinds, SmtpSecurity::StartTls);
    let port = reader.port("SMTP_PORT", 587);
    let password = reader.text("SMTP_PASSWD");
    let host = if needed { reader.required("SMTP_HOST", "the mail server") } else { reader.text("SMTP_HOST")? };
    let sender = sender(reader, "SMTP_EMAIL", "the address that mails are from, and the login");
    if password.is_none() {
        notes.push("SMTP_PASSWD is not set: mails are sent without logging in".into());
    }
    if security == SmtpSecurity::None && password.is_some() {
        notes.push("SMTP_SECURITY=none: the password crosses the network in the clear".into());
    }
    if port == 465 && security == SmtpSecurity::StartTls {
        notes.push("SMTP_PORT=465 usually means SMTP_SECURITY=tls".into());
    }
    Some(SmtpAccount {
        host: host.to_owned(),
        port,
        security,
        login: password.map(|password| (sender.from.clone(), Secret::new(password.to_owned()))),
        sender,
    })
}

fn sender(reader: &Reader<'_>, variable: &str, what: &str) -> Sender {
    let from = reader.required(variable, what);
    if !from.is_empty() && !(MAIL_ADDRESS.fits)(from) {
        reader.problem(variable, format!("expected a mail address, found {from:?}"));
    }
    let domain = reader.text("EMAIL_THREADING_DOMAIN").unwrap_or("mozilla.com");
    if !(DOMAIN.fits)(domain) {
        reader.problem("EMAIL_THREADING_DOMAIN", format!("expected a domain, found {domain:?}"));
    }
    Sender { from: from.to_owned(), threading_domain: domain.to_owned() }
}

fn ses(reader: &Reader<'_>, needed: bool) -> Option<SesAccount> {
    if !needed {
        reader.text("SES_EMAIL")?;
    }
    Some(SesAccount {
        aws: AwsAccount::default(),
        sender: sender(reader, "SES_EMAIL", "the address that mails are from"),
    })
}

/// `SNS_ARN`: the one topic.
fn topic(reader: &Reader<'_>, needed: bool) -> Option<String> {
    let topic = if needed { reader.required("SNS_ARN", "the ARN of a topic") } else { reader.text("SNS_ARN")? };
    if !topic.is_empty() && !(TOPIC.fits)(topic) {
        reader.problem("SNS_ARN", format!("expected {}, found {topic:?}", TOPIC.what));
    }
    Some(topic.to_owned())
}

fn s3(reader: &Reader<'_>, needed: bool) -> Option<S3Account> {
    let acl = reader.text("S3_ACL").unwrap_or("public-read");
    let bucket =
        if needed { reader.required("S3_BUCKET", "the bucket that logs go to") } else { reader.text("S3_BUCKET")? };
    if !(BUCKET.fits)(bucket) {
        reader.problem("S3_BUCKET", format!("expected the name of a bucket, found {bucket:?}"));
    }
    if !(ACL.fits)(acl) {
        reader.problem("S3_ACL", format!("expected {}, found {acl:?}", ACL.what));
    }
    let acl = (acl != "none").then(|| acl.to_owned());
    Some(S3Account { aws: AwsAccount::default(), bucket: bucket.to_owned(), acl })
}

/// `REPULSE_EXCHANGE`: the last part of the name of an exchange of our own.
fn repulse_exchange(reader: &Reader<'_>, needed: bool, login: &str) -> Option<String> {
    let what = "the exchange to publish to again, without exchange/<login>/";
    let name = if needed { reader.required("REPULSE_EXCHANGE", what) } else { reader.text("REPULSE_EXCHANGE")? };
    let full = format!("exchange/{login}/{name}");
    if !(AMQP_NAME.fits)(&full) {
        reader.problem("REPULSE_EXCHANGE", format!("expected a name, found {name:?}"));
    }
    Some(full)
}

fn irc(reader: &Reader<'_>, needed: bool) -> Option<IrcAccount> {
    let tls = reader.truth("IRC_TLS", true);
    let port = reader.port("IRC_PORT", 6697);
    let burst = reader.parsed("IRC_BURST", "a number of lines", 4);
    let line_seconds: f64 = reader.parsed("IRC_LINE_SECONDS", "a number of seconds", 2.0);
    let line_every = line_every(line_seconds).unwrap_or_else(|| {
        reader.problem("IRC_LINE_SECONDS", format!("expected {LINE_EVERY}, found {line_seconds}"));
        Duration::from_secs(2)
    });
    let (nick, real_name) = (reader.text("IRC_NICK"), reader.text("IRC_NAME"));
    let password = reader.text("IRC_PASS").map(|password| Secret::new(password.to_owned()));
    let host = if needed { reader.required("IRC_HOST", "the IRC server") } else { reader.text("IRC_HOST")? };
    let nick = nick.unwrap_or_else(|| reader.required("IRC_NICK", "the nickname to use"));
    for (name, check, text) in [("IRC_NICK", NICK, nick), ("IRC_NAME", LINE, real_name.unwrap_or_default())] {
        if !(check.fits)(text) {
            reader.problem(name, format!("expected {}, found {text:?}", check.what));
        }
    }
    if password.as_ref().is_some_and(|password| !(LINE.fits)(password.expose())) {
        reader.problem("IRC_PASS", "expected one line");
    }
    let real_name = real_name.unwrap_or(nick).to_owned();
    Some(IrcAccount { host: host.to_owned(), port, tls, nick: nick.to_owned(), real_name, password, burst, line_every })
}

/// What the variables say of the world outside.
struct World {
    smtp: Option<SmtpAccount>,
    ses: Option<SesAccount>,
    topic: Option<String>,
    s3: Option<S3Account>,
    irc: Option<IrcAccount>,
    exchange: Option<String>,
}

impl World {
    fn accounts(&self, broker: &Broker) -> BTreeMap<String, Account> {
        let smtp = self.smtp.clone().map(|smtp| (destination("email", SMTP_ACCOUNT), Account::Smtp(smtp)));
        let ses = self.ses.clone().map(|ses| (destination("email", SES_ACCOUNT), Account::Ses(ses)));
        let sns = self.topic.as_ref().map(|_| (destination("sns", SNS_ACCOUNT), Account::Sns(AwsAccount::default())));
        let s3 = self.s3.clone().map(|s3| (destination("s3", S3_ACCOUNT), Account::S3(s3)));
        let irc = self.irc.clone().map(|irc| (destination("irc", IRC_ACCOUNT), Account::Irc(irc)));
        let amqp = self.exchange.as_ref().map(|_| (destination("amqp", PULSE_ACCOUNT), Account::Amqp(broker.clone())));
        [smtp, ses, sns, s3, irc, amqp].into_iter().flatten().collect()
    }

    /// The predecessor's grants: any recipient and channel, the one topic, bucket and exchange.
    fn grant(&self, plugin: &str, queue: &Queue) -> Grant {
        let any = || vec![Pattern::to_the_letter("*")];
        let email = match (plugin, &self.ses, &self.smtp) {
            ("ses", Some(_), _) | (_, Some(_), None) => Some(SES_ACCOUNT),
            (_, _, Some(_)) => Some(SMTP_ACCOUNT),
            (_, None, None) => None,
        };
        Grant {
            email: email.map(|account| EmailGrant { account: account.into(), recipients: vec![Pattern::new("*")] }),
            sns: self
                .topic
                .as_deref()
                .map(|topic| SnsGrant { account: SNS_ACCOUNT.into(), topics: vec![Pattern::to_the_letter(topic)] }),
            s3: self.s3.as_ref().map(|_| S3Grant { account: S3_ACCOUNT.into(), keys: any() }),
            irc: self.irc.as_ref().map(|_| IrcGrant { account: IRC_ACCOUNT.into(), channels: vec![Pattern::new("*")] }),
            webhook: None,
            amqp: self.exchange.as_deref().map(|exchange| AmqpGrant {
                account: PULSE_ACCOUNT.into(),
                exchanges: vec![Pattern::to_the_letter(exchange)],
                routing_keys: any(),
                closed: queue.bindings.iter().map(|binding| binding.exchange.clone()).collect(),
                // Nobody bound there yet is normal.
                unrouted: true,
            }),
        }
    }
}

fn plugins(reader: &Reader<'_>, services: &[String], world: &World, queue: &Queue) -> BTreeMap<String, PluginTerms> {
    let template = template(reader);
    let channel = reader.text("IRC_CHAN").map(str::to_owned);
    if let Some(text) = channel.as_ref().filter(|text| !(CHANNEL.fits)(text)) {
        reader.problem("IRC_CHAN", format!("expected {}, found {text:?}", CHANNEL.what));
    }
    let routing_key = reader.text("REPULSE_ROUTING_KEY").map(str::to_owned);
    let terms = |service: &String| {
        let settings = match service.as_str() {
            "smtp" => [("template", template.clone()), ("", None)],
            "irc" => [("channel", channel.clone()), ("", None)],
            "sns" => [("topic", world.topic.clone()), ("", None)],
            "repulse" => [("exchange", world.exchange.clone()), ("routing_key", routing_key.clone())],
            _ => [("", None), ("", None)],
        };
        let settings = settings.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
        let terms = PluginTerms {
            on: On::Named,
            grant: Arc::new(world.grant(service, queue)),
            quotas: Arc::default(),
            settings: Arc::new(settings.collect()),
            limits: Limits::default(),
        };
        (service.clone(), terms)
    };
    services.iter().map(terms).collect()
}

/// `SMTP_TEMPLATE`: true for the plugin's own, false for text alone, else the path of a template.
fn template(reader: &Reader<'_>) -> Option<String> {
    let text = reader.text("SMTP_TEMPLATE")?;
    match truth(text) {
        Some(true) => None,
        Some(false) => Some("false".into()),
        None => match read_file(text.as_ref()) {
            Ok(template) => Some(template),
            Err(why) => {
                reader.problem("SMTP_TEMPLATE", format!("expected true, false or the path of a template: {why}"));
                None
            }
        },
    }
}

/// `PN_IDENTITIES`, else `id_configs/<ID_ENV>.yml`: what lies over a section that names one of them.
fn identities(reader: &Reader<'_>) -> Identities {
    let (variable, path) = match (reader.text("PN_IDENTITIES"), reader.text("ID_ENV")) {
        (Some(path), _) => ("PN_IDENTITIES", PathBuf::from(path)),
        (None, Some(name)) => ("ID_ENV", PathBuf::from(format!("id_configs/{name}.yml"))),
        (None, None) => return Identities::new(),
    };
    identities::read(&path, |place, what| reader.problem(place.unwrap_or(variable), what))
}

pub(super) fn default_root() -> Url {
    #[expect(clippy::expect_used, reason = "a constant, and the tests read it")]
    Url::parse("https://firefox-ci-tc.services.mozilla.com").expect("a constant")
}

const SMTP_ACCOUNT: &str = "smtp";
const SES_ACCOUNT: &str = "ses";
const SNS_ACCOUNT: &str = "sns";
const S3_ACCOUNT: &str = "s3";
const PULSE_ACCOUNT: &str = "pulse";
const IRC_ACCOUNT: &str = "irc";
/// What our variables begin with, and those of the predecessor.
pub(super) const OURS: [&str; 10] =
    ["PN_", "PULSE_", "SMTP_", "IRC_", "SNS_", "S3_", "SES_", "REPULSE_", "FLUX_", "INFLUXDB_"];

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: [(&str, &str); 6] = [
        ("PN_SERVICES", "smtp"),
        ("PULSE_LOGIN", "me"),
        ("PULSE_PASSWORD", "hunter2"),
        ("PULSE_QUEUE", "q"),
        ("SMTP_HOST", "mail.example.com"),
        ("SMTP_EMAIL", "ci@example.com"),
    ];

    fn with(more: &[(&str, &str)]) -> Result<Config, ConfigError> {
        read(&LEAST.iter().chain(more).copied().collect(), Role::All)
    }

    fn problems(more: &[(&str, &str)]) -> Vec<String> {
        with(more).unwrap_err().problems.into_iter().map(|p| format!("{}: {}", p.place, p.what)).collect()
    }

    #[test]
    fn the_predecessors_defaults_hold() {
        let config = with(&[]).unwrap();
        assert_eq!(
            (config.broker.host.as_str(), config.broker.port, config.broker.tls),
            ("pulse.mozilla.org", 5671, true)
        );
        let tenant = &config.tenants[0];
        assert_eq!(tenant.queue.name, "queue/me/q");
        let bindings: Vec<_> =
            tenant.queue.bindings.iter().map(|b| (b.exchange.as_str(), b.routing_key.as_str())).collect();
        let exchange = |status: &str| format!("exchange/taskcluster-queue/v1/{status}");
        let expected = DEFAULT_STATUSES.map(exchange);
        assert_eq!(bindings, expected.iter().map(|exchange| (exchange.as_str(), "#")).collect::<Vec<_>>());
        let Account::Smtp(smtp) = &config.accounts["email/smtp"] else { panic!() };
        assert_eq!((smtp.port, smtp.sender.threading_domain.as_str()), (587, "mozilla.com"));
    }

    #[test]
    fn truth_values_are_read_as_people_write_them() {
        for (text, expected) in [("False", false), ("0", false), ("no", false), ("True", true), ("1", true), ("", true)]
        {
            assert_eq!(with(&[("PULSE_SSL", text)]).unwrap().broker.tls, expected, "{text}");
        }
        assert_eq!(problems(&[("PULSE_SSL", "maybe")]), ["PULSE_SSL: expected true or false, found \"maybe\""]);
    }

    #[test]
    fn lists_are_separated_by_colons_and_quotes_go() {
        let config =
            with(&[("PULSE_EXCHANGES", "\"task-failed:task-running\""), ("ROUTING_KEYS", "route.a.#:route.b")]);
        let bindings = config.unwrap().tenants[0].queue.bindings.clone();
        assert_eq!(bindings.len(), 4);
        assert_eq!(bindings[3].exchange, "exchange/taskcluster-queue/v1/task-running");
        assert_eq!(bindings[3].routing_key, "route.b");
    }

    #[test]
    fn every_problem_is_told_at_once_and_none_shows_a_secret() {
        let error =
            read(&[("PULSE_PASSWORD", "hunter2"), ("PULSE_PORT", "x")].into_iter().collect(), Role::All).unwrap_err();
        let text = error.to_string();
        for expected in
            ["PULSE_LOGIN: expected", "PULSE_QUEUE: expected", "PN_SERVICES: expected", "PULSE_PORT: expected a port"]
        {
            assert!(text.contains(expected), "{text}");
        }
        assert!(!text.contains("hunter2"));
        assert!(!format!("{:?}", with(&[]).unwrap()).contains("hunter2"));
    }

    #[test]
    fn an_unknown_variable_of_ours_is_noted() {
        let notes = with(&[("PN_SERVCIES", "irc")]).unwrap().notes;
        assert!(notes.contains(&"PN_SERVCIES is set, but nothing reads it".to_owned()), "{notes:?}");
    }

    #[test]
    fn an_identity_file_is_read_and_its_mistakes_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ids.yml");
        let path_text = path.to_str().unwrap();
        std::fs::write(&path, "release:\n  plugins: [ses]\n  emails: [r@example.com]\nempty:\n").unwrap();
        let identities = with(&[("PN_IDENTITIES", path_text)]).unwrap().tenants[0].identities.clone();
        assert_eq!(identities["release"]["plugins"], serde_json::json!(["ses"]));
        assert!(identities["empty"].is_empty());
        std::fs::write(&path, "default: {}\nother: 3\n").unwrap();
        assert_eq!(problems(&[("PN_IDENTITIES", path_text)]).len(), 2);
        std::fs::write(&path, "a: [").unwrap();
        assert!(problems(&[("PN_IDENTITIES", path_text)])[0].contains("expected YAML"));
        assert!(problems(&[("ID_ENV", "nowhere")])[0].contains("id_configs/nowhere.yml"));
    }
}
