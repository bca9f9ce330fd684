//! An SMTP server that keeps each mail and misbehaves when told to: `smtp_server.py`.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use crate::certificate::certify;
use crate::keeper::Keeper;
use crate::{python, script, wait};

/// One running server. Dropping it ends it.
pub struct SmtpServer {
    keeper: Mutex<Keeper>,
    directory: TempDir,
    orders: Mutex<BTreeMap<String, Behaviour>>,
    port: u16,
}

/// How a client has to speak to the server.
#[derive(Clone, Copy, Debug)]
pub enum Mode {
    /// STARTTLS, then AUTH; and several commands before the answer to the first, if it likes.
    StartTls,
    /// TLS from the first byte, then AUTH.
    Tls,
    /// Neither.
    Plain,
}

/// The steps of an SMTP session at which the server can be told to misbehave. It counts how often it reached each.
#[derive(Clone, Copy, Debug)]
pub enum Phase {
    /// A client has connected.
    Greeting,
    /// EHLO.
    Ehlo,
    /// STARTTLS.
    StartTls,
    /// AUTH.
    Auth,
    /// MAIL FROM.
    Mail,
    /// RCPT TO.
    Rcpt,
    /// DATA, before any of it was sent.
    Data,
    /// The final dot, when all of the data was sent.
    Dot,
}

/// What the server does instead of what it should.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Behaviour {
    /// Gives this reply, code and text.
    Reply(String),
    /// Waits, then goes on as it should.
    DelayMs(u64),
    /// Never answers.
    Hang,
    /// Closes the connection without an answer.
    Drop,
    /// Accepts the mail, then closes the connection without an answer. Only at [`Phase::Dot`].
    AcceptThenDrop,
}

/// An accepted mail, with its envelope.
#[derive(Clone, Debug, Deserialize)]
pub struct Mail {
    /// The number of the connection that brought it, from 1.
    pub connection: usize,
    /// Whether that connection was encrypted.
    pub tls: bool,
    /// The user who had authenticated.
    pub user: Option<String>,
    /// The sender in the envelope.
    pub from: String,
    /// The recipients in the envelope.
    pub to: Vec<String>,
    /// The mail as it was sent, one character for each byte.
    pub data: String,
}

impl SmtpServer {
    /// Starts a server with a certificate of its own.
    pub async fn start(mode: Mode) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("smtp-").tempdir()?;
        certify(directory.path())?;
        let mode = match mode {
            Mode::StartTls => "starttls",
            Mode::Tls => "tls",
            Mode::Plain => "plain",
        };
        let arguments = [script("smtp_server.py").into_os_string(), mode.into(), USER.into(), PASSWORD.into()];
        let mut server = Self {
            keeper: Mutex::new(Keeper::spawn(directory.path(), &python(), &arguments, &[])?),
            directory,
            orders: Mutex::default(),
            port: 0,
        };
        server.order(BTreeMap::clear)?;
        server.port = wait::until_some("the SMTP server listens", START_TIMEOUT, async || server.listening()).await?;
        Ok(server)
    }

    /// The port on loopback.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The certificate authority to trust, as PEM.
    pub fn ca_file(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    /// The only user.
    pub fn user(&self) -> &'static str {
        USER
    }

    /// The user's password.
    pub fn password(&self) -> &'static str {
        PASSWORD
    }

    /// Tells the server to misbehave whenever it reaches a phase.
    pub fn behave(&self, phase: Phase, behaviour: Behaviour) -> Result<()> {
        self.order(|orders| orders.insert(phase.name(), behaviour))
    }

    /// Tells the server to misbehave at RCPT of this recipient.
    pub fn behave_for(&self, recipient: &str, behaviour: Behaviour) -> Result<()> {
        self.order(|orders| orders.insert(recipient.to_owned(), behaviour))
    }

    /// Takes back all that was ordered.
    pub fn behave_well(&self) -> Result<()> {
        self.order(BTreeMap::clear)
    }

    /// How many clients have connected.
    pub fn connections(&self) -> Result<usize> {
        self.count(Phase::Greeting)
    }

    /// How often a phase was reached.
    pub fn count(&self, phase: Phase) -> Result<usize> {
        Ok(self.journal()?.iter().filter(|entry| entry.phase == phase.name()).count())
    }

    /// The accepted mails, oldest first.
    pub fn mails(&self) -> Result<Vec<Mail>> {
        let accepted = self.journal()?.into_iter().filter(|entry| entry.phase == "accepted");
        accepted.map(|entry| Ok(serde_json::from_value(entry.facts)?)).collect()
    }

    /// Waits until at least `count` mails were accepted, and returns them all.
    pub async fn wait_for_mails(&self, count: usize, timeout: Duration) -> Result<Vec<Mail>> {
        wait::until_some(&format!("{count} mails have come"), timeout, async || {
            Ok(Some(self.mails()?).filter(|mails| mails.len() >= count))
        })
        .await
    }

    fn order<T>(&self, change: impl FnOnce(&mut BTreeMap<String, Behaviour>) -> T) -> Result<()> {
        let mut orders =
            self.orders.lock().map_err(|_| anyhow!("another thread has failed with the orders in hand"))?;
        change(&mut orders);
        let unfinished = self.directory.path().join("behaviour.json.new");
        fs::write(&unfinished, serde_json::to_vec(&*orders)?)?;
        Ok(fs::rename(unfinished, self.directory.path().join("behaviour.json"))?)
    }

    fn journal(&self) -> Result<Vec<Entry>> {
        let text = fs::read_to_string(self.directory.path().join("journal.ndjson")).unwrap_or_default();
        let complete = text.rsplit_once('\n').map_or("", |(complete, _)| complete);
        complete.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
    }

    fn listening(&self) -> Result<Option<u16>> {
        let mut keeper =
            self.keeper.lock().map_err(|_| anyhow!("another thread has failed with the keeper in hand"))?;
        if let Some(status) = keeper.exit_status()? {
            bail!("the SMTP server ended with {status}:\n{}", Keeper::output(self.directory.path()));
        }
        let port = self.journal()?.first().and_then(|entry| entry.facts.get("port")?.as_u64());
        Ok(port.and_then(|port| port.try_into().ok()))
    }
}

impl Phase {
    fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }
}

impl Mail {
    /// The value of a header, unfolded but not decoded; the first, if there are several.
    pub fn header(&self, name: &str) -> Option<String> {
        let unfolded = self.head_and_body().0.replace("\r\n ", " ").replace("\r\n\t", "\t");
        let (_, value) = unfolded
            .split("\r\n")
            .filter_map(|line| line.split_once(':'))
            .find(|(candidate, _)| candidate.eq_ignore_ascii_case(name))?;
        Some(value.trim().to_owned())
    }

    /// The body as it was sent, in its transfer encoding.
    pub fn body(&self) -> &str {
        self.head_and_body().1
    }

    fn head_and_body(&self) -> (&str, &str) {
        self.data.split_once("\r\n\r\n").unwrap_or((&self.data, ""))
    }
}

#[derive(Deserialize)]
struct Entry {
    phase: String,
    #[serde(flatten)]
    facts: serde_json::Value,
}

const USER: &str = "mailer@localhost";
const PASSWORD: &str = "correct horse";
const START_TIMEOUT: Duration = Duration::from_secs(30);
