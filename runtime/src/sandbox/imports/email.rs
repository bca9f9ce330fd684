//! `email`: a mail becomes one effect for each recipient.

use crate::grant::{self, MailRequest};
use crate::sandbox::guest::email::{Host, Mail};
use crate::sandbox::guest::{Guest, types};

impl Host for Guest {
    fn send(&mut self, mail: Mail) -> wasmtime::Result<Result<types::EffectId, types::Refusal>> {
        self.record.call()?;
        let Mail { to, subject, text, html, thread } = mail;
        let request = MailRequest { to, subject, text, html, thread };
        let asked =
            self.record.ask(&self.origin, |index| grant::email::plan(&self.grant, &self.origin, index, request));
        Ok(asked.map_err(Into::into))
    }
}
