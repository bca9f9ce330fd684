//! A plugin's file as it stands now. Enters: a path in the plugin directory. Leaves: its bytes, or why they are none of
//! a plugin's. Nothing is read that is no regular file inside the directory, or too large to be a component.

use std::path::{Path, PathBuf};

use crate::files::{self, Unread};
use crate::sandbox::{AdmissionError, COMPONENT_BYTES_MAX};

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
    /// It was not let in.
    #[error(transparent)]
    Admission(#[from] AdmissionError),
}

impl From<Unread> for Unusable {
    fn from(unread: Unread) -> Self {
        match unread {
            Unread::Io(error) => Self::Read(error),
            Unread::LeadsOut(path) => Self::LeadsOut(path),
            Unread::NoFile => Self::NoFile,
            Unread::TooLarge(found) => Self::Admission(AdmissionError::TooLarge { found }),
            Unread::Changing => Self::Changing,
        }
    }
}

/// The whole content of a file inside a folder, as it was at one moment.
pub(super) fn read(folder: &Path, path: &Path) -> Result<Vec<u8>, Unusable> {
    Ok(files::read(folder, path, COMPONENT_BYTES_MAX)?)
}
