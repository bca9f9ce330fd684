//! A mail, put together part by part and asked for with [`Mail::send`].

use crate::bindings::pulse::notifier::email;
use crate::{EffectId, Refusal, Result};

/// A mail to ask for. `From:` is the operator's to set.
///
/// ```no_run
/// use pulse_notifier_sdk::Mail;
///
/// let asked = Mail::to(["release@example.com"])
///     .subject("Shipped")
///     .text("It is out.")
///     .html("<p>It is out.</p>")
///     .send();
/// ```
#[must_use = "a mail is asked for by `send`"]
pub struct Mail(email::Mail);

impl Mail {
    /// A mail to these addresses: all stand in `To:`, each is sent its own copy.
    pub fn to<Address: Into<String>>(addresses: impl IntoIterator<Item = Address, IntoIter: Sized>) -> Self {
        Self(email::Mail {
            to: addresses.into_iter().map(Into::into).collect(),
            subject: String::new(),
            text: String::new(),
            html: None,
            thread: None,
        })
    }

    /// Its subject: one line.
    pub fn subject(mut self, subject: impl Into<String>) -> Self {
        self.0.subject = subject.into();
        self
    }

    /// Its plain text.
    pub fn text(mut self, text: impl Into<String>) -> Self {
        self.0.text = text.into();
        self
    }

    /// The same as HTML, for readers that show it. [`html::escape`](crate::html::escape) what is not yours.
    pub fn html(mut self, html: impl Into<String>) -> Self {
        self.0.html = Some(html.into());
        self
    }

    /// The thread it belongs to: mails of one thread are shown together. A task group's id, say.
    pub fn thread(mut self, thread: impl Into<String>) -> Self {
        self.0.thread = Some(thread.into());
        self
    }

    /// Asks for it to be sent once the plugin has returned `Ok`.
    ///
    /// # Errors
    /// The [`Refusal`] when the grant covers no recipient, a part is not well-formed, or the plugin asked for too much.
    pub fn send(self) -> Result<EffectId, Refusal> {
        email::send(&self.0)
    }
}
