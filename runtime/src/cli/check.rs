//! `check`: validates the configuration and says what it amounts to. Connects to nothing.

use std::path::Path;

use super::PluginErrors;
use crate::config::{Account, AwsAccount, Config, DeliveryMode, Environment, Role, Secret, SmtpSecurity, Source};
use crate::grant::quota::OverQuota;
use crate::grant::{Endpoint, Pattern, UrlGrant};
use crate::registry::{Compiler, Registry};
use crate::sandbox::{Sandbox, Version};
use crate::tenant::{On, QueueKind, Tenant};

pub(super) async fn run(file: Option<&Path>, role: Role, environment: &Environment) -> anyhow::Result<()> {
    let config = Source::new(file, environment, role).config(None)?;
    let sandbox = Sandbox::start()?;
    let mut compiler = Compiler::new(&sandbox);
    if config.cache.is_dir() {
        // Of use when there is one; looking makes none.
        compiler = compiler.with_cache(&config.cache);
    }
    let registry = Registry::load(compiler, &config.plugins, &config.tenants, None).await.map_err(PluginErrors)?;
    explain_service(&config);
    for tenant in &config.tenants {
        explain_tenant(tenant);
        for (_, version) in registry.all().into_iter().filter(|(owner, _)| *owner == tenant.name) {
            explain_plugin(tenant, &version);
        }
    }
    for note in &config.notes {
        say!("note: {note}");
    }
    say!("ok");
    Ok(())
}

fn explain_service(config: &Config) {
    let broker = &config.broker;
    let scheme = if broker.tls { "amqps" } else { "amqp" };
    say!("broker       {scheme}://{}@{}:{} vhost {}", broker.login, broker.host, broker.port, broker.vhost);
    say!("taskcluster  {}", config.taskcluster_root);
    say!("store        {}", config.store);
    match config.admin {
        Some(address) => say!("admin        http://{address}/healthz /readyz /metrics"),
        None => say!("admin        not served"),
    }
    if let Some(influx) = &config.influx {
        let login = if influx.login.is_some() { "login and password" } else { "no login" };
        say!("influx       {}, database {}, {login}", influx.url, influx.database);
    }
    say!("plugins      {}", config.plugins.display());
    for (name, account) in &config.accounts {
        say!("account      {name}: {}", explained(account));
    }
    if config.delivery == DeliveryMode::Capture {
        say!("delivery     captured, nothing is sent");
    }
}

fn explained(account: &Account) -> String {
    match account {
        Account::Smtp(smtp) => {
            let security = match smtp.security {
                SmtpSecurity::StartTls => "STARTTLS",
                SmtpSecurity::Tls => "TLS",
                SmtpSecurity::None => "no TLS",
            };
            let login = if smtp.login.is_some() { "login and password" } else { "no login" };
            format!("{}:{}, {security}, {login}, from {}", smtp.host, smtp.port, smtp.sender.from)
        }
        Account::Ses(ses) => format!("SES, {}, from {}", explained_aws(&ses.aws), ses.sender.from),
        Account::Sns(aws) => format!("SNS, {}", explained_aws(aws)),
        Account::S3(s3) => {
            let acl = s3.acl.as_ref().map_or_else(|| "no ACL".to_owned(), |acl| format!("ACL {acl}"));
            format!("S3, {}, bucket {}, {acl}", explained_aws(&s3.aws), s3.bucket)
        }
        Account::Irc(irc) => {
            let security = if irc.tls { "TLS" } else { "no TLS" };
            let password = if irc.password.is_some() { "password" } else { "no password" };
            format!("{}:{}, {security}, {password}, nick {}", irc.host, irc.port, irc.nick)
        }
        Account::Amqp(broker) => format!("{}@{}:{} vhost {}", broker.login, broker.host, broker.port, broker.vhost),
        Account::Webhook(webhook) => {
            let url = webhook.url.as_ref().map(Secret::expose);
            let host = url.map(|url| url.origin().ascii_serialization());
            let host = host.unwrap_or_else(|| "addresses that plugins name".to_owned());
            let signed = if webhook.hmac_secret.is_some() { "signed" } else { "not signed" };
            let private = if webhook.private { ", private networks too" } else { "" };
            format!("posts to {host}, {signed}, {} headers{private}", webhook.headers.len())
        }
    }
}

fn explained_aws(aws: &AwsAccount) -> String {
    let keys = match (&aws.keys, &aws.profile) {
        (Some(_), _) => "keys of its own".to_owned(),
        (None, Some(profile)) => format!("profile {profile}"),
        (None, None) => "keys where the AWS tools look".to_owned(),
    };
    let region = aws.region.as_ref().map_or_else(String::new, |region| format!(", {region}"));
    let endpoint = aws.endpoint.as_ref().map_or_else(String::new, |endpoint| format!(", at {endpoint}"));
    keys + &region + &endpoint
}

fn explain_tenant(tenant: &Tenant) {
    let declared = match tenant.queue.kind {
        QueueKind::Plain => "durable, no arguments",
        QueueKind::Classic => "durable, classic",
        QueueKind::Quorum => "durable, quorum",
    };
    say!("tenant       {}", tenant.name);
    say!("  queue      {} (used as it is; declared {declared} if absent)", tenant.queue.name);
    for binding in &tenant.queue.bindings {
        say!("  binding    {} {}", binding.exchange, binding.routing_key);
    }
    let identities: Vec<_> = tenant.identities.keys().map(String::as_str).collect();
    if !identities.is_empty() {
        say!("  identities {}", identities.join(", "));
    }
}

fn explain_plugin(tenant: &Tenant, version: &Version) {
    let digest: String = version.digest.to_string().chars().take(12).collect();
    say!("  plugin     {} (sha256 {digest}…) imports {}", version.name, version.imports.join(", "));
    let Some(terms) = tenant.plugins.get(&version.name) else { return };
    if terms.on == On::Every {
        say!("    is told of every event, whatever its task says");
    }
    let joined = |patterns: &[Pattern]| patterns.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    for (capability, quota) in terms.quotas.iter() {
        let over = match quota.over {
            OverQuota::Wait => "more wait for the next hours",
            OverQuota::Refuse => "more are refused",
        };
        say!("    may ask for {} by {capability} an hour, {over}", quota.per_hour);
    }
    if let Some(email) = &terms.grant.email {
        say!("    may mail {} by account {}", joined(&email.recipients), email.account);
    }
    if let Some(sns) = &terms.grant.sns {
        say!("    may publish to {} by account {}", joined(&sns.topics), sns.account);
    }
    if let Some(s3) = &terms.grant.s3 {
        say!("    may put objects at {} by account {}", joined(&s3.keys), s3.account);
    }
    if let Some(amqp) = &terms.grant.amqp {
        let (exchanges, keys) = (joined(&amqp.exchanges), joined(&amqp.routing_keys));
        say!("    may publish to {exchanges} with routing keys {keys} by account {}", amqp.account);
    }
    if let Some(webhook) = &terms.grant.webhook {
        for Endpoint { name, account } in &webhook.endpoints {
            say!("    may post to its endpoint {name} by account {account}");
        }
        if let Some(UrlGrant { account, patterns }) = &webhook.urls {
            let patterns: Vec<_> = patterns.iter().map(ToString::to_string).collect();
            say!("    may post to {} by account {account}", patterns.join(", "));
        }
    }
    if let Some(irc) = &terms.grant.irc {
        say!("    may talk in {} by account {}", joined(&irc.channels), irc.account);
    }
}
