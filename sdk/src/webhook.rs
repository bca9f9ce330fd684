//! Posts to receivers on the web.
//!
//! ```no_run
//! use pulse_notifier_sdk::{Event, Result, webhook};
//!
//! fn notify(event: &Event) -> Result {
//!     // The operator decides who `alerts` is; its address is a secret.
//!     webhook::to_endpoint("alerts").json(&event.body).send()?;
//!     Ok(())
//! }
//! ```

use crate::bindings::pulse::notifier::webhook;
use crate::{EffectId, Refusal, Result};

pub use webhook::{Post, Receiver};

/// A post to the receiver that the operator knows under this name.
#[must_use]
pub fn to_endpoint(name: &str) -> Post {
    to(Receiver::Endpoint(name.to_owned()))
}

/// A post to the receiver at this address, one that the operator allows.
#[must_use]
pub fn to_url(url: &str) -> Post {
    to(Receiver::Url(url.to_owned()))
}

fn to(to: Receiver) -> Post {
    Post { to, content_type: "application/octet-stream".to_owned(), headers: Vec::new(), body: Vec::new() }
}

impl Post {
    /// Posts this JSON text.
    #[must_use]
    pub fn json(self, text: &str) -> Self {
        self.body("application/json", text.as_bytes())
    }

    /// Posts these bytes, which are of this type.
    #[must_use]
    pub fn body(self, content_type: &str, bytes: &[u8]) -> Self {
        Self { content_type: content_type.to_owned(), body: bytes.to_vec(), ..self }
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Asks for the post to be made once the plugin has returned `Ok`.
    ///
    /// # Errors
    /// The [`Refusal`] when the grant does not cover the receiver, or a part is not well-formed.
    pub fn send(self) -> Result<EffectId, Refusal> {
        webhook::send(&self)
    }
}
