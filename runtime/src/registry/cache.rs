//! Compiled code in files, so that nothing is compiled twice, not even across starts. Whoever can put code in here runs
//! it in this process, so: a directory that is ours alone, and a seal on each file that only we can make. What does not
//! bear it, or was made by another version of us, is as good as absent. Nothing that goes wrong in here stops anybody.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use aws_lc_rs::{constant_time, hmac};
use rustix::fs::OFlags;

use crate::effect::Hash;
use crate::sandbox::{Compiled, Sandbox};

/// A directory of compiled code.
pub(super) struct Cache {
    folder: PathBuf,
    key: [u8; KEY_BYTES],
    /// Which compiler's code can be used.
    compatibility: u64,
}

impl Cache {
    /// Makes the directory if need be, and sees to it that it is ours alone.
    pub(super) fn open(folder: &Path, sandbox: &Sandbox) -> std::io::Result<Self> {
        match DirBuilder::new().mode(0o700).create(folder) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let found = folder.symlink_metadata()?;
        if !found.is_dir() {
            return Err(std::io::Error::other("expected a directory"));
        }
        ours_alone(found.uid(), found.mode())?;
        Ok(Self { folder: folder.to_owned(), key: key(folder)?, compatibility: sandbox.compatibility() })
    }

    /// The code of a component, when it is here and nobody has touched it.
    pub(super) fn find(&self, sandbox: &Sandbox, digest: Hash) -> Option<Compiled> {
        let path = self.path(digest);
        let file = open(OpenOptions::new().read(true), &path).ok()?;
        let found = self.take(sandbox, digest, &file);
        if found.is_none() {
            tracing::warn!(path = %path.display(), "compiled code that is not ours, or not whole: compiling again");
        } else {
            // Whatever was used last is kept longest.
            drop(file.set_modified(SystemTime::now()));
        }
        found
    }

    fn take(&self, sandbox: &Sandbox, digest: Hash, mut file: &File) -> Option<Compiled> {
        let mut sealed = Vec::new();
        file.read_to_end(&mut sealed).ok()?;
        let (code, seal) = sealed.split_last_chunk::<SEAL_BYTES>()?;
        constant_time::verify_slices_are_equal(self.seal(digest, code).as_ref(), seal).ok()?;
        // The file that was looked at, whatever has that name by now.
        let same = format!("/proc/self/fd/{}", file.as_raw_fd());
        sandbox.load_file(digest, code, Path::new(&same)).ok()
    }

    /// Keeps the code of a component.
    pub(super) fn keep(&self, digest: Hash, code: &[u8]) -> std::io::Result<()> {
        let mut file = tempfile::Builder::new().prefix(UNFINISHED).tempfile_in(&self.folder)?;
        file.write_all(code)?;
        file.write_all(self.seal(digest, code).as_ref())?;
        file.persist(self.path(digest))?;
        Ok(())
    }

    /// Lets go of what has not been used for longest, beyond what is worth keeping.
    pub(super) fn prune(&self) -> std::io::Result<()> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(&self.folder)? {
            let path = entry?.path();
            // Others may let go of it at the same time.
            let Ok(metadata) = path.symlink_metadata() else { continue };
            let modified = metadata.modified()?;
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let is_old = modified.elapsed().is_ok_and(|age| age > HOUR);
            if path.extension().is_some_and(|extension| extension == EXTENSION) {
                files.push((modified, metadata.len(), path));
            } else if name.starts_with(UNFINISHED) && is_old {
                remove(&path)?;
            }
        }
        files.sort_by_key(|(modified, ..)| std::cmp::Reverse(*modified));
        let mut bytes = 0_u64;
        for (number, (_, size, path)) in files.into_iter().enumerate() {
            bytes = bytes.saturating_add(size);
            if number >= FILES_MAX || bytes > BYTES_MAX {
                remove(&path)?;
            }
        }
        Ok(())
    }

    fn path(&self, digest: Hash) -> PathBuf {
        self.folder.join(format!("{digest}-{:016x}.{EXTENSION}", self.compatibility))
    }

    /// Over the name too: no file passes for another.
    fn seal(&self, digest: Hash, code: &[u8]) -> hmac::Tag {
        let mut seal = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, &self.key));
        seal.update(digest.as_bytes());
        seal.update(&self.compatibility.to_le_bytes());
        seal.update(code);
        seal.sign()
    }
}

/// The key of the seals, made at the first start.
fn key(folder: &Path) -> std::io::Result<[u8; KEY_BYTES]> {
    let path = folder.join("key");
    if !path.exists() {
        let mut file = tempfile::Builder::new().prefix(UNFINISHED).tempfile_in(folder)?;
        file.write_all(&rand::random::<[u8; KEY_BYTES]>())?;
        file.as_file().sync_all()?;
        // Another process may have been quicker: then its key counts.
        drop(file.persist_noclobber(&path));
    }
    let mut file = open(OpenOptions::new().read(true), &path)?;
    let found = file.metadata()?;
    ours_alone(found.uid(), found.mode())?;
    let mut key = [0; KEY_BYTES];
    file.read_exact(&mut key)?;
    Ok(key)
}

/// It is gone, whoever removed it.
fn remove(path: &Path) -> std::io::Result<()> {
    std::fs::remove_file(path).or_else(|error| if error.kind() == ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

fn open(options: &mut OpenOptions, path: &Path) -> std::io::Result<File> {
    options.custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed()).open(path)
}

fn ours_alone(owner: u32, mode: u32) -> std::io::Result<()> {
    let us = rustix::process::geteuid().as_raw();
    if owner != us || mode & 0o077 != 0 {
        let mode = mode & 0o7777;
        return Err(std::io::Error::other(format!(
            "expected it to be for user {us} alone, found user {owner} and mode {mode:o}"
        )));
    }
    Ok(())
}

const KEY_BYTES: usize = 32;
const SEAL_BYTES: usize = 32;
const EXTENSION: &str = "code";
const UNFINISHED: &str = ".new-";
const HOUR: std::time::Duration = std::time::Duration::from_secs(3_600);
const FILES_MAX: usize = 2_048;
const BYTES_MAX: u64 = 4 << 30;
