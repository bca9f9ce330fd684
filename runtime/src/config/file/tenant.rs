//! A tenant: its queue, identities, accounts, logs and plugins.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use url::Url;

use super::super::document::Section;
use super::super::identities::{self, checked};
use super::super::value::{AMQP_NAME, BUCKET, DEFAULT_STATUSES, NAME, STATUSES, exchange, is_known_status};
use super::super::{Account, Broker, WebhookAccount, nearest, read_file};
use super::account::account;
use super::limits;
use crate::effect::destination;
use crate::grant::quota::{OverQuota, Quota, Quotas};
use crate::grant::s3::is_path;
use crate::grant::webhook::is_endpoint_name;
use crate::grant::{
    AmqpGrant, EmailGrant, Endpoint, Grant, IrcGrant, Pattern, S3Grant, SnsGrant, UrlGrant, UrlPattern, WebhookGrant,
};
use crate::intake::notification::Identities;
use crate::sandbox::Limits;
use crate::store::Binding;
use crate::tenant::{LogCollection, On, PluginTerms, Queue, QueueKind, Tenant, account_of};

pub(super) fn tenant(
    section: &Section<'_>,
    name: &str,
    broker: &Broker,
    ceiling: Limits,
    destinations: &mut BTreeMap<String, Account>,
) -> Option<Tenant> {
    if !(NAME.fits)(name) {
        section.own_problem(format!("expected {}, found another", NAME.what));
        section.forgive();
        return None;
    }
    let queue = queue(&section.section("queue"), &broker.login);
    let accounts = Accounts::read(&section.section("accounts"), name, broker);
    let read = |(plugin, section): (String, Section<'_>)| {
        if !(NAME.fits)(&plugin) {
            section.own_problem(format!("expected {}, found another", NAME.what));
        }
        (plugin, terms(&section, &accounts, &queue, ceiling))
    };
    let plugins: BTreeMap<_, _> = section.section("plugins").entries().into_iter().map(read).collect();
    if plugins.is_empty() {
        section.expected("plugins", "at least one table [plugins.NAME]");
    }
    for (account, found) in &accounts.by_name {
        if let Some(found) = found {
            destinations.insert(destination(found.capability(), &accounts.qualified(account)), found.clone());
        }
    }
    Some(Tenant {
        name: name.to_owned(),
        identities: identities(section),
        logs: section.optional("logs").and_then(|section| logs(&section)),
        plugins,
        queue,
    })
}

fn queue(section: &Section<'_>, login: &str) -> Queue {
    let name = format!("queue/{login}/{}", section.required("name", "the queue's name, without queue/<login>/"));
    if !(AMQP_NAME.fits)(&name) {
        section.expected("name", AMQP_NAME.what);
    }
    let statuses = section.texts("exchanges", "statuses or exchanges");
    let statuses = statuses.unwrap_or_else(|| DEFAULT_STATUSES.map(str::to_owned).to_vec());
    for status in statuses.iter().filter(|status| !is_known_status(status)) {
        let near = nearest(status, STATUSES).map_or_else(String::new, |near| format!(": did you mean {near}?"));
        section.note("exchanges", &format!("{status:?} is none of {}{near}", STATUSES.join(", ")));
    }
    let keys = section.texts("routing_keys", "routing keys").unwrap_or_else(|| vec!["#".to_owned()]);
    let exchanges: Vec<_> = statuses.iter().map(|status| exchange(status)).collect();
    for (key, texts) in [("exchanges", &exchanges), ("routing_keys", &keys)] {
        if !texts.iter().all(|text| (AMQP_NAME.fits)(text)) {
            section.problem(key, format!("expected each to be {}", AMQP_NAME.what));
        }
    }
    let binding = |exchange: &String, key: &String| Binding { exchange: exchange.clone(), routing_key: key.clone() };
    let bindings = exchanges.iter().flat_map(|exchange| keys.iter().map(move |key| binding(exchange, key))).collect();
    let kinds = [("plain", QueueKind::Plain), ("classic", QueueKind::Classic), ("quorum", QueueKind::Quorum)];
    Queue { name, kind: section.one_of("type", &kinds).unwrap_or_default(), bindings }
}

