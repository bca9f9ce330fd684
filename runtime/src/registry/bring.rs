//! A version that is brought to a running service, rather than put into the plugin directory.

use std::sync::Arc;

use super::plugins::{Held, Standing};
use super::{Registry, Unusable};
use crate::effect::Hash;
use crate::store::{Deployment, Source};

/// Why a version that was brought is not live.
#[derive(Debug, thiserror::Error)]
pub enum BringError {
    /// The tenant has no such plugin.
    #[error("no such plugin")]
    NoPlugin,
    /// It was not let in, or could not be kept.
    #[error(transparent)]
    Unusable(#[from] Unusable),
}

impl Registry {
    /// Makes a version live for one tenant, once it is in the store; its digest, and whether it is news. Compiling is
    /// done off the calling task, and for each tenant one at a time.
    ///
    /// # Errors
    /// [`BringError`]; then nothing has changed.
    pub async fn bring(
        self: &Arc<Self>,
        tenant: &str,
        name: &str,
        wasm: Vec<u8>,
        source: Source,
    ) -> Result<(Hash, bool), BringError> {
        let (Some(plugin), Some(store)) = (self.plugin(tenant, name), &self.store) else {
            return Err(BringError::NoPlugin);
        };
        let _turn = self.bringing.take(tenant).await;
        let (registry, wasm, terms) = (Arc::clone(self), Arc::new(wasm), plugin.terms.clone());
        let admit = {
            let (name, wasm) = (name.to_owned(), Arc::clone(&wasm));
            tokio::task::spawn_blocking(move || registry.compiler.admit(&name, &wasm, &terms))
        };
        let version = admit.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
        let version = version.map_err(Unusable::from)?;
        let digest = version.digest;
        let (tenant, name) = (tenant.to_owned(), name.to_owned());
        let deployment =
            Deployment { tenant: tenant.clone(), plugin: name.clone(), digest, wasm, source, is_own: true, file: None };
        let (seq, is_news) = store.deploy(deployment).await.map_err(Unusable::Store)?;
        let went = plugin.change(|standing| {
            // Unless the store has told of a later one by now.
            let is_next = standing.digest() != Some(digest) && standing.seq <= seq;
            if is_next {
                let held = Held { is_own: true, is_brought: true, ..standing.held };
                *standing = Standing { live: Some(Arc::new(version)), refused: None, held, seq };
            }
            is_next
        });
        if went {
            tracing::info!(tenant, plugin = name, %digest, source = source.name(), "plugin live");
        }
        // Where it came from is in the store, and so is whatever went live meanwhile.
        self.wake();
        Ok((digest, is_news))
    }
}
