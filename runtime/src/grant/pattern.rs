//! What a grant names its arguments by.

use std::fmt;

/// A text in which `*` stands for anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    text: String,
    case_matters: bool,
}

impl Pattern {
    /// The pattern this text is, whatever the letters' case: for addresses and channels.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self { text: text.to_ascii_lowercase(), case_matters: false }
    }

    /// The pattern this text is, to the letter: for keys, topics and exchanges.
    #[must_use]
    pub fn to_the_letter(text: &str) -> Self {
        Self { text: text.to_owned(), case_matters: true }
    }

    /// Whether anything may follow at its end.
    pub(super) fn is_open(&self) -> bool {
        self.text.ends_with('*')
    }

    /// Whether all of the text matches.
    #[must_use]
    pub fn matches(&self, text: &str) -> bool {
        if self.case_matters { matches(&self.text, text) } else { matches(&self.text, &text.to_ascii_lowercase()) }
    }
}

fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| text.strip_prefix(first)) else { return false };
    let Some(last) = parts.next_back() else { return rest.is_empty() };
    for part in parts {
        let Some((_, after)) = rest.split_once(part) else { return false };
        rest = after;
    }
    rest.ends_with(last)
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_matches_the_whole_text() {
        for (pattern, text, matches) in [
            ("*", "anyone@example.com", true),
            ("*@example.com", "a@EXAMPLE.com", true),
            ("*@example.com", "a@example.com.evil.org", false),
            ("*@example.com", "a@notexample.com", false),
            ("team-*@*.example.com", "team-a@ci.example.com", true),
            ("team-*@*.example.com", "team-a@example.com", false),
            ("a@example.com", "a@example.com", true),
            ("a@example.com", "ba@example.com", false),
            ("a*a", "a", false),
            ("a*b*c", "abbc", true),
            ("", "", true),
            ("", "a", false),
        ] {
            assert_eq!(Pattern::new(pattern).matches(text), matches, "{pattern} {text}");
        }
    }

    #[test]
    fn to_the_letter_case_matters() {
        assert!(Pattern::to_the_letter("logs/*").matches("logs/a"));
        assert!(!Pattern::to_the_letter("logs/*").matches("Logs/a"));
    }
}
