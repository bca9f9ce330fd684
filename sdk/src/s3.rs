//! Objects in the operator's bucket.
//!
//! ```no_run
//! use pulse_notifier_sdk::{Event, Result, s3};
//!
//! fn notify(event: &Event) -> Result {
//!     s3::put(&format!("reports/{}.txt", event.task_id), "text/plain", b"It broke.")?;
//!     for log in &event.logs {
//!         s3::put_gzipped_artifact(&log.s3_key, "text/plain", log.run_id, &log.artifact)?;
//!     }
//!     Ok(())
//! }
//! ```

use crate::bindings::pulse::notifier::s3::{self, ArtifactOf, Body, Object};
use crate::{EffectId, Refusal, Result};

/// Asks for bytes to be put at a key once the plugin has returned `Ok`.
///
/// # Errors
/// The [`Refusal`] when the grant does not cover the key, or a part is not well-formed.
pub fn put(key: &str, content_type: &str, bytes: &[u8]) -> Result<EffectId, Refusal> {
    s3::put(&object(key, content_type, Body::Bytes(bytes.to_vec())))
}

/// Asks for an artifact of the event's task to be copied to a key, gzipped, once the plugin has returned `Ok`. The host
/// copies it, whatever its size.
///
/// # Errors
/// As [`put`].
pub fn put_gzipped_artifact(key: &str, content_type: &str, run_id: u32, name: &str) -> Result<EffectId, Refusal> {
    s3::put(&object(key, content_type, Body::GzippedArtifact(ArtifactOf { run_id, name: name.to_owned() })))
}

fn object(key: &str, content_type: &str, body: Body) -> Object {
    Object { key: key.to_owned(), content_type: content_type.to_owned(), body }
}
