//! From a component's bytes to something that can be admitted: what was compiled a moment ago, what lies in the cache, and
//! else by a process of its own.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::cache::Cache;
use super::child;
use crate::effect::Hash;
use crate::grant::Grant;
use crate::sandbox::{AdmissionError, Compiled, ComponentLimits, Sandbox, Version};
use crate::tenant::PluginTerms;

/// On what terms a component is let in.
#[derive(Clone, Debug, PartialEq)]
pub struct Terms {
    /// What it may ask for.
    pub grant: Arc<Grant>,
    /// What it may be made of.
    pub component: ComponentLimits,
}

impl Terms {
    /// Those of a tenant's plugin.
    #[must_use]
    pub fn of(terms: &PluginTerms) -> Self {
        Self { grant: Arc::clone(&terms.grant), component: terms.limits.component }
    }
}

/// Compiles components; none twice, unless at the very same time.
pub struct Compiler {
    sandbox: Arc<Sandbox>,
    program: OsString,
    cache: Option<Cache>,
    memory: Mutex<Memory>,
}

/// What came of components that were compiled a moment ago, the latest first.
#[derive(Default)]
struct Memory {
    compiled: VecDeque<Compiled>,
    /// What nobody could compile within these limits: 200 tenants that share it need not all wait for that.
    refused: VecDeque<(Hash, ComponentLimits, String)>,
}

impl Compiler {
    /// A compiler for a sandbox.
    #[must_use]
    pub fn new(sandbox: &Arc<Sandbox>) -> Self {
        Self {
            sandbox: Arc::clone(sandbox),
            // This program, though a newer one may have its name by now: that one's code would not fit.
            program: "/proc/self/exe".into(),
            cache: None,
            memory: Mutex::default(),
        }
    }

    /// Has another program compile: for those who are not that program themselves.
    #[must_use]
    pub fn with_program(mut self, program: impl Into<OsString>) -> Self {
        self.program = program.into();
        self
    }

    /// Keeps what is compiled in a directory. One that cannot be used is complained about and done without.
    #[must_use]
    pub fn with_cache(mut self, folder: &Path) -> Self {
        let cache = Cache::open(folder, &self.sandbox);
        let cache = cache.and_then(|cache| cache.prune().map(|()| cache));
        let complain = |error: &std::io::Error| {
            tracing::error!(folder = %folder.display(), %error, "no cache: plugins are compiled at each start");
        };
        self.cache = cache.inspect_err(complain).ok();
        self
    }

    /// Compiles a component and admits it on a plugin's terms. Blocks for as long as that takes.
    ///
    /// # Errors
    /// [`AdmissionError`], in words the operator can act on.
    pub fn admit(&self, name: &str, wasm: &[u8], terms: &Terms) -> Result<Version, AdmissionError> {
        let compiled = self.compile(wasm, &terms.component)?;
        self.sandbox.admit_compiled(name, &compiled, &terms.grant, &terms.component)
    }

    fn compile(&self, wasm: &[u8], limits: &ComponentLimits) -> Result<Compiled, AdmissionError> {
        let digest = Hash::of_bytes(wasm);
        if let Some(known) = self.memory().recall(digest, limits) {
            return known;
        }
        let compiled = self.compile_anew(wasm, digest, limits);
        let mut memory = self.memory();
        match &compiled {
            Ok(compiled) => memory.compiled.push_front(compiled.clone()),
            // What the host could not do now it may well do later.
            Err(AdmissionError::Host(_)) => {}
            Err(why) => memory.refused.push_front((digest, *limits, why.to_string())),
        }
        memory.compiled.truncate(RECENT_MAX);
        memory.refused.truncate(RECENT_MAX);
        compiled
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn compile_anew(&self, wasm: &[u8], digest: Hash, limits: &ComponentLimits) -> Result<Compiled, AdmissionError> {
        let find = || self.cache.as_ref()?.find(&self.sandbox, digest);
        if let Some(compiled) = find() {
            return Ok(compiled);
        }
        let code = child::compile(&self.program, wasm, limits)?;
        let Some(cache) = &self.cache else { return self.sandbox.load(digest, &code) };
        if let Err(error) = cache.keep(digest, &code) {
            tracing::warn!(%error, "compiled code is not kept");
        }
        if let Err(error) = cache.prune() {
            tracing::warn!(%error, "compiled code that is not needed any more stays");
        }
        // From the file rather than from memory: what is mapped can be given back.
        find().map_or_else(|| self.sandbox.load(digest, &code), Ok)
    }
}

impl Memory {
    fn recall(&mut self, digest: Hash, limits: &ComponentLimits) -> Option<Result<Compiled, AdmissionError>> {
        if let Some((.., why)) = self.refused.iter().find(|known| known.0 == digest && known.1 == *limits) {
            return Some(Err(AdmissionError::Refused(why.clone())));
        }
        let place = self.compiled.iter().position(|compiled| compiled.digest == digest)?;
        let compiled = self.compiled.remove(place)?;
        self.compiled.push_front(compiled.clone());
        Some(Ok(compiled))
    }
}

/// Enough for all tenants to share what they share while they are loaded, and to go back a few versions.
const RECENT_MAX: usize = 16;
