//! Keeps the live versions in step with the store, where rollbacks and what was brought by a command or by the admin API
//! are; and the store with them, where every version is that was live.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

use super::plugins::{Held, Key, Plugin, Refusal, Standing};
use super::{Registry, Unusable};
use crate::effect::Hash;
use crate::metrics::{Metrics, SwapOutcome};
use crate::store::{Deployed, Deployment, Quarantined, StoreError};

impl Registry {
    /// Takes note of what went live, for the store.
    pub(super) fn record(&self, news: impl IntoIterator<Item = Deployment>) {
        if self.store.is_some() {
            self.unrecorded().extend(news);
            self.news.heard_of_store();
        }
    }

    fn unrecorded(&self) -> MutexGuard<'_, VecDeque<Deployment>> {
        self.unrecorded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the store up to date, and the live versions up to what it says.
    pub(super) async fn stay_in_step(self: Arc<Self>, metrics: &Arc<Metrics>) {
        let (mut steps, mut is_in_step) = (Steps::default(), true);
        loop {
            match self.keep_in_step(metrics, &mut steps).await {
                Ok(()) => is_in_step = true,
                // Once, and not four times a second.
                Err(error) => {
                    if std::mem::take(&mut is_in_step) {
                        tracing::warn!(%error, "plugins are not in step with the database until it can be read again");
                    }
                }
            }
            drop(tokio::time::timeout(STEP_EVERY, self.news.for_store()).await);
        }
    }

    /// Brings the store up to date, and the live versions up to what it says.
    async fn keep_in_step(self: &Arc<Self>, metrics: &Arc<Metrics>, steps: &mut Steps) -> Result<(), StoreError> {
        let Some(store) = &self.store else { return Ok(()) };
        loop {
            // It stays there until it is in the store: until then nothing that the store tells of is later.
            let next = self.unrecorded().front().cloned();
            let Some(deployment) = next else { break };
            let kept = store.deploy(deployment).await;
            if !matches!(kept, Err(StoreError::Closed | StoreError::Busy)) {
                self.unrecorded().pop_front();
            }
            kept?;
        }
        if self.is_to_follow_anew.swap(false, Ordering::Relaxed) {
            steps.seen = 0;
        }
        let deployed = store.deployments(steps.seen).await?;
        steps.seen = deployed.last().map_or(steps.seen, |deployed| deployed.seq);
        steps.next.extend(deployed);
        // Whatever is compiled for it, what is live is recorded and what is quarantined is not run.
        if let Some(followed) = steps.following.take_if(|following| following.is_finished()) {
            steps.later(followed.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic())));
        }
        if steps.following.is_none() {
            let deployed = steps.due();
            if !deployed.is_empty() {
                let (registry, metrics) = (Arc::clone(self), Arc::clone(metrics));
                steps.following = Some(tokio::task::spawn_blocking(move || {
                    let follows = |deployed: &Deployed| registry.follow(&metrics, deployed);
                    deployed.into_iter().filter(|deployed| !follows(deployed)).collect()
                }));
            }
        }
        self.shut_away(store.quarantined().await?);
        metrics.quarantined(self.quarantined().len());
        Ok(())
    }

    /// All that the store says is live is followed once more.
    pub(super) fn follow_anew(&self) {
        self.is_to_follow_anew.store(true, Ordering::Relaxed);
        self.news.heard_of_store();
    }

    /// Makes live what the store says is, unless something later is; whether nothing is left to do.
    fn follow(&self, metrics: &Metrics, deployed: &Deployed) -> bool {
        let Deployed { seq, tenant, plugin: name, digest, source, .. } = deployed;
        let Some(plugin) = self.plugins().get(&(tenant.clone(), name.clone())).cloned() else { return true };
        let is_for_it = |one: &Deployment| (&one.tenant, &one.plugin) == (tenant, name);
        // What its file brought meanwhile is later too, and told of in its turn.
        let is_over = |standing: &Standing| *seq <= standing.seq || self.unrecorded().iter().any(is_for_it);
        let is_there = plugin.change(|standing| {
            let is_live = standing.digest() == Some(*digest);
            if is_live && !is_over(standing) {
                (standing.held, standing.seq, standing.refused) = (Held::from(deployed), *seq, None);
            }
            is_live || is_over(standing)
        });
        if is_there {
            return true;
        }
        let admit = || Ok::<_, Unusable>(self.compiler.admit(name, &self.wasm(*digest)?, &plugin.terms)?);
        match admit() {
            Ok(version) => {
                let went = plugin.change(|standing| {
                    let is_next = !is_over(standing);
                    if is_next {
                        let (live, held) = (Some(Arc::new(version)), Held::from(deployed));
                        *standing = Standing { live, refused: None, held, seq: *seq };
                    }
                    is_next
                });
                if went {
                    metrics.swap(name, SwapOutcome::Live);
                    tracing::info!(tenant, plugin = name, %digest, source, "plugin live");
                }
                true
            }
            Err(why) => {
                let is_passing = why.is_passing();
                let refusal = Refusal { why: format!("version {digest}: {why}"), is_passing };
                let is_news = plugin.change(|standing| {
                    let is_news = !is_over(standing) && standing.refused.as_ref() != Some(&refusal);
                    if is_news {
                        standing.refused = Some(refusal);
                    }
                    if !is_passing {
                        standing.seq = standing.seq.max(*seq);
                    }
                    is_news
                });
                if is_news {
                    metrics.swap(name, SwapOutcome::Refused);
                    tracing::error!(tenant, plugin = name, %digest, source, reason = %why, "{NOT_FOLLOWED}");
                }
                !is_passing
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
            let is_for_it = |one: &Quarantined| plugin.digest() == Some(one.digest) || one.is_by_operator();
            let quarantined = by_key.remove(key).filter(is_for_it);
            plugin.shut_away(key, quarantined);
        }
    }
}

/// How far the store has been followed.
#[derive(Default)]
struct Steps {
    /// The last deployment it told of.
    seen: i64,
    /// What is to be followed next.
    next: Vec<Deployed>,
    /// What is being followed ends with what could not be.
    following: Option<JoinHandle<Vec<Deployed>>>,
    /// What could not be followed, for a reason that may pass; when it is tried again, and after which wait then.
    put_off: Vec<Deployed>,
    again: Option<Instant>,
    wait: Duration,
}

impl Steps {
    /// What is to be followed now, with what was put off when it is time for that.
    fn due(&mut self) -> Vec<Deployed> {
        let mut due = std::mem::take(&mut self.next);
        if self.again.is_some_and(|again| again <= Instant::now()) {
            due.append(&mut self.put_off);
        }
        due
    }

    /// These are tried again a while later, each time after a longer one.
    fn later(&mut self, more: Vec<Deployed>) {
        if !more.is_empty() {
            self.wait = (self.wait * 2).clamp(STEP_EVERY * 4, LONGEST_WAIT);
            self.again = Some(Instant::now() + self.wait);
        } else if self.put_off.is_empty() {
            (self.again, self.wait) = (None, Duration::ZERO);
        }
        let is_of = |one: &Deployed, other: &Deployed| (&one.tenant, &one.plugin) == (&other.tenant, &other.plugin);
        self.put_off.retain(|old| !more.iter().any(|new| is_of(old, new)));
        self.put_off.extend(more);
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

const NOT_FOLLOWED: &str = "a version is not usable: what runs, if anything does, stays";
/// How often the store is asked what is new: a rollback is live within a second.
const STEP_EVERY: Duration = Duration::from_millis(250);
/// For so long at most nothing is done about what could not be followed.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
