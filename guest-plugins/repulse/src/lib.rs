//! Publishes an event again, as it came, to an exchange of the operator's.

use pulse_notifier_sdk::{Event, Result, amqp, log, plugin, settings};

plugin!(notify);

fn notify(event: &Event) -> Result {
    let Some(exchange) = settings::get("exchange") else {
        log::info("nobody to tell: the operator names no exchange");
        return Ok(());
    };
    // `routing_key`: the operator's, else the event's own.
    let routing_key = settings::get("routing_key").unwrap_or_else(|| event.routing_key.clone());
    amqp::publish(&exchange, &routing_key, "application/json", event.body.as_bytes())?;
    Ok(())
}
