//! The running service: both halves of the path, started in order and shut down in order.

mod gone;
mod live;
mod reload;

use std::sync::{Arc, Mutex, OnceLock};
use std::thread::available_parallelism;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::runtime::Builder;
use tokio::signal::unix::Signal;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::admin::Admin;
use crate::config::{Broker, Config, Source};
use crate::courier::Courier;
use crate::courier::destinations::Destinations;
use crate::courier::sinks::SinkError;
use crate::fair::Slots;
use crate::intake::Intake;
use crate::intake::queues::Queues;
use crate::intake::source::Received;
use crate::intake::task::Tasks;
use crate::metrics::Metrics;
use crate::pace::{Load, Pace};
use crate::registry::{Registry, Watch};
use crate::sandbox::Sandbox;
use crate::store::{Store, StoreError};
use crate::taskcluster::Taskcluster;
use crate::tenant::Tenants;
use crate::threads::Threads;
use crate::timing::Timing;
use gone::Gone;
pub use live::{ChangeError, Live, Wanted};
use reload::Reload;

/// Both halves, running.
pub struct Service {
    store: Store,
    /// None where nothing is consumed.
    intake: Option<Arc<Intake>>,
    metrics: Arc<Metrics>,
    live: Arc<Live>,
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
    connections: TaskTracker,
    writer: TaskTracker,
}

/// What a service is made of.
pub struct Parts {
    /// The database.
    pub store: Store,
    /// Where its writer runs.
    pub writer: TaskTracker,
    /// Who runs.
    pub wanted: Wanted,
    /// What the half that consumes works with, where there is one.
    pub intake: Option<IntakeParts>,
    /// Where artifacts come from, for the half that delivers, where there is one.
    pub courier: Option<Arc<Taskcluster>>,
    /// For how long repeated events are recognised.
    pub keep: Duration,
    /// Counts what happens.
    pub metrics: Arc<Metrics>,
    /// Notes how long it takes.
    pub timing: Timing,
}

/// What the half that consumes works with.
pub struct IntakeParts {
    /// Where task definitions come from.
    pub tasks: Tasks,
    /// Runs the plugins.
    pub sandbox: Arc<Sandbox>,
    /// The live plugins.
    pub registry: Arc<Registry>,
}

