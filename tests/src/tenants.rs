//! A service with a folder of tenants. Each tenant has a queue of its own, which gets what is published under its name,
//! and mails by an account of its own on the world's one mail server.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::{Message, Service, World, request};

impl World {
    /// `run` with a configuration file and a folder of these tenants, by name and content; not started.
    pub fn service_of_tenants(&self, tenants: &[(&str, &str)]) -> Result<Service> {
        let service = Service::new(&["run", "--config", "pn.toml"])?
            .env("PULSE_PASSWORD", &self.account.password)
            .env("SMTP_PASSWD", self.smtp.password())
            .env("SSL_CERT_FILE", self.smtp.ca_file().display())
            .env("LOG_LEVEL", "INFO");
        std::fs::write(service.directory().join("pn.toml"), self.configuration())?;
        std::fs::create_dir(service.directory().join("tenants"))?;
        for (name, content) in tenants {
            put_tenant(&service, name, content)?;
        }
        Ok(service)
    }

    /// Half of a service, `intake` or `courier`; both halves have the configuration, the tenants and the database in a
    /// folder that they share, and neither has a secret yet. Not started.
    pub fn service_of_role(&self, role: &str, shared: &Path, tenants: &[(&str, &str)]) -> Result<Service> {
        let at = |name: &str| shared.join(name).display().to_string();
        let main = self.configuration().replacen("\"tenants\"", &format!("{:?}", at("tenants")), 1);
        std::fs::write(at("pn.toml"), format!("{main}[store]\nurl = \"sqlite:{}\"\n", at("pulse-notifier.db")))?;
        std::fs::create_dir_all(at("tenants"))?;
        for (name, content) in tenants {
            std::fs::write(shared.join("tenants").join(format!("{name}.toml")), content)?;
        }
        Ok(Service::new(&["run", "--role", role, "--config", &at("pn.toml")])?
            .env("SSL_CERT_FILE", self.smtp.ca_file().display())
            .env("LOG_LEVEL", "INFO"))
    }

    /// The configuration file that names the folder `tenants`.
    pub fn configuration(&self) -> String {
        format!(
            "tenants = \"tenants\"\n\
             [broker]\nhost = \"127.0.0.1\"\nport = {}\ntls = false\nvhost = \"{}\"\nlogin = \"{}\"\n\
             password = \"${{PULSE_PASSWORD}}\"\n\
             [taskcluster]\nroot_url = \"{}\"\n\
             [plugins]\ndirectory = \"{}\"\n\
             [admin]\nlisten = \"127.0.0.1:0\"\n",
            self.vhost.port(),
            self.vhost.name(),
            self.account.login,
            self.taskcluster.root_url(),
            self.plugin_folder().display(),
        )
    }

    /// A tenant's file: its queue, its account `mail`, and plugins, each with the recipients it may mail. More tables can
    /// be written after it.
    pub fn tenant(&self, name: &str, plugins: &[(&str, &[&str])]) -> String {
        let grant = |(plugin, recipients): &(&str, &[&str])| {
            format!("[plugins.{plugin}.grant.email]\naccount = \"mail\"\nrecipients = {recipients:?}\n")
        };
        format!(
            "[queue]\nname = \"{name}\"\nrouting_keys = [\"{name}.#\"]\n\
             [accounts.mail]\nkind = \"smtp\"\nhost = \"localhost\"\nport = {}\nfrom = \"{}\"\n\
             password = \"${{SMTP_PASSWD}}\"\n{}",
            self.smtp.port(),
            self.smtp.user(),
            plugins.iter().map(grant).collect::<String>(),
        )
    }

    /// The full name of a tenant's queue.
    pub fn queue_of(&self, tenant: &str) -> String {
        format!("queue/{}/{tenant}", self.account.login)
    }

    /// As [`World::failed_task`], for one tenant: the message goes to its queue alone.
    pub fn failed_task_of(&self, tenant: &str, section: &Value) -> (String, Message) {
        let (task_id, message) = self.failed_task(section);
        let routing_key = format!("{tenant}.{}", message.routing_key);
        (task_id, Message { routing_key, ..message })
    }
}

/// Puts a tenant's file in its place, all at once.
pub fn put_tenant(service: &Service, name: &str, content: &str) -> Result<()> {
    let unfinished = service.directory().join(format!("{name}.unfinished"));
    std::fs::write(&unfinished, content)?;
    Ok(std::fs::rename(unfinished, tenant_file(service, name))?)
}

/// Takes a tenant's file away.
pub fn remove_tenant(service: &Service, name: &str) -> Result<()> {
    Ok(std::fs::remove_file(tenant_file(service, name))?)
}

/// Where a tenant's file is.
pub fn tenant_file(service: &Service, name: &str) -> PathBuf {
    service.directory().join("tenants").join(format!("{name}.toml"))
}

/// What `/readyz` answers: its status and what it says.
pub async fn readiness(service: &Service) -> Result<(u16, Value)> {
    let address = |line: &str| serde_json::from_str::<Value>(line).ok()?.get("address")?.as_str().map(str::to_owned);
    let address = service.output().lines().find_map(address).context("it says where it serves health")?;
    let port = address.rsplit(':').next().context("a port")?.parse()?;
    let answer = request(port, "GET", "/readyz", &[], "").await?;
    Ok((answer.status, serde_json::from_str(&answer.body)?))
}

/// The lines of a service's log with this message.
pub fn lines(service: &Service, message: &str) -> Vec<Value> {
    let lines = service.output().lines().map(serde_json::from_str::<Value>).collect::<Vec<_>>();
    lines.into_iter().flatten().filter(|line| line["message"] == message).collect()
}
