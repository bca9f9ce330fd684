//! Versions in the store: what is live, what it was before, what is kept.

use std::sync::Arc;

use anyhow::Result;
use pulse_notifier::effect::Hash;
use pulse_notifier::store::{Changed, Deployment, Quarantined, RegistryChange, Source, Store, VersionWish};
use tempfile::TempDir;
use tokio_util::task::TaskTracker;

struct Opened {
    store: Store,
    _folder: TempDir,
}

impl Opened {
    async fn new() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let store = Store::open(&format!("sqlite:{}/s.db", folder.path().display()), &TaskTracker::new()).await?;
        Ok(Self { store, _folder: folder })
    }

    async fn deploy(&self, tenant: &str, wasm: &str, source: Source) -> Result<bool> {
        let digest = Hash::of_bytes(wasm.as_bytes());
        let deployment = Deployment {
            tenant: tenant.into(),
            plugin: "smtp".into(),
            digest,
            wasm: Arc::new(wasm.as_bytes().to_vec()),
            source,
            is_own: false,
            file: (source == Source::File).then_some(digest),
        };
        Ok(self.store.deploy(deployment).await?.1)
    }

    async fn back(&self, to: Option<&str>) -> Result<Changed> {
        let to = to.and_then(VersionWish::new);
        let change = RegistryChange::RollBack { tenant: "red".into(), plugin: "smtp".into(), to };
        Ok(self.store.change(change).await?)
    }

    /// What is live for a tenant.
    async fn live(&self, tenant: &str) -> Result<Option<(Hash, Option<Hash>)>> {
        let deployed = self.store.deployments(0).await?.into_iter().find(|deployed| deployed.tenant == tenant);
        Ok(deployed.map(|deployed| (deployed.digest, deployed.file)))
    }
}

fn digest(text: &str) -> Hash {
    Hash::of_bytes(text.as_bytes())
}

#[tokio::test]
async fn what_is_deployed_twice_is_news_once() -> Result<()> {
    let opened = Opened::new().await?;
    assert!(opened.deploy("red", "a", Source::File).await?);
    assert!(!opened.deploy("red", "a", Source::File).await?);
    assert!(opened.deploy("blue", "a", Source::File).await?);
    assert!(opened.deploy("red", "b", Source::Api).await?);
    // By another way than the file, which still holds what it held.
    assert_eq!(opened.live("red").await?, Some((digest("b"), Some(digest("a")))));
    assert_eq!(opened.store.wasm(digest("b")).await?, Some(b"b".to_vec()));
    assert_eq!(opened.store.wasm(digest("c")).await?, None);
    Ok(())
}

#[tokio::test]
async fn each_rollback_goes_one_version_further_back_and_a_new_version_ends_that() -> Result<()> {
    let opened = Opened::new().await?;
    assert_eq!(opened.back(None).await?, Changed::No);
    for version in ["a", "b", "c"] {
        opened.deploy("red", version, Source::File).await?;
    }
    assert_eq!(opened.back(None).await?, Changed::To(digest("b")));
    assert_eq!(opened.live("red").await?, Some((digest("b"), Some(digest("c")))), "the file is no news");
    assert_eq!(opened.back(None).await?, Changed::To(digest("a")));
    assert_eq!(opened.back(None).await?, Changed::No, "there is nothing before the first");
    assert_eq!(opened.live("red").await?.map(|live| live.0), Some(digest("a")));
    opened.deploy("red", "d", Source::File).await?;
    assert_eq!(opened.back(None).await?, Changed::To(digest("a")), "what was live before it");
    let wish = digest("c").to_string();
    assert_eq!(opened.back(wish.get(..8)).await?, Changed::To(digest("c")));
    assert_eq!(opened.back(Some("00000000")).await?, Changed::No);
    assert!(VersionWish::new("12345").is_none() && VersionWish::new("' OR 1=1 --").is_none());
    Ok(())
}

#[tokio::test]
async fn old_versions_are_forgotten_and_none_that_is_live_or_one_can_go_back_to() -> Result<()> {
    let opened = Opened::new().await?;
    opened.deploy("blue", "version 0", Source::File).await?;
    for number in 0..40 {
        opened.deploy("red", &format!("version {number}"), Source::File).await?;
    }
    opened.store.prune(jiff::Timestamp::UNIX_EPOCH).await?;
    assert_eq!(opened.store.history("red", "smtp").await?.len(), 20);
    for (number, is_kept) in [(0, true), (1, false), (19, false), (20, true), (39, true)] {
        let wasm = opened.store.wasm(digest(&format!("version {number}"))).await?;
        assert_eq!(wasm.is_some(), is_kept, "version {number}");
    }
    Ok(())
}

#[tokio::test]
async fn a_version_is_in_quarantine_until_another_is_live_and_one_of_those_who_ask_may_probe() -> Result<()> {
    let opened = Opened::new().await?;
    opened.deploy("red", "a", Source::File).await?;
    let quarantined = |version: &str, probe_ms| {
        RegistryChange::Quarantine(Quarantined {
            tenant: "red".into(),
            plugin: "smtp".into(),
            digest: digest(version),
            reason: "trap".into(),
            since_ms: 1,
            probe_ms,
            probes: 0,
        })
    };
    let probe = || RegistryChange::Probe {
        tenant: "red".into(),
        plugin: "smtp".into(),
        digest: digest("a"),
        next_ms: i64::MAX,
    };
    assert_eq!(opened.store.change(probe()).await?, Changed::No);
    assert_eq!(opened.store.change(quarantined("a", Some(2))).await?, Changed::Yes);
    assert_eq!(opened.store.change(quarantined("a", Some(3))).await?, Changed::No);
    assert_eq!(opened.store.change(probe()).await?, Changed::Yes);
    assert_eq!(opened.store.change(probe()).await?, Changed::No, "it is not time for another");
    assert_eq!(opened.store.quarantined().await?.len(), 1);
    opened.deploy("red", "b", Source::File).await?;
    assert!(opened.store.quarantined().await?.is_empty());
    opened.store.change(quarantined("b", None)).await?;
    assert_eq!(opened.store.change(probe()).await?, Changed::No, "a person ordered it");
    let release =
        |is_by_operator| RegistryChange::Release { tenant: "red".into(), plugin: "smtp".into(), is_by_operator };
    assert_eq!(opened.store.change(release(false)).await?, Changed::Yes);
    assert_eq!(opened.store.change(release(false)).await?, Changed::No);
    let RegistryChange::Quarantine(one) = quarantined("b", None) else { anyhow::bail!("another change") };
    let ordered = Quarantined { reason: Quarantined::BY_OPERATOR.into(), ..one };
    opened.store.change(RegistryChange::Quarantine(ordered)).await?;
    assert_eq!(opened.store.change(release(false)).await?, Changed::No, "that is not the tenant's to end");
    assert_eq!(opened.store.change(release(true)).await?, Changed::Yes);
    Ok(())
}
