//! The first half of the path: a delivery becomes committed effects, and only then is it acked.
//!
//! Everything on the way is concurrent and bounded by the number of deliveries in hand. What each kind of failure leads
//! to is decided in one place: `Intake::without_task` for the task, [`invocation`] for a plugin.

pub mod event;
pub mod invocation;
mod logs;
pub mod notification;
pub mod queues;
pub mod source;
pub mod task;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use jiff::Timestamp;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use crate::fair::{Slot, Slots};
use crate::metrics::{DeliveryOutcome, Metrics};
use crate::pace::{self, Pace, Used};
use crate::registry::{Refusal, Registry};
use crate::retry;
use crate::sandbox::Sandbox;
use crate::store::{
    Basis, DeadDelivery, DueRetry, Fate, Invocation, Outcome, Retried, Room, Settled, Store, StoreError, Verdict,
    now_ms,
};
use crate::taskcluster::TaskError;
use crate::tenant::{TENANT_REMOVED, Tenant, Tenants};
use crate::timing::{self, Timing};
use event::{Delivery, Event};
use invocation::Turn;
use notification::Notification;
use source::Received;
use task::{Definition, Tasks};

/// What the first half works with.
pub struct Intake {
    /// The tenants.
    pub tenants: Tenants,
    /// Where task definitions come from.
    pub tasks: Arc<Tasks>,
    /// The live plugins.
    pub registry: Arc<Registry>,
    /// Runs them.
    pub sandbox: Arc<Sandbox>,
    /// Keeps what they asked for.
    pub store: Store,
    /// Counts what happens.
    pub metrics: Arc<Metrics>,
    /// Notes how long it takes.
    pub timing: Timing,
    /// Bounds the plans that are being made, and those that are large until they are committed.
    pub plans: Slots,
    /// Bounds the deliveries in hand.
    pub in_hand: Slots,
    /// Bounds the large outcomes on their way to the database.
    pub large: Slots,
    /// What each tenant may use while there are others.
    pub pace: Pace,
}

/// What is to be done about a delivery before it may be acked.
enum Decision {
    /// Its tenant is gone: it stays with the broker.
    Leave,
    /// Nobody asked to hear about it: nothing.
    Nothing,
    /// Its outcome is committed. Until then, when it is large, it has a place among the tenant's plans.
    Settle(Settled, Option<Slot>),
    /// It is kept as it came.
    Bury(DeadDelivery),
}

impl Intake {
    /// Events at the same time whose plans are being made, or are large and not committed: of all tenants, and of one.
    #[must_use]
    pub fn plans() -> Slots {
        Slots::new(256, 32)
    }

    /// Deliveries in hand at the same time, of each tenant: few where there are several, so that what one has in hand
    /// delays the others little.
    #[must_use]
    pub fn in_hand() -> Slots {
        Slots::with_more_alone(usize::MAX, IN_HAND_IN_COMPANY_MAX, IN_HAND_ALONE_MAX)
    }

    /// Large outcomes on their way to the database at the same time, of each tenant: so few that they delay another tenant
    /// little that comes, and more than one where there is nobody to delay.
    #[must_use]
    pub fn large() -> Slots {
        Slots::with_more_alone(usize::MAX, 1, 3)
    }

    /// Deliveries of one tenant that its source sends ahead of their acks.
    pub const PREFETCH: u16 = 128;

    /// Takes in what a tenant's source delivers until it ends; each delivery is handled by a task of its own.
    pub async fn run(self: Arc<Self>, tenant: String, mut received: mpsc::Receiver<Received>, tracker: TaskTracker) {
        while let Some(received) = received.recv().await {
            let in_hand = self.in_hand.take(&tenant).await;
            let (intake, tenant) = (Arc::clone(&self), tenant.clone());
            tracker.spawn(async move {
                intake.take_in(&tenant, received).await;
                drop(in_hand);
            });
        }
    }

    /// One delivery, from the broker's hand to its ack. Without a durable outcome there is none.
    async fn take_in(&self, tenant: &str, received: Received) {
        let (received_ms, began) = (now_ms(), Instant::now());
        // Of the highest level, so that whatever is logged within says what it is about.
        let span = tracing::error_span!("delivery", tenant, exchange = %received.delivery.exchange.escape_debug());
        let decision =
            self.decide(tenant, Arc::new(received.delivery), received_ms, Basis::Delivery).instrument(span).await;
        match self.commit(decision).await {
            Ok(None) => tracing::info!("a delivery for a tenant that was removed stays in its queue"),
            Ok(Some(outcome)) => {
                received.settler.ack().await;
                self.metrics.delivery(tenant, outcome);
                self.timing.took(timing::CONSUMER, began.elapsed());
            }
            Err(error) => tracing::error!(%error, "a delivery has no durable outcome and is not acked"),
        }
    }

