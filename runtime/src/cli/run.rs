//! `run`: the service, until it is told to stop.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::task::TaskTracker;

use super::PluginErrors;
use crate::config::{Config, Environment, Role, Source};
use crate::intake::task::{HttpTasks, Tasks};
use crate::metrics::Metrics;
use crate::registry::{Compiler, Registry};
use crate::sandbox::Sandbox;
use crate::service::{IntakeParts, Parts, Service, Wanted};
use crate::store::Store;
use crate::taskcluster::Taskcluster;
use crate::timing::Timing;

pub(super) async fn run(file: Option<&Path>, role: Role, environment: &Environment) -> anyhow::Result<()> {
    let source = Source::new(file, environment, role);
    let config = source.config(None)?;
    for note in &config.notes {
        tracing::warn!("{note}");
    }
    let mut signals = Signals::listen()?;
    let reload = signal(SignalKind::hangup()).context("listen for signals")?;
    let admin = match config.admin {
        Some(address) => Some(TcpListener::bind(address).await.with_context(|| {
            format!(
                "listen on {address} for health and metrics (another address, or none: listen in [admin], or PN_ADMIN)"
            )
        })?),
        None => None,
    };
    let writer = TaskTracker::new();
    let store = Store::open(&config.store, &writer).await?;
    let taskcluster = Taskcluster::new(config.taskcluster_root.clone()).context("start the Taskcluster client")?;
    let taskcluster = Arc::new(taskcluster);
    let intake = match role.takes_in() {
        true => Some(intake(&config, &store, &taskcluster).await?),
        false => None,
    };
    let timings = TaskTracker::new();
    let timing = match config.influx.clone() {
        Some(account) => Timing::start(account, &timings).context("start the InfluxDB client")?,
        None => Timing::default(),
    };
    let parts = Parts {
        store,
        writer,
        wanted: Wanted::by(&config, config.delivery),
        intake,
        courier: role.delivers().then_some(taskcluster),
        keep: config.keep,
        metrics: Arc::new(Metrics::new().context("name the figures")?),
        timing,
    };
    let service = Service::start(parts).await.context("start")?;
    service.watch_plugins();
    service.watch_configuration(source, config.clone(), reload);
    service.consume(&config.broker);
    if let Some(listener) = admin {
        tracing::info!(address = %listener.local_addr()?, "health and metrics: /healthz /readyz /metrics");
        service.serve_admin(listener);
    }
    tokio::select! {
        () = signals.next() => {}
        () = service.ended() => anyhow::bail!("a part of the service ended by itself: start it again, nothing is lost"),
    }
    tracing::info!(limit_s = config.drain.as_secs(), "stopping: a second signal leaves at once");
    tokio::select! {
        () = service.drain(config.drain) => {
            timings.close();
            drop(tokio::time::timeout(TIMINGS_LIMIT, timings.wait()).await);
            tracing::info!("stopped");
        }
        () = signals.next() => tracing::warn!("leaving at once: what was in hand is delivered again"),
    }
    Ok(())
}

/// What consuming takes: plugins, and whatever runs them.
async fn intake(config: &Config, store: &Store, taskcluster: &Arc<Taskcluster>) -> anyhow::Result<IntakeParts> {
    let sandbox = Sandbox::start()?;
    let compiler = Compiler::new(&sandbox).with_cache(&config.cache);
    let registry = Registry::load(compiler, &config.plugins, &config.tenants, Some(store.clone()));
    let registry = registry.await.map_err(PluginErrors)?;
    Ok(IntakeParts { tasks: Tasks::Http(HttpTasks::new(Arc::clone(taskcluster))), sandbox, registry })
}

/// For the last points.
const TIMINGS_LIMIT: Duration = Duration::from_secs(2);

/// The signals that ask to stop.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    pub(super) fn listen() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("listen for signals");
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    pub(super) async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
