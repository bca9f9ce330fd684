//! The first half of the path: a delivery becomes committed effects, and only then is it acked.
//!
//! Everything on the way is concurrent and bounded by the number of deliveries in hand. What each kind of failure leads
//! to is decided in one place, [`Intake::without_task`] for the task and [`outcome`] for a plugin.

pub mod event;
pub mod notification;
pub mod source;
pub mod task;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use jiff::Timestamp;
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use crate::effect::{Hash, Origin};
use crate::metrics::{DeliveryOutcome, Metrics};
use crate::registry::Registry;
use crate::retry;
use crate::sandbox::{self, Ending, Report, Sandbox, types};
use crate::store::{
    Basis, DeadDelivery, DueRetry, Fate, Invocation, Outcome, Retried, Settled, Store, StoreError, Verdict, now_ms,
};
use crate::tenant::Tenant;
use event::{Delivery, Event};
use notification::Notification;
use source::Received;
use task::{Definition, TaskError, TaskReads, Tasks};

/// What the first half works with.
pub struct Intake {
    /// The tenants, by name.
    pub tenants: BTreeMap<String, Tenant>,
    /// Where task definitions come from.
    pub tasks: Arc<Tasks>,
    /// The live plugins.
    pub registry: Registry,
    /// Runs them.
    pub sandbox: Arc<Sandbox>,
    /// Keeps what they asked for.
    pub store: Store,
    /// Counts what happens.
    pub metrics: Arc<Metrics>,
    /// Bounds what is in hand.
    pub in_hand: Arc<Semaphore>,
}

/// What is to be done about a delivery before it may be acked.
enum Decision {
    /// Nobody asked to hear about it: nothing.
    Nothing,
    /// Its outcome is committed.
    Settle(Settled),
    /// It is kept as it came.
    Bury(DeadDelivery),
}

impl Intake {
    /// Deliveries in hand at the same time.
    pub const IN_HAND_MAX: u16 = 256;

    /// Takes in what a tenant's source delivers until it ends; each delivery is handled by a task of its own.
    pub async fn run(self: Arc<Self>, tenant: String, mut received: mpsc::Receiver<Received>, tracker: TaskTracker) {
        while let Some(received) = received.recv().await {
            let Ok(permit) = Arc::clone(&self.in_hand).acquire_owned().await else { return };
            let (intake, tenant) = (Arc::clone(&self), tenant.clone());
            tracker.spawn(async move {
                intake.take_in(&tenant, received).await;
                drop(permit);
            });
        }
    }

    /// One delivery, from the broker's hand to its ack. Without a durable outcome there is none.
    async fn take_in(&self, tenant: &str, received: Received) {
        let received_ms = now_ms();
        let span = tracing::info_span!("delivery", tenant, exchange = %received.delivery.exchange.escape_debug());
        let decision =
            self.decide(tenant, Arc::new(received.delivery), received_ms, Basis::Delivery).instrument(span).await;
        if let Ok(outcome) = self.commit(decision).await {
            received.settler.ack().await;
            self.metrics.delivery(tenant, outcome);
        }
    }

    /// Makes a decision durable; what it was, or that another one had been made before.
    async fn commit(&self, decision: Decision) -> Result<DeliveryOutcome, StoreError> {
        match decision {
            Decision::Nothing => Ok(DeliveryOutcome::Unasked),
            Decision::Bury(dead) => self.store.bury(dead).await.map(|()| DeliveryOutcome::Malformed),
            Decision::Settle(settled) => {
                let outcome = match &settled.fate {
                    Fate::Planned(_) => DeliveryOutcome::Planned,
                    Fate::Deferred { .. } => DeliveryOutcome::Deferred,
                    Fate::Dead { .. } => DeliveryOutcome::Dead,
                };
                let dead = DeadDelivery {
                    tenant: settled.tenant.clone(),
                    delivery: Arc::clone(&settled.delivery),
                    reason: String::new(),
                    received_ms: settled.received_ms,
                };
                match self.store.settle(settled).await {
                    Ok(Verdict::Won) => Ok(outcome),
                    Ok(Verdict::Lost) => Ok(DeliveryOutcome::Duplicate),
                    Err(StoreError::Rejected(reason)) => {
                        self.store.bury(DeadDelivery { reason, ..dead }).await.map(|()| DeliveryOutcome::Dead)
                    }
                    Err(error) => Err(error),
                }
            }
        }
    }

