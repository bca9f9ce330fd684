//! The environment's variables, read one by one; what is wrong with them is collected.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;

use super::{ConfigError, Problem, Secret};

/// Variables by name. An empty one counts as absent; quotes around a value, as an environment file leaves them, go.
#[derive(Clone, Debug, Default)]
pub struct Environment(BTreeMap<String, Value>);

#[derive(Clone, Debug)]
enum Value {
    Text(Secret),
    NotUnicode,
}

impl Environment {
    /// This process's.
    #[must_use]
    pub fn current() -> Self {
        #[expect(clippy::disallowed_methods, reason = "this is the one place that reads the environment")]
        let variables = std::env::vars_os();
        Self(
            variables
                .filter_map(|(name, value)| {
                    let name = name.into_string().ok()?;
                    let value = value.into_string().map_or(Value::NotUnicode, |text| Value::Text(Secret::new(text)));
                    Some((name, value))
                })
                .collect(),
        )
    }

    /// The variable's text, when there is any.
    #[must_use]
    pub fn text(&self, name: &str) -> Option<&str> {
        match self.0.get(name)? {
            Value::Text(text) => Some(unquoted(text.expose())).filter(|text| !text.is_empty()),
            Value::NotUnicode => None,
        }
    }

    /// The names of those that are set and begin with one of these.
    pub(super) fn names<'a>(&'a self, prefixes: &'a [&str]) -> impl Iterator<Item = &'a str> {
        let begins = |name: &&str| prefixes.iter().any(|prefix| name.starts_with(prefix));
        self.0.keys().map(String::as_str).filter(begins)
    }
}

impl<'a> FromIterator<(&'a str, &'a str)> for Environment {
    fn from_iter<I: IntoIterator<Item = (&'a str, &'a str)>>(variables: I) -> Self {
        let value = |text: &str| Value::Text(Secret::new(text.to_owned()));
        Self(variables.into_iter().map(|(name, text)| (name.to_owned(), value(text))).collect())
    }
}

fn unquoted(text: &str) -> &str {
    let text = text.trim();
    let inner = |quote| text.strip_prefix(quote)?.strip_suffix(quote);
    inner('"').or_else(|| inner('\'')).unwrap_or(text)
}

/// Reads variables and keeps what is wrong with them.
pub(super) struct Reader<'a> {
    environment: &'a Environment,
    problems: RefCell<Vec<Problem>>,
    read: RefCell<BTreeSet<String>>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(environment: &'a Environment) -> Self {
        Self { environment, problems: RefCell::default(), read: RefCell::default() }
    }

    pub(super) fn problem(&self, place: &str, what: impl Into<String>) {
        self.problems.borrow_mut().push(Problem { place: place.to_owned(), what: what.into() });
    }

    /// A text, when there is one.
    pub(super) fn text(&self, name: &str) -> Option<&'a str> {
        self.read.borrow_mut().insert(name.to_owned());
        if matches!(self.environment.0.get(name), Some(Value::NotUnicode)) {
            self.problem(name, "expected UTF-8");
        }
        self.environment.text(name)
    }

    /// A text that must be there; an absent one is a problem and reads as empty.
    pub(super) fn required(&self, name: &str, what: &str) -> &'a str {
        self.text(name).unwrap_or_else(|| {
            self.problem(name, format!("expected {what}, found nothing"));
            ""
        })
    }

    /// A truth value, in any of the ways people write them.
    pub(super) fn truth(&self, name: &str, default: bool) -> bool {
        let Some(text) = self.text(name) else { return default };
        truth(text).unwrap_or_else(|| {
            self.problem(name, format!("expected true or false, found {text:?}"));
            default
        })
    }

    /// A number or another value with a form of its own.
    pub(super) fn parsed<T: FromStr>(&self, name: &str, what: &str, default: T) -> T {
        let Some(text) = self.text(name) else { return default };
        text.parse().unwrap_or_else(|_| {
            self.problem(name, format!("expected {what}, found {text:?}"));
            default
        })
    }

    /// A port.
    pub(super) fn port(&self, name: &str, default: u16) -> u16 {
        let port = self.parsed(name, "a port", default);
        if port == 0 {
            self.problem(name, "expected a port from 1 to 65535, found 0");
        }
        port
    }

    /// One of a few words.
    pub(super) fn one_of<T: Copy>(&self, name: &str, words: &[(&str, T)], default: T) -> T {
        let Some(text) = self.text(name) else { return default };
        match words.iter().find(|(word, _)| word.eq_ignore_ascii_case(text)) {
            Some((_, value)) => *value,
            None => {
                let words: Vec<_> = words.iter().map(|(word, _)| *word).collect();
                self.problem(name, format!("expected one of {}, found {text:?}", words.join(", ")));
                default
            }
        }
    }

    /// A colon-separated list; absent when the variable is.
    pub(super) fn list(&self, name: &str) -> Option<Vec<String>> {
        let parts = self.text(name)?.split(':').map(str::trim).filter(|part| !part.is_empty());
        let parts: Vec<String> = parts.map(str::to_owned).collect();
        if parts.is_empty() {
            self.problem(name, "expected names separated by colons, found colons alone");
        }
        Some(parts)
    }

    /// Variables that look like ours and that nobody read.
    pub(super) fn unread(&self, prefixes: &[&str]) -> Vec<String> {
        let read = self.read.borrow();
        self.environment.names(prefixes).filter(|name| !read.contains(*name)).map(str::to_owned).collect()
    }

    /// The value, unless something was wrong.
    pub(super) fn finish<T>(self, value: T) -> Result<T, ConfigError> {
        let problems = self.problems.into_inner();
        if problems.is_empty() { Ok(value) } else { Err(ConfigError { problems }) }
    }
}

/// A truth value, in any of the ways people write them.
pub(super) fn truth(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" => Some(true),
        "false" | "0" | "no" | "off" => Some(false),
        _ => None,
    }
}
