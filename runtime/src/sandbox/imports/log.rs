//! `log`: lines kept with the invocation.

use crate::sandbox::guest::Guest;
use crate::sandbox::guest::log::{Host, Level};

impl Host for Guest {
    fn write(&mut self, level: Level, line: String) -> wasmtime::Result<()> {
        self.record.call()?;
        let level = match level {
            Level::Debug => "debug",
            Level::Info => "info",
            Level::Warn => "warn",
            Level::Error => "error",
        };
        self.record.log(level, &line);
        Ok(())
    }
}
