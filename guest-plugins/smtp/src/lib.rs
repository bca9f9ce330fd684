//! Mails what a task wants said: the message, the task's link, its collected logs and the date, as text and as HTML.

use pulse_notifier_sdk::{Event, Mail, Result, html, log, plugin, settings};

plugin!(notify);

fn notify(event: &Event) -> Result {
    let wanted = &event.notification;
    if wanted.emails.is_empty() {
        log::info("nobody to tell: the notification names no emails");
        return Ok(());
    }
    let mail = Mail::to(&wanted.emails).subject(&wanted.subject).thread(&event.task_group_id).text(text(event));
    // `template`: `false` for text alone, a template of the operator's, else the one below.
    match settings::get("template").as_deref() {
        Some("false") => mail,
        None | Some("true") => mail.html(fill(TEMPLATE, event)),
        Some(template) => mail.html(fill(template, event)),
    }
    .send()?;
    Ok(())
}

fn text(event: &Event) -> String {
    let mut text = format!("{}\n\nTask: {}\n", event.notification.message.trim_end(), event.task_url);
    for url in event.log_urls() {
        text.push_str(&format!("Log: {url}\n"));
    }
    text + &format!("Date: {}\n", event.date())
}

fn fill(template: &str, event: &Event) -> String {
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

const TEMPLATE: &str = include_str!("mail.html");
