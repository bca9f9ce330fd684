//! `amqp`: to which exchanges messages may be published.

use super::{About, Grant, Pattern, Refusal, is_content_type, not_granted, shown};
use crate::effect::{Amqp, Effect, Origin, Planned};

/// To which exchanges messages may be published, and through which account.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AmqpGrant {
    /// The account that publishes them.
    pub account: String,
    /// Patterns, of which an exchange must match one.
    pub exchanges: Vec<Pattern>,
    /// Patterns, of which a routing key must match one.
    pub routing_keys: Vec<Pattern>,
    /// The exchanges the tenant consumes from: a message there would come back. Empty when that is granted too.
    pub closed: Vec<String>,
    /// Whether a message that no queue is bound for counts as delivered.
    pub unrouted: bool,
}

/// A message as a guest asks for it.
#[derive(Clone, Debug, Default)]
pub struct AmqpRequest {
    /// The exchange.
    pub exchange: String,
    /// The routing key.
    pub routing_key: String,
    /// Its content type.
    pub content_type: String,
    /// Its body.
    pub body: Vec<u8>,
}

/// Makes a message to an exchange an effect.
///
/// # Errors
/// A [`Refusal`] when the exchange is none or not granted, a part is not well-formed, or the event has been relayed often
/// enough.
pub fn plan(
    grant: &Grant,
    origin: &Origin,
    about: &About,
    index: u32,
    request: AmqpRequest,
) -> Result<Vec<Planned>, Refusal> {
    let grant = grant.amqp.as_ref().ok_or_else(|| not_granted("amqp"))?;
    let AmqpRequest { exchange, routing_key, content_type, body } = request;
    grant.target(&exchange, &routing_key)?;
    if !is_content_type(&content_type) {
        let found = shown(&content_type);
        return Err(Refusal::Invalid(format!("expected a content type such as application/json, found {found}")));
    }
    if about.hops >= HOPS_MAX {
        return Err(Refusal::OverLimit(format!("the event has been relayed {HOPS_MAX} times")));
    }
    let (account, unrouted) = (grant.account.clone(), grant.unrouted);
    let amqp = Amqp { account, exchange, routing_key, content_type, body, hops: about.hops + 1, unrouted };
    Ok(vec![Planned {
        id: origin.effect(index, &amqp.exchange),
        call: origin.call(index),
        effect: Effect::Amqp(amqp),
        refused: None,
    }])
}

impl AmqpGrant {
    pub(super) fn target(&self, exchange: &str, routing_key: &str) -> Result<(), Refusal> {
        let is_name = |text: &str| text.len() <= NAME_BYTES_MAX && !text.contains(char::is_control);
        // Without a name it is the default exchange, which reaches every queue.
        if exchange.is_empty() || !is_name(exchange) {
            return Err(Refusal::Invalid(format!("expected the name of an exchange, found {}", shown(exchange))));
        }
        if !is_name(routing_key) {
            return Err(Refusal::Invalid(format!("expected a routing key, found {}", shown(routing_key))));
        }
        if self.closed.iter().any(|closed| closed == exchange) {
            return Err(Refusal::NotGranted(format!("messages to {exchange}, which the tenant consumes from")));
        }
        if !self.exchanges.iter().any(|pattern| pattern.matches(exchange)) {
            return Err(Refusal::NotGranted(format!("messages to {exchange}")));
        }
        if !self.routing_keys.iter().any(|pattern| pattern.matches(routing_key)) {
            return Err(Refusal::NotGranted(format!("messages with the routing key {routing_key}")));
        }
        Ok(())
    }
}

const NAME_BYTES_MAX: usize = 255;
const HOPS_MAX: u32 = 3;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grant::tests::{about, origin};

    fn publish(exchange: &str, routing_key: &str, hops: u32) -> Result<Vec<Planned>, Refusal> {
        let grant = AmqpGrant {
            account: "pulse".into(),
            exchanges: vec![Pattern::to_the_letter("exchange/me/*")],
            routing_keys: vec![Pattern::to_the_letter("primary.*")],
            closed: vec!["exchange/me/in".into()],
            unrouted: true,
        };
        let grant = Grant { amqp: Some(grant), ..Grant::default() };
        let request = AmqpRequest {
            exchange: exchange.into(),
            routing_key: routing_key.into(),
            content_type: "application/json".into(),
            body: b"{}".to_vec(),
        };
        plan(&grant, &origin(), &About { hops, ..about() }, 0, request)
    }

    #[test]
    fn messages_go_to_granted_exchanges_only() {
        assert!(publish("exchange/me/out", "primary.a", 0).is_ok());
        for (exchange, routing_key) in
            [("exchange/other/out", "primary.a"), ("exchange/me/out", "route.a"), ("exchange/me/in", "primary.a")]
        {
            assert!(
                matches!(publish(exchange, routing_key, 0), Err(Refusal::NotGranted(_))),
                "{exchange} {routing_key}"
            );
        }
        let long = "x".repeat(256);
        for (exchange, routing_key) in
            [("", "primary.a"), ("exchange/me/a\n", "primary.a"), (&long, "primary.a"), ("exchange/me/out", &long)]
        {
            assert!(matches!(publish(exchange, routing_key, 0), Err(Refusal::Invalid(_))), "{exchange} {routing_key}");
        }
    }

    #[test]
    fn each_relay_counts_and_the_fourth_is_none() {
        let planned = publish("exchange/me/out", "primary.a", 2).unwrap();
        let Effect::Amqp(amqp) = &planned[0].effect else { panic!() };
        assert_eq!((amqp.hops, amqp.unrouted), (3, true));
        assert!(matches!(publish("exchange/me/out", "primary.a", 3), Err(Refusal::OverLimit(_))));
    }
}
