//! The variables → a configuration file that says the same. Secrets stay variables; what will be different from the
//! predecessor stands in comments before it, as far as it concerns this configuration.

mod differences;

use std::time::Duration;

use serde_json::{Map, Value};

use super::environment::{Reader, truth};
use super::{Account, AwsAccount, Broker, Config, ConfigError, DeliveryMode, Environment, InfluxAccount};
use super::{IrcAccount, S3Account, Sender, SesAccount, SmtpAccount, default_cache, default_plugins, default_root};
use super::{Role, SmtpSecurity, legacy};
use crate::grant::Pattern;
use crate::tenant::{LogCollection, PluginTerms, QueueKind, Tenant};

pub(super) fn migrate(environment: &Environment) -> Result<String, ConfigError> {
    let config = legacy::read(environment, Role::All)?;
    let mut file = Writer(String::new());
    differences::say(&mut file, environment, &config);
    service(&mut file, environment, &config);
    for tenant in &config.tenants {
        file.table(&["tenants", &tenant.name]);
        explained_tenant(&mut file, environment, &config, tenant);
    }
    Ok(file.0)
}

fn service(file: &mut Writer, environment: &Environment, config: &Config) {
    let Config { broker, taskcluster_root, plugins, cache, store, delivery, admin, influx, drain, keep, .. } = config;
    file.line("");
    file.text("delivery", if *delivery == DeliveryMode::Capture { "capture" } else { "send" });
    file.set("drain_seconds", drain.as_secs().min(i64::MAX.unsigned_abs()));
    file.set("keep_days", keep.as_secs() / (60 * 60 * 24));
    file.table(&["broker"]);
    let Broker { host, port, tls, vhost, login, password: _ } = broker;
    file.text("host", host);
    file.set("port", port);
    file.set("tls", tls);
    file.text("vhost", vhost);
    file.text("login", login);
    file.secret("password", "PULSE_PASSWORD");
    if *taskcluster_root != default_root() {
        file.table(&["taskcluster"]);
        // As it was written: an address that is parsed and printed may look different.
        file.text("root_url", environment.text("TASKCLUSTER_ROOT_URL").unwrap_or(taskcluster_root.as_str()));
    }
    file.table(&["store"]);
    file.text("url", store);
    let (directory, cache) = (
        Some(plugins).filter(|plugins| **plugins != default_plugins()),
        Some(cache).filter(|cache| **cache != default_cache(store)),
    );
    if directory.or(cache).is_some() {
        file.table(&["plugins"]);
    }
    for (key, path) in [("directory", directory), ("cache", cache)] {
        if let Some(path) = path {
            file.text(key, &path.display().to_string());
        }
    }
    file.table(&["admin"]);
    file.text("listen", &admin.map_or_else(|| "none".to_owned(), |address| address.to_string()));
    if let Some(InfluxAccount { url, database, login }) = influx {
        file.table(&["influx"]);
        file.text("url", url.as_str());
        file.text("database", database);
        if let Some((user, _)) = login {
            file.text("login", user);
            file.secret("password", "INFLUXDB_PASSWORD");
        }
    }
}

fn explained_tenant(file: &mut Writer, environment: &Environment, config: &Config, tenant: &Tenant) {
    let Tenant { name, queue, identities, plugins, logs } = tenant;
    let overlays: Option<Vec<_>> =
        identities.iter().map(|(identity, overlay)| Some((identity, inline_table(overlay)?))).collect();
    if overlays.is_none() {
        let path = environment.text("PN_IDENTITIES").map_or_else(
            || format!("id_configs/{}.yml", environment.text("ID_ENV").unwrap_or_default()),
            str::to_owned,
        );
        file.comment("What is in this file cannot all be said in TOML: it has an empty value or a very large number.");
        file.text("identities_file", &path);
    }
    file.table(&["tenants", name, "queue"]);
    let login = format!("queue/{}/", config.broker.login);
    file.text("name", queue.name.strip_prefix(&login).unwrap_or(&queue.name));
    match queue.kind {
        QueueKind::Plain => {}
        QueueKind::Classic => file.text("type", "classic"),
        QueueKind::Quorum => file.text("type", "quorum"),
    }
    let reader = Reader::new(environment);
    for (key, variable) in [("exchanges", "PULSE_EXCHANGES"), ("routing_keys", "ROUTING_KEYS")] {
        if let Some(texts) = reader.list(variable) {
            file.texts(key, &texts);
        }
    }
    for (identity, keys) in overlays.into_iter().flatten() {
        file.table(&["tenants", name, "identities", identity]);
        for (key, value) in keys {
            file.line(&format!("{} = {value}", key_text(&key)));
        }
    }
    for (destination, account) in &config.accounts {
        let account_name = destination.split_once('/').map_or(destination.as_str(), |(_, name)| name);
        file.table(&["tenants", name, "accounts", account_name]);
        explained_account(file, account);
    }
    if let Some(logs) = logs {
        let LogCollection { url_base, sources, source } = logs;
        file.table(&["tenants", name, "logs"]);
        file.text("url_base", url_base.as_str());
        file.text("source", source);
        if !sources.is_empty() {
            file.table(&["tenants", name, "logs", "sources"]);
            sources.iter().for_each(|(provisioner, source)| file.text(provisioner, source));
        }
    }
    for (plugin, terms) in plugins {
        explained_plugin(file, environment, &["tenants", name, "plugins", plugin], terms);
    }
}

