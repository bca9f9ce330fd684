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
    standing: RwLock<Standing>,
    /// Counts its faults.
    pub(super) watchman: Arc<Watchman>,
}

/// What is live of a plugin, and why: all of it changes at once.
#[derive(Clone, Default)]
pub(super) struct Standing {
    /// None when what ran is no longer covered by its terms.
    pub(super) live: Option<Arc<Version>>,
    /// Why the version that its file holds, or the one that ran, is not the live one.
    pub(super) refused: Option<Refusal>,
    pub(super) held: Held,
    /// The last deployment in the store that it has followed, or could not.
    pub(super) seq: i64,
}

/// Why a version is not live.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// In words for the operator.
    pub why: String,
    /// Whether it is nothing about the version: it is tried again.
    pub is_passing: bool,
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
        // A person's choice too is to go back.
        let is_brought =
            [Source::Api, Source::Cli, Source::Rollback].iter().any(|source| source.name() == deployed.source);
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
        // What the store told of while these were admitted has reached only those before them.
        self.follow_anew();
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
            if let Some(plugin) = before.under(&terms) {
                return Ok(Arc::new(plugin));
            }
        }
        let (tenant, name) = key;
        let [own, shared] = paths(&self.registry.folder, tenant, name);
        let is_own = own.symlink_metadata().is_ok();
        let path = if is_own { own } else { shared };
        match self.version(key, deployed, &path, is_own, &terms) {
            Ok((version, held, refused)) => {
                let refused = refused.map(|why| Refusal::of(&path, &why));
                let (live, seq) = (Some(Arc::new(version)), deployed.map_or(0, |deployed| deployed.seq));
                Ok(Arc::new(Plugin::new(terms, Standing { live, refused, held, seq })))
            }
            // It was refused, and still is; or it ran before this start. Whoever else there is goes on.
            Err(why) if before.is_some() || deployed.is_some() => {
                // For a reason that passes it forgets nothing: what was left behind in its file is no news then.
                let held = deployed.map(Held::from).or_else(|| before.map(|before| before.held()));
                let held = held.filter(|_| why.is_passing()).unwrap_or_default();
                let refused = Some(Refusal::of(&path, &why));
                Ok(Arc::new(Plugin::new(terms, Standing { refused, held, ..Standing::default() })))
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

impl Standing {
    /// The digest of the live version.
    pub(super) fn digest(&self) -> Option<Hash> {
        self.live.as_ref().map(|version| version.digest)
    }
}

impl Refusal {
    /// Of what a file holds.
    pub(super) fn of(path: &Path, why: &Unusable) -> Self {
        Self { why: format!("{}: {why}", path.display()), is_passing: why.is_passing() }
    }
}

impl Plugin {
    fn new(terms: Terms, standing: Standing) -> Self {
        Self { terms, standing: RwLock::new(standing), watchman: Arc::default() }
    }

    /// The same on other terms: its live version runs on, unless they no longer cover it. None when nothing is live.
    fn under(&self, terms: &Terms) -> Option<Self> {
        let standing = self.standing();
        let standing = match standing.live.as_ref()?.covered(&terms.grant, &terms.component) {
            Ok(()) => standing,
            Err(why) => {
                let refused = Some(Refusal { why: why.to_string(), is_passing: false });
                Standing { live: None, refused, ..standing }
            }
        };
        // It is the same version, and so are its faults.
        Some(Self { watchman: Arc::clone(&self.watchman), ..Self::new(terms.clone(), standing) })
    }

    pub(super) fn standing(&self) -> Standing {
        self.standing.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn live(&self) -> Option<Arc<Version>> {
        self.standing.read().unwrap_or_else(PoisonError::into_inner).live.clone()
    }

    /// The digest of its live version.
    pub(super) fn digest(&self) -> Option<Hash> {
        self.standing.read().unwrap_or_else(PoisonError::into_inner).digest()
    }

    /// Whether something of it is live, or is only kept from that by what passes.
    pub(super) fn is_held(&self) -> bool {
        let Standing { live, refused, .. } = self.standing();
        live.is_some() || refused.is_some_and(|refusal| refusal.is_passing)
    }

    /// Why something about it is refused.
    pub(super) fn refused(&self) -> Option<Refusal> {
        self.standing().refused
    }

    pub(super) fn held(&self) -> Held {
        self.standing.read().unwrap_or_else(PoisonError::into_inner).held
    }

    /// Changes its standing, with nobody else doing so meanwhile. Whoever takes note of it elsewhere does that in here, or
    /// what was noted last need not be what is live.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut Standing) -> T) -> T {
        let mut standing = self.standing.write().unwrap_or_else(PoisonError::into_inner);
        let before = standing.live.clone();
        let changed = change(&mut standing);
        if before.as_ref().map(|version| version.digest) != standing.digest() {
            self.watchman.begin_anew();
        }
        drop(standing);
        // Outside the lock: taking down what was mapped for it takes a moment.
        drop(before);
        changed
    }

    /// Something about it is refused, or nothing is any more; whether that is news.
    pub(super) fn refuse(&self, refused: Option<Refusal>) -> bool {
        self.change(|standing| {
            let is_news = standing.refused != refused;
            standing.refused = refused;
            is_news
        })
    }

    /// Tells the log what is new about it.
    fn say(&self, (tenant, plugin): &Key, before: Option<&Self>) {
        match self.digest() {
            Some(digest_now) if before.and_then(Self::digest) != Some(digest_now) => {
                tracing::info!(tenant, plugin, digest = %digest_now, "plugin live");
                if let Some(Refusal { why: reason, .. }) = self.refused() {
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
                let reason = self.refused().map(|refusal| refusal.why).unwrap_or_default();
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
