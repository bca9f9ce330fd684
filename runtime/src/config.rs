//! The only reader of files and of the environment. Enters: raw text. Leaves: a configuration in which everything is
//! checked, or every problem found, each with its place and what was expected there.

mod document;
mod environment;
mod file;
mod findings;
mod identities;
mod legacy;
mod migrate;
mod source;
mod surroundings;
mod value;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::header::HeaderMap;
use url::Url;

pub use environment::Environment;
pub use source::Source;

use crate::tenant::Tenant;

/// Everything the service needs to know.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The AMQP broker.
    pub broker: Broker,
    /// Taskcluster's root.
    pub taskcluster_root: Url,
    /// Where the `.wasm` files are.
    pub plugins: PathBuf,
    /// Where compiled plugins are kept.
    pub cache: PathBuf,
    /// The database.
    pub store: String,
    /// Whether effects are performed.
    pub delivery: DeliveryMode,
    /// Who we are in the world, by destination: `email/smtp` and so on.
    pub accounts: BTreeMap<String, Account>,
    /// The tenants.
    pub tenants: Vec<Tenant>,
    /// The folder of the tenants' files, when they have files of their own.
    pub tenants_folder: Option<PathBuf>,
    /// Where health and metrics are served; nowhere when there is no address.
    pub admin: Option<SocketAddr>,
    /// Where timings go; nowhere when there is no account.
    pub influx: Option<InfluxAccount>,
    /// How long shutting down may take.
    pub drain: Duration,
    /// For how long a repeated event is recognised.
    pub keep: Duration,
    /// What the operator should know although it is no error.
    pub notes: Vec<String>,
    /// What is wrong with the files of tenants that are left out: for a command alone.
    pub left_out: Vec<String>,
}

/// Which half of the service runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Role {
    /// Both.
    #[default]
    All,
    /// Consumes events and runs plugins: it needs no account, and must not see any account's secret.
    Intake,
    /// Delivers what plugins asked for: it consumes nothing, and runs no plugin.
    Courier,
    /// Looks into the database or changes it: it needs no secret, and no tenant's file but those that are right.
    #[value(skip)]
    Command,
}

impl Role {
    /// Whether it consumes events.
    #[must_use]
    pub const fn takes_in(self) -> bool {
        matches!(self, Self::All | Self::Intake)
    }

    /// Whether it delivers effects.
    #[must_use]
    pub const fn delivers(self) -> bool {
        matches!(self, Self::All | Self::Courier)
    }
}

/// The AMQP broker and who we are there.
#[derive(Clone, Debug, PartialEq)]
pub struct Broker {
    /// Its host.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Whether to speak TLS.
    pub tls: bool,
    /// The virtual host.
    pub vhost: String,
    /// The user.
    pub login: String,
    /// The user's password.
    pub password: Secret,
}

/// Whether effects are performed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeliveryMode {
    /// They are.
    #[default]
    Send,
    /// They are kept and shown, and nothing is sent.
    Capture,
}

/// Who we are somewhere, and where that is. Each variant has its sink.
#[derive(Clone, Debug, PartialEq)]
pub enum Account {
    /// Mail by a server.
    Smtp(SmtpAccount),
    /// Mail by SES.
    Ses(SesAccount),
    /// SNS topics.
    Sns(AwsAccount),
    /// An S3 bucket.
    S3(S3Account),
    /// An IRC server.
    Irc(IrcAccount),
    /// The exchanges of a broker.
    Amqp(Broker),
    /// A receiver on the web, or how to post to those that plugins name.
    Webhook(WebhookAccount),
}

impl Account {
    /// The capability it serves.
    #[must_use]
    pub const fn capability(&self) -> &'static str {
        match self {
            Self::Smtp(_) | Self::Ses(_) => "email",
            Self::Sns(_) => "sns",
            Self::S3(_) => "s3",
            Self::Irc(_) => "irc",
            Self::Amqp(_) => "amqp",
            Self::Webhook(_) => "webhook",
        }
    }
}

