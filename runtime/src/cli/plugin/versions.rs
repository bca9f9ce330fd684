//! `plugin list`, `inspect`, `deploy`, `rollback`, `quarantine`, `release`: what runs, and what shall. All of it is in the
//! database; a service that runs follows within a second, and one that does not at its next start.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, bail};
use clap::Args;
use tokio_util::task::TaskTracker;

use crate::cli::ConfigFile;
use crate::cli::render::{moment, printable_lines};
use crate::config::{Config, Environment};
use crate::effect::Hash;
use crate::registry::{Compiler, Terms, read_component};
use crate::sandbox::Sandbox;
use crate::store::{self, Changed, Deployed, Deployment, Quarantined, RegistryChange, Store, VersionWish, now_ms};
use crate::tenant::Tenant;

/// Which plugin, and whose.
#[derive(Args)]
pub(in crate::cli) struct Which {
    /// The plugin's name
    plugin: String,
    /// For this tenant alone; without it, for all that have the plugin
    #[arg(long)]
    tenant: Option<String>,
    #[command(flatten)]
    config_file: ConfigFile,
}

#[derive(Args)]
pub(in crate::cli) struct ListArguments {
    /// Of this tenant alone
    #[arg(long)]
    tenant: Option<String>,
    #[command(flatten)]
    config_file: ConfigFile,
}

#[derive(Args)]
pub(in crate::cli) struct DeployArguments {
    /// The plugin's .wasm file
    file: PathBuf,
    /// For this tenant alone; without it, for all that have the plugin
    #[arg(long)]
    tenant: Option<String>,
    /// The plugin's name, when it is not the file's
    #[arg(long)]
    name: Option<String>,
    #[command(flatten)]
    config_file: ConfigFile,
}

#[derive(Args)]
pub(in crate::cli) struct RollbackArguments {
    #[command(flatten)]
    which: Which,
    /// To this version: its digest, or at least the first eight digits of it; without it, to the one before
    #[arg(long, value_name = "DIGEST", value_parser = wish)]
    to: Option<VersionWish>,
}

fn wish(text: &str) -> Result<VersionWish, String> {
    VersionWish::new(text).ok_or_else(|| "expected 8 to 64 hexadecimal digits".to_owned())
}

/// The configuration and the database it names.
struct Opened {
    config: Config,
    store: Store,
    writer: TaskTracker,
}

impl Opened {
    async fn new(config_file: &ConfigFile, environment: &Environment) -> anyhow::Result<Self> {
        let config = config_file.read(environment)?;
        let writer = TaskTracker::new();
        let store = Store::open(&config.store, &writer).await?;
        Ok(Self { config, store, writer })
    }

    /// The tenants that have a plugin.
    fn tenants(&self, plugin: &str, tenant: Option<&str>) -> anyhow::Result<Vec<&Tenant>> {
        let all = self.config.tenants.iter();
        if let Some(name) = tenant
            && all.clone().all(|tenant| tenant.name != name)
        {
            bail!("--tenant: expected one of {}, found {name:?}", joined(all.map(|tenant| tenant.name.as_str())));
        }
        let is_meant = |one: &&Tenant| tenant.is_none_or(|name| one.name == name);
        let found: Vec<_> = all.filter(is_meant).filter(|tenant| tenant.plugins.contains_key(plugin)).collect();
        if found.is_empty() {
            let known = self.config.tenants.iter().filter(is_meant).flat_map(|tenant| tenant.plugins.keys());
            bail!("expected one of the plugins {}, found {plugin:?}", joined(known.map(String::as_str)));
        }
        Ok(found)
    }

    async fn deployed(&self) -> anyhow::Result<BTreeMap<(String, String), Deployed>> {
        let deployed = self.store.deployments(0).await?;
        Ok(deployed.into_iter().map(|one| ((one.tenant.clone(), one.plugin.clone()), one)).collect())
    }

    async fn quarantined(&self) -> anyhow::Result<BTreeMap<(String, String), Quarantined>> {
        let quarantined = self.store.quarantined().await?;
        Ok(quarantined.into_iter().map(|one| ((one.tenant.clone(), one.plugin.clone()), one)).collect())
    }

    /// Whatever was written is on disk.
    async fn close(self) {
        drop(self.store);
        self.writer.close();
        self.writer.wait().await;
    }
}

fn joined<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let mut names: Vec<_> = names.collect();
    names.sort_unstable();
    names.dedup();
    names.join(", ")
}

