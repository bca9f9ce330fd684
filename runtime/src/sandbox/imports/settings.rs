//! `settings`: what the operator set for the plugin.

use crate::sandbox::guest::Guest;
use crate::sandbox::guest::settings::Host;

impl Host for Guest {
    fn get(&mut self, key: String) -> wasmtime::Result<Option<String>> {
        self.record.call()?;
        Ok(self.settings.get(&key).cloned())
    }

    fn all(&mut self) -> wasmtime::Result<Vec<(String, String)>> {
        self.record.call()?;
        Ok(self.settings.iter().map(|(key, value)| (key.clone(), value.clone())).collect())
    }
}
