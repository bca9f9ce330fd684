//! `migrate`: the environment's variables as a configuration file. Connects to nothing, shows no secret.

use crate::config::{self, Environment};

pub(super) fn run(environment: &Environment) -> anyhow::Result<()> {
    super::print(&config::migrate(environment)?);
    Ok(())
}
