//! Foreign bytes become a plugin that can be run: the right kind of file, imports that are known and granted, compiled.

use wasmtime::Engine;
use wasmtime::component::{Component, Linker};

use super::guest::{Guest, PluginPre};
use crate::effect::Hash;
use crate::grant::Grant;

/// Bytes that are a component, compiled: the same for everyone who runs them.
#[derive(Clone)]
pub struct Compiled {
    /// The digest of its bytes.
    pub digest: Hash,
    /// The capabilities it imports.
    pub imports: Vec<String>,
    component: Component,
}

/// One version of a plugin, admitted and compiled.
#[derive(Clone)]
pub struct Version {
    /// The plugin's name.
    pub name: String,
    /// The digest of its bytes.
    pub digest: Hash,
    /// The capabilities it imports.
    pub imports: Vec<String>,
    pub(super) pre: PluginPre<Guest>,
}

/// Why a file is not let in.
#[derive(Debug, thiserror::Error)]
pub enum AdmissionError {
    /// Too large.
    #[error("{found} bytes, more than the {COMPONENT_BYTES_MAX} a component may have")]
    TooLarge {
        /// Its size.
        found: usize,
    },
    /// A core module.
    #[error("a core module: expected a component (build for wasm32-wasip2)")]
    CoreModule,
    /// Something else altogether.
    #[error("expected a WebAssembly component, found something that does not begin as one")]
    NotWasm,
    /// It does not compile.
    #[error("it does not compile: {0}")]
    Compile(String),
    /// It imports what no plugin may.
    #[error("it imports {0:?}, which no plugin may")]
    UnknownImport(String),
    /// It imports what its grant does not cover.
    #[error("its grant does not cover what it imports: {}", .0.join(", "))]
    NotGranted(Vec<String>),
    /// It is no plugin.
    #[error("it does not fit the world pulse:notifier/plugin: {0}")]
    World(String),
}

pub(super) fn compile(engine: &Engine, wasm: &[u8]) -> Result<Compiled, AdmissionError> {
    check_kind(wasm)?;
    let component = Component::from_binary(engine, wasm).map_err(|error| AdmissionError::Compile(whole(&error)))?;
    let imports = imports(engine, &component)?;
    Ok(Compiled { digest: Hash::of_bytes(wasm), imports, component })
}

pub(super) fn admit(
    linker: &Linker<Guest>,
    name: &str,
    compiled: &Compiled,
    grant: &Grant,
) -> Result<Version, AdmissionError> {
    let Compiled { digest, imports, component } = compiled;
    let missing: Vec<_> = imports.iter().filter(|capability| !grant.covers(capability)).cloned().collect();
    if !missing.is_empty() {
        return Err(AdmissionError::NotGranted(missing));
    }
    let pre = linker.instantiate_pre(component).and_then(PluginPre::new);
    let pre = pre.map_err(|error| AdmissionError::World(whole(&error)))?;
    Ok(Version { name: name.to_owned(), digest: *digest, imports: imports.clone(), pre })
}

fn check_kind(wasm: &[u8]) -> Result<(), AdmissionError> {
    if wasm.len() > COMPONENT_BYTES_MAX {
        return Err(AdmissionError::TooLarge { found: wasm.len() });
    }
    match wasm.first_chunk() {
        Some(b"\0asm\x0d\0\x01\0") => Ok(()),
        Some(b"\0asm\x01\0\0\0") => Err(AdmissionError::CoreModule),
        _ => Err(AdmissionError::NotWasm),
    }
}

/// The capabilities a component imports, once everything it imports is known to be harmless or ours.
fn imports(engine: &Engine, component: &Component) -> Result<Vec<String>, AdmissionError> {
    let mut capabilities = Vec::new();
    for (import, _) in component.component_type().imports(engine) {
        let interface = import.split('@').next().unwrap_or(import);
        if let Some(capability) = interface.strip_prefix("pulse:notifier/") {
            capabilities.push(capability.to_owned());
        } else if !HARMLESS.iter().any(|package| interface.starts_with(package)) {
            return Err(AdmissionError::UnknownImport(import.chars().take(100).collect()));
        }
    }
    Ok(capabilities)
}

fn whole(error: &wasmtime::Error) -> String {
    super::shortened(format!("{error:#}"))
}

/// What Rust's standard library imports even when it is not used; the host provides it empty.
const HARMLESS: [&str; 5] = ["wasi:cli/", "wasi:io/", "wasi:clocks/", "wasi:filesystem/", "wasi:random/"];
/// How large a component may be.
pub const COMPONENT_BYTES_MAX: usize = 10 << 20;