    /// Makes a decision durable; what it was, or that another one had been made before. None when nothing was decided.
    async fn commit(&self, decision: Decision) -> Result<Option<DeliveryOutcome>, StoreError> {
        let outcome = match decision {
            Decision::Leave => return Ok(None),
            Decision::Nothing => Ok(DeliveryOutcome::Unasked),
            Decision::Bury(dead) => {
                let _writing = self.may_write(&dead.tenant, dead.delivery.body.len()).await;
                self.store.bury(dead).await.map(|()| DeliveryOutcome::Malformed)
            }
            Decision::Settle(settled, _place) => {
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
                let _writing = self.may_write(&settled.tenant, settled.bytes()).await;
                match self.store.settle(settled).await {
                    Ok(Verdict::Won) => Ok(outcome),
                    Ok(Verdict::Lost) => Ok(DeliveryOutcome::Duplicate),
                    Err(StoreError::Rejected(reason)) => {
                        self.store.bury(DeadDelivery { reason, ..dead }).await.map(|()| DeliveryOutcome::Dead)
                    }
                    Err(error) => Err(error),
                }
            }
        };
        outcome.map(Some)
    }

    /// Waits until the tenant may write so much; while the slot lives, its next large outcome waits.
    async fn may_write(&self, tenant: &str, bytes: usize) -> Option<Slot> {
        self.large.saw(tenant);
        let slot = if bytes > LARGE_BYTES { Some(self.large.take(tenant).await) } else { None };
        self.pace.write(tenant, bytes).await;
        slot
    }

    /// Waits for the tenant's turn to have plugins run.
    async fn turn(&self, tenant: &str) -> pace::Turn {
        self.pace.turn(tenant, self.in_hand.is_waited_for(tenant)).await
    }

    /// Waits for the tenant's turn for a delivery that has no plugin run.
    async fn pass(&self, tenant: &str) {
        let turn = self.turn(tenant).await;
        self.pace.used(tenant, turn, used(&[]));
    }

    async fn decide(&self, tenant: &str, delivery: Arc<Delivery>, received_ms: i64, basis: Basis) -> Decision {
        let event = match Event::read(tenant, Arc::clone(&delivery)) {
            Ok(event) => event,
            Err(malformed) => {
                tracing::warn!(%malformed, "delivery without an event: kept as dead");
                self.pass(tenant).await;
                let (tenant, reason) = (tenant.to_owned(), malformed.to_string());
                return Decision::Bury(DeadDelivery { tenant, delivery, reason, received_ms });
            }
        };
        let (fate, place) = match self.tenants.named(tenant) {
            None if basis == Basis::Delivery => return Decision::Leave,
            None => (Fate::Dead { reason: TENANT_REMOVED.into() }, None),
            Some(tenant) => match self.tasks.definition(&event.tenant, &event.task_id).await {
                Ok(task) => {
                    let notifications = self.notifications(&tenant, &event, &task);
                    if notifications.is_empty() && basis == Basis::Delivery {
                        self.pass(&tenant.name).await;
                        return Decision::Nothing;
                    }
                    let mut turn = self.turn(&tenant.name).await;
                    let place = self.plans.take(&tenant.name).await;
                    if turn.is_free() {
                        // Others may have come while it waited for its place.
                        turn = self.turn(&tenant.name).await;
                    }
                    let invocations = self.plan(&tenant, &event, &task, &notifications, received_ms).await;
                    self.pace.used(&tenant.name, turn, used(&invocations));
                    (Fate::Planned(invocations), Some(place))
                }
                Err(error) => {
                    self.pass(&tenant.name).await;
                    (Self::without_task(&event, &error, received_ms, basis), None)
                }
            },
        };
        let settled = Settled {
            key: event.key,
            tenant: event.tenant,
            status: event.status,
            task_id: event.task_id.to_string(),
            run_id: event.run_id,
            delivery,
            received_ms,
            fate,
            basis,
        };
        let place = place.filter(|_| settled.bytes() > LARGE_BYTES);
        Decision::Settle(settled, place)
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
        let deferred = |reason: String| match retry::next_try_ms(tries, received_ms, now_ms()) {
            Some(due_ms) => {
                tracing::info!(task_id = %event.task_id, %reason, tries, "no definition yet: the event waits");
                Fate::Deferred { due_ms, reason }
            }
            None => dead(format!("given up after three days: {reason}")),
        };
        match error {
            TaskError::NotFound if is_fresh(event, received_ms) => deferred(reason),
            TaskError::Unavailable(_) => deferred(reason),
            TaskError::Denied(_) => {
                tracing::error!(task_id = %event.task_id, %reason, "Taskcluster denies access");
                deferred(reason)
            }
            TaskError::NotFound | TaskError::Gone | TaskError::TooLarge(_) | TaskError::Unusable(_) => dead(reason),
        }
    }

