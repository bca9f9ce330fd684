//! Mails what a task wants said, as text and as HTML.

use pulse_notifier_sdk::{Event, Mail, Result, log, plugin, summary};

plugin!(notify);

fn notify(event: &Event) -> Result {
    let wanted = &event.notification;
    if wanted.emails.is_empty() {
        log::info("nobody to tell: the notification names no emails");
        return Ok(());
    }
    let mail = Mail::to(&wanted.emails).subject(&wanted.subject).thread(&event.task_group_id);
    mail.text(summary::text(event)).html(summary::html(summary::TEMPLATE, event)).send()?;
    Ok(())
}
