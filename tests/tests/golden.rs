//! Every plugin of the product, and every example, against its golden cases: what is asked for is what a person last
//! looked at.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use end_to_end::{example, guest};
use pulse_notifier::sandbox::Sandbox;
use pulse_notifier::trial::{Case, Trial};

#[tokio::test]
async fn every_plugin_has_cases_and_passes_them() -> Result<()> {
    let sandbox = Sandbox::start()?;
    let mut failed = Vec::new();
    for entry in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("../guest-plugins"))? {
        let folder = entry?.path();
        let name = folder.file_name().context("a name")?.to_string_lossy().replace('-', "_");
        let wasm = if folder.join("Cargo.toml").exists() { guest(&name) } else { example(&name) };
        let trial = Trial::new(&sandbox, &wasm?)?;
        let files = Case::files(&folder.join("cases")).with_context(|| format!("{name} has no golden case"))?;
        for file in files {
            for difference in Case::check_file(&file, &trial).await? {
                failed.push(format!("{}: {difference}", file.display()));
            }
        }
    }
    ensure!(failed.is_empty(), "(make bless accepts)\n{}", failed.join("\n"));
    Ok(())
}
