//! A plugin's file as it stands now. Enters: a path in the plugin directory. Leaves: its bytes, or why they are none of
//! a plugin's. Nothing is read that is no regular file inside the directory, or too large to be a component.

use std::path::{Path, PathBuf};

use crate::effect::Hash;
use crate::files::{self, Unread};
use crate::sandbox::{AdmissionError, ComponentLimits};
use crate::store::StoreError;

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

impl Unusable {
    /// Whether it is nothing about the version: it may be over in a moment, with nobody doing anything.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            Self::Read(error) => error.kind() != std::io::ErrorKind::NotFound,
            Self::Changing | Self::Store(_) => true,
            Self::Admission(why) => why.is_passing(),
            Self::LeadsOut(_) | Self::NoFile | Self::Gone | Self::Forgotten(_) => false,
        }
    }
}

impl From<Unread> for Unusable {
    fn from(unread: Unread) -> Self {
        match unread {
            Unread::Io(error) => Self::Read(error),
            Unread::LeadsOut(path) => Self::LeadsOut(path),
            Unread::NoFile => Self::NoFile,
            Unread::TooLarge { found, most } => {
                let fits = ComponentLimits { bytes_max: most, ..ComponentLimits::MOST }.fit(found);
                fits.err().map_or(Self::Changing, Self::Admission)
            }
            Unread::Changing => Self::Changing,
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
    Ok(files::read(folder, path, bytes_max)?)
}
