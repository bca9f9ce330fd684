//! One plugin told about one notification: what the sandbox is given, and what the end of the call leads to. No I/O.

use std::sync::Arc;

use jiff::Timestamp;

use super::event::{Event, TaskId, text};
use super::logs;
use super::notification::Notification;
use super::task::{Definition, TaskReads, Tasks};
use crate::effect::{Hash, Origin};
use crate::grant::About;
use crate::retry;
use crate::sandbox::{self, Ending, Fault, Report, types};
use crate::store::{Invocation, Outcome, now_ms};
use crate::tenant::{LogCollection, PluginTerms};

/// Which run of an invocation this is.
#[derive(Clone, Copy, Debug)]
pub struct Turn {
    /// 0 for the delivery, then one more for each replay.
    pub generation: u32,
    /// From 1; one more each time the plugin asked to be run again.
    pub tries: u32,
    /// When the event arrived.
    pub received_ms: i64,
}

/// What the sandbox is given.
#[must_use]
pub fn request(
    tasks: &Arc<Tasks>,
    terms: &PluginTerms,
    event: &Event,
    task: &Definition,
    notification: &Notification,
    collection: Option<&LogCollection>,
    generation: u32,
) -> sandbox::Invocation {
    let time = time(event, task);
    let logs = logs::collected(event, task, collection);
    let log_addresses = logs.iter().map(|log| log.artifact.clone()).filter(|source| source.contains("://")).collect();
    sandbox::Invocation {
        about: About { task_id: event.task_id.clone(), hops: event.delivery.hops, log_addresses },
        origin: Origin {
            event: event.key,
            generation,
            identity: notification.identity.clone(),
            plugin: notification.plugin.clone(),
        },
        event: told(tasks, event, task, notification, time, logs),
        time,
        grant: Arc::clone(&terms.grant),
        settings: Arc::clone(&terms.settings),
        limits: terms.limits,
        reads: TaskReads::new(Arc::clone(tasks), event.task_id.clone()),
    }
}

/// What the guest is told.
fn told(
    tasks: &Tasks,
    event: &Event,
    task: &Definition,
    notification: &Notification,
    time: Timestamp,
    logs: Vec<types::CollectedLog>,
) -> types::Event {
    let group = event.task_group_id.clone();
    let group = group.or_else(|| text(&task.value, "/taskGroupId").and_then(TaskId::new));
    let group = group.unwrap_or_else(|| event.task_id.clone());
    let notification = notification.clone();
    types::Event {
        id: event.key.to_string(),
        tenant: event.tenant.clone(),
        status: event.status.clone(),
        exchange: event.delivery.exchange.clone(),
        routing_key: event.delivery.routing_key.clone(),
        cc_routes: event.delivery.cc_routes.clone(),
        redelivered: event.delivery.redelivered,
        time: time.to_string(),
        task_id: event.task_id.to_string(),
        run_id: event.run_id,
        task_url: tasks.task_url(&event.task_id),
        task_group_url: tasks.task_group_url(&group),
        task_group_id: group.to_string(),
        body: String::from_utf8_lossy(&event.delivery.body).into_owned(),
        task: task.json.clone(),
        logs,
        notification: types::Notification {
            identity: notification.identity,
            subject: notification.subject,
            message: notification.message,
            emails: notification.emails,
            nicks: notification.nicks,
            channels: notification.channels,
            section: notification.section,
        },
    }
}

/// When it happened: by the message, else when the task was created.
fn time(event: &Event, task: &Definition) -> Timestamp {
    let created = || text(&task.value, "/created")?.parse().ok();
    event.time.or_else(created).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// What is recorded of a call that was made.
#[must_use]
pub fn made(terms: &PluginTerms, notification: &Notification, turn: Turn, digest: Hash, report: Report) -> Invocation {
    Invocation {
        generation: turn.generation,
        identity: notification.identity.clone(),
        plugin: notification.plugin.clone(),
        digest,
        cpu_us: u64::try_from(report.cpu.as_micros()).unwrap_or(u64::MAX),
        memory_max: report.memory_max,
        refusals: report.refusals,
        log: report.log,
        quotas: Arc::clone(&terms.quotas),
        outcome: outcome(report.ending, &notification.plugin, turn),
    }
}

/// What is recorded of a call that was not made.
#[must_use]
pub fn not_made(identity: &str, plugin: &str, turn: Turn, outcome: Outcome) -> Invocation {
    Invocation {
        generation: turn.generation,
        identity: identity.to_owned(),
        plugin: plugin.to_owned(),
        digest: Hash::of_bytes(b""),
        cpu_us: 0,
        memory_max: 0,
        refusals: Vec::new(),
        log: Vec::new(),
        quotas: Arc::default(),
        outcome,
    }
}

/// What the end of a call leads to.
fn outcome(ending: Ending, plugin: &str, turn: Turn) -> Outcome {
    match ending {
        Ending::Planned(plan) => Outcome::Done(plan),
        Ending::Retry(reason) => {
            tracing::info!(plugin, reason = %reason.escape_debug(), "plugin wants to be run again");
            again(reason, turn)
        }
        Ending::Failed(reason) => {
            tracing::warn!(plugin, reason = %reason.escape_debug(), "plugin failed");
            Outcome::Failed(reason)
        }
        // Not the guest's doing: it gets another chance.
        Ending::Faulted(Fault::Host(why)) => {
            tracing::error!(plugin, %why, "the host could not run a plugin");
            again(why, turn)
        }
        Ending::Faulted(fault) => {
            tracing::warn!(plugin, fault = %fault.to_string().escape_debug(), "plugin faulted");
            Outcome::Faulted(fault.to_string())
        }
    }
}

/// Run again later, until that has been wanted for too long.
#[must_use]
pub fn again(reason: String, turn: Turn) -> Outcome {
    match retry::next_try_ms(turn.tries, turn.received_ms, now_ms()) {
        Some(due_ms) => Outcome::Retry { due_ms, reason },
        None => Outcome::Dead(format!("given up after three days: {reason}")),
    }
}
