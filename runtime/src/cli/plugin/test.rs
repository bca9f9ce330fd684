//! `plugin test`: golden cases, checked against what comes of them now, or made to expect it.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::cli::render;
use crate::sandbox::Sandbox;
use crate::trial::{Case, Trial, TrialError};

#[derive(Args)]
pub(in crate::cli) struct Arguments {
    /// The folder of the cases, one .json file each: {event, settings, identities, grant, expected}
    cases: PathBuf,
    /// The plugin; its name is the file's, without .wasm
    #[arg(long, value_name = "FILE")]
    wasm: PathBuf,
    /// Rewrite what the cases expect to what comes of them now
    #[arg(long)]
    bless: bool,
}

pub(super) async fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let files = Case::files(&arguments.cases)?;
    let trial = Trial::new(&Sandbox::start()?, &arguments.wasm)?;
    if arguments.bless {
        for file in &files {
            let changed = Case::bless_file(file, &trial).await?;
            say!("{} {}", if changed { "blessed  " } else { "unchanged" }, name(file));
        }
        return Ok(());
    }
    let mut failed = 0;
    for file in &files {
        failed += usize::from(!check(file, &trial).await?);
    }
    anyhow::ensure!(failed == 0, "{failed} of {} cases differ (- expected, + found; --bless accepts)", files.len());
    Ok(())
}

/// Whether a case's expectations hold; says where they do not.
async fn check(file: &Path, trial: &Trial) -> Result<bool, TrialError> {
    let differences = Case::check_file(file, trial).await?;
    say!("{} {}", if differences.is_empty() { "ok    " } else { "failed" }, name(file));
    for difference in &differences {
        let lines: Vec<_> = difference.to_string().lines().map(str::to_owned).collect();
        crate::cli::print(&render::indented(&lines));
    }
    Ok(differences.is_empty())
}

fn name(file: &Path) -> String {
    render::printable(&file.file_stem().unwrap_or_default().to_string_lossy())
}
