//! What a task wants said, as a mail: the message, the task's link, its collected logs and the date.
//!
//! ```no_run
//! use pulse_notifier_sdk::{Event, Mail, Result, summary};
//!
//! fn notify(event: &Event) -> Result {
//!     let mail = Mail::to(&event.notification.emails).subject(&event.notification.subject);
//!     mail.text(summary::text(event)).html(summary::html(summary::TEMPLATE, event)).send()?;
//!     Ok(())
//! }
//! ```

use crate::{Event, html};

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
