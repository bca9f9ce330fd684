//! Everything around the service in one hand: a queue on a broker, a mail server, a Taskcluster, a plugin directory.

use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{Account, Broker, Database, Message, Mode, Moto, Service, SmtpServer, Taskcluster, Vhost, plugins, wait};

/// What one test has for itself.
pub struct World {
    /// Its virtual host, with the exchanges of all statuses.
    pub vhost: Vhost,
    /// A user there with the permissions Pulse gives.
    pub account: Account,
    /// Its mail server.
    pub smtp: SmtpServer,
    /// Its Taskcluster.
    pub taskcluster: Taskcluster,
    plugins: TempDir,
    tasks: AtomicU32,
}

impl World {
    /// A world with the plugins of these names.
    pub async fn new(broker: &Broker, plugin_names: &[&str]) -> Result<Self> {
        let vhost = broker.vhost().await?;
        let exchanges: Vec<String> = STATUSES.iter().map(|status| exchange(status)).collect();
        vhost.declare_exchanges(&exchanges.iter().map(String::as_str).collect::<Vec<_>>()).await?;
        Ok(Self {
            account: vhost.pulse_user(&format!("user-of-{}", vhost.name())).await?,
            vhost,
            smtp: SmtpServer::start(Mode::StartTls).await?,
            taskcluster: Taskcluster::start().await?,
            plugins: plugins(plugin_names)?,
            tasks: AtomicU32::default(),
        })
    }

    /// The service, configured for this world with the predecessor's variables; not started.
    pub fn service(&self, plugin_names: &[&str]) -> Result<Service> {
        self.service_with(&["run"], plugin_names)
    }

    /// The same with other arguments.
    pub fn service_with(&self, arguments: &[&str], plugin_names: &[&str]) -> Result<Service> {
        Ok(Service::new(arguments)?
            .env("PN_SERVICES", plugin_names.join(":"))
            .env("PN_PLUGINS", self.plugins.path().display())
            .env("PULSE_HOST", "127.0.0.1")
            .env("PULSE_PORT", self.vhost.port())
            .env("PULSE_SSL", "False")
            .env("PULSE_VHOST", self.vhost.name())
            .env("PULSE_LOGIN", &self.account.login)
            .env("PULSE_PASSWORD", &self.account.password)
            .env("PULSE_QUEUE", "notifications")
            .env("TASKCLUSTER_ROOT_URL", self.taskcluster.root_url())
            .env("SMTP_HOST", "localhost")
            .env("SMTP_PORT", self.smtp.port())
            .env("SMTP_EMAIL", self.smtp.user())
            .env("SMTP_PASSWD", self.smtp.password())
            .env("SSL_CERT_FILE", self.smtp.ca_file().display())
            // Nobody listens there; tests that say something have a server of their own.
            .env("IRC_HOST", "localhost")
            .env("IRC_PORT", 1)
            .env("IRC_NICK", "pulse")
            // No machine under test is a virtual one at AWS.
            .env("AWS_EC2_METADATA_DISABLED", true)
            .env("PN_ADMIN", "127.0.0.1:0")
            .env("LOG_LEVEL", "INFO"))
    }

    /// The service, configured for this world and this AWS; not started.
    pub fn service_at(&self, aws: &Moto, plugin_names: &[&str]) -> Result<Service> {
        Ok(self
            .service(plugin_names)?
            .env("AWS_ENDPOINT_URL", aws.endpoint())
            .env("AWS_ACCESS_KEY_ID", AWS_ACCESS_KEY_ID)
            .env("AWS_SECRET_ACCESS_KEY", AWS_SECRET_ACCESS_KEY))
    }

    /// The service, started and consuming.
    pub async fn running(&self, plugin_names: &[&str]) -> Result<Service> {
        let mut service = self.service(plugin_names)?;
        service.start()?;
        service.wait_for_output("consuming", PATIENCE).await?;
        Ok(service)
    }

    /// The directory its plugins are in.
    pub fn plugin_folder(&self) -> &Path {
        self.plugins.path()
    }

    /// Waits until its queue holds nothing, neither waiting nor unacked.
    pub async fn queue_is_empty(&self) -> Result<()> {
        let is_empty = async || {
            let depth = self.vhost.depth(&self.queue()).await?;
            Ok(depth.is_some_and(|depth| depth.ready + depth.unacked == 0))
        };
        wait::until("the queue is empty", PATIENCE, is_empty).await
    }

    /// The full name of its queue.
    pub fn queue(&self) -> String {
        format!("queue/{}/notifications", self.account.login)
    }

    /// A task of its own with this section for `task-failed`, and the message that says it failed; not published.
    pub fn failed_task(&self, section: &Value) -> (String, Message) {
        let (task_id, message) = self.unknown_task();
        self.taskcluster.define(&task_id, definition(section));
        (task_id, message)
    }

    /// A message about a task that Taskcluster does not know.
    pub fn unknown_task(&self) -> (String, Message) {
        failure(self.tasks.fetch_add(1, Ordering::Relaxed))
    }

    /// Publishes a message.
    pub async fn publish(&self, message: &Message) -> Result<()> {
        let cc: Vec<&str> = message.cc.iter().map(String::as_str).collect();
        let body = serde_json::to_vec(&message.body)?;
        self.vhost.publish(&message.exchange, &message.routing_key, &cc, &body).await
    }
}

/// The exchange of a status.
pub fn exchange(status: &str) -> String {
    format!("exchange/taskcluster-queue/v1/{status}")
}

/// The id of the task with this number, and the message that it failed just now.
pub fn failure(number: u32) -> (String, Message) {
    let task_id = format!("T{number:07}QxCtesttaskAAA");
    let body = json!({"version": 1, "runId": 0, "status": {
        "taskId": task_id, "taskGroupId": "GroupAAAQxCtesttaskAAA", "state": "failed",
        "runs": [{"runId": 0, "state": "failed"}]}});
    let routing_key = format!("primary.{task_id}.0.w.w.p.t.s.GroupAAAQxCtesttaskAAA._");
    (task_id, Message { exchange: exchange("task-failed"), routing_key, body, cc: Vec::new(), redelivered: false })
}

/// A task's definition with this section for `task-failed`.
pub fn definition(section: &Value) -> Value {
    json!({"metadata": {"name": "a test"}, "created": "2018-01-30T14:25:17.052Z",
        "extra": {"notifications": {"task-failed": section}}})
}

/// The section of a task that wants one mail.
pub fn mail_to(address: &str) -> Value {
    json!({"plugins": ["smtp"], "emails": [address], "subject": "It failed", "message": "{task_id} failed"})
}

/// The database of a service.
pub fn store(service: &Service) -> Database {
    Database::at(service.directory().join("pulse-notifier.db"))
}

/// Every status a task can have an event about.
pub const STATUSES: [&str; 7] = [
    "task-defined",
    "task-pending",
    "task-running",
    "artifact-created",
    "task-completed",
    "task-failed",
    "task-exception",
];

/// An access key id, made up.
pub const AWS_ACCESS_KEY_ID: &str = "AKIATESTSTESTSTESTS0";
/// The secret access key that goes with it.
pub const AWS_SECRET_ACCESS_KEY: &str = "tests+only/SecretAccessKeyOfNobody/00000";

const PATIENCE: Duration = Duration::from_secs(120);
