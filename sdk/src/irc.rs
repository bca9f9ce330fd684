//! Lines on IRC.
//!
//! ```no_run
//! use pulse_notifier_sdk::irc::{self, Colour};
//!
//! # fn notify() -> pulse_notifier_sdk::Result {
//! let lines = irc::lines("It broke.\nHave a look.");
//! irc::say("#releng", lines.iter().map(|line| Colour::RED.paint(line)))?;
//! # Ok(())
//! # }
//! ```

use crate::bindings::pulse::notifier::irc;
use crate::{EffectId, Refusal, Result};

/// Asks for lines to be said in a channel, in this order, once the plugin has returned `Ok`.
///
/// # Errors
/// The [`Refusal`] when the grant does not cover the channel, it is none, or a line is not well-formed.
pub fn say(channel: &str, lines: impl IntoIterator<Item = String>) -> Result<EffectId, Refusal> {
    irc::say(&irc::Message { channel: channel.to_owned(), lines: lines.into_iter().collect() })
}

/// A text as lines that IRC can carry: split where it is, and where it is too long, into at most 10 lines of at most 400
/// bytes. Control characters become spaces, empty lines go.
#[must_use]
pub fn lines(text: &str) -> Vec<String> {
    let mut lines = Vec::new();
    for line in text.lines() {
        let line: String = line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let mut rest = line.trim_end();
        while !rest.is_empty() && lines.len() < LINES_MAX {
            let (line, after) = rest.split_at(rest.floor_char_boundary(LINE_BYTES_MAX));
            lines.push(line.to_owned());
            rest = after;
        }
    }
    lines
}

/// A colour, as IRC clients show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Colour(&'static str);

impl Colour {
    /// Green.
    pub const GREEN: Self = Self("\u{3}03");
    /// Red.
    pub const RED: Self = Self("\u{3}04");
    /// Blue.
    pub const BLUE: Self = Self("\u{3}02");
    /// Purple.
    pub const PURPLE: Self = Self("\u{3}06");
    /// None.
    pub const NONE: Self = Self("");

    /// The line with this colour's code at both ends.
    #[must_use]
    pub fn paint(self, line: &str) -> String {
        format!("{0}{line}{0}", self.0)
    }
}

const LINES_MAX: usize = 10;
const LINE_BYTES_MAX: usize = 400;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_split_where_it_is_and_where_it_is_too_long() {
        assert_eq!(lines("a\r\n\nb\u{3}c\u{0}\n"), ["a", "b c"]);
        let long = "ü".repeat(300);
        let split = lines(&long);
        assert_eq!(split.iter().map(String::len).collect::<Vec<_>>(), [400, 200]);
        assert_eq!(split.concat(), long);
        assert_eq!(lines(&"x\n".repeat(50)).len(), 10);
        assert_eq!(lines(&"x".repeat(10_000)).len(), 10);
    }

    #[test]
    fn a_line_is_painted_at_both_ends() {
        assert_eq!(Colour::GREEN.paint("a"), "\u{3}03a\u{3}03");
        assert_eq!(Colour::NONE.paint("a"), "a");
    }
}
