//! A compiled component becomes a plugin that can be run: imports that are known and granted, figures within its limits.

use wasmtime::Engine;
use wasmtime::component::{Component, Linker};

use super::census::{Census, ComponentLimits};
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
    /// What it is made of.
    pub census: Census,
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
    /// What it is made of.
    pub census: Census,
    pub(super) pre: PluginPre<Guest>,
}

/// Why a file is not let in.
#[derive(Debug, thiserror::Error)]
pub enum AdmissionError {
    /// Too large, or too many parts.
    #[error("{found} {what}, more than the {most} it may have ({key} in its limits)")]
    TooMuch {
        /// How much it has.
        found: u64,
        /// How much it may have.
        most: u64,
        /// Of what.
        what: &'static str,
        /// The limit that says so.
        key: &'static str,
    },
    /// Components in components in components.
    #[error("more than 32 components and modules inside one another")]
    TooDeep,
    /// A core module.
    #[error("a core module: expected a component (build for wasm32-wasip2)")]
    CoreModule,
    /// Something else altogether.
    #[error("expected a WebAssembly component, found something that does not begin as one")]
    NotWasm,
    /// It does not compile.
    #[error("it does not compile: {0}")]
    Compile(String),
    /// Whoever was to compile it refuses, or could not.
    #[error("{0}")]
    Refused(String),
    /// Compiling it took more than it may.
    #[error("compiling it took more than {most}: it is refused ({key} in its limits)")]
    Exhausting {
        /// How much it may take.
        most: String,
        /// The limit that says so.
        key: &'static str,
    },
    /// Nobody could try.
    #[error("the host could not compile it: {0}")]
    Host(String),
    /// It imports what no plugin may.
    #[error("it imports {0:?}, which no plugin may")]
    UnknownImport(String),
    /// It imports what its grant does not cover.
    #[error("its grant does not cover what it imports: {}", missing(.plugin, .capabilities))]
    NotGranted {
        /// The plugin's name.
        plugin: String,
        /// What is missing in its grant.
        capabilities: Vec<String>,
    },
    /// It is no plugin.
    #[error("it does not fit the world pulse:notifier/plugin: {0}")]
    World(String),
}

impl AdmissionError {
    /// Whether it is nothing about the component: another attempt may go well.
    #[must_use]
    pub const fn is_passing(&self) -> bool {
        matches!(self, Self::Host(_))
    }

    /// Whether nobody could run these bytes, whatever his grant.
    #[must_use]
    pub const fn is_about_its_bytes(&self) -> bool {
        match self {
            Self::TooMuch { .. }
            | Self::TooDeep
            | Self::CoreModule
            | Self::NotWasm
            | Self::Compile(_)
            | Self::Refused(_)
            | Self::Exhausting { .. }
            | Self::Host(_) => true,
            Self::UnknownImport(_) | Self::NotGranted { .. } | Self::World(_) => false,
        }
    }
}

/// What is known of a compiled component before anybody is admitted to it.
pub(super) fn compiled(
    engine: &Engine,
    digest: Hash,
    census: Census,
    component: Component,
) -> Result<Compiled, AdmissionError> {
    let imports = imports(engine, &component)?;
    Ok(Compiled { digest, imports, census, component })
}

pub(super) fn admit(
    linker: &Linker<Guest>,
    name: &str,
    compiled: &Compiled,
    grant: &Grant,
    limits: &ComponentLimits,
) -> Result<Version, AdmissionError> {
    let Compiled { digest, imports, census, component } = compiled;
    covered(name, imports, census, grant, limits)?;
    let pre = linker.instantiate_pre(component).and_then(PluginPre::new);
    let pre = pre.map_err(|error| AdmissionError::World(whole(&error)))?;
    Ok(Version { name: name.to_owned(), digest: *digest, imports: imports.clone(), census: *census, pre })
}

impl Version {
    /// Whether a grant and limits cover it.
    ///
    /// # Errors
    /// [`AdmissionError`], with what is missing.
    pub fn covered(&self, grant: &Grant, limits: &ComponentLimits) -> Result<(), AdmissionError> {
        covered(&self.name, &self.imports, &self.census, grant, limits)
    }
}

fn covered(
    plugin: &str,
    imports: &[String],
    census: &Census,
    grant: &Grant,
    limits: &ComponentLimits,
) -> Result<(), AdmissionError> {
    census.within(limits)?;
    let capabilities: Vec<_> = imports.iter().filter(|capability| !grant.covers(capability)).cloned().collect();
    match capabilities.is_empty() {
        true => Ok(()),
        false => Err(AdmissionError::NotGranted { plugin: plugin.to_owned(), capabilities }),
    }
}

/// The capabilities, and what would have to stand in the tenant's file for them.
fn missing(plugin: &str, capabilities: &[String]) -> String {
    let tables = capabilities.iter().filter_map(|capability| {
        let keys = Grant::example(capability)?;
        Some(format!("\n[plugins.{plugin}.grant.{capability}]\n{keys}"))
    });
    let tables: String = tables.collect();
    let listed = capabilities.join(", ");
    if tables.is_empty() {
        listed
    } else {
        format!(
            "{listed}. In the tenant's file, or after tenants.NAME. in a file of all, and by an account that it has, that \
             would be, for instance:{tables}"
        )
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

pub(super) fn whole(error: &wasmtime::Error) -> String {
    super::shortened(format!("{error:#}"))
}

/// What Rust's standard library imports even when it is not used; the host provides it empty.
const HARMLESS: [&str; 5] = ["wasi:cli/", "wasi:io/", "wasi:clocks/", "wasi:filesystem/", "wasi:random/"];
