//! Says on IRC what a task wants said: the task's id and the message, then a line for each collected log, in the colour
//! of what happened.

use pulse_notifier_sdk::irc::{self, Colour};
use pulse_notifier_sdk::{Event, Result, log, plugin, settings};

plugin!(notify);

fn notify(event: &Event) -> Result {
    let wanted = &event.notification;
    // `channel`: the operator's, for tasks that name none.
    let default: Vec<String> = settings::get("channel").into_iter().collect();
    let channels = if wanted.channels.is_empty() { &default } else { &wanted.channels };
    if channels.is_empty() {
        log::info("nobody to tell: neither the notification nor the operator names a channel");
    }
    let nicks: String = wanted.nicks.iter().map(|nick| format!("{nick}: ")).collect();
    let message = irc::lines(&format!("{nicks}{}: {}", event.task_id, wanted.message));
    let logs = event.log_urls().flat_map(|url| irc::lines(url).into_iter().take(1)).map(|url| format!("\t\t{url}"));
    let colour = colour(&event.status);
    let lines: Vec<String> = message.into_iter().chain(logs).map(|line| colour.paint(&line)).collect();
    // One channel that is none keeps no other from being told.
    let said: Vec<_> = channels.iter().map(|channel| irc::say(channel, lines.clone())).collect();
    match said.into_iter().reduce(Result::or) {
        Some(Err(refusal)) => Err(refusal.into()),
        Some(Ok(_)) | None => Ok(()),
    }
}

fn colour(status: &str) -> Colour {
    match status {
        "task-completed" => Colour::GREEN,
        "task-failed" => Colour::RED,
        "artifact-created" => Colour::BLUE,
        "task-exception" => Colour::PURPLE,
        _ => Colour::NONE,
    }
}
