//! The built binary as a process: a clean environment, a private working directory, its output kept.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::keeper::Keeper;
use crate::{say, wait};

/// `pulse-notifier` with its arguments and environment, running or not. Dropping it kills the process.
pub struct Service {
    keeper: Option<Keeper>,
    directory: TempDir,
    arguments: Vec<String>,
    env: Vec<(String, String)>,
    said_before: usize,
}

impl Service {
    /// Prepares a working directory; nothing runs before [`Service::start`].
    pub fn new(arguments: &[&str]) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("service-").tempdir()?;
        let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        Ok(Self { keeper: None, directory, arguments, env: Vec::new(), said_before: 0 })
    }

    /// Sets a variable of the process's environment, which is otherwise empty.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl ToString) -> Self {
        self.env.retain(|(other, _)| other != name);
        self.env.push((name.to_owned(), value.to_string()));
        self
    }

    /// Takes a variable away.
    #[must_use]
    pub fn without(mut self, name: &str) -> Self {
        self.env.retain(|(other, _)| other != name);
        self
    }

    /// The working directory.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Neither the log nor any file beside it holds one of these secrets.
    pub fn tells_no_secret(&self, secrets: &[&str]) -> Result<()> {
        let secrets = secrets.iter().flat_map(|secret| ["-e", secret]);
        // Not by this process: closing a database's file takes away the locks of every connection it has there.
        let mut grep = Command::new("grep");
        grep.args(["--recursive", "--text", "--fixed-strings", "--files-with-matches"]).args(secrets);
        let found = grep.arg(self.directory()).output()?;
        ensure!(found.status.code() == Some(1), "{}", String::from_utf8_lossy(&[found.stdout, found.stderr].concat()));
        Ok(())
    }

    /// Starts the process, again if it has ended, in the same directory.
    pub fn start(&mut self) -> Result<()> {
        if let Some(keeper) = &mut self.keeper {
            ensure!(keeper.exit_status()?.is_some(), "process {} still runs", keeper.pid());
        }
        self.said_before = Keeper::output(self.directory()).len();
        self.keeper = Some(Keeper::spawn(self.directory(), &binary()?, &self.arguments, &self.env)?);
        Ok(())
    }

    /// Starts the process again with some variables changed.
    pub fn start_with(&mut self, changed: &[(&str, &str)]) -> Result<()> {
        self.env.retain(|(name, _)| !changed.iter().any(|(other, _)| other == name));
        self.env.extend(changed.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        self.start()
    }

    /// Runs another command in the same directory and environment, and returns what it prints once it has ended with 0.
    pub fn command(&self, arguments: &[&str]) -> Result<String> {
        let env = self.env.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let mut command = std::process::Command::new(binary()?);
        let output = command.args(arguments).env_clear().envs(env).current_dir(self.directory()).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{arguments:?}: {}: {said}", output.status);
        Ok(String::from_utf8(output.stdout)?)
    }

    /// The id of the process.
    pub fn pid(&self) -> Option<u32> {
        self.keeper.as_ref().map(Keeper::pid)
    }

    /// The ids of the processes that it has started and that have not ended.
    pub fn children(&self) -> Result<Vec<u32>> {
        let pid = self.pid().context("the service was never started")?;
        let mut children = Vec::new();
        for thread in std::fs::read_dir(format!("/proc/{pid}/task"))? {
            // A thread may end meanwhile, and its children go to another one.
            let text = std::fs::read_to_string(thread?.path().join("children")).unwrap_or_default();
            children.extend(text.split_whitespace().filter_map(|child| child.parse::<u32>().ok()));
        }
        Ok(children)
    }

    /// Sends SIGTERM.
    pub fn terminate(&mut self) -> Result<()> {
        self.signal("TERM")
    }

    /// Sends a signal, named like `HUP`.
    pub fn signal(&mut self, name: &str) -> Result<()> {
        self.keeper.as_mut().context("the service was never started")?.signal(name)
    }

    /// Kills the process with SIGKILL and waits for its end.
    pub fn kill(&mut self) -> Result<()> {
        self.keeper.as_mut().context("the service was never started")?.kill()
    }

    /// How the process ended, or nothing while it runs.
    pub fn exit_status(&mut self) -> Result<Option<ExitStatus>> {
        self.keeper.as_mut().context("the service was never started")?.exit_status()
    }

    /// Waits for the process to end by itself.
    pub async fn wait_exit(&mut self, timeout: Duration) -> Result<ExitStatus> {
        wait::until_some("the service has ended", timeout, async || self.exit_status()).await
    }

    /// What the process has said since its last start, on standard output and standard error.
    pub fn output(&self) -> String {
        Keeper::output(self.directory()).get(self.said_before..).unwrap_or_default().to_owned()
    }

    /// Waits until the process, since its last start, has said a text; fails early if it ends without.
    pub async fn wait_for_output(&mut self, text: &str, timeout: Duration) -> Result<()> {
        wait::until(&format!("the service says {text:?}"), timeout, async || {
            // In this order: what a process says last, it says before it ends.
            let ended = self.exit_status()?;
            let said = self.output().contains(text);
            if let (Some(status), false) = (ended, said) {
                bail!("the service ended with {status} and never said {text:?}");
            }
            Ok(said)
        })
        .await
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let Some(keeper) = &mut self.keeper else { return };
        let status = keeper.exit_status().ok().flatten();
        let end = status.map_or("still runs".to_owned(), |status| format!("ended with {status}"));
        say(&format!(
            "--- pulse-notifier {}: {end}\n{}---",
            self.arguments.join(" "),
            Keeper::output(self.directory())
        ));
    }
}

/// The built binary.
pub fn binary() -> Result<PathBuf> {
    let test = std::env::current_exe()?;
    let profile = test.ancestors().nth(2).context("a test binary lives in target/<profile>/deps")?;
    let binary = profile.join("pulse-notifier");
    ensure!(binary.is_file(), "{} is missing: run `cargo build` first", binary.display());
    Ok(binary)
}
