//! What a task wants said, as a mail: the message, the task's link, its collected logs and the date.
//!
//! ```no_run
//! use pulse_notifier_sdk::{Event, Result, summary};
//!
//! fn notify(event: &Event) -> Result {
//!     if let Some(mail) = summary::mail(event) {
//!         mail.html(summary::html(summary::TEMPLATE, event)).send()?;
//!     }
//!     Ok(())
//! }
//! ```

use crate::{Event, Mail, html};

/// The summary as a mail of plain text to whom the notification names, in the thread of the task's group; none when it
/// names nobody.
pub fn mail(event: &Event) -> Option<Mail> {
    let wanted = &event.notification;
    let to_somebody = || Mail::to(&wanted.emails).subject(&wanted.subject).thread(&event.task_group_id);
    (!wanted.emails.is_empty()).then(to_somebody).map(|mail| mail.text(text(event)))
}

/// The summary as plain text.
#[must_use]
pub fn text(event: &Event) -> String {
    let mut text = format!("{}\n\nTask: {}\n", event.notification.message.trim_end(), event.task_url);
    for url in event.log_urls() {
        text.push_str(&format!("Log: {url}\n"));
    }
    text + &format!("Date: {}\n", event.date())
}

/// The summary in a template, as [`html::fill`] fills it: `{{ subject }}`, `{{ message }}`, `{{ task_url }}`,
/// `{{ logs }}` (a list of links), `{{ date }}`, `{{ task_id }}`, `{{ status }}`.
#[must_use]
pub fn html(template: &str, event: &Event) -> String {
    let logs: String = event.log_urls().map(|url| format!("<li>{}</li>", html::link(url))).collect();
    html::fill(
        template,
        &[
            ("subject", &event.notification.subject),
            ("message", &event.notification.message),
            ("html:task_url", &html::link(&event.task_url)),
            ("html:logs", &logs),
            ("date", &event.date()),
            ("task_id", &event.task_id),
            ("status", &event.status),
        ],
    )
}

/// The template of the mail plugins.
pub const TEMPLATE: &str = include_str!("summary/mail.html");
