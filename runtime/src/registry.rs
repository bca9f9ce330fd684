//! Which version of each plugin is live. Enters: `.wasm` files. Leaves: admitted, compiled versions.
//!
//! Who runs can change at any moment, and so can what: one pointer to all plugins, one in each to its version. Calls in
//! flight keep the version they began with.

mod bring;
mod cache;
mod child;
mod compiler;
mod file;
mod follow;
mod news;
mod plugins;
mod quarantine;
mod watch;

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, RwLock};

use crate::effect::Hash;
use crate::fair::Slots;
use crate::sandbox::Version;
use crate::store::{Changed, Deployment, Outcome, Quarantined, RegistryChange, Store, now_ms};
use crate::tenant::Tenant;
pub use bring::BringError;
pub use child::EXIT_REFUSED;
pub use compiler::{Compiler, Terms};
pub use file::{Unusable, read_component};
use news::News;
pub use plugins::{Admitted, Refusal};
use plugins::{Plugin, Plugins, Standing};
use quarantine::{Passage, next_probe_ms};
pub use watch::Watch;

/// The live version of each tenant's plugins.
pub struct Registry {
    folder: PathBuf,
    compiler: Compiler,
    plugins: RwLock<Arc<Plugins>>,
    /// Where versions are kept; nowhere, for who only looks.
    store: Option<Store>,
    /// What went live and is not in the store yet.
    unrecorded: Mutex<VecDeque<Deployment>>,
    /// Whether plugins may have missed what the store told of.
    is_to_follow_anew: AtomicBool,
    /// Something has happened to the plugins or their files.
    news: News,
    /// Who is having something compiled that he has brought.
    bringing: Slots,
}

/// Why a plugin is not live.
#[derive(Debug, thiserror::Error)]
#[error("tenant {tenant}: plugin {plugin}: {path}: {why}")]
pub struct RegistryError {
    /// The tenant.
    pub tenant: String,
    /// The plugin.
    pub plugin: String,
    /// Its file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub why: Box<Unusable>,
}

impl Registry {
    /// Admits every plugin of every tenant: what the store says was live last, or what has come into its file since.
    /// Compiling is done off the calling task.
    ///
    /// # Errors
    /// A [`RegistryError`] for each that is not live.
    pub async fn load(
        compiler: Compiler,
        folder: &Path,
        tenants: &[Tenant],
        store: Option<Store>,
    ) -> Result<Arc<Self>, Vec<RegistryError>> {
        let (folder, bringing) = (folder.to_owned(), Slots::new(BRINGING_MAX, 1));
        let (plugins, unrecorded, news) = (RwLock::default(), Mutex::default(), News::default());
        let is_to_follow_anew = AtomicBool::default();
        let registry =
            Arc::new(Self { folder, compiler, plugins, store, unrecorded, is_to_follow_anew, news, bringing });
        registry.go_live(registry.admit(tenants).await?);
        Ok(registry)
    }

    /// The version of a tenant's plugin to run on a notification.
    ///
    /// # Errors
    /// Why none is: there is no live version, or it is in quarantine.
    pub async fn permit(&self, tenant: &str, plugin: &str) -> Result<Arc<Version>, Refusal> {
        let lasting = |why: String| Refusal { why, is_passing: false };
        let none = || lasting("no version of the plugin is live".into());
        let found = self.plugin(tenant, plugin).ok_or_else(none)?;
        let Standing { live, refused, .. } = found.standing();
        let version = live.ok_or_else(|| refused.filter(|refusal| refusal.is_passing).unwrap_or_else(none))?;
        match found.watchman.passage() {
            Passage::Free => Ok(version),
            Passage::Probe if self.probe(tenant, plugin, &found, version.digest).await => {
                tracing::info!(tenant, plugin, "a quarantined plugin is run once, to see how it does");
                Ok(version)
            }
            Passage::Probe => Err(lasting("quarantined".into())),
            Passage::Shut(reason) => Err(lasting(format!("quarantined: {reason}"))),
        }
    }

