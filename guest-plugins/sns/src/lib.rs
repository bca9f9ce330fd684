//! Publishes what a task wants said to the operator's SNS topic: the message, then where its logs are.

use pulse_notifier_sdk::{Event, Result, log, plugin, settings, sns};

plugin!(notify);

fn notify(event: &Event) -> Result {
    let Some(topic) = settings::get("topic") else {
        log::info("nobody to tell: the operator names no topic");
        return Ok(());
    };
    let mut text = event.notification.message.clone();
    if !event.logs.is_empty() {
        let urls: Vec<&str> = event.log_urls().collect();
        text.push_str(&format!("\nThere should be some logs at \n{}", urls.join("\n")));
    }
    let subject = sns::subject(&event.notification.subject);
    sns::publish(&topic, Some(subject.as_str()).filter(|subject| !subject.is_empty()), &text)?;
    Ok(())
}
