//! Messages to SNS topics.
//!
//! ```no_run
//! use pulse_notifier_sdk::sns;
//!
//! # fn notify() -> pulse_notifier_sdk::Result {
//! sns::publish("arn:aws:sns:us-west-2:123456789012:builds", Some(&sns::subject("It broke")), "Have a look.")?;
//! # Ok(())
//! # }
//! ```

use crate::bindings::pulse::notifier::sns;
use crate::{EffectId, Refusal, Result};

/// Asks for a message to be published to a topic once the plugin has returned `Ok`.
///
/// # Errors
/// The [`Refusal`] when the grant does not cover the topic, or a part is not well-formed.
pub fn publish(topic: &str, subject: Option<&str>, text: &str) -> Result<EffectId, Refusal> {
    let (topic, subject, text) = (topic.to_owned(), subject.map(str::to_owned), text.to_owned());
    sns::publish(&sns::Message { topic, subject, text })
}

/// As much of a text as a subject may hold: one line of at most 100 characters, a character outside the basic plane
/// counted as two. Nothing is left of a text without any visible character.
#[must_use]
pub fn subject(text: &str) -> String {
    let line: Vec<&str> = text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|w| !w.is_empty()).collect();
    let mut length = 0;
    let fits = |c: &char| {
        length += c.len_utf16();
        length <= SUBJECT_CHARS_MAX
    };
    let cut: String = line.join(" ").chars().take_while(fits).collect();
    cut.trim_end().to_owned()
}

const SUBJECT_CHARS_MAX: usize = 100;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subject_is_one_line_of_at_most_100_characters() {
        assert_eq!(subject(" a\r\nb\u{7}\tc "), "a b c");
        assert_eq!(subject(&"ü".repeat(300)).chars().count(), 100);
        assert_eq!(subject(&"🦀".repeat(300)).chars().count(), 50);
        assert_eq!(subject(&format!("{} b", "a".repeat(99))), "a".repeat(99));
        assert_eq!(subject(" \u{7}\n"), "");
    }
}
