//! `webhook`: a post becomes one effect.

use crate::effect;
use crate::grant::{self, WebhookRequest};
use crate::sandbox::guest::webhook::{Host, Post, Receiver};
use crate::sandbox::guest::{Guest, types};

impl Host for Guest {
    fn send(&mut self, post: Post) -> wasmtime::Result<Result<types::EffectId, types::Refusal>> {
        self.record.call()?;
        let Post { to, content_type, headers, body } = post;
        let to = match to {
            Receiver::Endpoint(name) => effect::Receiver::Endpoint(name),
            Receiver::Url(url) => effect::Receiver::Url(url),
        };
        let request = WebhookRequest { to, content_type, headers, body };
        let asked =
            self.record.ask(&self.origin, |index| grant::webhook::plan(&self.grant, &self.origin, index, request));
        Ok(asked.map_err(Into::into))
    }
}
