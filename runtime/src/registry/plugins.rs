//! Which plugins there are, and the live version of each. Enters: who may run what. Leaves: plugins that are admitted,
//! all of them at once, or why one cannot be.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use super::quarantine::Watchman;
use super::{Compiler, Registry, RegistryError, Terms, Unusable, file, paths};
use crate::effect::Hash;
use crate::sandbox::Version;
use crate::store::{Deployed, Deployment, Source};
use crate::tenant::Tenant;

/// Plugins, by tenant and name.
pub(super) type Plugins = BTreeMap<Key, Arc<Plugin>>;

/// A tenant and the name of a plugin.
pub(super) type Key = (String, String);

/// One plugin of one tenant.
pub(super) struct Plugin {
    pub(super) terms: Terms,
    /// None when what ran is no longer covered by its terms.
    live: RwLock<Option<Arc<Version>>>,
    /// Why the version that its file holds, or the one that ran, is not the live one.
    refused: RwLock<Option<String>>,
    held: RwLock<Held>,
    /// Counts its faults.
    pub(super) watchman: Arc<Watchman>,
}

/// Where the live version came from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Held {
    /// What the plugin's file held last: only another content of it is news.
    pub(super) file: Option<Hash>,
    /// Whether it is the tenant's own.
    pub(super) is_own: bool,
    /// Whether it was brought by somebody rather than found in the plugin directory.
    pub(super) is_brought: bool,
}

impl From<&Deployed> for Held {
    fn from(deployed: &Deployed) -> Self {
        let is_brought = [Source::Api, Source::Cli].iter().any(|source| source.name() == deployed.source);
        Self { file: deployed.file, is_own: deployed.is_own, is_brought }
    }
}

/// Plugins that may take the place of those that run.
pub struct Admitted {
    plugins: Plugins,
    /// What the store does not know yet.
    news: Vec<Deployment>,
}

impl Registry {
    /// Admits what tenants run, as far as it is new or its terms are others; nothing changes yet. What runs already and is
    /// not covered by its new terms is admitted as refused. Compiling is done off the calling task.
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
        let deployed = self.deployed().await.map_err(|why| vec![why])?;
        let admitted = tokio::task::spawn_blocking(move || {
            let before = registry.plugins();
            let mut admission = Admission {
                registry: &registry,
                compiler: &registry.compiler,
                read: BTreeMap::new(),
                news: Vec::new(),
            };
            let (mut plugins, mut errors) = (Plugins::new(), Vec::new());
            for (key, terms) in wanted {
                match admission.admit(before.get(&key), deployed.get(&key), &key, terms) {
                    Ok(plugin) => _ = plugins.insert(key, plugin),
                    Err(error) => errors.push(error),
                }
            }
            let news = admission.news;
            if errors.is_empty() { Ok(Admitted { plugins, news }) } else { Err(errors) }
        });
        admitted.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
    }

    /// From now on, these are the plugins.
    pub fn go_live(&self, admitted: Admitted) {
        let before = self.plugins();
        for (key, plugin) in &admitted.plugins {
            plugin.say(key, before.get(key).map(Arc::as_ref));
        }
        *self.plugins.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(admitted.plugins);
        self.record(admitted.news);
        self.news.heard();
    }

    pub(super) fn plugins(&self) -> Arc<Plugins> {
        Arc::clone(&self.plugins.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// What the store says is live.
    async fn deployed(&self) -> Result<BTreeMap<Key, Deployed>, RegistryError> {
        let Some(store) = &self.store else { return Ok(BTreeMap::new()) };
        let deployed = store.deployments(0).await.map_err(|error| RegistryError {
            tenant: "all of them".into(),
            plugin: "all of them".into(),
            path: self.folder.clone(),
            why: Box::new(Unusable::Store(error)),
        })?;
        Ok(deployed.into_iter().map(|one| ((one.tenant.clone(), one.plugin.clone()), one)).collect())
    }
}

/// The admission of many plugins.
struct Admission<'a> {
    registry: &'a Registry,
    compiler: &'a Compiler,
    /// Files that several tenants share are read once.
    read: BTreeMap<PathBuf, (Hash, Arc<Vec<u8>>)>,
    news: Vec<Deployment>,
}

