//! What the operator set for this plugin. Never a secret.
//!
//! ```no_run
//! use pulse_notifier_sdk::settings;
//!
//! let colour = settings::get("colour").unwrap_or_else(|| "green".into());
//! ```

pub use crate::bindings::pulse::notifier::settings::{all, get};
