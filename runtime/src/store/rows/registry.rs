//! What the registry keeps: plain data.

use std::sync::Arc;

use crate::effect::Hash;

/// A change of what is live, of what is not run, or of who may ask.
#[derive(Clone, Debug)]
pub enum RegistryChange {
    /// A version is live from now on.
    Deploy(Deployment),
    /// The version before is live again, or another one that was.
    RollBack {
        /// The tenant.
        tenant: String,
        /// Its plugin.
        plugin: String,
        /// Which version.
        to: Option<VersionWish>,
    },
    /// A version is not run any more.
    Quarantine(Quarantined),
    /// It is again.
    Release {
        /// The tenant.
        tenant: String,
        /// Its plugin.
        plugin: String,
        /// Whether the operator says so, who alone ends what he has ordered.
        is_by_operator: bool,
    },
    /// One call of it may be made, if it is time; whoever asks first has it.
    Probe {
        /// The tenant.
        tenant: String,
        /// Its plugin.
        plugin: String,
        /// The version.
        digest: Hash,
        /// When the next one may be made.
        next_ms: i64,
    },
    /// Somebody may ask.
    AddToken(Token),
    /// Somebody may not ask any more.
    RevokeToken {
        /// The token's id.
        id: String,
    },
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Changed {
    /// It was so already, or there was nothing to do it to.
    No,
    /// It is so from now on.
    Yes,
    /// This version is live from now on.
    To(Hash),
    /// A version that was deployed is live.
    Live {
        /// The place of its deployment among all.
        seq: i64,
        /// Whether it was not before.
        is_news: bool,
    },
}

/// A version that goes live for a tenant.
#[derive(Clone, Debug)]
pub struct Deployment {
    /// The tenant.
    pub tenant: String,
    /// Its plugin.
    pub plugin: String,
    /// The digest of its bytes.
    pub digest: Hash,
    /// Its bytes.
    pub wasm: Arc<Vec<u8>>,
    /// By which way it came.
    pub source: Source,
    /// Whether it is the tenant's own rather than the one that all share.
    pub is_own: bool,
    /// What the plugin's file holds, when that is where it came from.
    pub file: Option<Hash>,
}

/// By which way a version went live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// By a file in the plugin directory.
    File,
    /// By a command.
    Cli,
    /// By the admin API.
    Api,
    /// It had been live before.
    Rollback,
}

impl Source {
    /// As the store has it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::Cli => "cli",
            Self::Api => "api",
            Self::Rollback => "rollback",
        }
    }
}

/// The beginning of a digest, as a person writes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionWish(String);

impl VersionWish {
    /// At least eight hexadecimal digits, and at most all of them.
    #[must_use]
    pub fn new(text: &str) -> Option<Self> {
        let is_digits = text.bytes().all(|b| b.is_ascii_hexdigit());
        ((8..=64).contains(&text.len()) && is_digits).then(|| Self(text.to_ascii_lowercase()))
    }

    /// The digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The last deployment of a tenant's plugin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deployed {
    /// Its place among all deployments.
    pub seq: i64,
    /// The tenant.
    pub tenant: String,
    /// Its plugin.
    pub plugin: String,
    /// The version.
    pub digest: Hash,
    /// Since when it is live.
    pub since_ms: i64,
    /// By which way it came.
    pub source: String,
    /// Whether it is the tenant's own.
    pub is_own: bool,
    /// What the plugin's file held last.
    pub file: Option<Hash>,
}

/// A version that was live once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionKept {
    /// The version.
    pub digest: Hash,
    /// Since when.
    pub since_ms: i64,
    /// By which way it came.
    pub source: String,
    /// Whether it was the tenant's own.
    pub is_own: bool,
    /// Its size.
    pub bytes: i64,
}

/// A fault of a version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FaultSeen {
    /// The task it was about.
    pub task_id: String,
    /// What it was.
    pub reason: String,
}

/// A version that is not run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quarantined {
    /// The tenant.
    pub tenant: String,
    /// Its plugin.
    pub plugin: String,
    /// The version.
    pub digest: Hash,
    /// Why.
    pub reason: String,
    /// Since when.
    pub since_ms: i64,
    /// When one call is let through; never, when a person ordered it.
    pub probe_ms: Option<i64>,
    /// How many were.
    pub probes: i64,
}

impl Quarantined {
    /// The reason when the operator ordered it: the operator alone ends that.
    pub const BY_OPERATOR: &str = "by order of the operator";
    /// The reason when the tenant ordered it.
    pub const BY_TENANT: &str = "by order of the tenant";

    /// Whether the operator ordered it.
    #[must_use]
    pub fn is_by_operator(&self) -> bool {
        self.reason == Self::BY_OPERATOR
    }
}

/// Who may ask the admin API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// What precedes the secret in a token.
    pub id: String,
    /// The digest of the secret.
    pub sha256: Hash,
    /// Whose it is; the operator's, when there is none.
    pub tenant: Option<String>,
    /// Since when.
    pub created_ms: i64,
}
