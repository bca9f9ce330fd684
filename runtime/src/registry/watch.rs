//! Swaps versions while the service runs. Enters: files that come, change and go. Leaves: live versions, and reasons why
//! not.
//!
//! A file is read once whoever wrote it has closed it or put it in its place, or else once it has been quiet, and is live
//! once it is admitted.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio_util::sync::CancellationToken;

use super::file::{self, Unusable};
use super::plugins::{Held, Plugin, Plugins, Refusal, Standing};
use super::{Registry, paths};
use crate::effect::Hash;
use crate::files::{GATHER, LOOK_EVERY, Print, QUIET, Seen, Turn, listen};
use crate::metrics::{Metrics, SwapOutcome};
use crate::sandbox::AdmissionError;
use crate::store::{Deployment, Source};

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
    /// When to try again what did not go well for a reason that may pass; and after which wait the last time.
    again: Option<Instant>,
    wait: Duration,
}

impl Watch {
    /// Watches for the plugins of a registry; nothing happens before [`Watch::run`].
    #[must_use]
    pub fn new(registry: Arc<Registry>, metrics: Arc<Metrics>) -> Self {
        Self { registry, metrics, plugins: Arc::default(), files: BTreeMap::new(), system: None }
    }

    /// Watches until asked to stop. Files are read and compiled off the calling task, one after the other; the store is
    /// not waited for meanwhile, nor does it wait: a rollback is live within a second, whatever file is being compiled.
    pub async fn run(self, stop: CancellationToken) {
        let (registry, metrics) = (Arc::clone(&self.registry), Arc::clone(&self.metrics));
        tokio::select! {
            // What is being compiled comes to nothing.
            () = stop.cancelled() => {}
            () = self.watch_files() => {}
            () = registry.stay_in_step(&metrics) => {}
        }
    }