    async fn decide(&self, tenant: &str, delivery: Arc<Delivery>, received_ms: i64, basis: Basis) -> Decision {
        let event = match Event::read(tenant, Arc::clone(&delivery)) {
            Ok(event) => event,
            Err(malformed) => {
                tracing::warn!(%malformed, "delivery without an event: kept as dead");
                let (tenant, reason) = (tenant.to_owned(), malformed.to_string());
                return Decision::Bury(DeadDelivery { tenant, delivery, reason, received_ms });
            }
        };
        let fate = match self.tasks.definition(&event.task_id).await {
            Ok(task) => Fate::Planned(self.plan(&event, &task, received_ms).await),
            Err(error) => Self::without_task(&event, &error, received_ms, basis),
        };
        match fate {
            Fate::Planned(invocations) if invocations.is_empty() && basis == Basis::Delivery => Decision::Nothing,
            fate => Decision::Settle(Settled {
                key: event.key,
                tenant: event.tenant,
                status: event.status,
                task_id: event.task_id.to_string(),
                run_id: event.run_id,
                delivery,
                received_ms,
                fate,
                basis,
            }),
        }
    }

    /// What a missing definition leads to. The source queue must never back up: an event waits in the store.
    fn without_task(event: &Event, error: &TaskError, received_ms: i64, basis: Basis) -> Fate {
        let reason = error.to_string();
        let tries = match basis {
            Basis::Delivery => 1,
            Basis::Deferred { tries } => tries + 1,
        };
        let dead = |reason: String| {
            tracing::warn!(task_id = %event.task_id, %reason, "event is dead");
            Fate::Dead { reason }
        };
        let deferred = |reason: String| match retry::delay(tries, age(received_ms)) {
            Some(wait) => Fate::Deferred { due_ms: due_ms(wait), reason },
            None => dead(format!("given up after three days: {reason}")),
        };
        match error {
            TaskError::NotFound if is_fresh(event, received_ms) => deferred(reason),
            TaskError::Unavailable(_) => deferred(reason),
            TaskError::Denied(_) => {
                tracing::error!(task_id = %event.task_id, %reason, "Taskcluster denies access: the event waits");
                deferred(reason)
            }
            TaskError::NotFound | TaskError::Gone | TaskError::TooLarge(_) | TaskError::Unusable(_) => dead(reason),
        }
    }

    /// Runs every plugin that is to say something; one that faults harms no other.
    async fn plan(&self, event: &Event, task: &Definition, received_ms: i64) -> Vec<Invocation> {
        let Some(tenant) = self.tenants.get(&event.tenant) else { return Vec::new() };
        let notifications = self.notifications(tenant, event, task);
        let invoked = notifications.iter().map(|notification| self.invoke(tenant, event, task, notification, 0));
        let reports = join_all(invoked).await;
        let invocation =
            |(notification, (digest, outcome, report)): (&Notification, (Hash, Option<Outcome>, Report))| {
                invocation(notification, 0, digest, outcome, report, 1, received_ms)
            };
        let invocations: Vec<_> = notifications.iter().zip(reports).map(invocation).collect();
        invocations.iter().for_each(|invocation| self.count(invocation));
        invocations
    }

    fn count(&self, invocation: &Invocation) {
        let cpu = Duration::from_micros(invocation.cpu_us);
        self.metrics.invocation(&invocation.plugin, invocation.outcome.state(), cpu);
    }

    fn notifications(&self, tenant: &Tenant, event: &Event, task: &Definition) -> Vec<Notification> {
        let task_url = self.tasks.task_url(&event.task_id);
        let plugins = tenant.plugin_names();
        let wishes = notification::wishes(event, &task.value, &tenant.identities, &plugins, &task_url);
        for warning in wishes.warnings {
            tracing::warn!(task_id = %event.task_id, status = %event.status.escape_debug(), "{}", warning.escape_debug());
        }
        wishes.notifications
    }

