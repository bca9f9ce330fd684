//! `compile-plugin`: what the service starts to have a component compiled, and nobody else. A component on standard
//! input, code on standard output, or on standard error why there is none. Foreign bytes may keep a compiler busy for
//! ever or have it eat all memory: here that ends a process which has nothing else to do.

use std::io::{Read, Write};
use std::process::ExitCode;

use rustix::process::{Resource, Rlimit, setrlimit};

use crate::registry::EXIT_REFUSED;
use crate::sandbox::{ComponentLimits, precompile};

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// What the component may be made of and what compiling it may take, as JSON
    limits: String,
}

pub(super) fn run(arguments: &Arguments) -> ExitCode {
    match compile(&arguments.limits) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprint!("{why}");
            ExitCode::from(EXIT_REFUSED)
        }
    }
}

fn compile(limits: &str) -> Result<(), String> {
    let limits: ComponentLimits =
        serde_json::from_str(limits).map_err(|error| format!("limits: expected them as JSON: {error}"))?;
    confine(&limits).map_err(|error| format!("limit this process: {error}"))?;
    let mut wasm = Vec::new();
    let most = u64::try_from(limits.bytes_max).unwrap_or(u64::MAX).saturating_add(1);
    std::io::stdin().take(most).read_to_end(&mut wasm).map_err(|error| format!("read the component: {error}"))?;
    let code = precompile(&wasm, &limits).map_err(|why| why.to_string())?;
    std::io::stdout().write_all(&code).map_err(|error| format!("write the code: {error}"))
}

/// From here on this process can have no more than what compiling may take.
fn confine(limits: &ComponentLimits) -> std::io::Result<()> {
    let set = |resource, soft: u64, hard: u64| {
        Ok::<_, std::io::Error>(setrlimit(resource, Rlimit { current: Some(soft), maximum: Some(hard) })?)
    };
    let seconds = limits.compile_cpu.as_secs();
    set(Resource::Cpu, seconds, seconds.saturating_add(1))?;
    // Address space that is only set aside costs nothing; what can be written to, does.
    let bytes = u64::try_from(limits.compile_bytes_max).unwrap_or(u64::MAX);
    set(Resource::Data, bytes, bytes)?;
    set(Resource::Core, 0, 0)?;
    set(Resource::Nofile, FILES_MAX, FILES_MAX)?;
    set(Resource::Fsize, CODE_BYTES_MAX, CODE_BYTES_MAX)
}

const FILES_MAX: u64 = 64;
const CODE_BYTES_MAX: u64 = 256 << 20;
