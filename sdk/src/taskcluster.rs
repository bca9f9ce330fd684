//! Reads from Taskcluster, about the event's own task and no other.
//!
//! ```no_run
//! use pulse_notifier_sdk::{Event, Failure, Result, taskcluster::{ReadFailure, read_artifact}};
//!
//! fn notify(event: &Event) -> Result {
//!     let report = match read_artifact(event.run_id.unwrap_or(0), "public/report.txt") {
//!         Ok(report) => report,
//!         Err(ReadFailure::Unavailable(why)) => return Err(Failure::Retry(why)),
//!         Err(_) => Vec::new(), // the task left none
//!     };
//!     # Ok(())
//! }
//! ```

pub use crate::bindings::pulse::notifier::taskcluster::{Artifact, ReadFailure, artifacts, read_artifact};
