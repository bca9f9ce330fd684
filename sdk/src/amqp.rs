//! Messages to exchanges of the broker.
//!
//! ```no_run
//! use pulse_notifier_sdk::{Event, Result, amqp};
//!
//! fn notify(event: &Event) -> Result {
//!     amqp::publish("exchange/me/builds", &event.routing_key, "application/json", event.body.as_bytes())?;
//!     Ok(())
//! }
//! ```

use crate::bindings::pulse::notifier::amqp;
use crate::{EffectId, Refusal, Result};

/// Asks for a message to be published once the plugin has returned `Ok`.
///
/// # Errors
/// The [`Refusal`] when the grant does not cover the exchange or the routing key, a part is not well-formed, or the event
/// has been relayed three times.
pub fn publish(exchange: &str, routing_key: &str, content_type: &str, body: &[u8]) -> Result<EffectId, Refusal> {
    amqp::publish(&amqp::Message {
        exchange: exchange.to_owned(),
        routing_key: routing_key.to_owned(),
        content_type: content_type.to_owned(),
        body: body.to_vec(),
    })
}