    /// Runs one plugin on one notification, or says why it was not run.
    async fn invoke(
        &self,
        tenant: &Tenant,
        event: &Event,
        task: &Definition,
        notification: &Notification,
        generation: u32,
    ) -> (Hash, Option<Outcome>, Report) {
        let (terms, version) =
            (tenant.plugins.get(&notification.plugin), self.registry.live(&tenant.name, &notification.plugin));
        let (Some(terms), Some(version)) = (terms, version) else {
            let refused = Outcome::Refused("no version of the plugin is live".into());
            return (Hash::of_bytes(b""), Some(refused), Report::nothing());
        };
        let time = event_time(event, task);
        let report = self
            .sandbox
            .invoke(
                &version,
                sandbox::Invocation {
                    origin: Origin {
                        event: event.key,
                        generation,
                        identity: notification.identity.clone(),
                        plugin: notification.plugin.clone(),
                    },
                    event: self.told(event, task, notification, time),
                    time,
                    grant: Arc::clone(&terms.grant),
                    settings: Arc::clone(&terms.settings),
                    limits: terms.limits,
                    reads: TaskReads::new(Arc::clone(&self.tasks), event.task_id.clone()),
                },
            )
            .await;
        (version.digest, None, report)
    }

    /// What the guest is told.
    fn told(&self, event: &Event, task: &Definition, notification: &Notification, time: Timestamp) -> types::Event {
        let group = event.task_group_id.clone();
        let group = group.or_else(|| event::text(&task.value, "/taskGroupId").and_then(event::TaskId::new));
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
            task_url: self.tasks.task_url(&event.task_id),
            task_group_url: self.tasks.task_group_url(&group),
            task_group_id: group.to_string(),
            body: String::from_utf8_lossy(&event.delivery.body).into_owned(),
            task: task.json.clone(),
            logs: Vec::new(),
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

    /// Handles again what was put off, until asked to stop.
    pub async fn run_deferred(self: Arc<Self>, stop: CancellationToken, tracker: TaskTracker) {
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = look.tick() => {}
            }
            let (events, retries) = tokio::join!(self.store.due_events(LOOK_MAX), self.store.due_retries(LOOK_MAX));
            for deferred in events.unwrap_or_default() {
                let Ok(permit) = Arc::clone(&self.in_hand).acquire_owned().await else { return };
                let intake = Arc::clone(&self);
                tracker.spawn(async move {
                    let basis = Basis::Deferred { tries: deferred.tries };
                    let (tenant, delivery) = (deferred.tenant, deferred.delivery);
                    let decision = intake.decide(&tenant, delivery, deferred.received_ms, basis).await;
                    warn_unless_kept(intake.commit(decision).await);
                    drop(permit);
                });
            }
            for due in retries.unwrap_or_default() {
                let Ok(permit) = Arc::clone(&self.in_hand).acquire_owned().await else { return };
                let intake = Arc::clone(&self);
                tracker.spawn(async move {
                    let retried = intake.retry(due).await;
                    warn_unless_kept(intake.store.settle_retry(retried).await);
                    drop(permit);
                });
            }
        }
    }

    /// Runs again the one invocation that had asked for it, on the version that is live now.
    async fn retry(&self, due: DueRetry) -> Retried {
        let tries = due.tries + 1;
        let (digest, outcome, report, notification) = self.invoke_again(&due).await;
        let invocation = invocation(&notification, due.generation, digest, outcome, report, tries, due.received_ms);
        self.count(&invocation);
        Retried {
            invocation_id: due.invocation_id,
            tries: due.tries,
            invocation,
            tenant: due.tenant,
            received_ms: due.received_ms,
        }
    }

    async fn invoke_again(&self, due: &DueRetry) -> (Hash, Option<Outcome>, Report, Notification) {
        let gone = |outcome: Outcome| {
            let (identity, plugin) = (due.identity.clone(), due.plugin.clone());
            (
                Hash::of_bytes(b""),
                Some(outcome),
                Report::nothing(),
                Notification { identity, plugin, ..Notification::default() },
            )
        };
        let Some(tenant) = self.tenants.get(&due.tenant) else {
            return gone(Outcome::Refused("the tenant was removed".into()));
        };
        let Ok(event) = Event::read(&due.tenant, Arc::clone(&due.delivery)) else {
            return gone(Outcome::Dead("its delivery is no event any more".into()));
        };
        let task = match self.tasks.definition(&event.task_id).await {
            Ok(task) => task,
            Err(error @ (TaskError::Unavailable(_) | TaskError::Denied(_))) => {
                return gone(retried(error.to_string(), due.tries + 1, due.received_ms));
            }
            Err(error) => return gone(Outcome::Dead(error.to_string())),
        };
        let wished = self.notifications(tenant, &event, &task).into_iter();
        let mut same = wished.filter(|wished| wished.identity == due.identity && wished.plugin == due.plugin);
        let Some(notification) = same.next() else {
            return gone(Outcome::Refused("its identity or plugin was removed".into()));
        };
        let (digest, outcome, report) = self.invoke(tenant, &event, &task, &notification, due.generation).await;
        (digest, outcome, report, notification)
    }
}