/// Who mails are from.
#[derive(Clone, Debug, PartialEq)]
pub struct Sender {
    /// The address.
    pub from: String,
    /// The domain of message and thread ids.
    pub threading_domain: String,
}

/// Who we are at AWS. What is not set is looked for where the AWS tools look: environment, profiles, roles.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AwsAccount {
    /// The region; us-west-2 when nothing says otherwise.
    pub region: Option<String>,
    /// The address of another service that speaks like AWS.
    pub endpoint: Option<Url>,
    /// The profile in the shared files.
    pub profile: Option<String>,
    /// Access key id and secret access key.
    pub keys: Option<(String, Secret)>,
}

/// Mail by SES.
#[derive(Clone, Debug, PartialEq)]
pub struct SesAccount {
    /// Who we are there.
    pub aws: AwsAccount,
    /// Who mails are from.
    pub sender: Sender,
}

/// One bucket.
#[derive(Clone, Debug, PartialEq)]
pub struct S3Account {
    /// Who we are there.
    pub aws: AwsAccount,
    /// The bucket.
    pub bucket: String,
    /// The canned ACL each object gets; none for buckets that refuse ACLs.
    pub acl: Option<String>,
}

/// A server that takes mail, and who we are there.
#[derive(Clone, Debug, PartialEq)]
pub struct SmtpAccount {
    /// Its host.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// How the connection is secured.
    pub security: SmtpSecurity,
    /// User and password, when it wants any.
    pub login: Option<(String, Secret)>,
    /// Who mails are from.
    pub sender: Sender,
}

/// How a connection to an SMTP server is secured.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SmtpSecurity {
    /// It begins in the clear and must be upgraded before anything is said.
    #[default]
    StartTls,
    /// It is TLS from the first byte.
    Tls,
    /// It is not.
    None,
}

/// A database of InfluxDB 1, and who we are there.
#[derive(Clone, Debug, PartialEq)]
pub struct InfluxAccount {
    /// Its address.
    pub url: Url,
    /// The database.
    pub database: String,
    /// User and password, when it wants any.
    pub login: Option<(String, Secret)>,
}

/// An IRC server, and who we are there.
#[derive(Clone, Debug, PartialEq)]
pub struct IrcAccount {
    /// Its host.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Whether to speak TLS.
    pub tls: bool,
    /// The nickname; another is taken while it is in use.
    pub nick: String,
    /// The real name.
    pub real_name: String,
    /// The server's password, when it wants one.
    pub password: Option<Secret>,
    /// Lines that may be said at once.
    pub burst: u32,
    /// The time between two lines after that.
    pub line_every: Duration,
}

/// How to post to receivers on the web.
#[derive(Clone, Debug, PartialEq)]
pub struct WebhookAccount {
    /// The one receiver; none when plugins name the addresses themselves.
    pub url: Option<Secret<Url>>,
    /// What is said in every post, secrets of ours among it; as sensitive values, which are not shown.
    pub headers: HeaderMap,
    /// What posts are signed with, when the receiver wants to know that they are ours.
    pub hmac_secret: Option<Secret>,
    /// Whether a receiver may be in a private network or on this machine.
    pub private: bool,
}

/// A text, or another thing, that is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret<T = String>(T);

impl<T> Secret<T> {
    /// Keeps it from being shown.
    #[must_use]
    pub const fn new(hidden: T) -> Self {
        Self(hidden)
    }

    /// What is hidden, for whoever must present it.
    #[must_use]
    pub const fn expose(&self) -> &T {
        &self.0
    }
}

impl<T> fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// Every problem found.
#[derive(Debug, thiserror::Error)]
pub struct ConfigError {
    /// At least one.
    pub problems: Vec<Problem>,
}

