//! Swaps versions while the service runs. Enters: files that come, change and go. Leaves: live versions, and reasons why
//! not.
//!
//! A file is read once it has been quiet, and is live once it is admitted.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio_util::sync::CancellationToken;

use super::file::{self, Unusable};
use super::plugins::{Plugin, Plugins};
use super::{Registry, paths};
use crate::effect::Hash;
use crate::files::{GATHER, LOOK_EVERY, Print, QUIET, Seen, Turn, listen};
use crate::metrics::{Metrics, SwapOutcome};

/// Watches the files of all plugins.
pub struct Watch {
    registry: Arc<Registry>,
    metrics: Arc<Metrics>,
    /// Those whose files are watched.
    plugins: Arc<Plugins>,
    files: BTreeMap<PathBuf, Watched>,
    /// Tells of changes at once; none where the system has no room for another.
    system: Option<RecommendedWatcher>,
}

/// One file of a plugin: a tenant's own, or the one that tenants without their own share.
struct Watched {
    plugin: String,
    tenants: Vec<String>,
    /// As it was last seen; none when it is not there.
    seen: Seen<Option<Print>, Unusable>,
    /// When it came to be so.
    dropped: Instant,
}

impl Watch {
    /// Watches for the plugins of a registry; nothing happens before [`Watch::run`].
    #[must_use]
    pub fn new(registry: Arc<Registry>, metrics: Arc<Metrics>) -> Self {
        Self { registry, metrics, plugins: Arc::default(), files: BTreeMap::new(), system: None }
    }

    /// Watches until asked to stop. Files are read and compiled off the calling task, one after the other.
    pub async fn run(mut self, stop: CancellationToken) {
        let news = Arc::clone(&self.registry.news);
        self.system = hear(&self.registry);
        loop {
            let look = tokio::task::spawn_blocking(move || {
                self.keep_up();
                self.listen_to_folders();
                let next = self.look();
                (self, next)
            });
            let looked = tokio::select! {
                // What is being compiled comes to nothing.
                () = stop.cancelled() => return,
                looked = look => looked.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic())),
            };
            self = looked.0;
            let heard = async {
                news.notified().await;
                // Much may happen to one file: it is looked at once.
                tokio::time::sleep(GATHER).await;
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = heard => {}
                () = tokio::time::sleep(looked.1) => {}
            }
        }
    }

    /// Plugins come and go, and their terms change: what their files hold may go live now.
    fn keep_up(&mut self) {
        let plugins = self.registry.plugins();
        let before = std::mem::replace(&mut self.plugins, Arc::clone(&plugins));
        if Arc::ptr_eq(&before, &plugins) {
            return;
        }
        let mut old = std::mem::take(&mut self.files);
        for (key, plugin) in plugins.iter() {
            let (tenant, name) = key;
            let is_same = before.get(key).is_some_and(|before| Arc::ptr_eq(before, plugin));
            for path in paths(&self.registry.folder, tenant, name) {
                let watched = self.files.entry(path).or_insert_with_key(|path| Watched {
                    tenants: Vec::new(),
                    ..old.remove(path).unwrap_or_else(|| Watched::absent(name))
                });
                watched.tenants.push(tenant.clone());
                if !is_same && plugin.live().is_some() && watched.seen.print.is_some() {
                    watched.dropped = Instant::now();
                    watched.seen.again();
                }
            }
        }
    }

    /// Folders can come and be replaced. To listen twice to the same one is to listen once.
    fn listen_to_folders(&mut self) {
        let Some(system) = &mut self.system else { return };
        let mut folders: Vec<_> = self.files.keys().filter_map(|path| path.parent()).collect();
        folders.push(&self.registry.folder);
        folders.dedup();
        for folder in folders.into_iter().filter(|folder| folder.is_dir()) {
            if let Err(error) = system.watch(folder, RecursiveMode::NonRecursive) {
                tracing::warn!(?folder, %error, every = ?LOOK_EVERY, "changes there are only looked for");
            }
        }
    }

    /// Looks at every file; how long until there is something to look at again.
    fn look(&mut self) -> Duration {
        let Self { registry, metrics, files, .. } = self;
        let mut next = LOOK_EVERY;
        for (path, watched) in files {
            watched.see(Print::of(path));
            match watched.seen.turn(QUIET) {
                Turn::Rest => {}
                Turn::Take => match take(registry, metrics, path, watched) {
                    Ok(()) => {}
                    Err(Unusable::Changing) => watched.seen.unfinished(),
                    Err(why) => watched.seen.doubt(why),
                },
                Turn::Refuse(why) => refuse(registry, metrics, path, watched, &why),
            }
            next = watched.seen.next(QUIET).map_or(next, |again| next.min(again));
        }
        next
    }
}

