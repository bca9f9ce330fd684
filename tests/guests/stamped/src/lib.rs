//! A plugin that says which version it is: twice in its mail, so that a mail made of two versions would show. A test
//! makes another version of it by writing another stamp over this one.

use pulse_notifier_sdk::{Event, Failure, Mail, Result, plugin};

plugin!(notify);

static STAMP: [u8; 12] = *b"stamp-000000";

fn notify(event: &Event) -> Result {
    // What the stamp is, the compiler is not to know.
    let stamp =
        std::str::from_utf8(std::hint::black_box(&STAMP)).map_err(|error| Failure::Failed(error.to_string()))?;
    let text = format!("{} by {stamp}", event.task_id);
    Mail::to(&event.notification.emails).subject(stamp).text(text).send()?;
    Ok(())
}
