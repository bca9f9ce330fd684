//! Consumes every tenant's queue, as tenants come, change and go. One that changes is left in order: what is in hand is
//! finished and acked before the next consumer begins.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Intake;
use super::source::amqp::AmqpSource;
pub use super::source::amqp::Consuming;
use crate::config::Broker;
use crate::tenant::{ByName, Queue};

/// The queues of all tenants.
pub struct Queues {
    intake: Arc<Intake>,
    broker: Broker,
    /// No new deliveries.
    stop: CancellationToken,
    /// Connections may be closed.
    close: CancellationToken,
    /// Cancelled when a consumer ends that nobody asked to.
    ended: CancellationToken,
    tracker: TaskTracker,
    consumed: Mutex<BTreeMap<String, Consumed>>,
}

/// One tenant's.
struct Consumed {
    /// None once the tenant is gone.
    wanted: watch::Sender<Option<Queue>>,
    consuming: watch::Receiver<Consuming>,
}

impl Queues {
    /// Nothing is consumed before [`Queues::keep_up`]. Consumers run on `tracker`.
    #[must_use]
    pub fn new(
        intake: Arc<Intake>,
        broker: Broker,
        [stop, close, ended]: [CancellationToken; 3],
        tracker: TaskTracker,
    ) -> Arc<Self> {
        Arc::new(Self { intake, broker, stop, close, ended, tracker, consumed: Mutex::default() })
    }

    /// Consumes the queues of these tenants, and no others. Those that are as they were are not disturbed.
    pub fn keep_up(self: &Arc<Self>, tenants: &ByName) {
        let mut consumed = self.consumed();
        consumed.retain(|name, one| {
            let stays = tenants.contains_key(name);
            if !stays {
                one.wanted.send_replace(None);
            }
            stays
        });
        for (name, tenant) in tenants {
            let queue = || Some(tenant.queue.clone());
            match consumed.get(name) {
                Some(one) => _ = one.wanted.send_if_modified(|wanted| std::mem::replace(wanted, queue()) != queue()),
                None => _ = consumed.insert(name.clone(), self.begin(name, queue())),
            }
        }
    }

    /// Whether each tenant's queue is being consumed.
    #[must_use]
    pub fn consuming(&self) -> BTreeMap<String, Consuming> {
        self.consumed().iter().map(|(name, one)| (name.clone(), one.consuming.borrow().clone())).collect()
    }

    fn consumed(&self) -> MutexGuard<'_, BTreeMap<String, Consumed>> {
        self.consumed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(self: &Arc<Self>, tenant: &str, queue: Option<Queue>) -> Consumed {
        let (wanted, wishes) = watch::channel(queue);
        let (says, consuming) = watch::channel(Consuming::default());
        let (consume, ended) =
            (Arc::clone(self).consume(tenant.to_owned(), wishes, says), self.ended.clone().drop_guard());
        self.tracker.spawn(async move {
            consume.await;
            ended.disarm();
        });
        Consumed { wanted, consuming }
    }

    /// Consumes whichever queue is wanted, one after the other, until none is.
    async fn consume(
        self: Arc<Self>,
        tenant: String,
        mut wanted: watch::Receiver<Option<Queue>>,
        consuming: watch::Sender<Consuming>,
    ) {
        while !self.stop.is_cancelled() {
            let Some(queue) = wanted.borrow_and_update().clone() else { break };
            let name = queue.name.clone();
            let (stop, close, handlers) = (self.stop.child_token(), self.close.child_token(), TaskTracker::new());
            let source = AmqpSource {
                broker: self.broker.clone(),
                queue,
                prefetch: Intake::PREFETCH,
                store: self.intake.store.clone(),
                consuming: consuming.clone(),
                tenant: tenant.clone(),
                metrics: Arc::clone(&self.intake.metrics),
            };
            let (out, received) = mpsc::channel(Intake::PREFETCH.into());
            let take_in = Arc::clone(&self.intake).run(tenant.clone(), received, handlers.clone());
            let until_told = async {
                tokio::select! {
                    // Whoever could tell may be gone, and so is the tenant then.
                    _ = wanted.changed() => stop.cancel(),
                    () = stop.cancelled() => {}
                }
            };
            let finish = async {
                tokio::join!(take_in, until_told);
                handlers.close();
                handlers.wait().await;
                close.cancel();
            };
            tokio::join!(source.run(out, stop.clone(), close.clone()), finish);
            if wanted.borrow().as_ref().is_some_and(|queue| queue.name != name) {
                tracing::warn!(
                    tenant,
                    queue = name,
                    "no longer consuming this queue: it stays, and so do its bindings"
                );
            }
        }
        if wanted.borrow().is_none() {
            tracing::info!(tenant, "no longer consuming: the tenant was removed, its queue stays");
            self.intake.metrics.forget_queue(&tenant);
        }
    }
}
