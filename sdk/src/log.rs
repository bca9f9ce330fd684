//! Lines for the operator and the plugin's team; they are kept with the invocation.
//!
//! ```no_run
//! use pulse_notifier_sdk::log;
//!
//! log::info("nobody to tell");
//! log::warn(&format!("{} recipients", 40));
//! ```

use crate::bindings::pulse::notifier::log::{Level, write};

/// Only while looking for a fault.
pub fn debug(line: &str) {
    write(Level::Debug, line);
}

/// Normal work.
pub fn info(line: &str) {
    write(Level::Info, line);
}

/// Something a person may want to look at.
pub fn warn(line: &str) {
    write(Level::Warn, line);
}

/// Something a person has to look at.
pub fn error(line: &str) {
    write(Level::Error, line);
}
