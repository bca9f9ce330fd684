//! The commands, one file each, and what their ends mean as exit codes. The only room that prints.
#![expect(clippy::disallowed_macros, reason = "this is the room that prints")]

/// Prints a line on standard output.
macro_rules! say {
    ($($text:tt)*) => {
        $crate::cli::print(&format!("{}\n", format_args!($($text)*)))
    };
}

mod check;
mod compile;
mod demo;
mod migrate;
mod plugin;
mod render;
mod run;
mod token;

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};
use tracing_subscriber::filter::LevelFilter;

use crate::config::{self, ConfigError, Environment, Role};
use crate::registry::RegistryError;
use crate::store::StoreError;
use crate::trial::TrialError;

/// Turns CI events into notifications, with plugins that nobody has to trust.
///
/// Configured by a file or by environment variables: see the README, `pulse-notifier config example` and
/// `pulse-notifier check`.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Consume events and deliver notifications until told to stop
    Run(Source),
    /// Show notifications made of sample events: needs no configuration and sends nothing
    Demo(demo::Arguments),
    /// Validate the configuration and explain what it amounts to
    Check(Source),
    /// Print configuration files
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Print the configuration file that says what the environment variables say, and what will be different from the
    /// earlier service
    Migrate,
    /// Write a plugin, try it on an event, test it; see and change which versions run
    #[command(subcommand)]
    Plugin(plugin::Command),
    /// Make and revoke tokens for the admin API
    #[command(subcommand)]
    Token(token::Command),
    #[command(hide = true)]
    CompilePlugin(compile::Arguments),
}

/// Where the configuration is.
#[derive(clap::Args)]
struct ConfigFile {
    /// The configuration file; without one, that which PN_CONFIG names, else environment variables
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl ConfigFile {
    /// What a command needs of it: no secret, and no tenant whose file is wrong; that is said on standard error.
    fn read(&self, environment: &Environment) -> Result<config::Config, ConfigError> {
        let config = config::Config::for_command(self.config.as_deref(), environment)?;
        for problem in &config.left_out {
            eprintln!("pulse-notifier: a tenant is left out: {}", render::printable_lines(problem));
        }
        Ok(config)
    }
}

/// Where the configuration is, and for which half of the service it is read.
#[derive(clap::Args)]
struct Source {
    #[command(flatten)]
    config_file: ConfigFile,
    /// Which half of the service: intake consumes events and must see no account's secret, courier delivers
    #[arg(long, value_enum, default_value_t)]
    role: Role,
}

#[derive(Subcommand)]
enum ConfigCommand {
    /// A commented file with every key there is
    Example,
}

/// The configuration, or what it names, is not usable.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
struct PluginErrors(Vec<RegistryError>);

/// Runs the command the arguments name.
#[must_use]
pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Command::CompilePlugin(arguments) = arguments.command {
        // Before anything else has begun: it confines this process.
        return compile::run(&arguments);
    }
    let environment = Environment::current();
    match execute(arguments.command, &environment) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pulse-notifier: {}", render::printable_lines(&format!("{error:#}")));
            exit_code(&error)
        }
    }
}

fn execute(command: Command, environment: &Environment) -> anyhow::Result<()> {
    // Fails only when a provider is installed already, which then serves as well.
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start the runtime")?;
    let level = environment.text("LOG_LEVEL");
    let done = match command {
        Command::Run(source) => {
            start_log(log_level(level).unwrap_or(LevelFilter::INFO));
            runtime.block_on(run::run(source.config_file.config.as_deref(), source.role, environment))
        }
        Command::Demo(arguments) => {
            start_log(log_level(level).unwrap_or(LevelFilter::WARN));
            runtime.block_on(demo::run(arguments, environment))
        }
        Command::Check(source) => {
            start_log(LevelFilter::ERROR);
            runtime.block_on(check::run(source.config_file.config.as_deref(), source.role, environment))
        }
        Command::Config(ConfigCommand::Example) => {
            print(config::EXAMPLE);
            Ok(())
        }
        Command::Migrate => migrate::run(environment),
        Command::Token(command) => {
            start_log(log_level(level).unwrap_or(LevelFilter::ERROR));
            runtime.block_on(token::run(command, environment))
        }
        // Never comes here.
        Command::CompilePlugin(_) => Ok(()),
        Command::Plugin(command) => {
            start_log(log_level(level).unwrap_or(LevelFilter::ERROR));
            runtime.block_on(plugin::run(command, environment))
        }
    };
    runtime.shutdown_background();
    done
}

/// Prints, and ends the process when whoever reads has gone away: there is nobody left to tell anything.
fn print(text: &str) {
    let mut out = std::io::stdout().lock();
    if out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err() {
        std::process::exit(0);
    }
}

/// What an error means to whoever started us: 78 (EX_CONFIG) says that trying again without a change is pointless.
fn exit_code(error: &anyhow::Error) -> ExitCode {
    let is_unusable = error.is::<ConfigError>()
        || error.is::<PluginErrors>()
        || error.is::<TrialError>()
        || error.is::<plugin::NewError>()
        || error.downcast_ref().is_some_and(StoreError::is_lasting);
    if is_unusable { ExitCode::from(78) } else { ExitCode::FAILURE }
}

/// Text on a terminal, JSON otherwise; always on standard error.
fn start_log(level: LevelFilter) {
    let filter = tracing_subscriber::filter::Targets::new()
        .with_default(LevelFilter::WARN.min(level))
        // What it has to say, our own lines say better.
        .with_target("lapin", LevelFilter::OFF)
        .with_target("pulse_notifier", level);
    let log = tracing_subscriber::fmt().with_writer(std::io::stderr).with_max_level(level).with_target(false);
    // A reader of the log that goes away is no reason to stop working: complaining about it would panic.
    let log = log.log_internal_errors(false);
    use tracing_subscriber::prelude::*;
    if std::io::stderr().is_terminal() {
        log.finish().with(filter).init();
    } else {
        log.json().flatten_event(true).with_span_list(false).finish().with(filter).init();
    }
}

/// The level a name stands for, the predecessor's names included; an unknown one means INFO.
fn log_level(name: Option<&str>) -> Option<LevelFilter> {
    Some(match name?.to_ascii_uppercase().as_str() {
        "TRACE" => LevelFilter::TRACE,
        "DEBUG" | "NOTSET" => LevelFilter::DEBUG,
        "WARN" | "WARNING" => LevelFilter::WARN,
        "ERROR" | "CRITICAL" | "FATAL" => LevelFilter::ERROR,
        _ => LevelFilter::INFO,
    })
}
