//! The built plugins: those of the product and those that only tests have.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tempfile::TempDir;

/// The component of a built plugin.
pub fn guest(name: &str) -> Result<PathBuf> {
    let executable = std::env::current_exe()?;
    // target/debug/deps/test → target/wasm32-wasip2/guest
    let target = executable.ancestors().nth(3).context("a test runs inside the target directory")?;
    let path = target.join("wasm32-wasip2/guest").join(format!("{name}.wasm"));
    path.is_file()
        .then_some(&path)
        .with_context(|| format!("{}: run `make guests test-guests` first", path.display()))?;
    Ok(path)
}

/// The component of an example in another language than Rust.
pub fn example(name: &str) -> Result<PathBuf> {
    let executable = std::env::current_exe()?;
    let target = executable.ancestors().nth(3).context("a test runs inside the target directory")?;
    let path = target.join("examples").join(format!("{name}.wasm"));
    path.is_file().then_some(&path).with_context(|| format!("{}: run `make examples` first", path.display()))?;
    Ok(path)
}

/// A plugin directory with the built plugins of these names.
pub fn plugins(names: &[&str]) -> Result<TempDir> {
    let folder = tempfile::Builder::new().prefix("plugins-").tempdir()?;
    for name in names {
        install(name, folder.path())?;
    }
    Ok(folder)
}

fn install(name: &str, folder: &Path) -> Result<()> {
    std::fs::copy(guest(name)?, folder.join(format!("{name}.wasm"))).map(drop).context("copy a plugin")
}