fn explained_account(file: &mut Writer, account: &Account) {
    match account {
        Account::Smtp(SmtpAccount { host, port, security, login, sender }) => {
            file.text("kind", "smtp");
            file.text("host", host);
            file.set("port", port);
            let security = match security {
                SmtpSecurity::StartTls => "starttls",
                SmtpSecurity::Tls => "tls",
                SmtpSecurity::None => "none",
            };
            file.text("security", security);
            explained_sender(file, sender);
            if login.is_some() {
                file.secret("password", "SMTP_PASSWD");
            }
        }
        Account::Ses(SesAccount { aws, sender }) => {
            file.text("kind", "ses");
            explained_sender(file, sender);
            explained_aws(file, aws);
        }
        Account::Sns(aws) => {
            file.text("kind", "sns");
            explained_aws(file, aws);
        }
        Account::S3(S3Account { aws, bucket, acl }) => {
            file.text("kind", "s3");
            file.text("bucket", bucket);
            file.text("acl", acl.as_deref().unwrap_or("none"));
            explained_aws(file, aws);
        }
        Account::Irc(IrcAccount { host, port, tls, nick, real_name, password, burst, line_every }) => {
            file.text("kind", "irc");
            file.text("host", host);
            file.set("port", port);
            file.set("tls", tls);
            file.text("nick", nick);
            file.text("real_name", real_name);
            if password.is_some() {
                file.secret("password", "IRC_PASS");
            }
            file.set("burst", burst);
            file.line(&format!("line_seconds = {:?}", Duration::as_secs_f64(line_every)));
        }
        Account::Amqp(_) => {
            file.comment("The broker above.");
            file.text("kind", "amqp");
        }
        // No variable makes one.
        Account::Webhook(_) => file.text("kind", "webhook"),
    }
}

fn explained_sender(file: &mut Writer, sender: &Sender) {
    let Sender { from, threading_domain } = sender;
    file.text("from", from);
    file.text("threading_domain", threading_domain);
}

/// Variables say nothing of AWS to us: the AWS tools' own are read by its client.
fn explained_aws(file: &mut Writer, aws: &AwsAccount) {
    let AwsAccount { region, endpoint, profile, keys: _ } = aws;
    let endpoint = endpoint.as_ref().map(ToString::to_string);
    for (key, text) in [("region", region), ("endpoint", &endpoint), ("profile", profile)] {
        if let Some(text) = text {
            file.text(key, text);
        }
    }
}

