//! Which plugins there are, and the live version of each. Enters: who may run what. Leaves: plugins that are admitted,
//! all of them at once, or why one cannot be.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use super::{Compiler, Registry, RegistryError, Terms, file, paths};
use crate::sandbox::Version;
use crate::tenant::Tenant;

/// Plugins, by tenant and name.
pub(super) type Plugins = BTreeMap<(String, String), Arc<Plugin>>;

/// One plugin of one tenant.
pub(super) struct Plugin {
    pub(super) terms: Terms,
    /// None when what ran is no longer covered by the grant.
    live: RwLock<Option<Arc<Version>>>,
    /// Why the version that its file holds, or the one that ran, is not the live one.
    refused: RwLock<Option<String>>,
}

/// Plugins that may take the place of those that run.
pub struct Admitted(Plugins);

impl Registry {
    /// Admits what tenants run, as far as it is new or its terms are others; nothing changes yet. What runs already
    /// and is not covered by its new terms is admitted as refused. Compiling is done off the calling task.
    ///
    /// # Errors
    /// A [`RegistryError`] for each plugin that has nothing to run.
    pub async fn admit(self: &Arc<Self>, tenants: &[Tenant]) -> Result<Admitted, Vec<RegistryError>> {
        let registry = Arc::clone(self);
        let terms = |tenant: &Tenant| {
            let key = |name: &String| (tenant.name.clone(), name.clone());
            tenant.plugins.iter().map(|(name, terms)| (key(name), Terms::of(terms))).collect::<Vec<_>>()
        };
        let wanted: Vec<_> = tenants.iter().flat_map(terms).collect();
        let admitted = tokio::task::spawn_blocking(move || {
            let (before, mut compiler) = (registry.plugins(), registry.compiler());
            let (mut plugins, mut errors) = (Plugins::new(), Vec::new());
            for (key, terms) in wanted {
                match admit(&mut compiler, &registry.folder, before.get(&key), &key, terms) {
                    Ok(plugin) => _ = plugins.insert(key, plugin),
                    Err(error) => errors.push(error),
                }
            }
            if errors.is_empty() { Ok(Admitted(plugins)) } else { Err(errors) }
        });
        admitted.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
    }

    /// From now on, these are the plugins.
    pub fn go_live(&self, admitted: Admitted) {
        let before = self.plugins();
        for (key, plugin) in &admitted.0 {
            plugin.say(key, before.get(key).map(Arc::as_ref));
        }
        *self.plugins.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(admitted.0);
        self.news.heard();
    }

    pub(super) fn plugins(&self) -> Arc<Plugins> {
        Arc::clone(&self.plugins.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A plugin on these terms: the one there is when nothing changes for it.
fn admit(
    compiler: &mut Compiler,
    folder: &Path,
    before: Option<&Arc<Plugin>>,
    (tenant, name): &(String, String),
    terms: Terms,
) -> Result<Arc<Plugin>, RegistryError> {
    if let Some(before) = before {
        if before.terms == terms {
            return Ok(Arc::clone(before));
        }
        if let Some(live) = before.live() {
            return Ok(Arc::new(before.under(terms, live)));
        }
    }
    let [own, shared] = paths(folder, tenant, name);
    let path = if own.symlink_metadata().is_ok() { own } else { shared };
    let read = file::read(folder, &path, terms.component.bytes_max);
    match read.and_then(|wasm| Ok(compiler.admit(name, &wasm, &terms)?)) {
        Ok(version) => Ok(Arc::new(Plugin::new(terms, Some(Arc::new(version)), None))),
        // It was refused, and still is.
        Err(why) if before.is_some() => {
            Ok(Arc::new(Plugin::new(terms, None, Some(format!("{}: {why}", path.display())))))
        }
        Err(why) => Err(RegistryError { tenant: tenant.clone(), plugin: name.clone(), path, why }),
    }
}

impl Plugin {
    const fn new(terms: Terms, live: Option<Arc<Version>>, refused: Option<String>) -> Self {
        Self { terms, live: RwLock::new(live), refused: RwLock::new(refused) }
    }

    /// The same on other terms: its live version runs on, unless they no longer cover it.
    fn under(&self, terms: Terms, live: Arc<Version>) -> Self {
        match live.covered(&terms.grant, &terms.component) {
            Ok(()) => Self::new(terms, Some(live), self.refused()),
            Err(why) => Self::new(terms, None, Some(why.to_string())),
        }
    }

    pub(super) fn live(&self) -> Option<Arc<Version>> {
        self.live.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Why something about it is refused.
    pub(super) fn refused(&self) -> Option<String> {
        self.refused.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// From now on, calls run this version.
    pub(super) fn go_live(&self, version: Version) {
        let live = Some(Arc::new(version));
        let before = std::mem::replace(&mut *self.live.write().unwrap_or_else(PoisonError::into_inner), live);
        // Outside the lock: taking down what was mapped for it takes a moment.
        drop(before);
    }

    pub(super) fn refuse(&self, why: Option<String>) {
        *self.refused.write().unwrap_or_else(PoisonError::into_inner) = why;
    }

    /// Tells the log what is new about it.
    fn say(&self, (tenant, plugin): &(String, String), before: Option<&Self>) {
        let digest = |plugin: &Self| plugin.live().map(|version| version.digest);
        match digest(self) {
            Some(digest_now) if before.and_then(digest) != Some(digest_now) => {
                tracing::info!(tenant, plugin, digest = %digest_now, "plugin live");
            }
            Some(_) => {}
            None if before.is_some_and(|before| before.live().is_none()) => {}
            None => {
                let reason = self.refused().unwrap_or_default();
                tracing::error!(tenant, plugin, reason, "a plugin's grant no longer covers it: it does not run");
            }
        }
    }
}
