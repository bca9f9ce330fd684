//! What the service says of itself over HTTP, on a loopback port, and lets be done to it: `health` for everybody, `api`
//! for those who have a token.

mod api;
mod health;

use std::sync::Arc;

use axum::Router;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use api::token;

use crate::fair::Slots;
use crate::metrics::Metrics;
use crate::service::Live;
use crate::store::Store;

/// What the answers are made of.
pub struct Admin {
    /// The database.
    pub store: Store,
    /// The tenants, their queues and their plugins.
    pub live: Arc<Live>,
    /// The figures.
    pub metrics: Arc<Metrics>,
    /// Bounds how many versions are held in memory while they come.
    pub uploads: Slots,
    /// What goes on though whoever asked for it goes away. Nobody waits for it when the service ends.
    pub begun: TaskTracker,
}

impl Admin {
    /// Versions that come at the same time.
    pub const UPLOADS_MAX: usize = 4;
}

impl Admin {
    /// Serves until asked to stop.
    ///
    /// # Errors
    /// When the listener fails.
    pub async fn serve(self, listener: TcpListener, stop: CancellationToken) -> std::io::Result<()> {
        let router = Router::new().merge(health::router()).nest("/api", api::router()).with_state(Arc::new(self));
        let serve = axum::serve(listener, router).with_graceful_shutdown(stop.clone().cancelled_owned());
        let patience = async {
            stop.cancelled().await;
            tokio::time::sleep(PATIENCE).await;
        };
        tokio::select! {
            served = serve => served,
            // Somebody holds a connection open and says nothing.
            () = patience => Ok(()),
        }
    }
}

/// How long open connections may take to end.
const PATIENCE: std::time::Duration = std::time::Duration::from_millis(500);
