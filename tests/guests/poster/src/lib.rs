//! A plugin that does what a task says: it posts to each address in the message, a line each, and goes on when it may not.

use pulse_notifier_sdk::{Event, Result, plugin, webhook};

plugin!(notify);

fn notify(event: &Event) -> Result {
    for url in event.notification.message.lines() {
        drop(webhook::to_url(url).json("{}").send());
    }
    let endpoint = webhook::to_endpoint("elsewhere").json("{}");
    drop(endpoint.clone().send());
    for (name, value) in [("Authorization", "Bearer mine"), ("Host", "localhost"), ("X-A", "b\r\nX-C: d")] {
        drop(endpoint.clone().header(name, value).send());
    }
    Ok(())
}