    /// Runs every plugin that is to say something; one that faults harms no other.
    async fn plan(
        &self,
        tenant: &Tenant,
        event: &Event,
        task: &Definition,
        notifications: &[Notification],
        received_ms: i64,
    ) -> Vec<Invocation> {
        let turn = Turn { generation: 0, tries: 1, received_ms };
        join_all(notifications.iter().map(|notification| self.invoke(tenant, event, task, notification, turn))).await
    }

    fn notifications(&self, tenant: &Tenant, event: &Event, task: &Definition) -> Vec<Notification> {
        let task_url = self.tasks.task_url(&event.task_id);
        let wishes = notification::wishes(event, &task.value, &tenant.identities, &tenant.plugins, &task_url);
        for warning in wishes.warnings {
            tracing::warn!(task_id = %event.task_id, status = %event.status.escape_debug(), "{}", warning.escape_debug());
        }
        wishes.notifications
    }

    /// Runs one plugin on one notification, or records why it was not run.
    async fn invoke(
        &self,
        tenant: &Tenant,
        event: &Event,
        task: &Definition,
        notification: &Notification,
        turn: Turn,
    ) -> Invocation {
        let (identity, plugin) = (&notification.identity, &notification.plugin);
        let version = self.registry.permit(&tenant.name, plugin).await;
        let invocation = match (tenant.plugins.get(plugin), version) {
            (Some(terms), Ok(version)) => {
                let request = invocation::request(
                    &self.tasks,
                    terms,
                    event,
                    task,
                    notification,
                    tenant.logs.as_ref(),
                    turn.generation,
                );
                let span = tracing::error_span!("invocation", task_id = %event.task_id, tenant = tenant.name, plugin);
                let group = request.event.task_group_id.clone();
                let report = self.sandbox.invoke(&version, request).instrument(span.clone()).await;
                let made = span.in_scope(|| invocation::made(terms, notification, turn, version.digest, report));
                self.registry.judge(&tenant.name, plugin, version.digest, &group, &made.outcome).await;
                made
            }
            (None, Ok(_)) => {
                let refused = Outcome::Refused("the plugin was removed".into());
                invocation::not_made(identity, plugin, turn, refused)
            }
            (_, Err(Refusal { why, is_passing: true })) => {
                invocation::not_made(identity, plugin, turn, invocation::again(why, turn))
            }
            (_, Err(Refusal { why, .. })) => invocation::not_made(identity, plugin, turn, Outcome::Refused(why)),
        };
        self.metrics.invocation(
            &tenant.name,
            plugin,
            invocation.outcome.state(),
            Duration::from_micros(invocation.cpu_us),
        );
        invocation
    }

    /// Handles again what was put off, until asked to stop. Of each tenant so much is in hand at the same time, so that
    /// one whose plugins take long delays no other.
    pub async fn run_deferred(self: Arc<Self>, stop: CancellationToken, tracker: TaskTracker) {
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut in_hand = InHand::default();
        while !stop.is_cancelled() {
            let events = self.store.due_events(in_hand.room(self.tenants.now().keys())).await.unwrap_or_default();
            let mut has_come = !events.is_empty();
            for deferred in events {
                let (intake, permit) = (Arc::clone(&self), in_hand.begin(&deferred.tenant));
                tracker.spawn(async move {
                    let basis = Basis::Deferred { tries: deferred.tries };
                    let (tenant, delivery) = (deferred.tenant, deferred.delivery);
                    let decision = intake.decide(&tenant, delivery, deferred.received_ms, basis).await;
                    warn_unless_kept(intake.commit(decision).await);
                    drop(permit);
                });
            }
            let retries = self.store.due_retries(in_hand.room(self.tenants.now().keys())).await.unwrap_or_default();
            has_come |= !retries.is_empty();
            for due in retries {
                let (intake, permit) = (Arc::clone(&self), in_hand.begin(&due.tenant));
                tracker.spawn(async move {
                    let retried = intake.retry(due).await;
                    let _writing = intake.may_write(&retried.tenant, retried.invocation.bytes()).await;
                    warn_unless_kept(intake.store.settle_retry(retried).await);
                    drop(permit);
                });
            }
            tokio::select! {
                () = stop.cancelled() => return,
                // There may be more.
                () = tokio::task::yield_now(), if has_come => {}
                _ = look.tick() => {}
            }
        }
    }

