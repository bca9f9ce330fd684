//! What reading configuration files brings to light: problems in the order of the files, notes, and what was asked for.

use std::cell::RefCell;
use std::collections::BTreeSet;

use super::{ConfigError, Environment, Problem, Role, Secret};

/// What reading several files has brought to light.
pub(super) struct Findings<'e> {
    environment: &'e Environment,
    role: Role,
    /// The broker's password, which is nobody else's secret.
    own: RefCell<Option<Secret>>,
    problems: RefCell<Vec<(String, usize, Problem)>>,
    notes: RefCell<Vec<String>>,
    left_out: RefCell<Vec<String>>,
    asked: RefCell<BTreeSet<String>>,
    variables: RefCell<BTreeSet<String>>,
}

impl<'e> Findings<'e> {
    pub(super) fn new(environment: &'e Environment, role: Role) -> Self {
        Self {
            environment,
            role,
            own: RefCell::default(),
            problems: RefCell::default(),
            notes: RefCell::default(),
            left_out: RefCell::default(),
            asked: RefCell::default(),
            variables: RefCell::default(),
        }
    }

    /// Which half of the service reads.
    pub(super) fn role(&self) -> Role {
        self.role
    }

    /// This secret is the broker's.
    pub(super) fn is_own(&self, secret: &Secret) {
        *self.own.borrow_mut() = Some(secret.clone());
    }

    /// Whether it is the broker's.
    pub(super) fn knows(&self, secret: &Secret) -> bool {
        self.own.borrow().as_ref() == Some(secret)
    }

    pub(super) fn problem(&self, file: &str, line: usize, key: &str, what: impl Into<String>) {
        let mut problems = self.problems.borrow_mut();
        if problems.len() < PROBLEMS_MAX {
            let key = if key.is_empty() { String::new() } else { format!(": {key}") };
            let place = if line == 0 { format!("{file}{key}") } else { format!("{file}:{line}{key}") };
            let problem = Problem { place: printable(&place), what: self.shown(&what.into()) };
            problems.push((file.to_owned(), line, problem));
        }
    }

    /// A command leaves out a file that it could take only in part; whether it does.
    pub(super) fn leave_out(&self, file: &str) -> bool {
        if self.role != Role::Command {
            return false;
        }
        let (wrong, others) = self.problems.take().into_iter().partition::<Vec<_>, _>(|(place, ..)| place == file);
        self.problems.replace(others);
        self.left_out.borrow_mut().extend(wrong.iter().map(|(.., problem)| problem.to_string()));
        !wrong.is_empty()
    }

    /// What is wrong with files that are left out.
    pub(super) fn left_out(&self) -> Vec<String> {
        self.left_out.borrow().clone()
    }

    pub(super) fn note(&self, note: impl Into<String>) {
        let note = self.shown(&note.into());
        self.notes.borrow_mut().push(note);
    }

    /// The text as it may be seen: where a variable's value is in it, in a path for one, its name is.
    fn shown(&self, text: &str) -> String {
        let value = |name: &String| Some((self.environment.text(name)?, format!("${{{name}}}")));
        let variables = self.variables.borrow();
        let mut values: Vec<_> = variables.iter().filter_map(value).collect();
        values.retain(|(value, _)| value.len() >= VALUE_BYTES_MIN);
        values.sort_by_key(|(value, _)| std::cmp::Reverse(value.len()));
        printable(&values.into_iter().fold(text.to_owned(), |text, (value, name)| text.replace(value, &name)))
    }

    /// A key was asked for.
    pub(super) fn ask(&self, key: String) {
        self.asked.borrow_mut().insert(key);
    }

    /// Every key that was asked for, whether it was there or not; names of one's own choice are `*`.
    #[cfg(test)]
    pub(super) fn asked(&self) -> BTreeSet<String> {
        self.asked.borrow().clone()
    }

    /// Whether a `${…}` names this variable.
    pub(super) fn names(&self, variable: &str) -> bool {
        self.variables.borrow().contains(variable)
    }

    /// The notes, unless there are problems.
    pub(super) fn finish(self) -> Result<Vec<String>, ConfigError> {
        let mut problems = self.problems.into_inner();
        problems.sort_by(|a, b| (&a.0, a.1).cmp(&(&b.0, b.1)));
        let problems: Vec<_> = problems.into_iter().map(|(_, _, problem)| problem).collect();
        if problems.is_empty() { Ok(self.notes.into_inner()) } else { Err(ConfigError { problems }) }
    }

    /// The text with each `${VARIABLE}` replaced by its value and each `$${` by `${`; else what is wrong with it.
    pub(super) fn expanded(&self, raw: &str) -> Result<String, Unexpanded> {
        let (mut text, mut rest) = (String::new(), raw);
        while let Some(start) = rest.find("${") {
            let (before, after) = (rest.get(..start).unwrap_or_default(), rest.get(start + 2..).unwrap_or_default());
            if let Some(before) = before.strip_suffix('$') {
                text.push_str(before);
                text.push_str("${");
                rest = after;
                continue;
            }
            text.push_str(before);
            let Some((name, after)) = after.split_once('}').filter(|(name, _)| is_variable(name)) else {
                return Err(Unexpanded::Syntax);
            };
            self.variables.borrow_mut().insert(name.to_owned());
            let value = self.environment.text(name);
            text.push_str(value.ok_or_else(|| Unexpanded::Unset(name.to_owned()))?);
            rest = after;
        }
        text.push_str(rest);
        Ok(text)
    }
}

/// Why a text is not what it says.
pub(super) enum Unexpanded {
    Syntax,
    /// This variable is not set.
    Unset(String),
}

impl From<Unexpanded> for String {
    fn from(why: Unexpanded) -> Self {
        match why {
            Unexpanded::Syntax => "expected ${VARIABLE}, or $${ for these two characters themselves".into(),
            Unexpanded::Unset(name) => format!("expected the variable {name} to be set in the environment"),
        }
    }
}

fn is_variable(name: &str) -> bool {
    !name.is_empty()
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
        && !name.starts_with(|c: char| c.is_ascii_digit())
}

/// The text with nothing in it that a terminal would obey.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// What is shorter is in too many words to be looked for.
const VALUE_BYTES_MIN: usize = 4;
/// More than anybody reads at once.
pub(super) const PROBLEMS_MAX: usize = 100;
