//! `irc`: lines for one channel become one effect.

use crate::grant::{self, IrcRequest};
use crate::sandbox::guest::irc::{Host, Message};
use crate::sandbox::guest::{Guest, types};

impl Host for Guest {
    fn say(&mut self, message: Message) -> wasmtime::Result<Result<types::EffectId, types::Refusal>> {
        self.record.call()?;
        let Message { channel, lines } = message;
        let request = IrcRequest { channel, lines };
        let asked = self.record.ask(&self.origin, |index| grant::irc::plan(&self.grant, &self.origin, index, request));
        Ok(asked.map_err(Into::into))
    }
}
