//! `amqp`: a message to an exchange becomes one effect.

use crate::grant::{self, AmqpRequest};
use crate::sandbox::guest::amqp::{Host, Message};
use crate::sandbox::guest::{Guest, types};

impl Host for Guest {
    fn publish(&mut self, message: Message) -> wasmtime::Result<Result<types::EffectId, types::Refusal>> {
        self.record.call()?;
        let Message { exchange, routing_key, content_type, body } = message;
        let request = AmqpRequest { exchange, routing_key, content_type, body };
        let (grant, about) = (&self.grant, &self.about);
        let asked =
            self.record.ask(&self.origin, |index| grant::amqp::plan(grant, &self.origin, about, index, request));
        Ok(asked.map_err(Into::into))
    }
}