fn short(digest: Hash) -> String {
    digest.to_string().chars().take(12).collect()
}

pub(super) async fn list(arguments: &ListArguments, environment: &Environment) -> anyhow::Result<()> {
    let opened = Opened::new(&arguments.config_file, environment).await?;
    let (deployed, quarantined) = (opened.deployed().await?, opened.quarantined().await?);
    for tenant in &opened.config.tenants {
        for plugin in tenant.plugins.keys() {
            if arguments.tenant.as_ref().is_some_and(|name| *name != tenant.name) {
                continue;
            }
            let key = (tenant.name.clone(), plugin.clone());
            let state = match deployed.get(&key) {
                Some(one) => format!("{} since {} by {}", short(one.digest), moment(one.since_ms), one.source),
                None => "has not run yet".to_owned(),
            };
            let is_own = if deployed.get(&key).is_some_and(|one| one.is_own) { ", its own" } else { "" };
            let is_quarantined = if quarantined.contains_key(&key) { ", quarantined" } else { "" };
            say!("{}/{plugin}  {state}{is_own}{is_quarantined}", tenant.name);
        }
    }
    opened.close().await;
    Ok(())
}

pub(super) async fn inspect(which: &Which, environment: &Environment) -> anyhow::Result<()> {
    let opened = Opened::new(&which.config_file, environment).await?;
    let sandbox = Sandbox::start()?;
    let compiler = Compiler::new(&sandbox).with_cache(&opened.config.cache);
    let (deployed, quarantined) = (opened.deployed().await?, opened.quarantined().await?);
    for tenant in opened.tenants(&which.plugin, which.tenant.as_deref())? {
        let key = (tenant.name.clone(), which.plugin.clone());
        say!("{}/{}", tenant.name, which.plugin);
        let Some(live) = deployed.get(&key) else {
            say!("  has not run yet");
            continue;
        };
        say!("  version      {}", live.digest);
        if let (Some(wasm), Some(terms)) = (opened.store.wasm(live.digest).await?, tenant.plugins.get(&which.plugin)) {
            say!("  size         {} bytes", wasm.len());
            match compiler.admit(&which.plugin, &wasm, &Terms::of(terms)) {
                Ok(version) => say!("  imports      {}", version.imports.join(", ")),
                Err(why) => say!("  refused      {}", printable_lines(&why.to_string())),
            }
        }
        if let Some(one) = quarantined.get(&key) {
            let probes = if one.probe_ms.is_some() { format!(", {} probes", one.probes) } else { String::new() };
            say!("  quarantined  since {}{probes}: {}", moment(one.since_ms), printable_lines(&one.reason));
        }
        for fault in opened.store.last_faults(&tenant.name, &which.plugin, live.digest, FAULTS_SHOWN).await? {
            say!("  fault        task {}: {}", fault.task_id, printable_lines(&fault.reason));
        }
        for (place, kept) in opened.store.history(&tenant.name, &which.plugin).await?.iter().enumerate() {
            let title = if place == 0 { "live" } else { "before" };
            let whose = if kept.is_own { "its own" } else { "shared" };
            let since = moment(kept.since_ms);
            say!("  {title:<12} {}  since {since} by {}, {whose}, {} bytes", kept.digest, kept.source, kept.bytes);
        }
    }
    opened.close().await;
    Ok(())
}

pub(super) async fn deploy(arguments: &DeployArguments, environment: &Environment) -> anyhow::Result<()> {
    let opened = Opened::new(&arguments.config_file, environment).await?;
    let file = &arguments.file;
    let of_file = || file.file_stem().and_then(|name| name.to_str()).map(str::to_owned);
    let plugin = arguments.name.clone().or_else(of_file).context("expected a file NAME.wasm, or --name NAME")?;
    let tenants = opened.tenants(&plugin, arguments.tenant.as_deref())?;
    let most = tenants.iter().filter_map(|tenant| tenant.plugins.get(&plugin));
    let most = most.map(|terms| terms.limits.component.bytes_max).max().unwrap_or_default();
    let wasm = Arc::new(read_component(file, most).map_err(|why| anyhow::anyhow!("{}: {why}", file.display()))?);
    let digest = Hash::of_bytes(&wasm);
    let sandbox = Sandbox::start()?;
    let compiler = Compiler::new(&sandbox).with_cache(&opened.config.cache);
    // All of them, before anything changes for one.
    for tenant in &tenants {
        let Some(terms) = tenant.plugins.get(&plugin) else { continue };
        if let Err(why) = compiler.admit(&plugin, &wasm, &Terms::of(terms)) {
            bail!("{}: refused for tenant {}: {why}", file.display(), tenant.name);
        }
    }
    for tenant in &tenants {
        let is_new = opened.store.deploy(Deployment {
            tenant: tenant.name.clone(),
            plugin: plugin.clone(),
            digest,
            wasm: Arc::clone(&wasm),
            source: store::Source::Cli,
            is_own: arguments.tenant.is_some(),
            file: None,
        });
        match is_new.await?.1 {
            true => say!("{}/{plugin}  {digest}", tenant.name),
            false => say!("{}/{plugin}  {digest} was live already", tenant.name),
        }
    }
    opened.close().await;
    Ok(())
}

