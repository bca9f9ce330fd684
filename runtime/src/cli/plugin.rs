//! `plugin`: what a plugin's author works with, one file for each command. Needs no configuration, sends nothing.

mod new;
mod test;
mod try_out;

use clap::Subcommand;

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
}

pub(super) async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Try(arguments) => try_out::run(&arguments).await,
        Command::Test(arguments) => test::run(&arguments).await,
        Command::New(arguments) => new::run(&arguments),
    }
}

const ENDS: &str = "\
Exit codes:
  0   done
  1   the plugin failed, faulted or wants to be run again, or a case differs
  2   the arguments are not these
  78  what was given is not usable: which file, and what was expected, is said on standard error";
