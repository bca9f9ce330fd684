//! The configuration file, and the tenants' beside it: TOML → configuration. `example.toml` has every key.

mod account;
mod limits;
mod tenant;

use std::collections::BTreeMap;
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use url::Url;

use super::document::{Document, Section};
use super::findings::Findings;
use super::legacy::{OURS, default_root};
use super::value::{AMQP_NAME, HOST, INFLUX_URL, NAME, STORE, influx_url, root_problem};
use super::{
    Broker, Config, ConfigError, DeliveryMode, Environment, InfluxAccount, Role, Secret, default_cache,
    default_plugins, surroundings,
};
use crate::sandbox::Limits;
use crate::tenant::Tenant;
use tenant::tenant;

/// The configuration that a file's text describes, or why there is none. Tenants are read as the running service's.
pub(super) fn parse(
    file: &str,
    text: Result<&str, &String>,
    environment: &Environment,
    role: Role,
    running: Option<&Config>,
) -> Result<Config, ConfigError> {
    let findings = Findings::new(environment, role);
    let config = match text {
        Ok(text) => service(&findings, file, text, running),
        Err(why) => {
            findings.problem(file, 0, "", why);
            None
        }
    };
    let found = surroundings::look(environment, role, config.as_ref().map(|config| config.store.as_str()));
    for (place, what) in found.problems {
        findings.problem(place, 0, "", what);
    }
    let unread = environment.names(&OURS).filter(|name| *name != "PN_CONFIG" && !findings.names(name));
    let unread: Vec<_> = unread.collect();
    if !unread.is_empty() {
        findings.note(format!("set, but nothing reads it beside a file: {}", unread.join(", ")));
    }
    for note in found.notes {
        findings.note(note);
    }
    let left_out = findings.left_out();
    let notes = findings.finish()?;
    // Without one there was a problem, and so an error.
    config.map(|config| Config { notes, left_out, ..config }).ok_or(ConfigError { problems: Vec::new() })
}

fn service<'a>(findings: &'a Findings<'a>, file: &str, text: &'a str, running: Option<&Config>) -> Option<Config> {
    let document = Document::parse(findings, file, text)?;
    let root = document.root("");
    let broker = broker(&root.section("broker"));
    findings.is_own(&broker.password);
    let ceiling = limits::ceiling(&root.section("limits"));
    let own = running.map_or(&broker, |running| &running.broker);
    let (mut accounts, mut tenants, mut tenants_folder) = (BTreeMap::new(), Vec::new(), None);
    if root.is_text("tenants") {
        let folder = PathBuf::from(root.text("tenants", "a directory").unwrap_or_default());
        match files(&folder) {
            Ok(files) => {
                for path in &files {
                    let tenant = tenant_file(findings, &folder, path, own, ceiling, &mut accounts);
                    let is_left_out = findings.leave_out(&path.display().to_string());
                    tenants.extend(tenant.filter(|_| !is_left_out));
                }
                if files.is_empty() {
                    root.note("tenants", "no file NAME.toml in it yet: nothing is consumed");
                }
            }
            Err(why) => root.problem("tenants", why),
        }
        tenants_folder = Some(folder);
    } else if root.has("tenants") {
        for (name, section) in root.section("tenants").entries() {
            tenants.extend(tenant(&section, &name, own, ceiling, &mut accounts));
        }
    } else {
        root.expected("tenants", "a directory of tenants, or tables [tenants.NAME]");
    }
    one_queue_each(findings, file, &tenants);
    let store = root.section("store");
    let url = store.text("url", STORE.what).unwrap_or_else(|| DEFAULT_STORE.to_owned());
    if !(STORE.fits)(&url) {
        // Another database's address may hold a password.
        store.expected_unseen("url", STORE.what);
    }
    let modes = [("send", DeliveryMode::Send), ("capture", DeliveryMode::Capture)];
    let delivery = root.one_of("delivery", &modes).unwrap_or_default();
    if delivery == DeliveryMode::Capture {
        root.note("delivery", "effects are kept and shown, nothing is sent");
    }
    let plugins = root.section("plugins");
    let days: u64 = root.whole("keep_days", "a number of days", 1..=10_000).unwrap_or(30);
    Some(Config {
        taskcluster_root: taskcluster_root(&root.section("taskcluster")),
        plugins: plugins.text("directory", "a directory").map_or_else(default_plugins, PathBuf::from),
        cache: plugins.text("cache", "a directory").map_or_else(|| default_cache(&url), PathBuf::from),
        store: url,
        delivery,
        accounts,
        broker,
        tenants,
        tenants_folder,
        admin: admin(&root.section("admin")),
        influx: root.optional("influx").as_ref().and_then(influx),
        drain: Duration::from_secs(root.whole("drain_seconds", "a number of seconds", 0..=i64::MAX).unwrap_or(30)),
        keep: Duration::from_secs(60 * 60 * 24 * days),
        notes: Vec::new(),
        left_out: Vec::new(),
    })
}

