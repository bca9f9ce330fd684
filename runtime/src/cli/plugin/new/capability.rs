//! What a new plugin's source does with each capability, and what comes of that when its sample event is told.

use std::collections::BTreeMap;

use super::{GROUP, TASK};
use crate::config::default_root;
use crate::effect::{Amqp, Effect, Email, Irc, Receiver, S3, S3Body, Sns, Webhook};

/// What a new plugin can be made to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Capability {
    Settings,
    Taskcluster,
    Email,
    Sns,
    S3,
    Irc,
    Amqp,
    Webhook,
    Log,
}

impl Capability {
    /// All of them, in the order in which a plugin's source uses them.
    pub(super) const ALL: [Self; 9] = [
        Self::Settings,
        Self::Taskcluster,
        Self::Email,
        Self::Sns,
        Self::S3,
        Self::Irc,
        Self::Amqp,
        Self::Webhook,
        Self::Log,
    ];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Settings => "settings",
            Self::Taskcluster => "taskcluster",
            Self::Email => "email",
            Self::Sns => "sns",
            Self::S3 => "s3",
            Self::Irc => "irc",
            Self::Amqp => "amqp",
            Self::Webhook => "webhook",
            Self::Log => "log",
        }
    }

    /// What it needs of the SDK.
    const fn imports(self) -> &'static [&'static str] {
        match self {
            Self::Settings => &["settings"],
            Self::Taskcluster => &["Failure", "taskcluster"],
            Self::Email => &["Mail"],
            Self::Sns => &["sns"],
            Self::S3 => &["s3"],
            Self::Irc => &["irc"],
            Self::Amqp => &["amqp"],
            Self::Webhook => &["webhook"],
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
            Self::Sns => {
                "    let topic = \"arn:aws:sns:us-west-2:123456789012:builds\"; // yours
    let subject = sns::subject(&wanted.subject);
    sns::publish(topic, Some(&subject), &text)?;
"
            }
            Self::S3 => {
                "    let key = format!(\"notifications/{}.txt\", event.task_id);
    s3::put(&key, \"text/plain\", text.as_bytes())?;
"
            }
            Self::Amqp => "    amqp::publish(\"exchange/me/ci\", \"failed\", \"text/plain\", text.as_bytes())?;\n",
            Self::Webhook => {
                "    // Whom the operator calls `alerts`: its address is a secret.
    let post = webhook::to_endpoint(\"alerts\");
    post.body(\"text/plain\", text.as_bytes()).send()?;
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

    /// Whether it adds to the text, and so does not say it.
    const fn is_read(self) -> bool {
        matches!(self, Self::Settings | Self::Taskcluster)
    }

    /// What it asks for when it says this.
    fn effect(self, text: &str) -> Option<Effect> {
        let account = "trial".to_owned();
        Some(match self {
            Self::Settings | Self::Taskcluster | Self::Log => return None,
            Self::Email => Effect::Email(Email {
                account,
                recipient: RECIPIENT.into(),
                to: [RECIPIENT.into()].into(),
                subject: SUBJECT.into(),
                text: text.into(),
                html: None,
                thread: Some(GROUP.into()),
            }),
            Self::Sns => Effect::Sns(Sns {
                account,
                topic: "arn:aws:sns:us-west-2:123456789012:builds".into(),
                subject: Some(SUBJECT.into()),
                text: text.into(),
            }),
            Self::S3 => Effect::S3(S3 {
                account,
                key: format!("notifications/{TASK}.txt"),
                content_type: "text/plain".into(),
                body: S3Body::Bytes(text.into()),
            }),
            Self::Irc => {
                let lines = text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect();
                Effect::Irc(Irc { account, channel: CHANNEL.into(), lines })
            }
            Self::Amqp => Effect::Amqp(Amqp {
                account,
                exchange: "exchange/me/ci".into(),
                routing_key: "failed".into(),
                content_type: "text/plain".into(),
                body: text.into(),
                hops: 1,
                unrouted: false,
            }),
            Self::Webhook => Effect::Webhook(Webhook {
                account,
                to: Receiver::Endpoint("alerts".into()),
                content_type: "text/plain".into(),
                headers: Vec::new(),
                body: text.into(),
            }),
        })
    }
}

/// The source of a plugin that uses these, in lines of at most this width.
pub(super) fn source(capabilities: &[Capability], width: usize) -> String {
    let mut imports = vec!["Event", "Result", "plugin"];
    imports.extend(capabilities.iter().flat_map(|capability| capability.imports()));
    // As rustfmt orders them: types, then the rest.
    imports.sort_by_key(|name| (name.starts_with(char::is_lowercase), *name));
    let imports = imports.join(", ");
    let on_one_line = format!("use pulse_notifier_sdk::{{{imports}}};");
    let on_three_lines = format!("use pulse_notifier_sdk::{{\n    {imports},\n}};");
    let changes = capabilities.iter().any(|one| one.is_read());
    let uses = capabilities.iter().any(|one| !one.is_read());
    format!(
        "//! Says what a task wants said: its message and where to look at it.

{imports}

plugin!(notify);

fn notify(event: &Event) -> Result {{
    let wanted = &event.notification;
    let {mutable}text = format!(\"{{}}\\n\\n{{}}\\n\", wanted.message, event.task_url);
{code}{unused}    Ok(())
}}
",
        imports = if on_one_line.len() > width { on_three_lines } else { on_one_line },
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
    let text = text(capabilities);
    capabilities.iter().filter_map(move |capability| capability.effect(&text))
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
const RECIPIENT: &str = "sheriffs@example.com";
const SUBJECT: &str = "The build failed";
const SIGNATURE: &str = "Your sheriffs";
