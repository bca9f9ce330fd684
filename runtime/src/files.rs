//! Files that others write while we look. Enters: a path. Leaves: what is there at one moment, and whether it has come to
//! rest: half of a file is none.
//!
//! That something has happened is learnt from the system, and by looking every now and then all the same; what has
//! happened, only by looking.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use notify::event::{AccessKind, AccessMode, ModifyKind};
use notify::{Event, EventKind, RecommendedWatcher};
use rustix::fs::OFlags;

/// What tells one state of a file from the next without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Print {
    device: u64,
    inode: u64,
    size: u64,
    modified_ns: i128,
    changed_ns: i128,
}

/// Why a file inside a folder cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unread {
    #[error("read it: {0}")]
    Io(#[from] std::io::Error),
    #[error("it leads out of its directory, to {0}")]
    LeadsOut(PathBuf),
    #[error("expected a regular file")]
    NoFile,
    #[error("{found} bytes, more than {most}")]
    TooLarge { found: usize, most: usize },
    /// Somebody was writing it.
    #[error("it was changed while it was read")]
    Changing,
}

impl Print {
    /// The state of what is at a path now, links followed; none when nothing is there.
    pub(crate) fn of(path: &Path) -> Option<Self> {
        match path.symlink_metadata() {
            // What is wrong with it, reading it will tell.
            Ok(link) => Some(Self::from(&path.metadata().unwrap_or(link))),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => None,
            Err(_) => Some(Self { device: 0, inode: 0, size: 0, modified_ns: 0, changed_ns: 0 }),
        }
    }

    /// How long ago it came to be as it is, by the file system's clock.
    pub(crate) fn age(&self) -> Option<Duration> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).ok()?;
        let changed = Duration::from_nanos(u64::try_from(self.changed_ns).ok()?);
        now.checked_sub(changed)
    }
}

impl From<&Metadata> for Print {
    fn from(file: &Metadata) -> Self {
        let ns = |seconds: i64, ns: i64| i128::from(seconds) * 1_000_000_000 + i128::from(ns);
        Self {
            device: file.dev(),
            inode: file.ino(),
            size: file.size(),
            modified_ns: ns(file.mtime(), file.mtime_nsec()),
            changed_ns: ns(file.ctime(), file.ctime_nsec()),
        }
    }
}

/// The whole content of a file inside a folder, as it was at one moment.
pub(crate) fn read(folder: &Path, path: &Path, bytes_max: usize) -> Result<Vec<u8>, Unread> {
    let real = path.canonicalize()?;
    if !real.starts_with(folder.canonicalize()?) {
        return Err(Unread::LeadsOut(real));
    }
    // Should it have become a link in between, it is not followed; a pipe is not waited for.
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(&real)?;
    let before = file.metadata()?;
    if !before.is_file() {
        return Err(Unread::NoFile);
    }
    let size = usize::try_from(before.len()).unwrap_or(usize::MAX);
    if size > bytes_max {
        return Err(Unread::TooLarge { found: size, most: bytes_max });
    }
    let bytes = at_most(&file, size + 1)?;
    if bytes.len() != size || Print::from(&before) != Print::from(&file.metadata()?) {
        return Err(Unread::Changing);
    }
    Ok(bytes)
}

fn at_most(file: &File, bytes_max: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(bytes_max);
    file.take(bytes_max as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Something on disk, as it was last seen, and what was made of it. `E` is what is wrong with it.
pub(crate) struct Seen<P, E> {
    pub(crate) print: P,
    /// When it was first seen so.
    since: Instant,
    stage: Stage<E>,
}

enum Stage<E> {
    /// It has just changed, and may still be changing.
    Moving,
    /// It is not usable, but whoever writes it may not be through with it.
    Doubtful(E),
    /// Whatever follows from it has been done.
    Settled,
}

/// What is to be done about it now.
pub(crate) enum Turn<E> {
    /// Nothing.
    Rest,
    /// It has been quiet for long enough to be used.
    Take,
    /// Nobody is mending it: this is what is wrong.
    Refuse(E),
}

impl<P: PartialEq, E> Seen<P, E> {
    /// Seen before; whatever follows has been done.
    pub(crate) fn settled(print: P) -> Self {
        Self { print, since: Instant::now(), stage: Stage::Settled }
    }

    /// What is seen now, and whether that is new.
    pub(crate) fn see(&mut self, print: P) -> bool {
        let is_new = self.print != print;
        if is_new {
            (self.print, self.since, self.stage) = (print, Instant::now(), Stage::Moving);
        }
        is_new
    }

    /// What it is now; from here on that counts as done.
    pub(crate) fn turn(&mut self, quiet: Duration) -> Turn<E> {
        match std::mem::replace(&mut self.stage, Stage::Settled) {
            Stage::Moving if self.since.elapsed() >= quiet => Turn::Take,
            Stage::Doubtful(why) if self.since.elapsed() >= DOUBT => Turn::Refuse(why),
            stage => {
                self.stage = stage;
                Turn::Rest
            }
        }
    }

    /// It is to be used, or used again, once it is quiet.
    pub(crate) fn again(&mut self) {
        self.stage = Stage::Moving;
    }

    /// It was being written: it is to be used once it has been quiet from now on.
    pub(crate) fn unfinished(&mut self) {
        (self.since, self.stage) = (Instant::now(), Stage::Moving);
    }

    /// It is not usable as it is.
    pub(crate) fn doubt(&mut self, why: E) {
        self.stage = Stage::Doubtful(why);
    }

    /// How long until its next turn, when there is one.
    pub(crate) fn next(&self, quiet: Duration) -> Option<Duration> {
        let quiet = match self.stage {
            Stage::Moving => quiet,
            Stage::Doubtful(_) => DOUBT,
            Stage::Settled => return None,
        };
        Some(quiet.saturating_sub(self.since.elapsed()))
    }
}

/// Has the system tell of changes, with the paths they happened to, and whether nobody is writing there any more, unless
/// he begins anew; none where it has no room for another to tell.
pub(crate) fn listen(
    what: &'static str,
    heard: impl Fn(&[PathBuf], bool) + Send + 'static,
) -> Option<RecommendedWatcher> {
    let heard = move |event: notify::Result<Event>| match event {
        // That it is read is no change.
        Ok(Event { kind: EventKind::Access(kind), .. }) if kind != AccessKind::Close(AccessMode::Write) => {}
        Ok(event) => heard(&event.paths, is_whole(event.kind)),
        Err(_) => heard(&[], false),
    };
    let watcher = notify::recommended_watcher(heard);
    watcher.inspect_err(|error| tracing::warn!(what, %error, every = ?LOOK_EVERY, "changes are only looked for")).ok()
}

fn is_whole(event: EventKind) -> bool {
    matches!(event, EventKind::Access(AccessKind::Close(AccessMode::Write)) | EventKind::Modify(ModifyKind::Name(_)))
}

/// For how long nothing happens to a file before it is read.
pub(crate) const QUIET: Duration = Duration::from_millis(100);
/// For how long nothing happens to a file that is not usable before anybody is told.
pub(crate) const DOUBT: Duration = Duration::from_secs(1);
/// A burst of news is one.
pub(crate) const GATHER: Duration = Duration::from_millis(10);
/// How often files are looked at when there is no news of them.
pub(crate) const LOOK_EVERY: Duration = Duration::from_secs(10);
