//! Says in Slack what a task wants said, by an incoming webhook: the subject, then the message with links to the task and
//! its logs, beside a bar in the colour of what happened. Mattermost and Rocket.Chat take the same.

use pulse_notifier_sdk::{Event, Result, plugin, settings, webhook};
use serde_json::json;

plugin!(notify);

fn notify(event: &Event) -> Result {
    // `endpoint`: which of the operator's receivers, when there are several.
    let endpoint = settings::get("endpoint").unwrap_or_else(|| "slack".to_owned());
    webhook::to_endpoint(&endpoint).json(&payload(event)).send()?;
    Ok(())
}

fn payload(event: &Event) -> String {
    let wanted = &event.notification;
    let logs = event.logs.iter().map(|log| link(&log.url, &format!("Log of run {}", log.run_id)));
    let links: Vec<String> = [link(&event.task_url, "Task")].into_iter().chain(logs).collect();
    let message = escaped(shortened(&wanted.message));
    json!({
        "text": escaped(&wanted.subject),
        "attachments": [{
            "color": colour(&event.status),
            "fallback": message,
            "text": format!("{message}\n{}", links.join(" · ")),
            "footer": format!("{} · {}", escaped(&event.status), event.date()),
        }],
    })
    .to_string()
}

/// A text as Slack shows it to the letter: `<!channel>` calls nobody and `<https://…|…>` is no link.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// A link of ours. What could end it, or its address, is escaped as addresses are.
fn link(url: &str, words: &str) -> String {
    let url = url.replace('<', "%3C").replace('>', "%3E").replace('|', "%7C");
    format!("<{}|{words}>", url.replace('&', "&amp;"))
}

/// As much of a message as a message of Slack's may hold, escaped or not.
fn shortened(text: &str) -> &str {
    let end = text.char_indices().nth(MESSAGE_CHARS_MAX).map_or(text.len(), |(end, _)| end);
    text.get(..end).unwrap_or(text)
}

fn colour(status: &str) -> &'static str {
    match status {
        "task-completed" => "#2eb67d",
        "task-failed" => "#e01e5a",
        "task-exception" => "#8e44ad",
        "artifact-created" => "#36c5f0",
        _ => "#95a5a6",
    }
}

const MESSAGE_CHARS_MAX: usize = 7_000;
