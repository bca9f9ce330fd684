//! Foreign bytes become code, and code becomes something that can be run. The first half needs no sandbox: it is what
//! the compiling process does; the second trusts what it is given, and so must whoever calls it.

use std::hash::{DefaultHasher, Hash as _, Hasher};
use std::path::Path;

use wasmtime::Engine;
use wasmtime::component::Component;

use super::admission::{AdmissionError, Compiled, compiled, whole};
use super::census::{Census, ComponentLimits};
use super::{Sandbox, engine};
use crate::effect::Hash;

/// Checks and compiles a component for the sandbox of this very program: code, with the component's figures behind it.
///
/// # Errors
/// [`AdmissionError`], in words the operator can act on.
pub fn precompile(wasm: &[u8], limits: &ComponentLimits) -> Result<Vec<u8>, AdmissionError> {
    let census = Census::take(wasm, limits)?;
    let engine = engine::compiling().map_err(|error| AdmissionError::Host(whole(&error)))?;
    let mut code = engine.precompile_component(wasm).map_err(|error| AdmissionError::Compile(whole(&error)))?;
    let figures = serde_json::to_vec(&census).map_err(|error| AdmissionError::Host(error.to_string()))?;
    code.extend(&figures);
    code.extend(u32::try_from(figures.len()).unwrap_or(u32::MAX).to_le_bytes());
    Ok(code)
}

impl Sandbox {
    /// Names the settings and the version of the compiler: only code compiled with the same can be loaded.
    #[must_use]
    pub fn compatibility(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.engine.precompile_compatibility_hash().hash(&mut hasher);
        hasher.finish()
    }

    /// Takes up what [`precompile`] made of the bytes with this digest, which is believed.
    ///
    /// # Errors
    /// [`AdmissionError`], when it was compiled for another sandbox or is nothing that anybody could run.
    pub fn load(&self, digest: Hash, code: &[u8]) -> Result<Compiled, AdmissionError> {
        let census = census(code).ok_or_else(|| AdmissionError::Host("compiled code without its figures".into()))?;
        self.load_with(digest, census, || {
            #[expect(unsafe_code, reason = "the bytes are the compiling process's, which is this program")]
            // SAFETY: by this method's contract the bytes come from `precompile`.
            unsafe {
                Component::deserialize(&self.engine, code)
            }
        })
    }

    /// The same for a file that holds it, and whose bytes the caller has looked at; it is mapped, not read. Where that is
    /// not allowed, it is read.
    ///
    /// # Errors
    /// As [`Sandbox::load`].
    pub fn load_file(&self, digest: Hash, code: &[u8], path: &Path) -> Result<Compiled, AdmissionError> {
        let census = census(code).ok_or_else(|| AdmissionError::Host("compiled code without its figures".into()))?;
        let mapped = self.load_with(digest, census, || {
            #[expect(unsafe_code, reason = "the file's content was authenticated")]
            // SAFETY: by this method's contract the file holds these bytes, and they come from `precompile`.
            unsafe {
                Component::deserialize_file(&self.engine, path)
            }
        });
        mapped.or_else(|_| self.load(digest, code))
    }

    fn load_with(
        &self,
        digest: Hash,
        census: Census,
        load: impl FnOnce() -> Result<Component, wasmtime::Error>,
    ) -> Result<Compiled, AdmissionError> {
        let component = load().map_err(|error| AdmissionError::Compile(whole(&error)))?;
        compiled(&self.engine, digest, census, component)
    }
}

/// In this process: for those who trust the bytes, or have nothing to lose but time.
pub(super) fn compile(engine: &Engine, wasm: &[u8], limits: &ComponentLimits) -> Result<Compiled, AdmissionError> {
    let census = Census::take(wasm, limits)?;
    let component = Component::from_binary(engine, wasm).map_err(|error| AdmissionError::Compile(whole(&error)))?;
    compiled(engine, Hash::of_bytes(wasm), census, component)
}

/// The figures behind compiled code.
fn census(code: &[u8]) -> Option<Census> {
    let (rest, length) = code.split_last_chunk()?;
    let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
    serde_json::from_slice(rest.get(rest.len().checked_sub(length)?..)?).ok()
}
