//! `plugin new`: the crate of a plugin, with a golden case that passes.

mod capability;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use serde_json::{Value, json};

use crate::trial::{Asked, Case, Outcome};
use capability::Capability;

#[derive(Args)]
pub(in crate::cli) struct Arguments {
    /// The plugin's name, and the folder to make: a-z, then a-z 0-9 _ -
    name: String,
    /// What it shall use, separated by commas: email, sns, s3, irc, amqp, webhook, taskcluster, settings, log
    #[arg(long, value_name = "CAPABILITIES", value_delimiter = ',', default_value = "email,log")]
    with: Vec<String>,
    /// The folder of the SDK; the one of the checkout around the working directory if not given
    #[arg(long, value_name = "FOLDER")]
    sdk: Option<PathBuf>,
}

/// Why there is no new plugin.
#[derive(Debug, thiserror::Error)]
pub(in crate::cli) enum NewError {
    #[error("expected a name of a-z, then a-z 0-9 _ -, found {0:?}")]
    Name(String),
    #[error("{0}: expected a folder that does not exist yet")]
    Exists(PathBuf),
    #[error("--with: expected some of {known}, found {found:?}", known = Capability::ALL.map(Capability::name).join(", "))]
    Capability { found: String },
    #[error("{0}: expected the folder of the SDK, with the Cargo.toml of pulse-notifier-sdk")]
    NoSdk(PathBuf),
    #[error("expected to be inside a checkout with sdk/Cargo.toml: name the SDK's folder with --sdk")]
    SdkNotFound,
}

/// Where a crate is made, which decides how it is built.
enum Place {
    /// Among the guests of a workspace, which says how they are built.
    Workspace,
    /// On its own.
    Alone { sdk: PathBuf },
}

impl Place {
    /// How wide the lines of its sources may be.
    const fn line_width(&self) -> usize {
        match self {
            Self::Workspace => 120,
            Self::Alone { .. } => 100,
        }
    }
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let name = arguments.name.as_str();
    check_name(name)?;
    let capabilities = capabilities(&arguments.with)?;
    let here = std::env::current_dir().context("the working directory")?;
    let place = place(&here, arguments.sdk.as_deref())?;
    let folder = PathBuf::from(name);
    if folder.symlink_metadata().is_ok() {
        return Err(NewError::Exists(folder).into());
    }
    let case = case(name, &capabilities)?;
    write(&folder, "Cargo.toml", &manifest(name, &place))?;
    write(&folder, "src/lib.rs", &capability::source(&capabilities, place.line_width()))?;
    write(&folder, "cases/failed.json", &case.to_string())?;
    say!("{}", next_steps(name, &place));
    Ok(())
}

fn check_name(name: &str) -> Result<(), NewError> {
    let fits = name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-');
    if fits { Ok(()) } else { Err(NewError::Name(name.to_owned())) }
}

/// Each of the capabilities once, in their own order.
fn capabilities(names: &[String]) -> Result<Vec<Capability>, NewError> {
    let is_known = |name: &&String| Capability::ALL.iter().any(|known| known.name() == name.trim());
    if let Some(found) = names.iter().find(|name| !is_known(name)) {
        return Err(NewError::Capability { found: found.clone() });
    }
    let is_named = |known: &Capability| names.iter().any(|name| known.name() == name.trim());
    Ok(Capability::ALL.into_iter().filter(is_named).collect())
}

fn place(here: &Path, sdk: Option<&Path>) -> anyhow::Result<Place> {
    let checkout = here.ancestors().find(|folder| is_sdk(&folder.join("sdk")));
    let sdk = match (sdk, checkout) {
        (Some(sdk), _) if !is_sdk(sdk) => return Err(NewError::NoSdk(sdk.to_owned()).into()),
        (Some(sdk), _) => sdk.canonicalize().context("find the SDK")?,
        (None, Some(checkout)) => checkout.join("sdk"),
        (None, None) => return Err(NewError::SdkNotFound.into()),
    };
    let is_guest =
        checkout.is_some_and(|checkout| here == checkout.join("guest-plugins") && sdk == checkout.join("sdk"));
    Ok(if is_guest { Place::Workspace } else { Place::Alone { sdk } })
}

fn is_sdk(folder: &Path) -> bool {
    std::fs::read_to_string(folder.join("Cargo.toml"))
        .is_ok_and(|manifest| manifest.lines().any(|line| line.trim() == "name = \"pulse-notifier-sdk\""))
}

fn manifest(name: &str, place: &Place) -> String {
    match place {
        Place::Workspace => include_str!("new/workspace.toml").replace("{name}", name),
        // A JSON text is a TOML text as well.
        Place::Alone { sdk } => include_str!("new/alone.toml")
            .replace("{name}", name)
            .replace("{sdk}", &Value::from(sdk.display().to_string()).to_string()),
    }
}

/// The plugin's name to a task and the stem of its file: what cargo makes of the crate's name.
fn stem(name: &str) -> String {
    name.replace('-', "_")
}

fn case(name: &str, capabilities: &[Capability]) -> anyhow::Result<Case> {
    let event = json!({
        "exchange": "exchange/taskcluster-queue/v1/task-failed",
        "body": {"runId": 0, "status": {"taskId": TASK, "taskGroupId": GROUP,
            "runs": [{"runId": 0, "state": "failed", "resolved": "2026-11-02T09:40:00.000Z"}]}},
        "task": {"metadata": {"name": "build"}, "extra": {"notifications": {"task-failed": {
            "plugins": [stem(name)], "emails": ["sheriffs@example.com"], "channels": [capability::CHANNEL],
            "subject": "The build failed", "message": "{task_id} failed. Please have a look."}}}},
    });
    // One level deeper, as it stands in the case's file.
    let event = format!("{event:#}").replace('\n', "\n  ");
    let outcome = Outcome {
        identity: "default".into(),
        ending: "done",
        effects: capability::effects(capabilities).map(|effect| Asked { effect, refused: None }).collect(),
        log: capability::log(capabilities),
        ..Outcome::default()
    };
    let settings: BTreeMap<_, _> = capability::settings(capabilities);
    Case::new(event, settings, [outcome]).context("write down a case")
}

fn write(folder: &Path, file: &str, text: &str) -> anyhow::Result<()> {
    let path = folder.join(file);
    let written = path.parent().map_or(Ok(()), std::fs::create_dir_all).and_then(|()| std::fs::write(&path, text));
    written.with_context(|| format!("write {}", path.display()))
}

fn next_steps(name: &str, place: &Place) -> String {
    let stem = stem(name);
    let (folder, build, wasm) = match place {
        Place::Workspace => ("..", "make guests", format!("plugins/{stem}.wasm")),
        Place::Alone { .. } => {
            (name, "cargo build --release --target wasm32-wasip2", format!("target/wasm32-wasip2/release/{stem}.wasm"))
        }
    };
    let cases = match place {
        Place::Workspace => format!("guest-plugins/{name}/cases"),
        Place::Alone { .. } => "cases".to_owned(),
    };
    format!(
        "Made {name}/: a task names it as \"{stem}\". What next:\n  \
         cd {folder}\n  \
         {build}\n  \
         pulse-notifier plugin try {wasm} --event {cases}/failed.json\n  \
         pulse-notifier plugin test {cases} --wasm {wasm}"
    )
}

const TASK: &str = "SampleTaskQxC01failAAA";
const GROUP: &str = "SampleGroupQxC01failAA";
