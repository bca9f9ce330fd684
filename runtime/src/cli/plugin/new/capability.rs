//! What a new plugin's source does with each capability, and what comes of that when its sample event is told.

use std::collections::BTreeMap;

use super::{GROUP, TASK};
use crate::config::default_root;
use crate::effect::{Effect, Email, Irc};

/// What a new plugin can be made to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Capability {
    Settings,
    Taskcluster,
    Email,
    Irc,
    Log,
}

impl Capability {
    /// All of them, in the order in which a plugin's source uses them.
    pub(super) const ALL: [Self; 5] = [Self::Settings, Self::Taskcluster, Self::Email, Self::Irc, Self::Log];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Settings => "settings",
            Self::Taskcluster => "taskcluster",
            Self::Email => "email",
            Self::Irc => "irc",
            Self::Log => "log",
        }
    }

    /// What it needs of the SDK.
    const fn imports(self) -> &'static [&'static str] {
        match self {
            Self::Settings => &["settings"],
            Self::Taskcluster => &["Failure", "taskcluster"],
            Self::Email => &["Mail"],
            Self::Irc => &["irc"],
            Self::Log => &["log"],
        }
    }

    /// What it adds to the function.
    const fn code(self) -> &'static str {
        match self {
            Self::Settings => {
                "    // What the operator set for this plugin.
    if let Some(signature) = settings::get(\"signature\") {
        text.push_str(&format!(\"{signature}\\n\"));
    }
"
            }
            Self::Taskcluster => {
                "    // What the run left behind. A Taskcluster in trouble is a reason to be run again later.
    match taskcluster::artifacts(event.run_id.unwrap_or(0)) {
        Ok(artifacts) => {
            for artifact in artifacts {
                text.push_str(&format!(\"{}\\n\", artifact.name));
            }
        }
        Err(taskcluster::ReadFailure::Unavailable(why)) => return Err(Failure::Retry(why)),
        Err(_) => {} // the run left nothing that may be read
    }
"
            }
            Self::Email => {
                "    if !wanted.emails.is_empty() {
        let mail = Mail::to(&wanted.emails).subject(&wanted.subject);
        mail.text(&text).thread(&event.task_group_id).send()?;
    }
"
            }
            Self::Irc => {
                "    for channel in &wanted.channels {
        irc::say(channel, irc::lines(&text))?;
    }
"
            }
            Self::Log => "    log::info(&text);\n",
        }
    }
}

/// The source of a plugin that uses these.
pub(super) fn source(capabilities: &[Capability]) -> String {
    let mut imports = vec!["Event", "Result", "plugin"];
    imports.extend(capabilities.iter().flat_map(|capability| capability.imports()));
    // As rustfmt orders them: types, then the rest.
    imports.sort_by_key(|name| (name.starts_with(char::is_lowercase), *name));
    let changes = capabilities.iter().any(|one| matches!(one, Capability::Settings | Capability::Taskcluster));
    let uses = capabilities.iter().any(|one| matches!(one, Capability::Email | Capability::Irc | Capability::Log));
    format!(
        "//! Says what a task wants said: its message and where to look at it.

use pulse_notifier_sdk::{{{imports}}};

plugin!(notify);

fn notify(event: &Event) -> Result {{
    let wanted = &event.notification;
    let {mutable}text = format!(\"{{}}\\n\\n{{}}\\n\", wanted.message, event.task_url);
{code}{unused}    Ok(())
}}
",
        imports = imports.join(", "),
        mutable = if changes { "mut " } else { "" },
        code = capabilities.iter().map(|capability| capability.code()).collect::<String>(),
        unused = if uses { "" } else { "    let _ = text; // nobody is told of it yet\n" },
    )
}

/// What the operator set, in the sample.
pub(super) fn settings(capabilities: &[Capability]) -> BTreeMap<String, String> {
    let signature = ("signature".to_owned(), SIGNATURE.to_owned());
    capabilities.contains(&Capability::Settings).then_some(signature).into_iter().collect()
}

/// What is asked for, in the sample.
pub(super) fn effects(capabilities: &[Capability]) -> impl Iterator<Item = Effect> {
    let recipient = "sheriffs@example.com";
    let mail = Effect::Email(Email {
        account: "trial".into(),
        recipient: recipient.into(),
        to: [recipient.into()].into(),
        subject: "The build failed".into(),
        text: text(capabilities).into(),
        html: None,
        thread: Some(GROUP.into()),
    });
    let lines = text(capabilities).lines().filter(|line| !line.is_empty()).map(str::to_owned).collect();
    let said = Effect::Irc(Irc { account: "trial".into(), channel: CHANNEL.into(), lines });
    let mail = capabilities.contains(&Capability::Email).then_some(mail);
    mail.into_iter().chain(capabilities.contains(&Capability::Irc).then_some(said))
}

/// What is logged, in the sample.
pub(super) fn log(capabilities: &[Capability]) -> Vec<String> {
    let text = text(capabilities);
    let lines = text.lines().map(|line| format!("info: {line}"));
    if capabilities.contains(&Capability::Log) { lines.collect() } else { Vec::new() }
}

fn text(capabilities: &[Capability]) -> String {
    let signed = if capabilities.contains(&Capability::Settings) { format!("{SIGNATURE}\n") } else { String::new() };
    format!("{TASK} failed. Please have a look.\n\n{}tasks/{TASK}\n{signed}", default_root())
}

/// The channel that the sample's task names.
pub(super) const CHANNEL: &str = "#builds";
const SIGNATURE: &str = "Your sheriffs";
