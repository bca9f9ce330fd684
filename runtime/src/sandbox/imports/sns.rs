//! `sns`: a message to a topic becomes one effect.

use crate::grant::{self, SnsRequest};
use crate::sandbox::guest::sns::{Host, Message};
use crate::sandbox::guest::{Guest, types};

impl Host for Guest {
    fn publish(&mut self, message: Message) -> wasmtime::Result<Result<types::EffectId, types::Refusal>> {
        self.record.call()?;
        let Message { topic, subject, text } = message;
        let request = SnsRequest { topic, subject, text };
        let asked = self.record.ask(&self.origin, |index| grant::sns::plan(&self.grant, &self.origin, index, request));
        Ok(asked.map_err(Into::into))
    }
}