fn invocation(
    notification: &Notification,
    generation: u32,
    digest: Hash,
    refused: Option<Outcome>,
    report: Report,
    tries: u32,
    received_ms: i64,
) -> Invocation {
    Invocation {
        generation,
        identity: notification.identity.clone(),
        plugin: notification.plugin.clone(),
        digest,
        cpu_us: u64::try_from(report.cpu.as_micros()).unwrap_or(u64::MAX),
        memory_max: report.memory_max,
        refusals: report.refusals,
        log: report.log,
        outcome: refused.unwrap_or_else(|| outcome(report.ending, notification, tries, received_ms)),
    }
}

/// What the end of a call leads to.
fn outcome(ending: Ending, notification: &Notification, tries: u32, received_ms: i64) -> Outcome {
    let plugin = &notification.plugin;
    match ending {
        Ending::Planned(plan) => Outcome::Done(plan),
        Ending::Retry(reason) => {
            tracing::info!(plugin, reason = %reason.escape_debug(), "plugin wants to be run again");
            retried(reason, tries, received_ms)
        }
        Ending::Failed(reason) => {
            tracing::warn!(plugin, reason = %reason.escape_debug(), "plugin failed");
            Outcome::Failed(reason)
        }
        Ending::Faulted(fault) => {
            tracing::warn!(plugin, fault = %fault.to_string().escape_debug(), "plugin faulted");
            Outcome::Faulted(fault.to_string())
        }
    }
}

fn retried(reason: String, tries: u32, received_ms: i64) -> Outcome {
    match retry::delay(tries, age(received_ms)) {
        Some(wait) => Outcome::Retry { due_ms: due_ms(wait), reason },
        None => Outcome::Dead(format!("given up after three days: {reason}")),
    }
}

fn warn_unless_kept(settled: Result<impl Sized, StoreError>) {
    if let Err(error) = settled {
        tracing::warn!(%error, "what was put off stays put off");
    }
}

fn due_ms(wait: Duration) -> i64 {
    now_ms().saturating_add(i64::try_from(retry::jittered(wait).as_millis()).unwrap_or(i64::MAX))
}

fn age(received_ms: i64) -> Duration {
    Duration::from_millis(u64::try_from(now_ms() - received_ms).unwrap_or(0))
}

/// Whether the event is so new that Taskcluster may not know its task everywhere yet.
fn is_fresh(event: &Event, received_ms: i64) -> bool {
    let happened_ms = event.time.map_or(received_ms, Timestamp::as_millisecond);
    age(happened_ms) < FRESH
}

/// When it happened: by the message, else when the task was created.
fn event_time(event: &Event, task: &Definition) -> Timestamp {
    let created = || event::text(&task.value, "/created").and_then(|created| created.parse().ok());
    event.time.or_else(created).unwrap_or(Timestamp::UNIX_EPOCH)
}

const FRESH: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_secs(1);
const LOOK_MAX: u32 = 64;
