//! Every plugin of the product, and every example, against its golden cases: what is asked for is what a person last
//! looked at.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use end_to_end::{example, guest};
use pulse_notifier::sandbox::Sandbox;
use pulse_notifier::trial::{Case, Trial};

#[tokio::test]
async fn every_plugin_has_cases_and_passes_them() -> Result<()> {
    passes("guest-plugins", guest).await
}

#[tokio::test]
async fn every_example_has_cases_and_passes_them() -> Result<()> {
    passes("examples", example).await
}

/// Each folder in this one is a plugin, which is built where `wasm` says.
async fn passes(folder: &str, wasm: fn(&str) -> Result<PathBuf>) -> Result<()> {
    let sandbox = Sandbox::start()?;
    let mut failed = Vec::new();
    for entry in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(folder))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().replace('-', "_");
        if !entry.path().is_dir() {
            continue;
        }
        let trial = Trial::new(&sandbox, &wasm(&name)?)?;
        let files = Case::files(&entry.path().join("cases")).with_context(|| format!("{name} has no golden case"))?;
        for file in files {
            for difference in Case::check_file(&file, &trial).await? {
                failed.push(format!("{}: {difference}", file.display()));
            }
        }
    }
    ensure!(failed.is_empty(), "(make bless accepts)\n{}", failed.join("\n"));
    Ok(())
}
