//! The running service: both halves of the path, started in order and shut down in order.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::Admin;
use crate::config::{Account, Config, DeliveryMode};
use crate::courier::Courier;
use crate::courier::sinks::Sink;
use crate::courier::sinks::amqp::Amqp;
use crate::courier::sinks::irc::Irc;
use crate::courier::sinks::s3::S3;
use crate::courier::sinks::ses::Ses;
use crate::courier::sinks::smtp::Smtp;
use crate::courier::sinks::sns::Sns;
use crate::intake::Intake;
use crate::intake::source::Received;
use crate::intake::source::amqp::AmqpSource;
use crate::intake::task::Tasks;
use crate::metrics::Metrics;
use crate::registry::{Registry, Watch};
use crate::sandbox::Sandbox;
use crate::store::{Store, StoreError};
use crate::taskcluster::Taskcluster;
use crate::tenant::Tenant;
use crate::timing::Timing;

/// Both halves, running.
pub struct Service {
    store: Store,
    intake: Arc<Intake>,
    /// No new deliveries.
    stop_intake: CancellationToken,
    /// Sources may close their connections.
    close_sources: CancellationToken,
    /// No new attempts.
    stop_courier: CancellationToken,
    /// No attempt is left.
    stop_housekeeping: CancellationToken,
    /// A part that should run until it is stopped has ended.
    ended: CancellationToken,
    sources: TaskTracker,
    handlers: TaskTracker,
    attempts: TaskTracker,
    housekeeping: TaskTracker,
    /// The tasks of sinks, which end once no sink is left.
    connections: TaskTracker,
    writer: TaskTracker,
}

/// What a service is made of.
pub struct Parts {
    /// The database's address.
    pub store: String,
    /// The tenants.
    pub tenants: Vec<Tenant>,
    /// Where task definitions come from.
    pub tasks: Tasks,
    /// Runs the plugins.
    pub sandbox: Arc<Sandbox>,
    /// The live plugins.
    pub registry: Arc<Registry>,
    /// The sinks, by destination.
    pub sinks: BTreeMap<String, Arc<Sink>>,
    /// Where the sinks' own tasks run.
    pub connections: TaskTracker,
    /// Cancelled when a part ends that should run until it is stopped.
    pub ended: CancellationToken,
    /// For how long repeated events are recognised.
    pub keep: Duration,
    /// Counts what happens.
    pub metrics: Arc<Metrics>,
    /// Notes how long it takes.
    pub timing: Timing,
}

impl Service {
    /// Opens the store and starts the courier; deliveries are taken from sources added later.
    ///
    /// # Errors
    /// When the store cannot be opened.
    pub async fn start(parts: Parts) -> Result<Self, StoreError> {
        let writer = TaskTracker::new();
        let store = Store::open(&parts.store, &writer).await?;
        let tenants: BTreeMap<_, _> = parts.tenants.into_iter().map(|tenant| (tenant.name.clone(), tenant)).collect();
        let (stop_courier, attempts) = (CancellationToken::new(), TaskTracker::new());
        store.probe_now().await?;
        for (destination, effects) in store.waiting().await? {
            if !parts.sinks.contains_key(&destination) {
                tracing::error!(destination, effects, "effects wait for a destination that is no longer configured");
            }
        }
        let courier = Arc::new(Courier {
            store: store.clone(),
            sinks: parts.sinks,
            tenants: tenants.clone(),
            owner: Courier::new_owner(),
            keep: parts.keep,
            metrics: Arc::clone(&parts.metrics),
            timing: parts.timing.clone(),
            in_flight: Mutex::default(),
        });
        courier.start(&stop_courier, &parts.ended, &attempts);
        let (stop_housekeeping, housekeeping) = (CancellationToken::new(), TaskTracker::new());
        housekeeping.spawn(courier.keep_house(stop_housekeeping.clone()));
        let intake = Arc::new(Intake {
            tenants,
            tasks: Arc::new(parts.tasks),
            registry: parts.registry,
            sandbox: parts.sandbox,
            store: store.clone(),
            metrics: parts.metrics,
            timing: parts.timing,
            plans: Intake::plans(),
        });
        let (stop_intake, handlers) = (CancellationToken::new(), TaskTracker::new());
        handlers.spawn(Arc::clone(&intake).run_deferred(stop_intake.clone(), handlers.clone()));
        Ok(Self {
            store,
            intake,
            stop_intake,
            close_sources: CancellationToken::new(),
            stop_courier,
            stop_housekeeping,
            ended: parts.ended,
            sources: TaskTracker::new(),
            handlers,
            attempts,
            housekeeping,
            connections: parts.connections,
            writer,
        })
    }

    /// Waits until a part ends that should run until it is stopped: a bug, and better seen than lived with.
    pub async fn ended(&self) {
        self.ended.cancelled().await;
    }

    /// The store, to look into.
    #[must_use]
    pub const fn store(&self) -> &Store {
        &self.store
    }

    /// Where the task definitions come from.
    #[must_use]
    pub fn tasks(&self) -> &Tasks {
        &self.intake.tasks
    }

