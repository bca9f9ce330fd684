//! A plugin's file as it stands now. Enters: a path in the plugin directory. Leaves: its bytes, or why they are none of
//! a plugin's. Nothing is read that is no regular file inside the directory, or too large to be a component.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::OFlags;

use crate::effect::Hash;
use crate::sandbox::{AdmissionError, ComponentLimits};
use crate::store::StoreError;

/// What tells one state of a file from the next without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Print {
    device: u64,
    inode: u64,
    size: u64,
    modified_ns: i128,
    changed_ns: i128,
}

/// Why a file is not a plugin's.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// There is no such file, or it cannot be read.
    #[error("read it: {0}")]
    Read(#[from] std::io::Error),
    /// A link to somewhere else.
    #[error("it leads out of the plugin directory, to {0}")]
    LeadsOut(PathBuf),
    /// A directory, a pipe, a device.
    #[error("expected a regular file")]
    NoFile,
    /// Somebody was writing it.
    #[error("it was changed while it was read")]
    Changing,
    /// It is not there any more.
    #[error("it is gone: the version that ran stays")]
    Gone,
    /// The store does not have that version.
    #[error("version {0} is not kept any more")]
    Forgotten(Hash),
    /// The store cannot be read.
    #[error(transparent)]
    Store(StoreError),
    /// It was not let in.
    #[error(transparent)]
    Admission(#[from] AdmissionError),
}

impl Print {
    /// The state of what is at a path now, links followed; none when nothing is there.
    pub(super) fn of(path: &Path) -> Option<Self> {
        match path.symlink_metadata() {
            // What is wrong with it, reading it will tell.
            Ok(link) => Some(Self::from(&path.metadata().unwrap_or(link))),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => None,
            Err(_) => Some(Self { device: 0, inode: 0, size: 0, modified_ns: 0, changed_ns: 0 }),
        }
    }

    /// How long ago it came to be as it is, by the file system's clock.
    pub(super) fn age(&self) -> Option<Duration> {
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

/// The whole content of a component's file, wherever it is.
///
/// # Errors
/// [`Unusable`], when it is no regular file, too large, or cannot be read.
pub fn read_component(path: &Path, bytes_max: usize) -> Result<Vec<u8>, Unusable> {
    let real = path.canonicalize()?;
    read(real.parent().unwrap_or(&real), &real, bytes_max)
}

/// The whole content of a file inside a folder, as it was at one moment.
pub(super) fn read(folder: &Path, path: &Path, bytes_max: usize) -> Result<Vec<u8>, Unusable> {
    let real = path.canonicalize()?;
    if !real.starts_with(folder.canonicalize()?) {
        return Err(Unusable::LeadsOut(real));
    }
    // Should it have become a link in between, it is not followed; a pipe is not waited for.
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let file = OpenOptions::new().read(true).custom_flags(flags).open(&real)?;
    let before = file.metadata()?;
    if !before.is_file() {
        return Err(Unusable::NoFile);
    }
    let size = usize::try_from(before.len()).unwrap_or(usize::MAX);
    ComponentLimits { bytes_max, ..ComponentLimits::MOST }.fit(size)?;
    let bytes = at_most(&file, size + 1)?;
    if bytes.len() != size || Print::from(&before) != Print::from(&file.metadata()?) {
        return Err(Unusable::Changing);
    }
    Ok(bytes)
}

fn at_most(file: &File, bytes_max: usize) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(bytes_max);
    file.take(bytes_max as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}