impl Admission<'_> {
    /// A plugin on these terms: the one there is when nothing changes for it.
    fn admit(
        &mut self,
        before: Option<&Arc<Plugin>>,
        deployed: Option<&Deployed>,
        key: &Key,
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
        let (tenant, name) = key;
        let [own, shared] = paths(&self.registry.folder, tenant, name);
        let is_own = own.symlink_metadata().is_ok();
        let path = if is_own { own } else { shared };
        match self.version(key, deployed, &path, is_own, &terms) {
            Ok((version, held, refused)) => {
                let refused = refused.map(|why| format!("{}: {why}", path.display()));
                Ok(Arc::new(Plugin::new(terms, Some(Arc::new(version)), refused, held)))
            }
            // It was refused, and still is; or it ran before this start. Whoever else there is goes on.
            Err(why) if before.is_some() || deployed.is_some() => {
                let refused = Some(format!("{}: {why}", path.display()));
                Ok(Arc::new(Plugin::new(terms, None, refused, Held::default())))
            }
            Err(why) => Err(RegistryError { tenant: tenant.clone(), plugin: name.clone(), path, why: Box::new(why) }),
        }
    }

    /// The version that is to be live: what was live last, unless its file holds something that the store has not seen
    /// in it; and why that is not it although it should be.
    fn version(
        &mut self,
        key: &Key,
        deployed: Option<&Deployed>,
        path: &Path,
        is_own: bool,
        terms: &Terms,
    ) -> Result<(Version, Held, Option<Unusable>), Unusable> {
        let found = self.read(path, terms.component.bytes_max);
        let Some(deployed) = deployed else {
            let (digest, wasm) = found?;
            let version = self.compiler.admit(&key.1, &wasm, terms)?;
            return Ok((version, self.take_note(key, digest, wasm, is_own), None));
        };
        // What somebody brought for one tenant, a file for all does not replace.
        let is_brought = Held::from(deployed).is_brought && deployed.is_own && !is_own;
        let why_not = match found {
            Ok((digest, _)) if deployed.file == Some(digest) || is_brought => None,
            Ok((digest, wasm)) => match self.compiler.admit(&key.1, &wasm, terms) {
                Ok(version) => return Ok((version, self.take_note(key, digest, wasm, is_own), None)),
                Err(why) => Some(why.into()),
            },
            Err(Unusable::Read(error)) if error.kind() == std::io::ErrorKind::NotFound => Some(Unusable::Gone),
            Err(why) => Some(why),
        };
        let kept = self.registry.wasm(deployed.digest)?;
        let version = self.compiler.admit(&key.1, &kept, terms)?;
        Ok((version, deployed.into(), why_not))
    }

    fn read(&mut self, path: &Path, bytes_max: usize) -> Result<(Hash, Arc<Vec<u8>>), Unusable> {
        if let Some(known) = self.read.get(path) {
            return Ok(known.clone());
        }
        let wasm = Arc::new(file::read(&self.registry.folder, path, bytes_max)?);
        let read = (Hash::of_bytes(&wasm), wasm);
        self.read.insert(path.to_owned(), read.clone());
        Ok(read)
    }

    fn take_note(&mut self, (tenant, plugin): &Key, digest: Hash, wasm: Arc<Vec<u8>>, is_own: bool) -> Held {
        let (tenant, plugin) = (tenant.clone(), plugin.clone());
        self.news.push(Deployment { tenant, plugin, digest, wasm, source: Source::File, is_own, file: Some(digest) });
        Held { file: Some(digest), is_own, is_brought: false }
    }
}

impl Plugin {
    fn new(terms: Terms, live: Option<Arc<Version>>, refused: Option<String>, held: Held) -> Self {
        let (live, refused, held) = (RwLock::new(live), RwLock::new(refused), RwLock::new(held));
        Self { terms, live, refused, held, watchman: Arc::default() }
    }

    /// The same on other terms: its live version runs on, unless they no longer cover it.
    fn under(&self, terms: Terms, live: Arc<Version>) -> Self {
        let (live, refused) = match live.covered(&terms.grant, &terms.component) {
            Ok(()) => (Some(live), self.refused()),
            Err(why) => (None, Some(why.to_string())),
        };
        // It is the same version, and so are its faults.
        Self { watchman: Arc::clone(&self.watchman), ..Self::new(terms, live, refused, self.held()) }
    }

    pub(super) fn live(&self) -> Option<Arc<Version>> {
        self.live.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Why something about it is refused.
    pub(super) fn refused(&self) -> Option<String> {
        self.refused.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn held(&self) -> Held {
        *self.held.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on, calls run this version.
    pub(super) fn go_live(&self, version: Version, held: Held) {
        let live = Some(Arc::new(version));
        let before = std::mem::replace(&mut *self.live.write().unwrap_or_else(PoisonError::into_inner), live);
        self.watchman.begin_anew();
        self.hold(held);
        self.refuse(None);
        // Outside the lock: taking down what was mapped for it takes a moment.
        drop(before);
    }

    /// The live version is the same, but where it came from is not.
    pub(super) fn hold(&self, held: Held) {
        *self.held.write().unwrap_or_else(PoisonError::into_inner) = held;
    }

    pub(super) fn refuse(&self, why: Option<String>) {
        *self.refused.write().unwrap_or_else(PoisonError::into_inner) = why;
    }

    /// Tells the log what is new about it.
    fn say(&self, (tenant, plugin): &Key, before: Option<&Self>) {
        let digest = |plugin: &Self| plugin.live().map(|version| version.digest);
        match digest(self) {
            Some(digest_now) if before.and_then(digest) != Some(digest_now) => {
                tracing::info!(tenant, plugin, digest = %digest_now, "plugin live");
                if let Some(reason) = self.refused() {
                    tracing::error!(
                        tenant,
                        plugin,
                        reason,
                        "a plugin's file is not usable: the version before it runs"
                    );
                }
            }
            Some(_) => {}
            None if before.is_some_and(|before| before.live().is_none()) => {}
            None => {
                let reason = self.refused().unwrap_or_default();
                tracing::error!(
                    tenant,
                    plugin,
                    reason,
                    "a plugin has nothing that it may run: its invocations are refused"
                );
            }
        }
    }
}
