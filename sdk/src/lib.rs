//! Write a Pulse-Notifier plugin: a function and one macro line.
//!
//! ```
//! use pulse_notifier_sdk::{Event, Mail, Result, plugin};
//!
//! plugin!(tell_by_mail);
//!
//! fn tell_by_mail(event: &Event) -> Result {
//!     let wanted = &event.notification;
//!     if wanted.emails.is_empty() {
//!         return Ok(()); // nobody to tell
//!     }
//!     Mail::to(&wanted.emails)
//!         .subject(&wanted.subject)
//!         .text(&wanted.message)
//!         .thread(&event.task_group_id)
//!         .send()?;
//!     Ok(())
//! }
//! ```
//!
//! A plugin computes and *asks*. What it asks for is done after its function has returned `Ok`: all of it, with
//! retries. When the function returns an error, or panics, or runs out of a limit, none of it is done.
//!
//! Build it with `cargo build --target wasm32-wasip2 --profile guest` as a `cdylib`; the `.wasm` file is the plugin.

pub mod amqp;
#[doc(hidden)]
pub mod bindings;
mod event;
pub mod html;
pub mod irc;
pub mod log;
mod mail;
pub mod s3;
pub mod settings;
pub mod sns;
pub mod summary;
pub mod taskcluster;
pub mod webhook;

pub use bindings::pulse::notifier::types::{CollectedLog, EffectId, Event, Failure, Notification, Refusal};
pub use mail::Mail;

/// What a plugin's function returns: nothing, or why it could not do its work.
///
/// ```
/// use pulse_notifier_sdk::{Event, Failure, Result};
///
/// fn notify(event: &Event) -> Result {
///     if event.notification.channels.is_empty() {
///         return Err(Failure::Failed("the task names no channel".into()));
///     }
///     Ok(())
/// }
/// ```
pub type Result<T = (), E = Failure> = core::result::Result<T, E>;

/// Makes a function `fn(&Event) -> Result` the plugin that this component is.
///
/// ```
/// use pulse_notifier_sdk::{Event, Result, plugin};
///
/// plugin!(notify);
///
/// fn notify(_: &Event) -> Result {
///     Ok(())
/// }
/// ```
#[macro_export]
macro_rules! plugin {
    ($notify:path) => {
        struct PulseNotifierPlugin;

        impl $crate::bindings::Guest for PulseNotifierPlugin {
            fn notify(event: $crate::Event) -> $crate::Result {
                $notify(&event)
            }
        }

        $crate::bindings::export_plugin!(PulseNotifierPlugin with_types_in $crate::bindings);
    };
}