fn broker(section: &Section<'_>) -> Broker {
    Broker {
        host: section.checked("host", HOST, Some("pulse.mozilla.org")),
        port: section.port("port", 5671),
        tls: section.truth("tls", true),
        vhost: section.checked("vhost", AMQP_NAME, Some("/")),
        login: section.checked("login", AMQP_NAME, None),
        password: match section.findings().role() {
            Role::All | Role::Intake => section.required_secret("password", "password_file", "the user's password"),
            // Of use to accounts that are the broker's alone.
            Role::Courier | Role::Command => {
                section.seen("password", "password_file").unwrap_or_else(|| Secret::new(String::new()))
            }
        },
    }
}

fn taskcluster_root(section: &Section<'_>) -> Url {
    let Some(text) = section.text("root_url", "a URL") else { return default_root() };
    match text.parse::<Url>() {
        Ok(root) => {
            if let Some(why) = root_problem(&root) {
                section.problem("root_url", why);
            }
            root
        }
        Err(_) => {
            section.expected_unseen("root_url", "a URL");
            default_root()
        }
    }
}

fn admin(section: &Section<'_>) -> Option<SocketAddr> {
    let default = SocketAddr::from((Ipv4Addr::LOCALHOST, 8787));
    let what = "an address such as 127.0.0.1:8787, or none";
    let Some(text) = section.text("listen", what) else { return Some(default) };
    if text == "none" {
        return None;
    }
    Some(text.parse().unwrap_or_else(|_| {
        section.expected("listen", what);
        default
    }))
}

fn influx(section: &Section<'_>) -> Option<InfluxAccount> {
    let text = section.required("url", INFLUX_URL);
    let url = influx_url(&text);
    if url.is_none() && !text.is_empty() {
        section.expected_unseen("url", INFLUX_URL);
    }
    let user = section.text("login", "a user's name");
    let password = section.secret("password", "password_file", "the password");
    let database = section.required("database", "the name of a database");
    let login = user.map(|user| (user, password.unwrap_or_else(|| Secret::new(String::new()))));
    Some(InfluxAccount { url: url?, database, login })
}

fn tenant_file<'a>(
    findings: &'a Findings<'a>,
    folder: &Path,
    path: &Path,
    broker: &Broker,
    ceiling: Limits,
    accounts: &mut BTreeMap<String, super::Account>,
) -> Option<Tenant> {
    let file = path.display().to_string();
    let Some(name) = path.file_stem().and_then(|name| name.to_str()).filter(|name| (NAME.fits)(name)) else {
        findings.problem(&file, 0, "", format!("the file is named after its tenant: expected {}", NAME.what));
        return None;
    };
    let text = read_inside(folder, path).map_err(|why| findings.problem(&file, 0, "", why)).ok()?;
    let document = Document::parse(findings, &file, &text)?;
    tenant(&document.root("tenants.*"), name, broker, ceiling, accounts)
}

/// Two tenants on one queue would take each other's messages.
fn one_queue_each(findings: &Findings<'_>, file: &str, tenants: &[Tenant]) {
    let mut owners = BTreeMap::new();
    for tenant in tenants {
        if let Some(owner) = owners.insert(&tenant.queue.name, &tenant.name) {
            let (name, queue) = (&tenant.name, &tenant.queue.name);
            findings.problem(
                file,
                0,
                "tenants",
                format!("expected a queue for each tenant, found {queue} with both {owner} and {name}"),
            );
        }
    }
}

/// The tenants' files in a folder, by name.
pub(crate) fn files(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let error = |error| format!("read {}: {error}", folder.display());
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(error)? {
        let path = entry.map_err(error)?.path();
        let is_hidden = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if !is_hidden && path.extension().is_some_and(|extension| extension == "toml") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// One of them.
fn read_inside(folder: &Path, path: &Path) -> Result<String, String> {
    let bytes = crate::files::read(folder, path, FILE_BYTES_MAX as usize);
    let text = bytes
        .map_err(|why| why.to_string())
        .and_then(|bytes| String::from_utf8(bytes).map_err(|_| "found no UTF-8".into()));
    text.map_err(|why| format!("expected a file of TOML: {why}"))
}

pub(super) fn read_bounded(path: &Path) -> Result<String, String> {
    let read = || {
        let mut text = String::new();
        std::fs::File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
        Ok::<_, std::io::Error>(text)
    };
    let text = read().map_err(|error| format!("expected a file of TOML: {error}"))?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(format!("expected a file of at most {FILE_BYTES_MAX} bytes"));
    }
    Ok(text)
}

pub(super) const DEFAULT_STORE: &str = "sqlite:pulse-notifier.db";
const FILE_BYTES_MAX: u64 = 1 << 20;

#[cfg(test)]
mod tests;