fn explained_plugin(file: &mut Writer, environment: &Environment, path: &[&str], terms: &PluginTerms) {
    // No variable sets limits or quotas, or has a plugin told what no task wants said.
    let PluginTerms { on: _, grant, quotas: _, settings, limits: _ } = terms;
    let below =
        |keys: &[&'static str]| -> Vec<String> { path.iter().chain(keys).map(|key| (*key).to_owned()).collect() };
    let table = |file: &mut Writer, keys: &[&'static str]| {
        let path = below(keys);
        file.table(&path.iter().map(String::as_str).collect::<Vec<_>>());
    };
    table(file, &[]);
    let template = environment.text("SMTP_TEMPLATE").filter(|text| truth(text).is_none());
    let template = template.filter(|_| path.last() == Some(&"smtp") && settings.contains_key("template"));
    let inline: Vec<_> = settings
        .iter()
        .filter(|(name, _)| template.is_none() || *name != "template")
        .map(|(name, value)| format!("{} = {}", key_text(name), text(value)))
        .collect();
    if !inline.is_empty() {
        file.line(&format!("settings = {{ {} }}", inline.join(", ")));
    }
    if let Some(template) = template {
        file.line(&format!("settings_files = {{ template = {} }}", text(template)));
    }
    if let Some(email) = &grant.email {
        table(file, &["grant", "email"]);
        file.text("account", &email.account);
        file.patterns("recipients", &email.recipients);
    }
    if let Some(sns) = &grant.sns {
        table(file, &["grant", "sns"]);
        file.text("account", &sns.account);
        file.patterns("topics", &sns.topics);
    }
    if let Some(s3) = &grant.s3 {
        table(file, &["grant", "s3"]);
        file.text("account", &s3.account);
        file.patterns("keys", &s3.keys);
    }
    if let Some(irc) = &grant.irc {
        table(file, &["grant", "irc"]);
        file.text("account", &irc.account);
        file.patterns("channels", &irc.channels);
    }
    if let Some(amqp) = &grant.amqp {
        table(file, &["grant", "amqp"]);
        file.text("account", &amqp.account);
        file.patterns("exchanges", &amqp.exchanges);
        file.patterns("routing_keys", &amqp.routing_keys);
        file.set("unrouted", amqp.unrouted);
        file.set("loops", amqp.closed.is_empty());
    }
}

/// A file as it grows.
struct Writer(String);

impl Writer {
    fn line(&mut self, line: &str) {
        self.0.push_str(line);
        self.0.push('\n');
    }

    fn comment(&mut self, text: &str) {
        let printable: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        self.line(&format!("# {printable}"));
    }

    fn table(&mut self, path: &[&str]) {
        let path: Vec<_> = path.iter().map(|key| key_text(key)).collect();
        self.line(&format!("\n[{}]", path.join(".")));
    }

    fn set(&mut self, key: &str, value: impl std::fmt::Display) {
        self.line(&format!("{} = {value}", key_text(key)));
    }

    fn text(&mut self, key: &str, value: &str) {
        self.line(&format!("{} = {}", key_text(key), text(value)));
    }

    fn secret(&mut self, key: &str, variable: &str) {
        self.line(&format!("{key} = \"${{{variable}}}\""));
    }

    fn texts(&mut self, key: &str, values: &[String]) {
        let values: Vec<_> = values.iter().map(|value| text(value)).collect();
        self.line(&format!("{key} = [{}]", values.join(", ")));
    }

    fn patterns(&mut self, key: &str, patterns: &[Pattern]) {
        self.texts(key, &patterns.iter().map(ToString::to_string).collect::<Vec<_>>());
    }
}

/// A text as TOML has it, in which nothing is taken for a variable.
fn text(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.replace("${", "$${").chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            c if c.is_control() => quoted.push_str(&format!("\\u{:04X}", u32::from(c))),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

fn key_text(key: &str) -> String {
    let is_bare = !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if is_bare { key.to_owned() } else { text(key).replace("$${", "${") }
}

/// Keys and values; none when TOML cannot say one.
fn inline_table(table: &Map<String, Value>) -> Option<Vec<(String, String)>> {
    table.iter().map(|(key, value)| Some((key.clone(), inline(value)?))).collect()
}

fn inline(value: &Value) -> Option<String> {
    Some(match value {
        Value::Null => return None,
        Value::Bool(truth) => truth.to_string(),
        Value::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(whole), _) => whole.to_string(),
            (None, Some(float)) if number.is_f64() && float.is_finite() => format!("{float:?}"),
            _ => return None,
        },
        Value::String(value) => text(value),
        Value::Array(values) => {
            format!("[{}]", values.iter().map(inline).collect::<Option<Vec<_>>>()?.join(", "))
        }
        Value::Object(table) => {
            let entries = inline_table(table)?;
            let entries = entries.iter().map(|(key, value)| format!("{} = {value}", key_text(key)));
            format!("{{ {} }}", entries.collect::<Vec<_>>().join(", "))
        }
    })
}

#[cfg(test)]
mod tests;
