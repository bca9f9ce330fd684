//! Which version of each plugin is live. Enters: `.wasm` files. Leaves: admitted, compiled versions.
//!
//! Who runs can change at any moment, and so can what: one pointer to all plugins, one in each to its version. Calls in
//! flight keep the version they began with.

mod cache;
mod child;
mod compiler;
mod file;
mod news;
mod plugins;
mod watch;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use crate::sandbox::Version;
use crate::tenant::Tenant;
pub use child::EXIT_REFUSED;
pub use compiler::{Compiler, Terms};
pub use file::Unusable;
use news::News;
pub use plugins::Admitted;
use plugins::Plugins;
pub use watch::Watch;

/// The live version of each tenant's plugins.
pub struct Registry {
    folder: PathBuf,
    compiler: Mutex<Compiler>,
    plugins: RwLock<Arc<Plugins>>,
    /// Something has happened to the plugins or their files.
    news: News,
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
    pub why: Unusable,
}

impl Registry {
    /// Admits every plugin of every tenant. Compiling is done off the calling task.
    ///
    /// # Errors
    /// A [`RegistryError`] for each that is not live.
    pub async fn load(compiler: Compiler, folder: &Path, tenants: &[Tenant]) -> Result<Arc<Self>, Vec<RegistryError>> {
        let compiler = Mutex::new(compiler);
        let (plugins, news) = (RwLock::default(), News::default());
        let registry = Arc::new(Self { folder: folder.to_owned(), compiler, plugins, news });
        registry.go_live(registry.admit(tenants).await?);
        Ok(registry)
    }

    /// The live version of a tenant's plugin.
    #[must_use]
    pub fn live(&self, tenant: &str, plugin: &str) -> Option<Arc<Version>> {
        self.plugins().get(&(tenant.to_owned(), plugin.to_owned()))?.live()
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
            .filter_map(|((tenant, name), plugin)| plugin.refused().map(|why| (format!("{tenant}/{name}"), why)));
        refused.collect()
    }

    /// Whoever holds it compiles; nobody else does.
    fn compiler(&self) -> MutexGuard<'_, Compiler> {
        self.compiler.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where a tenant's plugin may be: its own file, which wins, and the one that all tenants share.
fn paths(folder: &Path, tenant: &str, plugin: &str) -> [PathBuf; 2] {
    let file = format!("{plugin}.wasm");
    [folder.join(tenant).join(&file), folder.join(file)]
}
