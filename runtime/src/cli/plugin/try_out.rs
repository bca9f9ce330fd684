//! `plugin try`: one event, one plugin, and what would become of it.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use crate::cli::render;
use crate::sandbox::{Sandbox, Version};
use crate::trial::{Occasion, Run, Told, Trial};

#[derive(Args)]
pub(in crate::cli) struct Arguments {
    /// The plugin; its name is the file's, without .wasm
    wasm: PathBuf,
    /// One event as JSON: {exchange, routing_key, cc, redelivered, body, task}; or a golden case, with all it sets
    #[arg(long, value_name = "FILE")]
    event: PathBuf,
    /// The task's definition as JSON, instead of the one the event brings along
    #[arg(long, value_name = "FILE")]
    task: Option<PathBuf>,
    /// The plugin's settings: a JSON object of texts
    #[arg(long, value_name = "FILE")]
    settings: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let mut occasion = Occasion::from_file(&arguments.event)?;
    if let Some(path) = &arguments.task {
        occasion = occasion.with_task(path)?;
    }
    if let Some(path) = &arguments.settings {
        occasion = occasion.with_settings(path)?;
    }
    let trial = Trial::new(&Sandbox::start()?, &arguments.wasm)?;
    let told = trial.tell_of(&arguments.event, &occasion).await?;
    if arguments.json {
        say!("{}", render::json(&as_json(trial.plugin(), &occasion, &told)));
    } else {
        say!("{}", as_text(trial.plugin(), &occasion, &told));
    }
    match told.runs.iter().find_map(|run| Some((run.outcome.ending, run.outcome.reason.as_ref()?))) {
        None => Ok(()),
        Some((ending, why)) => anyhow::bail!("plugin {:?} ended as {ending}: {why}", trial.plugin().name),
    }
}

fn as_json(plugin: &Version, occasion: &Occasion, told: &Told) -> serde_json::Value {
    json!({
        "plugin": plugin.name, "digest": plugin.digest.to_string(), "imports": plugin.imports,
        "grant": occasion.recipients, "status": told.status, "task_id": told.task_id.as_str(),
        "warnings": told.warnings, "runs": told.runs,
    })
}

fn as_text(plugin: &Version, occasion: &Occasion, told: &Told) -> String {
    let digest: String = plugin.digest.to_string().chars().take(12).collect();
    let towards = match occasion.recipients.as_slice() {
        [any] if any == "*" => "any recipient".to_owned(),
        patterns => format!("recipients like {}", patterns.join(", ")),
    };
    let mut lines = vec![
        format!("plugin   {} (sha256 {digest}…) imports {}", plugin.name, plugin.imports.join(", ")),
        format!("granted  everything it imports, {towards}; nothing is sent"),
        format!("event    {} of task {}", told.status, told.task_id),
    ];
    lines.extend(told.warnings.iter().map(|warning| format!("warning  {warning}")));
    let head: String = lines.iter().map(|line| render::printable(line) + "\n").collect();
    let runs = told.runs.iter().map(|run| format!("\n{}", of_run(&told.status, run)));
    head + runs.collect::<String>().trim_end()
}

fn of_run(status: &str, run: &Run) -> String {
    let outcome = &run.outcome;
    let why = outcome.reason.as_ref().map_or(String::new(), |why| format!(": {why}"));
    let (cpu_ms, memory_kib) = (run.cpu.as_secs_f64() * 1e3, run.memory_bytes_max >> 10);
    let ended = format!(
        "{} for identity {}{why} ({cpu_ms:.1} ms of processor time, {memory_kib} KiB of memory)",
        outcome.ending, outcome.identity,
    );
    let mut text = render::printable(&ended) + "\n";
    for asked in &outcome.effects {
        let state = if asked.refused.is_some() { "refused" } else { "asked for" };
        text += &format!("\n{}", render::effect(status, state, asked.refused.as_deref(), &asked.effect));
    }
    if outcome.effects.is_empty() {
        text += "\n── nothing is asked for\n";
    }
    for (what, lines) in [("refused", &outcome.refusals), ("log", &outcome.log)] {
        if !lines.is_empty() {
            text += &format!("\n── {what}\n{}", render::indented(lines));
        }
    }
    text
}