fn identities(section: &Section<'_>) -> Identities {
    let path = section.text("identities_file", "the path of a YAML file");
    if section.has("identities") && section.has("identities_file") {
        section.problem("identities_file", "expected identities here or in a file, found both");
    }
    let mut identities = Identities::new();
    for (name, section) in section.section("identities").entries() {
        let overlay = section.json();
        for what in checked(&name, &overlay) {
            section.own_problem(what);
        }
        identities.insert(name, overlay);
    }
    if let Some(path) = path {
        identities.extend(identities::read(Path::new(&path), |place, what| match place {
            Some(place) => section.findings().problem(place, 0, "", what),
            None => section.problem("identities_file", what),
        }));
    }
    identities
}

fn logs(section: &Section<'_>) -> Option<LogCollection> {
    if section.has("bucket") == section.has("url_base") {
        section.problem("bucket", "expected one of bucket and url_base: where people read the logs");
    }
    let in_bucket = section.has("bucket").then(|| section.checked("bucket", BUCKET, None));
    let base = match (in_bucket, section.text("url_base", "a URL")) {
        (Some(bucket), _) => LogCollection::in_bucket(&bucket).map(|logs| logs.url_base),
        (None, Some(text)) => text.parse::<Url>().ok().filter(|url| matches!(url.scheme(), "http" | "https")),
        (None, None) => None,
    };
    if base.is_none() && section.has("url_base") {
        section.expected_unseen("url_base", "an http or https URL");
    }
    let source = section.text("source", SOURCE).unwrap_or_else(|| LogCollection::SOURCE.to_owned());
    if !is_source(&source) {
        section.expected("source", SOURCE);
    }
    let table = section.section("sources");
    let sources = table.named_texts();
    for (provisioner, _) in sources.iter().filter(|(_, source)| !is_source(source)) {
        table.expected(provisioner, SOURCE);
    }
    Some(LogCollection { url_base: base?, sources, source })
}

/// The name of an artifact or an address, with no braces but those that are filled in.
fn is_source(text: &str) -> bool {
    let filled = text.replace("{task_id}", "A").replace("{run_id}", "0");
    let is_address = || filled.parse::<Url>().is_ok_and(|url| matches!(url.scheme(), "http" | "https"));
    !filled.contains(['{', '}']) && if filled.contains("://") { is_address() } else { is_path(&filled) }
}

fn terms(section: &Section<'_>, accounts: &Accounts, queue: &Queue, ceiling: Limits) -> PluginTerms {
    let mut settings = section.section("settings").named_texts();
    let files = section.section("settings_files");
    for (name, path) in files.named_texts() {
        match read_file(Path::new(&path)) {
            Ok(_) if settings.contains_key(&name) => files.problem(&name, "expected it once, found it in settings too"),
            Ok(text) => _ = settings.insert(name, text),
            Err(why) => files.problem(&name, why),
        }
    }
    let mut quotas = Quotas::new();
    let grant = grant(&section.section("grant"), accounts, queue, &mut quotas);
    let limits = limits::of_plugin(&section.section("limits"), ceiling);
    let on = section.one_of("on", &[("named", On::Named), ("every", On::Every)]).unwrap_or_default();
    PluginTerms { on, grant: Arc::new(grant), quotas: Arc::new(quotas), settings: Arc::new(settings), limits }
}

