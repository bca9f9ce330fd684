//! Keeps the live versions in step with the store, where rollbacks and what was brought by a command or by the admin API
//! are; and the store with them, where every version is that was live.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError};

use super::plugins::{Held, Key, Plugin};
use super::{Registry, Unusable};
use crate::effect::Hash;
use crate::metrics::{Metrics, SwapOutcome};
use crate::store::{Deployed, Deployment, Quarantined, StoreError};

impl Registry {
    /// Takes note of what went live, for the store.
    pub(super) fn record(&self, news: impl IntoIterator<Item = Deployment>) {
        if self.store.is_some() {
            self.unrecorded.lock().unwrap_or_else(PoisonError::into_inner).extend(news);
        }
    }

    /// Brings the store up to date, and the live versions up to what it says; returns the last deployment it told of.
    pub(super) async fn keep_in_step(self: &Arc<Self>, metrics: &Arc<Metrics>, seen: i64) -> Result<i64, StoreError> {
        let Some(store) = &self.store else { return Ok(seen) };
        loop {
            let next = self.unrecorded.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            let Some(deployment) = next else { break };
            store.deploy(deployment).await?;
        }
        let deployed = store.deployments(seen).await?;
        let last = deployed.last().map_or(seen, |deployed| deployed.seq);
        if !deployed.is_empty() {
            let (registry, metrics) = (Arc::clone(self), Arc::clone(metrics));
            let follow = tokio::task::spawn_blocking(move || {
                deployed.iter().for_each(|deployed| registry.follow(&metrics, deployed));
            });
            follow.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
        }
        self.shut_away(store.quarantined().await?);
        metrics.quarantined(self.quarantined().len());
        Ok(last)
    }

    /// Makes live what the store says is.
    fn follow(&self, metrics: &Metrics, deployed: &Deployed) {
        let Deployed { tenant, plugin: name, digest, source, .. } = deployed;
        let Some(plugin) = self.plugins().get(&(tenant.clone(), name.clone())).cloned() else { return };
        let held = Held::from(deployed);
        if plugin.live().is_some_and(|live| live.digest == *digest) {
            plugin.hold(held);
            return;
        }
        let admit = || Ok::<_, Unusable>(self.compiler.admit(name, &self.wasm(*digest)?, &plugin.terms)?);
        match admit() {
            Ok(version) => {
                plugin.go_live(version, held);
                metrics.swap(name, SwapOutcome::Live);
                tracing::info!(tenant, plugin = name, %digest, source, "plugin live");
            }
            Err(why) => {
                plugin.refuse(Some(format!("version {digest}: {why}")));
                metrics.swap(name, SwapOutcome::Refused);
                tracing::error!(tenant, plugin = name, %digest, source, reason = %why, "{NOT_FOLLOWED}");
            }
        }
    }

    /// The bytes of a version that was live once. Blocks.
    pub(super) fn wasm(&self, digest: Hash) -> Result<Vec<u8>, Unusable> {
        let Some(store) = &self.store else { return Err(Unusable::Forgotten(digest)) };
        let wasm = tokio::runtime::Handle::current().block_on(store.wasm(digest)).map_err(Unusable::Store)?;
        wasm.filter(|wasm| Hash::of_bytes(wasm) == digest).ok_or(Unusable::Forgotten(digest))
    }

    /// Those of the store are in quarantine, and no others.
    fn shut_away(&self, quarantined: Vec<Quarantined>) {
        let mut by_key: BTreeMap<Key, _> = BTreeMap::new();
        for one in quarantined {
            by_key.insert((one.tenant.clone(), one.plugin.clone()), one);
        }
        for (key, plugin) in self.plugins().iter() {
            let is_for_it = |one: &Quarantined| {
                let is_live = plugin.live().is_some_and(|live| live.digest == one.digest);
                is_live || one.is_by_operator()
            };
            let quarantined = by_key.remove(key).filter(is_for_it);
            plugin.shut_away(key, quarantined);
        }
    }
}

impl Plugin {
    /// It is in quarantine, or it is not.
    pub(super) fn shut_away(&self, (tenant, plugin): &Key, quarantined: Option<Quarantined>) {
        match self.watchman.shut_away(quarantined) {
            Some(Some(reason)) => tracing::error!(tenant, plugin, reason, "plugin quarantined: it is not run"),
            Some(None) => tracing::info!(tenant, plugin, "plugin released: it is run again"),
            None => {}
        }
    }
}

const NOT_FOLLOWED: &str = "a version is not usable any more: the running one stays";