impl Watched {
    fn absent(plugin: &str) -> Self {
        let (plugin, tenants) = (plugin.to_owned(), Vec::new());
        Self { plugin, tenants, seen: Seen::settled(None), dropped: Instant::now() }
    }

    fn see(&mut self, print: Option<Print>) {
        if self.seen.see(print) {
            let now = Instant::now();
            // A file that is much older has come by way of a link.
            let age = print.and_then(|print| print.age()).filter(|age| *age < LOOK_EVERY);
            self.dropped = age.and_then(|age| now.checked_sub(age)).unwrap_or(now);
        }
    }

    /// The plugins this file is for, with their tenants: a tenant's own file wins over the shared one.
    fn plugins(&self, registry: &Registry, path: &Path) -> Vec<(&str, Arc<Plugin>)> {
        let plugins = registry.plugins();
        let is_for = |tenant: &str| {
            let [own, _] = paths(&registry.folder, tenant, &self.plugin);
            own == path || own.symlink_metadata().is_err()
        };
        let plugin = |tenant: &String| plugins.get(&(tenant.clone(), self.plugin.clone())).cloned();
        let tenants = self.tenants.iter().filter(|tenant| is_for(tenant));
        tenants.filter_map(|tenant| Some((tenant.as_str(), plugin(tenant)?))).collect()
    }
}

/// Has the system wake us.
fn hear(registry: &Arc<Registry>) -> Option<RecommendedWatcher> {
    let registry = Arc::clone(registry);
    listen("plugins", move |paths| {
        let is_plugin = |path: &&PathBuf| path.extension().is_some_and(|extension| extension == "wasm");
        for path in paths.iter().filter(is_plugin).filter(|path| !is_known(&registry, path)) {
            tracing::debug!(?path, "no tenant has a plugin of this name: ignored");
        }
        registry.news.notify_one();
    })
}

fn is_known(registry: &Registry, path: &Path) -> bool {
    let name = path.file_stem();
    registry.plugins().keys().any(|(_, plugin)| name.is_some_and(|name| name == plugin.as_str()))
}

/// Makes a file's version live wherever it may run; why it can run nowhere.
fn take(registry: &Registry, metrics: &Metrics, path: &Path, watched: &Watched) -> Result<(), Unusable> {
    let name = &watched.plugin;
    let plugins = watched.plugins(registry, path);
    if plugins.is_empty() {
        return Ok(());
    }
    if watched.seen.print.is_none() {
        tracing::warn!(plugin = name, path = %path.display(), "a plugin's file is gone: its running version stays");
        plugins.iter().filter(|(_, plugin)| plugin.live().is_some()).for_each(|(_, plugin)| plugin.refuse(None));
        return Ok(());
    }
    let wasm = file::read(&registry.folder, path)?;
    let digest = Hash::of_bytes(&wasm);
    let (same, new): (Vec<_>, Vec<_>) =
        plugins.into_iter().partition(|(_, plugin)| plugin.live().is_some_and(|live| live.digest == digest));
    for (tenant, plugin) in same {
        plugin.refuse(None);
        tracing::debug!(tenant, plugin = name, %digest, "this version is live already");
    }
    if new.is_empty() {
        return Ok(());
    }
    let mut compiler = registry.compiler();
    let compiled = compiler.compile(&wasm)?;
    for (tenant, plugin) in new {
        match compiler.sandbox.admit_compiled(name, &compiled, &plugin.grant) {
            Ok(version) => {
                plugin.go_live(version);
                plugin.refuse(None);
                metrics.swap(name, SwapOutcome::Live);
                let ms = u64::try_from(watched.dropped.elapsed().as_millis()).unwrap_or(u64::MAX);
                tracing::info!(tenant, plugin = name, %digest, path = %path.display(), ms, "plugin live");
            }
            Err(why) => {
                plugin.refuse(Some(format!("{}: {why}", path.display())));
                metrics.swap(name, SwapOutcome::Refused);
                tracing::error!(tenant, plugin = name, %digest, path = %path.display(), reason = %why, "{REFUSED}");
            }
        }
    }
    Ok(())
}

/// Says why a file changes nothing.
fn refuse(registry: &Registry, metrics: &Metrics, path: &Path, watched: &Watched, why: &Unusable) {
    let name = &watched.plugin;
    for (_, plugin) in watched.plugins(registry, path) {
        plugin.refuse(Some(format!("{}: {why}", path.display())));
    }
    metrics.swap(name, SwapOutcome::Refused);
    tracing::error!(plugin = name, path = %path.display(), reason = %why, "{REFUSED}");
}

const REFUSED: &str = "a plugin's file is not usable: its running version stays";