fn grant(section: &Section<'_>, accounts: &Accounts, queue: &Queue, quotas: &mut Quotas) -> Grant {
    let mut granted = |capability: &'static str| {
        let found = section.optional(capability)?;
        quotas.extend(quota(&found).map(|quota| (capability, quota)));
        Some(found)
    };
    Grant {
        email: granted("email").map(|email| EmailGrant {
            account: accounts.named(&email, "email"),
            recipients: patterns(&email, "recipients", "addresses, * standing for anything", Pattern::new, |text| {
                text.contains(['@', '*']) && !text.contains(char::is_whitespace)
            }),
        }),
        sns: granted("sns").map(|sns| SnsGrant {
            account: accounts.named(&sns, "sns"),
            topics: patterns(&sns, "topics", "topics' ARNs, * standing for anything", Pattern::to_the_letter, |text| {
                text.starts_with("arn:") || text.starts_with('*')
            }),
        }),
        s3: granted("s3").map(|s3| S3Grant {
            account: accounts.named(&s3, "s3"),
            keys: patterns(&s3, "keys", "keys, * standing for anything", Pattern::to_the_letter, |text| {
                !text.starts_with('/')
            }),
        }),
        irc: granted("irc").map(|irc| IrcGrant {
            account: accounts.named(&irc, "irc"),
            channels: patterns(
                &irc,
                "channels",
                "channels such as #ci, * standing for anything",
                Pattern::new,
                |text| text.starts_with(['#', '&', '*']) && !text.contains([' ', ',']),
            ),
        }),
        amqp: granted("amqp").map(|amqp| AmqpGrant {
            account: accounts.named(&amqp, "amqp"),
            exchanges: patterns(&amqp, "exchanges", "exchanges, * for anything", Pattern::to_the_letter, |_| true),
            routing_keys: match amqp.has("routing_keys") {
                true => {
                    patterns(&amqp, "routing_keys", "routing keys, * for anything", Pattern::to_the_letter, |_| true)
                }
                false => vec![Pattern::to_the_letter("*")],
            },
            unrouted: amqp.truth("unrouted", false),
            closed: match amqp.truth("loops", false) {
                true => Vec::new(),
                false => queue.bindings.iter().map(|binding| binding.exchange.clone()).collect(),
            },
        }),
        webhook: granted("webhook").map(|webhook| webhook_grant(&webhook, accounts)),
    }
}

fn quota(section: &Section<'_>) -> Option<Quota> {
    let per_hour = section.whole("per_hour", "a number of effects", 1..=1_000_000);
    let over = section.one_of("over_quota", &[("wait", OverQuota::Wait), ("refuse", OverQuota::Refuse)]);
    if over.is_some() && !section.has("per_hour") {
        section.problem("over_quota", "expected per_hour beside it, found nothing");
    }
    Some(Quota { per_hour: per_hour?, over: over.unwrap_or_default() })
}

fn webhook_grant(section: &Section<'_>, accounts: &Accounts) -> WebhookGrant {
    let table = section.section("endpoints");
    let mut endpoints = Vec::new();
    for (name, account) in table.named_texts() {
        if !is_endpoint_name(&name) {
            table.problem(&name, format!("expected {}, found another", NAME.what));
        }
        if accounts.webhook(&account).is_some_and(|account| account.url.is_none()) {
            table.problem(&name, "expected an account with a url, found one without");
        }
        let account = accounts.checked(&table, &name, &account, "webhook");
        endpoints.push(Endpoint { name: Pattern::to_the_letter(&name), account });
    }
    if !section.has("endpoints") && !section.has("urls") {
        section.own_problem("expected endpoints, urls or both, found neither");
    }
    WebhookGrant { endpoints, urls: url_grant(section, accounts) }
}