    /// Runs again the one invocation that had asked for it, on the version that is live now.
    async fn retry(&self, due: DueRetry) -> Retried {
        let turn = Turn { generation: due.generation, tries: due.tries + 1, received_ms: due.received_ms };
        let invocation = match self.invoke_again(&due, turn).await {
            Ok(invocation) => invocation,
            Err(outcome) => invocation::not_made(&due.identity, &due.plugin, turn, outcome),
        };
        Retried {
            invocation_id: due.invocation_id,
            tries: due.tries,
            invocation,
            tenant: due.tenant,
            received_ms: due.received_ms,
        }
    }

    /// The invocation, or what becomes of it when there is nothing any more to run it on.
    async fn invoke_again(&self, due: &DueRetry, turn: Turn) -> Result<Invocation, Outcome> {
        let tenant = self.tenants.named(&due.tenant).ok_or_else(|| Outcome::Refused(TENANT_REMOVED.into()))?;
        let event =
            Event::read(&due.tenant, Arc::clone(&due.delivery)).map_err(|error| Outcome::Dead(error.to_string()))?;
        let task = self.tasks.definition(&event.tenant, &event.task_id).await.map_err(|error| match error {
            TaskError::Unavailable(_) | TaskError::Denied(_) => invocation::again(error.to_string(), turn),
            TaskError::NotFound | TaskError::Gone | TaskError::TooLarge(_) | TaskError::Unusable(_) => {
                Outcome::Dead(error.to_string())
            }
        })?;
        let mut wished = self.notifications(&tenant, &event, &task).into_iter();
        let same = wished.find(|wished| wished.identity == due.identity && wished.plugin == due.plugin);
        let notification = same.ok_or_else(|| Outcome::Refused("the identity or plugin was removed".into()))?;
        let its_turn = self.turn(&tenant.name).await;
        let invocation = self.invoke(&tenant, &event, &task, &notification, turn).await;
        self.pace.used(&tenant.name, its_turn, used(std::slice::from_ref(&invocation)));
        Ok(invocation)
    }
}

/// What is in hand of what was put off, by tenant.
#[derive(Default)]
struct InHand(BTreeMap<String, Arc<Semaphore>>);

impl InHand {
    /// For how much more there is room.
    fn room<'a>(&mut self, tenants: impl Iterator<Item = &'a String>) -> Room {
        let has_room = |tenant: &&String| self.of(tenant).available_permits() >= Self::AT_ONCE as usize;
        Room { tenants: tenants.filter(has_room).cloned().collect(), each: Self::AT_ONCE }
    }

    /// One more; there was room.
    fn begin(&mut self, tenant: &str) -> Option<OwnedSemaphorePermit> {
        Arc::clone(self.of(tenant)).try_acquire_owned().ok()
    }

    fn of(&mut self, tenant: &str) -> &Arc<Semaphore> {
        self.0.entry(tenant.to_owned()).or_insert_with(|| Arc::new(Semaphore::new(Self::MAX)))
    }

    const AT_ONCE: u32 = 16;
    const MAX: usize = 32;
}

/// What making a plan took, be it of nothing.
fn used(invocations: &[Invocation]) -> Used {
    Used {
        deliveries: u32::from(invocations.is_empty()),
        invocations: u32::try_from(invocations.len()).unwrap_or(u32::MAX),
        cpu: invocations.iter().map(|invocation| Duration::from_micros(invocation.cpu_us)).sum(),
        ..Used::default()
    }
}

fn warn_unless_kept(settled: Result<impl Sized, StoreError>) {
    if let Err(error) = settled {
        tracing::warn!(%error, "what was put off stays put off");
    }
}

/// Whether the event is so new that Taskcluster may not know its task everywhere yet.
fn is_fresh(event: &Event, received_ms: i64) -> bool {
    let happened_ms = event.time.map_or(received_ms, Timestamp::as_millisecond);
    now_ms() - happened_ms < FRESH_MS
}

const FRESH_MS: i64 = 60_000;
/// What is larger delays others noticeably: as a transaction, or waiting in memory.
const LARGE_BYTES: usize = 64 << 10;
/// Deliveries of one tenant in hand while others have some too, and while it is alone: enough to keep the machine busy,
/// and done soon when somebody comes.
const IN_HAND_IN_COMPANY_MAX: usize = 20;
const IN_HAND_ALONE_MAX: usize = 32;
const LOOK_EVERY: Duration = Duration::from_secs(1);
