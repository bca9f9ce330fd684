//! Which version of each plugin is live. Enters: `.wasm` files. Leaves: admitted, compiled versions.
//!
//! Who runs is fixed at the start: tenants, their plugins, their grants. What runs can change at any moment: one pointer
//! for each plugin, and calls in flight keep the version they began with.

mod file;
mod watch;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use crate::effect::Hash;
use crate::grant::Grant;
use crate::sandbox::{AdmissionError, Compiled, Sandbox, Version};
use crate::tenant::Tenant;
pub use file::Unusable;
pub use watch::Watch;

/// The live version of each tenant's plugins.
pub struct Registry {
    folder: PathBuf,
    compiler: Mutex<Compiler>,
    plugins: BTreeMap<(String, String), Plugin>,
}

struct Plugin {
    grant: Arc<Grant>,
    live: RwLock<Arc<Version>>,
    /// Why the version that its file holds is not the live one.
    refused: RwLock<Option<String>>,
}

/// Why a plugin is not live.
#[derive(Debug, thiserror::Error)]
#[error("plugin {plugin}: {path}: {why}")]
pub struct RegistryError {
    /// The plugin.
    pub plugin: String,
    /// Its file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub why: Unusable,
}

impl Registry {
    /// Admits every plugin of every tenant. Compiling is done off the calling task.
    ///
    /// # Errors
    /// A [`RegistryError`] for each that is not live.
    pub async fn load(sandbox: &Arc<Sandbox>, folder: &Path, tenants: &[Tenant]) -> Result<Self, Vec<RegistryError>> {
        let (mut compiler, folder) = (Compiler::new(sandbox), folder.to_owned());
        let tenants = tenants.to_vec();
        let loaded = tokio::task::spawn_blocking(move || {
            let (mut plugins, mut errors) = (BTreeMap::new(), Vec::new());
            for tenant in tenants {
                for (name, terms) in tenant.plugins {
                    let [own, shared] = paths(&folder, &tenant.name, &name);
                    let path = if own.symlink_metadata().is_ok() { own } else { shared };
                    match compiler.version(&folder, &path, &name, &terms.grant) {
                        Ok(version) => {
                            let (live, refused) = (RwLock::new(Arc::new(version)), RwLock::default());
                            let plugin = Plugin { grant: terms.grant, live, refused };
                            plugins.insert((tenant.name.clone(), name), plugin);
                        }
                        Err(why) => errors.push(RegistryError { plugin: name, path, why }),
                    }
                }
            }
            if errors.is_empty() { Ok(Self { folder, compiler: Mutex::new(compiler), plugins }) } else { Err(errors) }
        });
        loaded.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
    }

    /// The live version of a tenant's plugin.
    #[must_use]
    pub fn live(&self, tenant: &str, plugin: &str) -> Option<Arc<Version>> {
        self.plugins.get(&(tenant.to_owned(), plugin.to_owned())).map(Plugin::live)
    }

    /// All live versions, with their tenants.
    pub fn all(&self) -> impl Iterator<Item = (&str, Arc<Version>)> {
        self.plugins.iter().map(|((tenant, _), plugin)| (tenant.as_str(), plugin.live()))
    }

    /// Why the version in a plugin's file is not live, by `tenant/plugin`; another one runs.
    #[must_use]
    pub fn refused(&self) -> BTreeMap<String, String> {
        let refused = self.plugins.iter().filter_map(|((tenant, name), plugin)| {
            let why = plugin.refused.read().unwrap_or_else(PoisonError::into_inner).clone()?;
            Some((format!("{tenant}/{name}"), why))
        });
        refused.collect()
    }

    /// Whoever holds it compiles; nobody else does.
    fn compiler(&self) -> MutexGuard<'_, Compiler> {
        self.compiler.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Plugin {
    fn live(&self) -> Arc<Version> {
        Arc::clone(&self.live.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// From now on, calls run this version.
    fn go_live(&self, version: Version) {
        let before =
            std::mem::replace(&mut *self.live.write().unwrap_or_else(PoisonError::into_inner), Arc::new(version));
        // Outside the lock: taking down what was mapped for it takes a moment.
        drop(before);
    }

    fn refuse(&self, why: Option<String>) {
        *self.refused.write().unwrap_or_else(PoisonError::into_inner) = why;
    }
}

/// Compiles files; bytes that it has compiled not long ago, it does not compile again.
struct Compiler {
    sandbox: Arc<Sandbox>,
    /// The latest first.
    recent: Vec<Compiled>,
}

impl Compiler {
    fn new(sandbox: &Arc<Sandbox>) -> Self {
        Self { sandbox: Arc::clone(sandbox), recent: Vec::new() }
    }

    fn version(&mut self, folder: &Path, path: &Path, name: &str, grant: &Grant) -> Result<Version, Unusable> {
        let compiled = self.compile(&file::read(folder, path)?)?;
        Ok(self.sandbox.admit_compiled(name, &compiled, grant)?)
    }

    fn compile(&mut self, wasm: &[u8]) -> Result<Compiled, AdmissionError> {
        let digest = Hash::of_bytes(wasm);
        let compiled = match self.recent.iter().position(|compiled| compiled.digest == digest) {
            Some(place) => self.recent.remove(place),
            None => self.sandbox.compile(wasm)?,
        };
        self.recent.insert(0, compiled.clone());
        self.recent.truncate(RECENT_MAX);
        Ok(compiled)
    }
}

/// Where a tenant's plugin may be: its own file, which wins, and the one that all tenants share.
fn paths(folder: &Path, tenant: &str, plugin: &str) -> [PathBuf; 2] {
    let file = format!("{plugin}.wasm");
    [folder.join(tenant).join(&file), folder.join(file)]
}

/// Enough for all tenants to share what they share while they are loaded, and to go back a few versions.
const RECENT_MAX: usize = 16;