/// Which addresses a plugin may name itself.
fn url_grant(section: &Section<'_>, accounts: &Accounts) -> Option<UrlGrant> {
    let named = section.text("account", "the name of an account");
    let what = "addresses such as https://hooks.example.com/builds/*, * standing for anything";
    let patterns = section.texts("urls", what).unwrap_or_default();
    if !section.has("urls") {
        if section.has("account") {
            section.problem("account", "expected urls beside it, found nothing");
        }
        return None;
    }
    let patterns: Vec<_> = patterns
        .iter()
        .filter_map(|text| {
            let pattern = UrlPattern::new(text);
            if pattern.is_none() {
                section.problem("urls", format!("expected a list of {what}, found something else in it"));
            }
            pattern
        })
        .collect();
    let account = named.as_ref().and_then(|name| accounts.webhook(name));
    if account.is_some_and(|account| account.url.is_some()) {
        section.problem("account", "expected an account without a url, found one with a receiver of its own");
    }
    if patterns.iter().any(UrlPattern::is_any_host) {
        if account.is_some_and(|account| account.private) {
            section
                .problem("urls", "expected hosts where the account is private: else private networks are open to all");
        }
        section.note("urls", "the plugin may speak to anyone a task names");
    }
    Some(UrlGrant { account: accounts.named(section, "webhook"), patterns })
}

fn patterns(
    section: &Section<'_>,
    key: &'static str,
    what: &str,
    make: fn(&str) -> Pattern,
    fits: fn(&str) -> bool,
) -> Vec<Pattern> {
    if !section.has(key) {
        section.expected(key, &format!("a list of {what}"));
    }
    let texts = section.texts(key, what).unwrap_or_default();
    if texts.iter().any(|text| text == "*") && matches!(key, "recipients" | "channels" | "topics") {
        section.note(key, "the plugin may speak to anyone a task names");
    }
    if !texts.iter().all(|text| fits(text) && !text.contains(char::is_control)) {
        section.problem(key, format!("expected a list of {what}, found something else in it"));
    }
    texts.iter().map(|text| make(text)).collect()
}

/// A tenant's accounts; those that could not be read are there too, so that naming one is no second problem.
struct Accounts {
    tenant: String,
    by_name: BTreeMap<String, Option<Account>>,
}

impl Accounts {
    fn read(section: &Section<'_>, tenant: &str, broker: &Broker) -> Self {
        let mut by_name = BTreeMap::new();
        for (name, section) in section.entries() {
            if !(NAME.fits)(&name) {
                section.own_problem(format!("expected {}, found another", NAME.what));
            }
            let found = account(&section, broker);
            by_name.insert(name, found);
        }
        Self { tenant: tenant.to_owned(), by_name }
    }

    fn qualified(&self, name: &str) -> String {
        account_of(&self.tenant, name)
    }

    /// The account that a grant names.
    fn named(&self, section: &Section<'_>, capability: &str) -> String {
        let Some(name) = section.text("account", "the name of an account") else {
            if !section.has("account") {
                section.expected("account", "the name of an account");
            }
            return String::new();
        };
        self.checked(section, "account", &name, capability)
    }

    /// The webhook account of this name.
    fn webhook(&self, name: &str) -> Option<&WebhookAccount> {
        match self.by_name.get(name) {
            Some(Some(Account::Webhook(account))) => Some(account),
            _ => None,
        }
    }

    /// The account of this name, which stands under a key.
    fn checked(&self, section: &Section<'_>, key: &str, name: &str, capability: &str) -> String {
        let fitting = || {
            let is_of = |account: &Account| account.capability() == capability;
            let all = self.by_name.iter().filter(move |(_, account)| account.as_ref().is_some_and(is_of));
            all.map(|(name, _)| name.as_str())
        };
        let list = match fitting().collect::<Vec<_>>() {
            none if none.is_empty() => format!("an account for {capability} (the tenant has none)"),
            names => format!("an account for {capability}: {}", names.join(", ")),
        };
        match self.by_name.get(name) {
            Some(Some(account)) if account.capability() != capability => {
                section.problem(key, format!("expected {list}, found {name}, which is for {}", account.capability()));
            }
            Some(_) => {}
            None => {
                let near = nearest(name, fitting()).map_or_else(String::new, |near| format!(": did you mean {near}?"));
                section.problem(key, format!("expected {list}, found another name{near}"));
            }
        }
        self.qualified(name)
    }
}

const SOURCE: &str = "the name of an artifact or an address, with {task_id} and {run_id} if need be";
