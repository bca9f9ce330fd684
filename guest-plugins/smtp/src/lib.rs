//! Mails what a task wants said, as text and as HTML.

use pulse_notifier_sdk::{Event, Result, log, plugin, settings, summary};

plugin!(notify);

fn notify(event: &Event) -> Result {
    let Some(mail) = summary::mail(event) else {
        log::info("nobody to tell: the notification names no emails");
        return Ok(());
    };
    // `template`: `false` for text alone, a template of the operator's, else the built-in one.
    match settings::get("template").as_deref() {
        Some("false") => mail,
        None | Some("true") => mail.html(summary::html(summary::TEMPLATE, event)),
        Some(template) => mail.html(summary::html(template, event)),
    }
    .send()?;
    Ok(())
}