    /// Answers questions about the service on this listener, until it is drained.
    pub fn serve_admin(&self, listener: TcpListener, consuming: BTreeMap<String, watch::Receiver<bool>>) {
        let metrics = Arc::clone(&self.intake.metrics);
        let registry = Arc::clone(&self.intake.registry);
        let admin = Admin { store: self.store.clone(), consuming, registry, metrics };
        let stop = self.stop_housekeeping.clone();
        self.housekeeping.spawn(async move {
            if let Err(error) = admin.serve(listener, stop).await {
                tracing::error!(%error, "health and metrics are not served any more");
            }
        });
    }

    /// Keeps the live plugins in step with their files, until it is drained.
    pub fn watch_plugins(&self) {
        let watch = Watch::new(Arc::clone(&self.intake.registry), Arc::clone(&self.intake.metrics));
        let (watching, ended) = (watch.run(self.stop_housekeeping.clone()), self.ended.clone().drop_guard());
        self.housekeeping.spawn(async move {
            watching.await;
            drop(ended);
        });
    }

    /// A way to hand in deliveries for a tenant.
    #[must_use]
    pub fn inlet(&self, tenant: &str) -> mpsc::Sender<Received> {
        let (out, received) = mpsc::channel(Intake::IN_HAND_MAX.into());
        let (intake, handlers) = (Arc::clone(&self.intake), self.handlers.clone());
        self.handlers.spawn(intake.run(tenant.to_owned(), received, handlers));
        out
    }

    /// Consumes every tenant's queue. The receivers say, by tenant, whether it is being consumed.
    pub fn consume(&self, config: &Config) -> BTreeMap<String, watch::Receiver<bool>> {
        let consume = |tenant: &Tenant| {
            let (consuming, is_consuming) = watch::channel(false);
            let source = AmqpSource {
                broker: config.broker.clone(),
                queue: tenant.queue.clone(),
                prefetch: Intake::IN_HAND_MAX,
                store: self.store.clone(),
                consuming,
                tenant: tenant.name.clone(),
                metrics: Arc::clone(&self.intake.metrics),
            };
            let (stop, close) = (self.stop_intake.clone(), self.close_sources.clone());
            let (run, ended) = (source.run(self.inlet(&tenant.name), stop, close), self.ended.clone().drop_guard());
            self.sources.spawn(async move {
                run.await;
                drop(ended);
            });
            (tenant.name.clone(), is_consuming)
        };
        config.tenants.iter().map(consume).collect()
    }

    /// Whether nothing is in hand, nothing waits to be delivered and nothing is put off.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn is_idle(&self) -> Result<bool, StoreError> {
        // Handlers are those of the inlets, the one that looks for what was put off, and one for each delivery.
        let in_hand = self.handlers.len() > 1;
        Ok(!in_hand && self.store.unfinished().await? == 0)
    }

    /// Stops taking deliveries, finishes and acks those in hand, finishes the attempts in flight, closes. Whatever is
    /// not finished within `limit` stays with the broker or in the store.
    pub async fn drain(self, limit: Duration) {
        let drained = tokio::time::timeout(limit, async {
            self.stop_intake.cancel();
            self.stop_courier.cancel();
            self.handlers.close();
            self.handlers.wait().await;
            self.close_sources.cancel();
            self.sources.close();
            self.sources.wait().await;
            self.attempts.close();
            self.attempts.wait().await;
            self.stop_housekeeping.cancel();
            self.housekeeping.close();
            self.housekeeping.wait().await;
            self.connections.close();
            self.connections.wait().await;
        });
        if drained.await.is_err() {
            tracing::warn!(
                limit_s = limit.as_secs(),
                "not everything finished in time: the rest waits for the next start"
            );
        }
        self.close_sources.cancel();
        let Self { store, intake, writer, .. } = self;
        drop((store, intake));
        writer.close();
        if tokio::time::timeout(WRITER_LIMIT, writer.wait()).await.is_err() {
            tracing::warn!("the database did not take the last writes in time");
        }
    }
}

/// The sinks a configuration names, by destination. Tasks of their own run on `connections` and cancel `ended` at their
/// end.
///
/// # Errors
/// When one cannot be made ready.
pub async fn sinks(
    config: &Config,
    taskcluster: &Arc<Taskcluster>,
    connections: &TaskTracker,
    ended: &CancellationToken,
) -> Result<BTreeMap<String, Arc<Sink>>, lettre::transport::smtp::Error> {
    let mut sinks = BTreeMap::new();
    for (destination, account) in &config.accounts {
        let sink = match (config.delivery, account.clone()) {
            (DeliveryMode::Capture, _) => Sink::Capture,
            (DeliveryMode::Send, Account::Smtp(smtp)) => Sink::Smtp(Box::new(Smtp::new(smtp)?)),
            (DeliveryMode::Send, Account::Ses(ses)) => Sink::Ses(Box::new(Ses::new(ses).await)),
            (DeliveryMode::Send, Account::Sns(aws)) => Sink::Sns(Box::new(Sns::new(&aws).await)),
            (DeliveryMode::Send, Account::S3(s3)) => Sink::S3(Box::new(S3::new(s3, Arc::clone(taskcluster)).await)),
            (DeliveryMode::Send, Account::Irc(irc)) => Sink::Irc(Irc::start(irc, connections, ended)),
            (DeliveryMode::Send, Account::Amqp(broker)) => Sink::Amqp(Box::new(Amqp::new(broker))),
        };
        sinks.insert(destination.clone(), Arc::new(sink));
    }
    Ok(sinks)
}

const WRITER_LIMIT: Duration = Duration::from_secs(5);
