//! A process that cannot outlive the test process: `keeper.py` runs it, and holds a pipe that closes when we end.

use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};

use anyhow::{Context, Result};

use crate::{python, script};

/// One kept process. Dropping it kills the process, whatever that started, and removes its directory.
pub(crate) struct Keeper {
    keeper: Child,
    orders: Option<ChildStdin>,
    pid: u32,
}

impl Keeper {
    /// Runs a program in a directory, with nothing in its environment but `env`. What it says goes to `OUTPUT` there.
    pub(crate) fn spawn<A: AsRef<OsStr>>(
        directory: &Path,
        program: &Path,
        arguments: &[A],
        env: &[(String, String)],
    ) -> Result<Self> {
        let output = OpenOptions::new().create(true).append(true).open(directory.join(OUTPUT))?;
        let mut keeper = Command::new(python())
            .args(["-I", "-S"])
            .arg(script("keeper.py"))
            .arg(directory)
            .arg(program)
            .args(arguments)
            .env_clear()
            .envs(env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(output)
            .process_group(0)
            .spawn()
            .with_context(|| format!("{} is missing; `make test` creates it", python().display()))?;
        let orders = keeper.stdin.take();
        let mut line = String::new();
        BufReader::new(keeper.stdout.take().context("standard output is a pipe")?).read_line(&mut line)?;
        let pid = line
            .trim()
            .parse()
            .with_context(|| format!("{} did not start:\n{}", program.display(), Self::output(directory)))?;
        Ok(Self { keeper, orders, pid })
    }

    /// What the processes of a directory have said so far.
    pub(crate) fn output(directory: &Path) -> String {
        String::from_utf8_lossy(&std::fs::read(directory.join(OUTPUT)).unwrap_or_default()).into_owned()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.pid
    }

    /// Sends a signal, named like `TERM`.
    pub(crate) fn signal(&mut self, name: &str) -> Result<()> {
        let orders = self.orders.as_mut().context("the keeper listens until it is dropped")?;
        writeln!(orders, "SIG{name}").with_context(|| format!("process {} has ended already", self.pid))
    }

    /// How the process ended, or nothing while it runs.
    pub(crate) fn exit_status(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.keeper.try_wait()?)
    }

    /// SIGKILL to the process and to whatever it started; the directory stays.
    pub(crate) fn kill(&mut self) -> Result<()> {
        if self.exit_status()?.is_none() {
            // An error means that it ended in between.
            let _ = self.signal("KILL");
            self.keeper.wait()?;
        }
        Ok(())
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.orders.take());
        let _ = self.keeper.wait();
    }
}

/// The file in a kept process's directory that collects its standard output and standard error.
const OUTPUT: &str = "output.log";