    async fn watch_files(mut self) {
        let registry = Arc::clone(&self.registry);
        let news = &registry.news;
        self.system = hear(&self.registry);
        loop {
            let look = tokio::task::spawn_blocking(move || {
                self.keep_up();
                self.listen_to_folders();
                let next = self.look();
                (self, next)
            });
            let looked = look.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
            self = looked.0;
            let some = async {
                news.some().await;
                // Much may happen to one file: it is looked at once.
                tokio::time::sleep(GATHER).await;
            };
            tokio::select! {
                () = news.urgent() => {}
                () = some => {}
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
        let whole = registry.news.whole();
        let mut next = LOOK_EVERY;
        let mut uncovered = Vec::new();
        for (path, watched) in files.iter_mut() {
            watched.see(Print::of(path));
            watched.try_again();
            let quiet = if whole.contains(path) { Duration::ZERO } else { QUIET };
            match watched.seen.turn(quiet) {
                Turn::Rest => {}
                Turn::Take => match take(registry, metrics, path, watched) {
                    Ok(()) => uncovered.extend(watched.seen.print.is_none().then(|| watched.plugin.clone())),
                    Err(Unusable::Changing) => watched.seen.unfinished(),
                    Err(why) => watched.seen.doubt(why),
                },
                Turn::Refuse(why) => {
                    if why.is_passing() {
                        watched.put_off();
                    }
                    refuse(registry, metrics, path, watched, &why);
                }
            }
            next = watched.next().map_or(next, |again| next.min(again));
        }
        // Where a tenant's own file is gone, the one that all share counts.
        for plugin in uncovered {
            let shared = files.get_mut(&registry.folder.join(format!("{plugin}.wasm")));
            if let Some(shared) = shared.filter(|shared| shared.seen.print.is_some()) {
                shared.seen.again();
                (shared.dropped, next) = (Instant::now(), Duration::ZERO);
            }
        }
        next
    }
}

impl Watched {
    fn absent(plugin: &str) -> Self {
        let (plugin, tenants, wait) = (plugin.to_owned(), Vec::new(), Duration::ZERO);
        Self { plugin, tenants, seen: Seen::settled(None), dropped: Instant::now(), again: None, wait }
    }

    fn see(&mut self, print: Option<Print>) {
        if self.seen.see(print) {
            let now = Instant::now();
            // A file that is much older has come by way of a link.
            let age = print.and_then(|print| print.age()).filter(|age| *age < LOOK_EVERY);
            self.dropped = age.and_then(|age| now.checked_sub(age)).unwrap_or(now);
            (self.again, self.wait) = (None, Duration::ZERO);
        }
    }

    /// How long until there is something to do about it, when there is.
    fn next(&self) -> Option<Duration> {
        let again = self.again.map(|again| again.saturating_duration_since(Instant::now()));
        self.seen.next(QUIET).into_iter().chain(again).min()
    }

    /// What did not go well for a reason that may pass is tried again, each time after a longer wait.
    fn put_off(&mut self) {
        self.wait = (self.wait * 2).clamp(LOOK_EVERY, LONGEST_WAIT);
        self.again = Some(Instant::now() + self.wait);
    }

    fn try_again(&mut self) {
        if self.again.take_if(|again| *again <= Instant::now()).is_some() {
            self.seen.again();
        }
    }

    /// The plugins this file is for, with their tenants: a tenant's own file wins over the shared one, and so does what
    /// was brought for it alone.
    fn plugins(&self, registry: &Registry, path: &Path) -> Vec<(&str, Arc<Plugin>)> {
        let plugins = registry.plugins();
        let is_for = |tenant: &str, plugin: &Plugin| {
            let [own, _] = paths(&registry.folder, tenant, &self.plugin);
            let held = plugin.held();
            own == path || (own.symlink_metadata().is_err() && !(held.is_own && held.is_brought))
        };
        let plugin = |tenant: &String| plugins.get(&(tenant.clone(), self.plugin.clone())).cloned();
        let plugins = self.tenants.iter().filter_map(|tenant| Some((tenant.as_str(), plugin(tenant)?)));
        plugins.filter(|(tenant, plugin)| is_for(tenant, plugin)).collect()
    }

    /// Whether this is a file of one tenant.
    fn is_own(&self, registry: &Registry, path: &Path) -> bool {
        path.parent() != Some(&registry.folder)
    }
}

/// Has the system wake us.
fn hear(registry: &Arc<Registry>) -> Option<RecommendedWatcher> {
    let registry = Arc::clone(registry);
    listen("plugins", move |paths, is_whole| {
        let is_plugin = |path: &&PathBuf| path.extension().is_some_and(|extension| extension == "wasm");
        for path in paths.iter().filter(is_plugin).filter(|path| !is_known(&registry, path)) {
            tracing::debug!(?path, "no tenant has a plugin of this name: ignored");
        }
        if is_whole {
            registry.news.heard_whole(paths.to_vec());
        } else {
            registry.news.heard();
        }
    })
}

fn is_known(registry: &Registry, path: &Path) -> bool {
    let name = path.file_stem();
    registry.plugins().keys().any(|(_, plugin)| name.is_some_and(|name| name == plugin.as_str()))
}

/// Makes a file's version live wherever it may run; why it can run nowhere.
fn take(registry: &Registry, metrics: &Metrics, path: &Path, watched: &mut Watched) -> Result<(), Unusable> {
    let name = &watched.plugin.clone();
    let plugins = watched.plugins(registry, path);
    if plugins.is_empty() {
        return Ok(());
    }
    let is_own = watched.is_own(registry, path);
    if watched.seen.print.is_none() {
        let shared = registry.folder.join(format!("{name}.wasm"));
        if !is_own || shared.symlink_metadata().is_err() {
            tracing::warn!(plugin = name, path = %path.display(), "{GONE}");
            let gone = Refusal::of(path, &Unusable::Gone);
            plugins.iter().filter(|(_, plugin)| plugin.live().is_some()).for_each(|(_, plugin)| {
                plugin.refuse(Some(gone.clone()));
            });
        }
        return Ok(());
    }
    let bytes_max = plugins.iter().map(|(_, plugin)| plugin.terms.component.bytes_max).max();
    let wasm = file::read(&registry.folder, path, bytes_max.unwrap_or_default())?;
    let (digest, wasm) = (Hash::of_bytes(&wasm), Arc::new(wasm));
    // What was seen in it before is no news: somebody may have gone back since.
    let is_known = |plugin: &Plugin| plugin.is_held() && plugin.held().file == Some(digest);
    let (known, new): (Vec<_>, Vec<_>) = plugins.into_iter().partition(|(_, plugin)| is_known(plugin));
    for (tenant, plugin) in known {
        if plugin.digest().is_some() {
            plugin.refuse(None);
        }
        tracing::debug!(tenant, plugin = name, %digest, "this version is known already");
    }
    let note = |tenant: &str| {
        let (tenant, plugin, wasm) = (tenant.to_owned(), name.clone(), Arc::clone(&wasm));
        registry.record([Deployment {
            tenant,
            plugin,
            digest,
            wasm,
            source: Source::File,
            is_own,
            file: Some(digest),
        }]);
        Held { file: Some(digest), is_own, is_brought: false }
    };
    let (live, new): (Vec<_>, Vec<_>) = new.into_iter().partition(|(_, plugin)| plugin.digest() == Some(digest));
    for (tenant, plugin) in live {
        plugin.change(|standing| {
            if standing.digest() == Some(digest) {
                (standing.held, standing.refused) = (note(tenant), None);
            }
        });
    }
    if new.is_empty() {
        return Ok(());
    }
    let mut refused = Vec::new();
    let count = new.len();
    let mut passing: Option<String> = None;
    for (tenant, plugin) in new {
        // What the host cannot do for one it does not try for hundreds, one after the other.
        let admitted = match &passing {
            Some(why) => Err(AdmissionError::Host(why.clone())),
            None => registry.compiler.admit(name, &wasm, &plugin.terms),
        };
        if let Err(AdmissionError::Host(why)) = &admitted {
            passing = Some(why.clone());
        }
        match admitted {
            Ok(version) => {
                let went = plugin.change(|standing| {
                    // What was brought for the tenant alone meanwhile stays.
                    let goes = is_own || !(standing.held.is_own && standing.held.is_brought);
                    if goes {
                        let (live, held) = (Some(Arc::new(version)), note(tenant));
                        *standing = Standing { live, refused: None, held, ..*standing };
                    }
                    goes
                });
                if !went {
                    continue;
                }
                metrics.swap(name, SwapOutcome::Live);
                let ms = u64::try_from(watched.dropped.elapsed().as_millis()).unwrap_or(u64::MAX);
                tracing::info!(tenant, plugin = name, %digest, path = %path.display(), ms, "plugin live");
            }
            Err(why) => refused.push((tenant, plugin, why)),
        }
    }
    if refused.len() == count && refused.iter().all(|(.., why)| why.is_about_its_bytes()) {
        // Perhaps they are not all there yet.
        return refused.pop().map_or(Ok(()), |(.., why)| Err(why.into()));
    }
    let is_passing = refused.iter().any(|(.., why)| why.is_passing());
    for (tenant, plugin, why) in refused {
        let why = why.into();
        plugin.refuse(Some(Refusal::of(path, &why)));
        metrics.swap(name, SwapOutcome::Refused);
        tracing::error!(tenant, plugin = name, %digest, path = %path.display(), reason = %why, "{REFUSED}");
    }
    if is_passing {
        watched.put_off();
    }
    Ok(())
}

/// Says why a file changes nothing.
fn refuse(registry: &Registry, metrics: &Metrics, path: &Path, watched: &Watched, why: &Unusable) {
    let name = &watched.plugin;
    for (_, plugin) in watched.plugins(registry, path) {
        plugin.refuse(Some(Refusal::of(path, why)));
    }
    metrics.swap(name, SwapOutcome::Refused);
    tracing::error!(plugin = name, path = %path.display(), reason = %why, "{REFUSED}");
}

const GONE: &str = "a plugin's file is gone: its running version stays";
const REFUSED: &str = "a plugin's file is not usable: its running version stays";
/// For so long at most nothing is done about a file that may be usable by now.
const LONGEST_WAIT: Duration = Duration::from_secs(600);
