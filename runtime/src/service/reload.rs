//! Keeps who runs in step with the configuration. Enters: a signal, a folder that changes. Leaves: a change of all that
//! is live, or what is wrong; then nothing changes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::signal::unix::Signal;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{ChangeError, Live, Wanted};
use crate::config::{self, Config, ConfigError, Source};
use crate::files::{DOUBT, GATHER, LOOK_EVERY, Print, QUIET, Seen, Turn, listen};

/// Reads the configuration again, whenever that is asked for or the tenants' folder changes.
pub(super) struct Reload {
    live: Arc<Live>,
    source: Source,
    /// As it is in effect.
    config: Config,
    /// As the service was started with it.
    started: Config,
    asked: Signal,
    folder: Seen<Folder, Vec<String>>,
    news: Arc<Notify>,
    /// Tells of changes in the folder at once; none where the system has no room for another.
    system: Option<RecommendedWatcher>,
}

/// The tenants' files, as they are at one moment; none when there is no folder.
type Folder = Option<BTreeMap<PathBuf, Print>>;

impl Reload {
    pub(super) fn new(live: Arc<Live>, source: Source, config: Config, asked: Signal) -> Self {
        let news = Arc::new(Notify::new());
        let wake = Arc::clone(&news);
        let system = listen("tenants", move |_, _| wake.notify_one());
        // What has changed since it was read at the start is found at the first look.
        let folder = Seen::settled(None);
        Self { live, source, started: config.clone(), config, asked, folder, news, system }
    }

    /// Until asked to stop.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        loop {
            let next = tokio::select! {
                () = stop.cancelled() => return,
                next = self.look() => next,
            };
            let heard = async {
                self.news.notified().await;
                // Much may happen in one folder: it is looked at once.
                tokio::time::sleep(GATHER).await;
            };
            tokio::select! {
                () = stop.cancelled() => return,
                Some(()) = self.asked.recv() => tokio::select! {
                    () = stop.cancelled() => return,
                    () = self.read_as_asked() => {}
                },
                () = heard => {}
                () = tokio::time::sleep(next) => {}
            }
        }
    }

    async fn read_as_asked(&mut self) {
        tracing::info!("reading the configuration again");
        self.source.read_again();
        let found = self.read(true).await;
        if found.is_empty() && self.live.problems().is_empty() {
            tracing::info!("{IN_EFFECT}");
        }
        self.say(found);
    }

    /// Looks at the folder; how long until there is something to look at again.
    async fn look(&mut self) -> Duration {
        if let Some(folder) = self.config.tenants_folder.clone() {
            self.listen_to(&folder);
            self.folder.see(prints(&folder));
        }
        let quiet = if self.lacks_a_file() { DOUBT } else { QUIET };
        match self.folder.turn(quiet) {
            // What is wrong may be mended elsewhere: a plugin's file, a password's.
            Turn::Rest if self.folder.next(quiet).is_none() && !self.live.problems().is_empty() => {
                let found = self.read(false).await;
                self.say(found);
            }
            Turn::Rest => {}
            Turn::Take => match self.read(false).await {
                found if found.is_empty() => self.say(found),
                found => self.folder.doubt(found),
            },
            Turn::Refuse(found) => self.say(found),
        }
        self.folder.next(quiet).unwrap_or(LOOK_EVERY)
    }

    /// A folder can come and be replaced. To listen twice to the same one is to listen once.
    fn listen_to(&mut self, folder: &Path) {
        if let Some(system) = &mut self.system
            && folder.is_dir()
            && let Err(error) = system.watch(folder, RecursiveMode::NonRecursive)
        {
            tracing::warn!(?folder, %error, every = ?LOOK_EVERY, "changes there are only looked for");
        }
    }

    /// Whether the file of a tenant that runs is not there: whoever writes it anew may have moved it away for a moment.
    fn lacks_a_file(&self) -> bool {
        let name = |path: &PathBuf| path.file_stem().and_then(|name| name.to_str()).map(str::to_owned);
        let there: Vec<_> = self.folder.print.iter().flat_map(BTreeMap::keys).filter_map(name).collect();
        self.config.tenants.iter().any(|tenant| !there.contains(&tenant.name))
    }

    /// Reads the configuration and puts it into effect, or says what is wrong with it. That all tenants go at once is
    /// believed only when it was asked for: their folder may have been cleared to be filled anew, or not be mounted.
    async fn read(&mut self, is_asked: bool) -> Vec<String> {
        let (source, started) = (self.source.clone(), self.started.clone());
        let read = tokio::task::spawn_blocking(move || source.config(Some(&started)));
        let config = match read.await.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic())) {
            Ok(config) => config,
            Err(ConfigError { problems }) => return problems.iter().map(ToString::to_string).collect(),
        };
        if !is_asked && config.tenants.is_empty() && !self.config.tenants.is_empty() {
            return vec![NOBODY_LEFT.into()];
        }
        let wanted = Wanted::by(&config, self.started.delivery);
        if wanted != Wanted::by(&self.config, self.started.delivery) {
            match self.live.change(wanted).await {
                Ok(()) => self.tell_of(&config),
                Err(ChangeError::Plugins(errors)) => return errors.iter().map(ToString::to_string).collect(),
                Err(error @ ChangeError::Sink(_)) => return vec![error.to_string()],
            }
        }
        for note in config.notes.iter().filter(|note| !self.config.notes.contains(note)) {
            tracing::warn!("{note}");
        }
        let waits = config.waits_for_a_start(&self.started);
        if !waits.is_empty() && waits != self.config.waits_for_a_start(&self.started) {
            tracing::warn!(changed = waits.join(", "), "what has changed there takes effect at the next start");
        }
        self.config = config;
        Vec::new()
    }

    fn tell_of(&self, config: &Config) {
        let named = |config: &Config, name: &str| config.tenants.iter().find(|tenant| tenant.name == name).cloned();
        for tenant in &config.tenants {
            match named(&self.config, &tenant.name) {
                None => tracing::info!(tenant = tenant.name, "tenant added"),
                Some(before) if before != *tenant => tracing::info!(tenant = tenant.name, "tenant changed"),
                Some(_) => {}
            }
        }
        for (destination, account) in &config.accounts {
            if self.config.accounts.get(destination).is_some_and(|before| before != account) {
                tracing::info!(destination, "account changed");
            }
        }
        for tenant in self.config.tenants.iter().filter(|tenant| named(config, &tenant.name).is_none()) {
            tracing::info!(tenant = tenant.name, "tenant removed");
        }
    }

    /// Tells whoever looks, once, what is wrong, or that nothing is any more.
    fn say(&self, found: Vec<String>) {
        if self.live.problems() == found {
            return;
        }
        if found.is_empty() {
            tracing::info!("{IN_EFFECT}");
        }
        for problem in &found {
            tracing::error!(problem, "a problem in the configuration: nothing changes");
        }
        self.live.found(found);
    }
}

/// The tenants' files in a folder, as they are.
fn prints(folder: &Path) -> Folder {
    let files = config::tenant_files(folder).ok()?;
    Some(files.into_iter().filter_map(|path| Some((path.clone(), Print::of(&path)?))).collect())
}

const NOBODY_LEFT: &str = "tenants: expected at least one file NAME.toml, found none: the tenants that ran stay; SIGHUP \
                           takes all of them away";
const IN_EFFECT: &str = "the configuration is in effect";
