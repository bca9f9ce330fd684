//! Which version of each plugin is live. Enters: `.wasm` files. Leaves: admitted, compiled versions.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::sandbox::{AdmissionError, Sandbox, Version};
use crate::tenant::Tenant;

/// The live version of each tenant's plugins.
pub struct Registry {
    live: BTreeMap<(String, String), Arc<Version>>,
}

/// Why a plugin is not live.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// There is no such file, or it cannot be read.
    #[error("plugin {plugin}: read {path}: {source}")]
    Read {
        /// The plugin.
        plugin: String,
        /// Where it was looked for.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// It was not let in.
    #[error("plugin {plugin}: {path}: {source}")]
    Admission {
        /// The plugin.
        plugin: String,
        /// Its file.
        path: PathBuf,
        /// Why.
        source: AdmissionError,
    },
}

impl Registry {
    /// Admits every plugin of every tenant. Compiling is done off the calling task.
    ///
    /// # Errors
    /// A [`RegistryError`] for each that is not live.
    pub async fn load(sandbox: &Arc<Sandbox>, folder: &Path, tenants: &[Tenant]) -> Result<Self, Vec<RegistryError>> {
        let (sandbox, folder, tenants) = (Arc::clone(sandbox), folder.to_owned(), tenants.to_vec());
        let loaded = tokio::task::spawn_blocking(move || {
            let mut live = BTreeMap::new();
            let mut errors = Vec::new();
            for tenant in &tenants {
                for (plugin, terms) in &tenant.plugins {
                    match admit(&sandbox, &folder, plugin, &terms.grant) {
                        Ok(version) => _ = live.insert((tenant.name.clone(), plugin.clone()), Arc::new(version)),
                        Err(error) => errors.push(error),
                    }
                }
            }
            if errors.is_empty() { Ok(Self { live }) } else { Err(errors) }
        });
        loaded.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
    }

    /// The live version of a tenant's plugin.
    #[must_use]
    pub fn live(&self, tenant: &str, plugin: &str) -> Option<Arc<Version>> {
        self.live.get(&(tenant.to_owned(), plugin.to_owned())).map(Arc::clone)
    }

    /// All live versions, with their tenants.
    pub fn all(&self) -> impl Iterator<Item = (&str, &Version)> {
        self.live.iter().map(|((tenant, _), version)| (tenant.as_str(), &**version))
    }
}

fn admit(
    sandbox: &Sandbox,
    folder: &Path,
    plugin: &str,
    grant: &crate::grant::Grant,
) -> Result<Version, RegistryError> {
    let path = folder.join(format!("{plugin}.wasm"));
    let wasm = std::fs::read(&path).map_err(|source| RegistryError::Read {
        plugin: plugin.into(),
        path: path.clone(),
        source,
    })?;
    sandbox.admit(plugin, &wasm, grant).map_err(|source| RegistryError::Admission {
        plugin: plugin.into(),
        path,
        source,
    })
}
