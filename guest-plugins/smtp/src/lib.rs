//! Mails what a task wants said, as text and as HTML.

use pulse_notifier_sdk::{Event, Mail, Result, log, plugin, settings, summary};

plugin!(notify);

fn notify(event: &Event) -> Result {
    let wanted = &event.notification;
    if wanted.emails.is_empty() {
        log::info("nobody to tell: the notification names no emails");
        return Ok(());
    }
    let mail = Mail::to(&wanted.emails).subject(&wanted.subject).thread(&event.task_group_id);
    let mail = mail.text(summary::text(event));
    // `template`: `false` for text alone, a template of the operator's, else the built-in one.
    match settings::get("template").as_deref() {
        Some("false") => mail,
        None | Some("true") => mail.html(summary::html(summary::TEMPLATE, event)),
        Some(template) => mail.html(summary::html(template, event)),
    }
    .send()?;
    Ok(())
}