pub(super) async fn roll_back(arguments: &RollbackArguments, environment: &Environment) -> anyhow::Result<()> {
    let RollbackArguments { which, to } = arguments;
    let opened = Opened::new(&which.config_file, environment).await?;
    let mut none = Vec::new();
    if let Some(wish) = to {
        // All of them, before anything changes for one.
        for tenant in opened.tenants(&which.plugin, which.tenant.as_deref())? {
            let kept = opened.store.history(&tenant.name, &which.plugin).await?;
            if !kept.iter().any(|kept| kept.digest.to_string().starts_with(wish.as_str())) {
                none.push(tenant.name.clone());
            }
        }
        if !none.is_empty() {
            let (plugin, tenants) = (&which.plugin, none.join(", "));
            bail!(
                "--to: expected a version of {plugin} that was live, found none such for {tenants}: nothing is changed"
            );
        }
    }
    for tenant in opened.tenants(&which.plugin, which.tenant.as_deref())? {
        let (name, plugin, to) = (tenant.name.clone(), which.plugin.clone(), to.clone());
        let change = RegistryChange::RollBack { tenant: name, plugin, to };
        match opened.store.change(change).await? {
            Changed::To(digest) => say!("{}/{}  {digest}", tenant.name, which.plugin),
            Changed::No | Changed::Yes | Changed::Live { .. } => none.push(tenant.name.clone()),
        }
    }
    opened.close().await;
    if !none.is_empty() {
        let (plugin, tenants) = (&which.plugin, none.join(", "));
        bail!(
            "expected a version before the live one of {plugin}, found none for {tenants}, where nothing is changed: \
             `pulse-notifier plugin inspect {plugin}` lists them all, for --to"
        );
    }
    Ok(())
}

pub(super) async fn quarantine(which: &Which, environment: &Environment) -> anyhow::Result<()> {
    let opened = Opened::new(&which.config_file, environment).await?;
    let (deployed, mut none) = (opened.deployed().await?, Vec::new());
    for tenant in opened.tenants(&which.plugin, which.tenant.as_deref())? {
        let (name, plugin) = (tenant.name.clone(), which.plugin.clone());
        let Some(live) = deployed.get(&(name.clone(), plugin.clone())) else {
            none.push(name);
            continue;
        };
        let (digest, reason) = (live.digest, Quarantined::BY_OPERATOR.to_owned());
        let one = Quarantined { tenant: name, plugin, digest, reason, since_ms: now_ms(), probe_ms: None, probes: 0 };
        opened.store.change(RegistryChange::Quarantine(one)).await?;
        say!("{}/{}  quarantined", tenant.name, which.plugin);
    }
    opened.close().await;
    if !none.is_empty() {
        let (plugin, tenants) = (&which.plugin, none.join(", "));
        bail!("expected a version of {plugin} that has run, found none for {tenants}: it is not quarantined there");
    }
    Ok(())
}

pub(super) async fn release(which: &Which, environment: &Environment) -> anyhow::Result<()> {
    let opened = Opened::new(&which.config_file, environment).await?;
    for tenant in opened.tenants(&which.plugin, which.tenant.as_deref())? {
        let (name, plugin) = (tenant.name.clone(), which.plugin.clone());
        let change = RegistryChange::Release { tenant: name, plugin, is_by_operator: true };
        match opened.store.change(change).await? {
            Changed::Yes | Changed::To(_) | Changed::Live { .. } => say!("{}/{}  released", tenant.name, which.plugin),
            Changed::No => say!("{}/{}  was not quarantined", tenant.name, which.plugin),
        }
    }
    opened.close().await;
    Ok(())
}

const FAULTS_SHOWN: u32 = 5;