/// Why it could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The store cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A destination cannot be made ready.
    #[error(transparent)]
    Sink(#[from] SinkError),
    /// No more threads.
    #[error("start the threads: {0}")]
    Threads(#[from] std::io::Error),
}

impl Service {
    /// Starts the halves there are; deliveries are taken from sources added later.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(parts: Parts) -> Result<Self, StartError> {
        let Parts { store, writer, wanted, intake, courier, keep, metrics, timing } = parts;
        let (tenants, processors) = (Tenants::new(wanted.tenants), available_parallelism()?.get());
        let ended = CancellationToken::new();
        let (stop_intake, handlers) = (CancellationToken::new(), TaskTracker::new());
        let (stop_courier, attempts) = (CancellationToken::new(), TaskTracker::new());
        let (stop_housekeeping, housekeeping) = (CancellationToken::new(), TaskTracker::new());
        let (connections, load) = (TaskTracker::new(), Load::default());
        housekeeping.spawn(load.clone().watch(processors, stop_housekeeping.clone()));
        let gone = Gone::of_an_earlier_start(&store, &tenants.now(), &wanted.accounts).await?;
        let gone = gone.of(intake.is_some(), courier.is_some());
        let mut destinations = None;
        if let Some(taskcluster) = courier {
            store.probe_now().await?;
            let courier = Arc::new(Courier {
                store: store.clone(),
                tenants: tenants.clone(),
                owner: Courier::new_owner(),
                keep,
                metrics: Arc::clone(&metrics),
                timing: timing.clone(),
                pace: Pace::new(processors, load.clone(), stop_courier.clone()),
                in_flight: Arc::default(),
            });
            let all = Destinations {
                courier: Arc::clone(&courier),
                taskcluster,
                stop: stop_courier.clone(),
                ended: ended.clone(),
                threads: Threads::start("courier", processors, Builder::new_multi_thread().enable_all())?,
                attempts: attempts.clone(),
                connections: connections.clone(),
                served: Mutex::default(),
            };
            all.serve(&wanted.accounts, all.make(&wanted.accounts).await?);
            housekeeping.spawn(courier.keep_house(stop_housekeeping.clone()));
            destinations = Some(all);
        }
        let intake = intake.map(|IntakeParts { tasks, sandbox, registry }| {
            let (plans, in_hand, large) = (Intake::plans(), Intake::in_hand(), Intake::large());
            let pace = Pace::new(processors, load.clone(), stop_intake.clone());
            let (store, tenants, metrics, tasks) =
                (store.clone(), tenants.clone(), Arc::clone(&metrics), Arc::new(tasks));
            Arc::new(Intake { tenants, tasks, registry, sandbox, store, metrics, timing, plans, in_hand, large, pace })
        });
        if let Some(intake) = &intake {
            handlers.spawn(Arc::clone(intake).run_deferred(stop_intake.clone(), handlers.clone()));
        }
        let registry = intake.as_ref().map(|intake| Arc::clone(&intake.registry));
        let (queues, problems) = (OnceLock::new(), Mutex::default());
        let live = Arc::new(Live { tenants, registry, destinations, queues, gone, problems });
        let (end_what_waits, for_store, stop) = (Arc::clone(&live), store.clone(), stop_housekeeping.clone());
        housekeeping.spawn(async move { end_what_waits.gone.run(&for_store, stop).await });
        Ok(Self {
            store,
            intake,
            metrics,
            live,
            stop_intake,
            close_sources: CancellationToken::new(),
            stop_courier,
            stop_housekeeping,
            ended,
            sources: TaskTracker::new(),
            handlers,
            attempts,
            housekeeping,
            connections,
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

    /// Where the task definitions come from, where anything is consumed.
    #[must_use]
    pub fn tasks(&self) -> Option<&Tasks> {
        self.intake.as_ref().map(|intake| &*intake.tasks)
    }

    /// What can change while it runs.
    #[must_use]
    pub fn live(&self) -> Arc<Live> {
        Arc::clone(&self.live)
    }

    /// Answers questions about the service on this listener, until it is drained.
    pub fn serve_admin(&self, listener: TcpListener) {
        let metrics = Arc::clone(&self.metrics);
        let uploads = Slots::new(Admin::UPLOADS_MAX, Admin::UPLOADS_MAX / 2);
        let (store, begun) = (self.store.clone(), TaskTracker::new());
        let admin = Admin { store, live: self.live(), metrics, uploads, begun };
        let stop = self.stop_housekeeping.clone();
        self.housekeeping.spawn(async move {
            if let Err(error) = admin.serve(listener, stop).await {
                tracing::error!(%error, "health and metrics are not served any more");
            }
        });
    }

    /// Keeps the live plugins in step with their files, until it is drained.
    pub fn watch_plugins(&self) {
        let Some(registry) = self.live.registry.clone() else { return };
        let watch = Watch::new(registry, Arc::clone(&self.metrics));
        let (watching, ended) = (watch.run(self.stop_housekeeping.clone()), self.ended.clone().drop_guard());
        self.housekeeping.spawn(async move {
            watching.await;
            drop(ended);
        });
    }

    /// Keeps who runs in step with the configuration, which was like this at the start: at once when `asked`, and
    /// whenever the tenants' folder changes, until it is drained.
    pub fn watch_configuration(&self, source: Source, config: Config, asked: Signal) {
        let reload = Reload::new(self.live(), source, config, asked);
        let (reloading, ended) = (reload.run(self.stop_housekeeping.clone()), self.ended.clone().drop_guard());
        self.housekeeping.spawn(async move {
            reloading.await;
            drop(ended);
        });
    }

    /// A way to hand in deliveries for a tenant, where anything is consumed.
    #[must_use]
    pub fn inlet(&self, tenant: &str) -> Option<mpsc::Sender<Received>> {
        let (out, received) = mpsc::channel(Intake::PREFETCH.into());
        let (intake, handlers) = (self.intake.clone()?, self.handlers.clone());
        self.handlers.spawn(intake.run(tenant.to_owned(), received, handlers));
        Some(out)
    }

    /// Consumes every tenant's queue on this broker, as tenants come and go, where anything is consumed.
    pub fn consume(&self, broker: &Broker) {
        let Some(intake) = self.intake.clone() else { return };
        let tokens = [&self.stop_intake, &self.close_sources, &self.ended].map(CancellationToken::clone);
        let queues = Queues::new(intake, broker.clone(), tokens, self.sources.clone());
        queues.keep_up(&self.live.tenants.now());
        // Nothing is consumed twice: whoever asks again has asked already.
        drop(self.live.queues.set(queues));
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
        let Self { store, intake, live, writer, .. } = self;
        drop((store, intake, live));
        writer.close();
        if tokio::time::timeout(WRITER_LIMIT, writer.wait()).await.is_err() {
            tracing::warn!("the database did not take the last writes in time");
        }
    }
}

const WRITER_LIMIT: Duration = Duration::from_secs(5);
