//! `plugin`: what a plugin's author works with, one file for each command, which needs no configuration and sends nothing;
//! and what an operator does with the versions that run.

mod new;
mod test;
mod try_out;
mod versions;

use clap::Subcommand;

use crate::config::Environment;

pub(super) use new::NewError;

#[derive(Subcommand)]
pub(super) enum Command {
    /// Run a plugin on one event and show what it asks for
    #[command(after_help = ENDS)]
    Try(try_out::Arguments),
    /// Run a plugin's golden cases and show where they differ
    #[command(after_help = ENDS)]
    Test(test::Arguments),
    /// Write the crate of a new plugin, which builds and passes its test as it is
    #[command(after_help = ENDS)]
    New(new::Arguments),
    /// Show which version of each plugin is live
    List(versions::ListArguments),
    /// Show a plugin's version, what was live before it, its last faults
    Inspect(versions::Which),
    /// Make a version live
    Deploy(versions::DeployArguments),
    /// Make the version before live again
    Rollback(versions::RollbackArguments),
    /// Stop running a plugin's live version
    Quarantine(versions::Which),
    /// Run it again
    Release(versions::Which),
}

pub(super) async fn run(command: Command, environment: &Environment) -> anyhow::Result<()> {
    match command {
        Command::Try(arguments) => try_out::run(&arguments).await,
        Command::Test(arguments) => test::run(&arguments).await,
        Command::New(arguments) => new::run(&arguments),
        Command::List(arguments) => versions::list(&arguments, environment).await,
        Command::Inspect(which) => versions::inspect(&which, environment).await,
        Command::Deploy(arguments) => versions::deploy(&arguments, environment).await,
        Command::Rollback(arguments) => versions::roll_back(&arguments, environment).await,
        Command::Quarantine(which) => versions::quarantine(&which, environment).await,
        Command::Release(which) => versions::release(&which, environment).await,
    }
}

const ENDS: &str = "\
Exit codes:
  0   done
  1   the plugin failed, faulted or wants to be run again, or a case differs
  2   the arguments are not these
  78  what was given is not usable: which file, and what was expected, is said on standard error";
