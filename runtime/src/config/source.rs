//! Where the configuration is, so that it can be read again while the service runs.

use std::path::{Path, PathBuf};

use super::{Config, ConfigError, Environment, Role, file, legacy};

/// Where the configuration is.
#[derive(Clone)]
pub struct Source {
    environment: Environment,
    role: Role,
    file: Option<MainFile>,
}

/// The configuration file: its text, or why there is none, as it was when somebody last asked for it to be read.
#[derive(Clone)]
struct MainFile {
    path: PathBuf,
    text: Result<String, String>,
}

impl Source {
    /// For this half of the service: this file, else the one that `PN_CONFIG` names, else the predecessor's variables.
    #[must_use]
    pub fn new(file: Option<&Path>, environment: &Environment, role: Role) -> Self {
        let path = file.or_else(|| environment.text("PN_CONFIG").map(Path::new));
        let file = path.map(|path| MainFile { path: path.to_owned(), text: file::read_bounded(path) });
        Self { environment: environment.clone(), role, file }
    }

    /// Reads the file again; those it names, and the tenants' folder, are read whenever the configuration is.
    pub fn read_again(&mut self) {
        if let Some(file) = &mut self.file {
            file.text = file::read_bounded(&file.path);
        }
    }

    /// What it says now. Tenants are what they are to the service that runs, when one does: what only a start can change
    /// has not changed for them.
    ///
    /// # Errors
    /// Every problem found.
    pub fn config(&self, running: Option<&Config>) -> Result<Config, ConfigError> {
        match &self.file {
            Some(file) => {
                let name = file.path.display().to_string();
                file::parse(&name, file.text.as_deref(), &self.environment, self.role, running)
            }
            None => legacy::read(&self.environment, self.role),
        }
    }
}

impl Config {
    /// What has changed since the service was started and takes effect when it is started again.
    #[must_use]
    pub fn waits_for_a_start(&self, running: &Self) -> Vec<&'static str> {
        let changed = [
            ("broker", self.broker != running.broker),
            ("taskcluster", self.taskcluster_root != running.taskcluster_root),
            ("plugins", self.plugins != running.plugins),
            ("store", self.store != running.store),
            ("delivery", self.delivery != running.delivery),
            ("admin", self.admin != running.admin),
            ("influx", self.influx != running.influx),
            ("drain_seconds", self.drain != running.drain),
            ("keep_days", self.keep != running.keep),
        ];
        changed.into_iter().filter(|(_, has_changed)| *has_changed).map(|(name, _)| name).collect()
    }
}