    /// Takes note of how a call about a task group went; a version that faults too often is quarantined.
    pub async fn judge(&self, tenant: &str, plugin: &str, digest: Hash, task_group: &str, outcome: &Outcome) {
        let Some(found) = self.plugin(tenant, plugin) else { return };
        if found.digest() != Some(digest) {
            // It began before another version was live.
            return;
        }
        let reason = match outcome {
            Outcome::Faulted(fault) => found.watchman.faulted(task_group, fault),
            Outcome::Done(_) | Outcome::Retry { .. } | Outcome::Failed(_) | Outcome::Refused(_) | Outcome::Dead(_) => {
                found.watchman.went_well();
                None
            }
        };
        let (Some(reason), Some(store)) = (reason, &self.store) else { return };
        let (tenant, plugin) = (tenant.to_owned(), plugin.to_owned());
        let probe_ms = Some(next_probe_ms());
        let one = Quarantined { tenant, plugin, digest, reason, since_ms: now_ms(), probe_ms, probes: 0 };
        match store.change(RegistryChange::Quarantine(one.clone())).await {
            Ok(_) => found.shut_away(&(one.tenant.clone(), one.plugin.clone()), Some(one)),
            Err(error) => tracing::error!(%error, "a plugin that should be quarantined is not"),
        }
    }

    /// Whether this call is the probe that is due: of all processes, one makes it.
    async fn probe(&self, tenant: &str, name: &str, plugin: &Plugin, digest: Hash) -> bool {
        let Some(store) = &self.store else { return false };
        let next_ms = next_probe_ms();
        plugin.watchman.probed(next_ms);
        let (tenant, plugin) = (tenant.to_owned(), name.to_owned());
        let probe = RegistryChange::Probe { tenant, plugin, digest, next_ms };
        matches!(store.change(probe).await, Ok(Changed::Yes))
    }

    /// The plugins that are not run because they faulted too often, by `tenant/plugin`, with the reason.
    #[must_use]
    pub fn quarantined(&self) -> BTreeMap<String, String> {
        let plugins = self.plugins();
        let quarantined = plugins.iter().filter_map(|((tenant, name), plugin)| {
            plugin.watchman.quarantined().map(|one| (format!("{tenant}/{name}"), one.reason))
        });
        quarantined.collect()
    }

    /// Has whoever keeps the plugins in step do so at once: something in the store is new.
    pub fn wake(&self) {
        self.news.heard_of_store();
    }

    fn plugin(&self, tenant: &str, plugin: &str) -> Option<Arc<Plugin>> {
        self.plugins().get(&(tenant.to_owned(), plugin.to_owned())).cloned()
    }

    /// All live versions, with their tenants.
    #[must_use]
    pub fn all(&self) -> Vec<(String, Arc<Version>)> {
        let plugins = self.plugins();
        let live = plugins.iter().filter_map(|((tenant, _), plugin)| Some((tenant.clone(), plugin.live()?)));
        live.collect()
    }

    /// Why a plugin does not run, or not in the version that its file holds, by `tenant/plugin`.
    #[must_use]
    pub fn refused(&self) -> BTreeMap<String, String> {
        let plugins = self.plugins();
        let refused = plugins
            .iter()
            .filter_map(|((tenant, name), plugin)| Some((format!("{tenant}/{name}"), plugin.refused()?.why)));
        refused.collect()
    }
}

/// Where a tenant's plugin may be: its own file, which wins, and the one that all tenants share.
fn paths(folder: &Path, tenant: &str, plugin: &str) -> [PathBuf; 2] {
    let file = format!("{plugin}.wasm");
    [folder.join(tenant).join(&file), folder.join(file)]
}

/// Compilations at the same time of what is brought; whatever they take, the plugin directory does not wait for them.
const BRINGING_MAX: usize = 2;
