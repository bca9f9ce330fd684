//! Has a process of its own compile a component: bytes in, code out, or what became of the process. It is this very
//! program, it sees no environment and no file but those it is given, and it ends by itself or is ended.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open};

use crate::sandbox::{AdmissionError, ComponentLimits};

/// Compiles in a process of its own. Blocks until that has ended.
pub(super) fn compile(program: &OsStr, wasm: &[u8], limits: &ComponentLimits) -> Result<Vec<u8>, AdmissionError> {
    limits.fit(wasm.len())?;
    let host = |error: std::io::Error| AdmissionError::Host(error.to_string());
    let mut component = memory("component").map_err(host)?;
    component.write_all(wasm).and_then(|()| component.rewind()).map_err(host)?;
    let (mut code, mut words) = (memory("code").map_err(host)?, memory("words").map_err(host)?);
    let give = |file: &File| file.try_clone().map(Stdio::from).map_err(host);
    let mut child = Command::new(program)
        .arg("compile-plugin")
        .arg(serde_json::to_string(limits).map_err(|error| AdmissionError::Host(error.to_string()))?)
        .env_clear()
        // The allocator: what it only sets aside must not count as used.
        .env("MIMALLOC_ARENA_EAGER_COMMIT", "0")
        .current_dir("/")
        .stdin(give(&component)?)
        .stdout(give(&code)?)
        .stderr(give(&words)?)
        .spawn()
        .map_err(host)?;
    drop(component);
    let ended = wait(&mut child, limits.compile_cpu.saturating_mul(PATIENCE)).map_err(host)?;
    let read = |file: &mut File, most: u64| {
        let mut bytes = Vec::new();
        file.rewind().and_then(|()| file.take(most).read_to_end(&mut bytes)).map_err(host)?;
        Ok::<_, AdmissionError>(bytes)
    };
    if ended.is_some_and(|status| status.success()) {
        return read(&mut code, u64::MAX);
    }
    let words = String::from_utf8_lossy(&read(&mut words, WORDS_BYTES_MAX)?).into_owned();
    tracing::debug!(status = ?ended, words = printable(&words), "a component was not compiled");
    Err(refusal(ended, &words, limits))
}

/// What is in a memory file is no part of this process's memory.
fn memory(name: &str) -> std::io::Result<File> {
    Ok(memfd_create(name, MemfdFlags::CLOEXEC)?.into())
}

/// How the process ended; it is ended when that takes too long, and then there is nothing to tell.
fn wait(child: &mut Child, limit: Duration) -> std::io::Result<Option<ExitStatus>> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| std::io::Error::other("a process without an id"))?;
    let ended = pidfd_open(pid, PidfdFlags::empty()).map_err(std::io::Error::from).and_then(|process| {
        let limit = Timespec::try_from(limit).map_err(std::io::Error::other)?;
        let mut processes = [PollFd::from_borrowed_fd(process.as_fd(), PollFlags::IN)];
        loop {
            match poll(&mut processes, Some(&limit)) {
                Err(rustix::io::Errno::INTR) => {}
                ended => return Ok(ended? > 0),
            }
        }
    });
    if let Ok(true) = ended {
        return child.wait().map(Some);
    }
    child.kill()?;
    child.wait()?;
    ended.map(|_| None)
}

fn refusal(ended: Option<ExitStatus>, words: &str, limits: &ComponentLimits) -> AdmissionError {
    let seconds = limits.compile_cpu.as_secs();
    let exhausting = |most: String, key| AdmissionError::Exhausting { most, key };
    let Some(status) = ended else {
        // It had not even its seconds of a processor: the machine is busy.
        let all = limits.compile_cpu.saturating_mul(PATIENCE).as_secs();
        return AdmissionError::Host(format!("it was not done within {all} s"));
    };
    // What Rust says last when the system gives it no more.
    let is_out_of_memory = words.contains("memory allocation of") || words.contains("out of memory");
    match (status.code(), status.signal().and_then(Signal::from_named_raw)) {
        (Some(code), _) if code == i32::from(EXIT_REFUSED) => AdmissionError::Refused(printable(words)),
        (_, Some(Signal::XCPU)) => exhausting(format!("{seconds} s of processor time"), "compile_seconds"),
        (_, Some(Signal::XFSZ)) => AdmissionError::Compile("its code is too large to be handed over".into()),
        // Nobody but the system does that, when it runs out of memory, or a person.
        (_, Some(Signal::KILL)) => AdmissionError::Host("the compiling process was killed".into()),
        _ if is_out_of_memory => {
            exhausting(format!("{} bytes of memory", limits.compile_bytes_max), "compile_memory_bytes")
        }
        (Some(_), _) => AdmissionError::Compile("the compiler gave up on it".into()),
        (None, _) => AdmissionError::Compile(format!("the compiler crashed on it ({status})")),
    }
}

/// What foreign bytes may have had a part in: one line, with nothing in it that a terminal would obey.
fn printable(words: &str) -> String {
    let visible = |c: char| if c.is_control() { ' ' } else { c };
    words.trim().chars().map(visible).collect()
}

/// The exit code with a reason on standard error.
pub const EXIT_REFUSED: u8 = 65;
/// Waiting for a processor is nobody's fault.
const PATIENCE: u32 = 6;
const WORDS_BYTES_MAX: u64 = 4 << 10;