/// One problem.
#[derive(Debug, PartialEq, Eq)]
pub struct Problem {
    /// The variable, or the file and what is in it.
    pub place: String,
    /// What was expected there and what was found, never a secret.
    pub what: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.what)
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in the configuration", if self.problems.len() == 1 { "a problem" } else { "problems" })?;
        self.problems.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

/// A configuration file in which every key is there and explained.
pub const EXAMPLE: &str = include_str!("config/example.toml");

impl Config {
    /// Reads the file, else the one that `PN_CONFIG` names, else the predecessor's variables.
    ///
    /// # Errors
    /// Every problem found.
    pub fn load(file: Option<&Path>, environment: &Environment) -> Result<Self, ConfigError> {
        Source::new(file, environment, Role::All).config(None)
    }

    /// The same for a command, which needs no secret; tenants whose files are wrong are left out.
    ///
    /// # Errors
    /// Every problem found elsewhere.
    pub fn for_command(file: Option<&Path>, environment: &Environment) -> Result<Self, ConfigError> {
        Source::new(file, environment, Role::Command).config(None)
    }

    /// Reads a configuration file, and those of the tenants when it names their folder.
    ///
    /// # Errors
    /// Every problem found.
    pub fn from_file(file: &Path, environment: &Environment) -> Result<Self, ConfigError> {
        Source::new(Some(file), environment, Role::All).config(None)
    }

    /// Reads the configuration that the predecessor's variables, and ours beside them, describe.
    ///
    /// # Errors
    /// Every problem found.
    pub fn from_environment(environment: &Environment) -> Result<Self, ConfigError> {
        legacy::read(environment, Role::All)
    }
}

/// The predecessor's variables, and ours beside them, as a configuration file that says the same, without secrets; what
/// will be different from the predecessor is said in comments.
///
/// # Errors
/// Every problem found in the variables.
pub fn migrate(environment: &Environment) -> Result<String, ConfigError> {
    migrate::migrate(environment)
}

/// Where plugins are unless said otherwise: `plugins` in the working directory, else beside the binary.
#[must_use]
pub fn default_plugins() -> PathBuf {
    let here = PathBuf::from("plugins");
    let beside = std::env::current_exe().ok().and_then(|exe| exe.parent().map(|folder| folder.join("plugins")));
    match beside {
        Some(beside) if !here.is_dir() && beside.is_dir() => beside,
        _ => here,
    }
}

/// Where compiled plugins are kept unless said otherwise: beside the database.
fn default_cache(store: &str) -> PathBuf {
    let path = store.strip_prefix("sqlite:").map(|path| path.strip_prefix("//").unwrap_or(path));
    PathBuf::from(format!("{}.cache", path.unwrap_or("pulse-notifier.db")))
}

/// The Taskcluster whose pages are linked to unless said otherwise.
pub(crate) fn default_root() -> Url {
    legacy::default_root()
}

/// The tenants' files in a folder, by name.
pub(crate) use file::files as tenant_files;

/// The known word that a misspelt one probably means.
fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word: String = word.chars().take(WORD_CHARS_MAX).collect();
    let likeness = |known: &str| strsim::normalized_damerau_levenshtein(&word, known);
    let known = known.into_iter().map(|known| (likeness(known), known)).filter(|(likeness, _)| *likeness >= 0.6);
    known.max_by(|(a, _), (b, _)| a.total_cmp(b)).map(|(_, known)| known)
}

const WORD_CHARS_MAX: usize = 80;

fn read_file(path: &Path) -> Result<String, String> {
    // A pipe would be waited for, perhaps for ever.
    let is_file = std::fs::metadata(path).is_ok_and(|metadata| metadata.is_file());
    let is_missing = !path.exists();
    if !is_file && !is_missing {
        return Err(format!("read {}: expected a file", path.display()));
    }
    std::fs::read_to_string(path).map_err(|error| format!("read {}: {error}", path.display()))
}
