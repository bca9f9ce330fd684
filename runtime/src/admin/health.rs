//! Whether the service lives, whether it is ready, its figures.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use serde::Serialize;

use super::Admin;
use crate::intake::queues::Consuming;
use crate::store::Health;

pub(super) fn router() -> Router<Arc<Admin>> {
    Router::new()
        .route("/healthz", get(async || "alive\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
}

/// `/readyz`: each thing the service depends on, with its state.
#[derive(Serialize)]
struct Readiness {
    ready: bool,
    store: String,
    /// By tenant. An exchange that a queue cannot be bound to does not make the service unready.
    queues: BTreeMap<String, String>,
    /// Destinations that wait for a person, with the reason. They do not make the service unready.
    suspended: BTreeMap<String, String>,
    /// Plugins that do not run, or not in the version their file holds, with the reason.
    refused: BTreeMap<String, String>,
    /// Plugins that are not run because they faulted too often, with the reason.
    quarantined: BTreeMap<String, String>,
    /// What is wrong with the configuration as it is now; another one is in effect.
    problems: Vec<String>,
}

async fn readyz(State(admin): State<Arc<Admin>>) -> Response {
    let (store, store_ready) = match &*admin.store.health().borrow() {
        Health::Ready => ("ready".to_owned(), true),
        Health::Unavailable(why) => (format!("unavailable: {why}"), false),
    };
    let consuming = admin.live.queues.get().map(|queues| queues.consuming()).unwrap_or_default();
    let said = |Consuming { is_on, unbound }: &Consuming| match (is_on, unbound.is_empty()) {
        (false, _) => "not consuming".to_owned(),
        (true, true) => "consuming".to_owned(),
        (true, false) => format!("consuming, but cannot bind to {}", Vec::from_iter(unbound.clone()).join(", ")),
    };
    let queues = consuming.iter().map(|(tenant, consuming)| (tenant.clone(), said(consuming))).collect();
    let consuming = consuming.values().all(|consuming| consuming.is_on);
    let (suspended, readable) = match admin.store.suspended().await {
        Ok(suspended) => (suspended, true),
        Err(_) => (BTreeMap::new(), false),
    };
    let ready = store_ready && consuming && readable;
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let registry = admin.live.registry.as_ref();
    let refused = registry.map(|registry| registry.refused()).unwrap_or_default();
    let quarantined = registry.map(|registry| registry.quarantined()).unwrap_or_default();
    let problems = admin.live.problems();
    let readiness = Readiness { ready, store, queues, suspended, refused, quarantined, problems };
    let text = serde_json::to_string_pretty(&readiness).unwrap_or_default();
    (status, [(CONTENT_TYPE, "application/json")], text + "\n").into_response()
}

async fn metrics(State(admin): State<Arc<Admin>>) -> Response {
    let figures = match admin.store.figures().await {
        Ok(figures) => figures,
        Err(error) => return (StatusCode::SERVICE_UNAVAILABLE, format!("{error}\n")).into_response(),
    };
    let refused = admin.live.registry.as_ref().map(|registry| registry.refused().len());
    admin.metrics.waits_for_a_person(refused.unwrap_or_default(), admin.live.problems().len());
    match admin.metrics.render(&figures) {
        Ok(text) => ([(CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}
