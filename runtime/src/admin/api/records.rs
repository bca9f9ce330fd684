//! What happened: invocations, effects with their attempts, messages that were no events. The latest first; `before` is
//! the page after.

use std::sync::Arc;

use axum::extract::{Path, State};
use axum::http::Uri;
use serde_json::{Value, json};

use super::caller::Caller;
use super::input::wish;
use super::{Error, Json, Result};
use crate::admin::Admin;
use crate::store::{AttemptSeen, DeadDeliverySeen, EffectSeen, InvocationSeen, Wish};

pub(super) async fn invocations(
    State(admin): State<Arc<Admin>>,
    caller: Caller,
    Path(tenant): Path<String>,
    uri: Uri,
) -> Result<Json<Value>> {
    let tenant = caller.tenant(&admin, &tenant)?;
    let wish = wish(&tenant.name, &uri, &["limit", "before", "plugin", "state", "refused"])?;
    state_is_known(&wish, &["done", "retry", "failed", "faulted", "refused", "dead"])?;
    let seen = admin.store.invocations(&wish).await?;
    let next = seen.last().map(|last| last.id);
    Ok(Json(json!({"invocations": seen.into_iter().map(invocation).collect::<Vec<_>>(), "before": next})))
}

pub(super) async fn effects(
    State(admin): State<Arc<Admin>>,
    caller: Caller,
    Path(tenant): Path<String>,
    uri: Uri,
) -> Result<Json<Value>> {
    let tenant = caller.tenant(&admin, &tenant)?;
    let wish = wish(&tenant.name, &uri, &["limit", "before", "plugin", "state"])?;
    state_is_known(&wish, &["pending", "claimed", "delivered", "refused", "dead", "expired"])?;
    let seen = admin.store.effects(&wish).await?;
    let next = seen.last().map(|last| last.seq);
    Ok(Json(json!({"effects": seen.into_iter().map(effect).collect::<Vec<_>>(), "before": next})))
}

pub(super) async fn dead_deliveries(
    State(admin): State<Arc<Admin>>,
    caller: Caller,
    Path(tenant): Path<String>,
    uri: Uri,
) -> Result<Json<Value>> {
    let tenant = caller.tenant(&admin, &tenant)?;
    let wish = wish(&tenant.name, &uri, &["limit", "before"])?;
    let seen = admin.store.dead_deliveries(&wish).await?;
    let next = seen.last().map(|last| last.id);
    Ok(Json(json!({"dead_deliveries": seen.into_iter().map(dead_delivery).collect::<Vec<_>>(), "before": next})))
}

fn state_is_known(wish: &Wish, known: &[&str]) -> Result<()> {
    match &wish.state {
        Some(state) if !known.contains(&state.as_str()) => {
            Err(Error::invalid("state", format!("expected one of {}", known.join(", "))))
        }
        _ => Ok(()),
    }
}

fn invocation(seen: InvocationSeen) -> Value {
    json!({
        "id": seen.id, "status": seen.status, "task": seen.task_id, "run": seen.run_id, "received": time(seen.received_ms),
        "identity": seen.identity, "plugin": seen.plugin, "digest": seen.digest, "state": seen.state,
        "reason": seen.reason, "refusals": seen.refusals, "log": seen.log, "cpu_us": seen.cpu_us,
        "memory_bytes_max": seen.memory_max, "tries": seen.tries, "due": seen.due_ms.map(time),
    })
}

fn effect(seen: EffectSeen) -> Value {
    json!({
        "seq": seen.seq, "id": seen.id, "task": seen.task_id, "plugin": seen.plugin, "destination": seen.destination,
        "recipient": seen.recipient, "effect": seen.effect, "created": time(seen.created_ms), "state": seen.state,
        "reason": seen.reason, "due": time(seen.due_ms), "in_doubt": seen.in_doubt,
        "attempts": seen.attempts.into_iter().map(attempt).collect::<Vec<_>>(),
    })
}

fn attempt(seen: AttemptSeen) -> Value {
    json!({
        "number": seen.number, "started": time(seen.started_ms), "ended": seen.ended_ms.map(time),
        "outcome": seen.outcome, "answer": seen.answer,
    })
}

fn dead_delivery(seen: DeadDeliverySeen) -> Value {
    json!({
        "id": seen.id, "exchange": seen.exchange, "routing_key": seen.routing_key, "reason": seen.reason,
        "sha256": seen.sha256, "bytes": seen.bytes, "body": seen.body, "received": time(seen.received_ms),
    })
}

/// A moment as RFC 3339, UTC.
pub(super) fn time(ms: i64) -> Option<String> {
    jiff::Timestamp::from_millisecond(ms).ok().map(|time| time.to_string())
}
