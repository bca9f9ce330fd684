//! `check`: validates the configuration and says what it amounts to. Connects to nothing.

use super::PluginErrors;
use crate::config::{Config, DeliveryMode, Environment, SmtpSecurity};
use crate::grant::Pattern;
use crate::registry::Registry;
use crate::sandbox::{Sandbox, Version};
use crate::tenant::{QueueKind, Tenant};

pub(super) async fn run(environment: &Environment) -> anyhow::Result<()> {
    let config = Config::from_environment(environment)?;
    let sandbox = Sandbox::start()?;
    let registry = Registry::load(&sandbox, &config.plugins, &config.tenants).await.map_err(PluginErrors)?;
    explain_service(&config);
    for tenant in &config.tenants {
        explain_tenant(tenant);
        for (_, version) in registry.all().filter(|(owner, _)| *owner == tenant.name) {
            explain_plugin(tenant, version);
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
    say!("plugins      {}", config.plugins.display());
    for (name, smtp) in &config.smtp {
        let security = match smtp.security {
            SmtpSecurity::StartTls => "STARTTLS",
            SmtpSecurity::Tls => "TLS",
            SmtpSecurity::None => "no TLS",
        };
        let login = if smtp.login.is_some() { "login and password" } else { "no login" };
        say!("account      {name}: {}:{}, {security}, {login}, from {}", smtp.host, smtp.port, smtp.from);
    }
    for (name, irc) in &config.irc {
        let security = if irc.tls { "TLS" } else { "no TLS" };
        let password = if irc.password.is_some() { "password" } else { "no password" };
        say!("account      {name}: {}:{}, {security}, {password}, nick {}", irc.host, irc.port, irc.nick);
    }
    if config.delivery == DeliveryMode::Capture {
        say!("delivery     captured, nothing is sent");
    }
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
    let joined = |patterns: &[Pattern]| patterns.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    if let Some(email) = &terms.grant.email {
        say!("    may mail {} by account {}", joined(&email.recipients), email.account);
    }
    if let Some(irc) = &terms.grant.irc {
        say!("    may talk in {} by account {}", joined(&irc.channels), irc.account);
    }
}
