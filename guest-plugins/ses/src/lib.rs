//! Mails what a task wants said, as text and as HTML.

use pulse_notifier_sdk::{Event, Result, log, plugin, summary};

plugin!(notify);

fn notify(event: &Event) -> Result {
    match summary::mail(event) {
        Some(mail) => _ = mail.html(summary::html(summary::TEMPLATE, event)).send()?,
        None => log::info("nobody to tell: the notification names no emails"),
    }
    Ok(())
}
