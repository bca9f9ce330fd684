//! A TOML file in which every key is accounted for. Enters: text. Leaves: values, and every problem with its file, line
//! and key. Whoever reads a key makes it known; what nobody has read is a problem. No error shows a variable's value.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::Path;

use serde_json::{Map, Value};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::findings::{Findings, PROBLEMS_MAX, Unexpanded};
use super::value::Check;
use super::{Role, Secret, nearest, read_file};

/// One file.
pub(super) struct Document<'a> {
    findings: &'a Findings<'a>,
    file: String,
    text: &'a str,
    table: Spanned<DeTable<'a>>,
}

impl<'a> Document<'a> {
    /// The file's tree; none when it is no TOML, which is a problem.
    pub(super) fn parse(findings: &'a Findings<'a>, file: &str, text: &'a str) -> Option<Self> {
        let (table, errors) = DeTable::parse_recoverable(text);
        for error in &errors {
            let line = error.span().map_or(1, |span| line_of(text, span.start));
            findings.problem(file, line, "", format!("expected TOML: {}", short(error.message())));
        }
        errors.is_empty().then(|| Self { findings, file: file.to_owned(), text, table })
    }

    /// The whole file, which is `general` in the schema.
    pub(super) fn root(&'a self, general: &str) -> Section<'a> {
        self.section(Some(self.table.get_ref()), 1, String::new(), general.to_owned())
    }

    fn section(&'a self, table: Option<&'a DeTable<'a>>, line: usize, path: String, general: String) -> Section<'a> {
        Section { document: self, table, line, path, general, known: RefCell::default(), is_free: Cell::new(false) }
    }

    fn line(&self, value: &Spanned<DeValue<'_>>) -> usize {
        line_of(self.text, value.span().start)
    }
}

/// A table of a file, or the place where one could be. When it goes, what nobody has read in it is a problem.
pub(super) struct Section<'a> {
    document: &'a Document<'a>,
    table: Option<&'a DeTable<'a>>,
    line: usize,
    path: String,
    general: String,
    known: RefCell<Vec<&'static str>>,
    is_free: Cell<bool>,
}

impl<'a> Section<'a> {
    pub(super) fn findings(&self) -> &'a Findings<'a> {
        self.document.findings
    }

    fn raw(&self, key: &str) -> Option<&'a Spanned<DeValue<'a>>> {
        self.table?.iter().find(|(name, _)| name.get_ref() == key).map(|(_, value)| value)
    }

    fn value(&self, key: &'static str) -> Option<&'a Spanned<DeValue<'a>>> {
        let mut known = self.known.borrow_mut();
        if !known.contains(&key) {
            known.push(key);
            self.findings().ask(joined(&self.general, key));
        }
        self.raw(key)
    }

    /// Whether the key is there.
    pub(super) fn has(&self, key: &'static str) -> bool {
        self.value(key).is_some()
    }

    /// Whether the key is there and is a text.
    pub(super) fn is_text(&self, key: &'static str) -> bool {
        self.value(key).is_some_and(|value| value.get_ref().is_str())
    }

    /// Lets every key be: what they should be is not known.
    pub(super) fn forgive(&self) {
        self.is_free.set(true);
    }

    /// Something is wrong with this key, or with its absence.
    pub(super) fn problem(&self, key: &str, what: impl Into<String>) {
        let line = self.raw(key).map_or(self.line, |value| self.document.line(value));
        self.findings().problem(&self.document.file, line, &joined(&self.path, &shown_key(key)), what);
    }

    /// Something is wrong with this table.
    pub(super) fn own_problem(&self, what: impl Into<String>) {
        self.findings().problem(&self.document.file, self.line, &self.path, what);
    }

    /// Something about this key is worth knowing.
    pub(super) fn note(&self, key: &str, what: &str) {
        let line = self.raw(key).map_or(self.line, |value| self.document.line(value));
        let path = joined(&self.path, &shown_key(key));
        self.findings().note(format!("{}:{line}: {path}: {what}", self.document.file));
    }

    /// Another thing was expected there, and this is what the file says, with no variable's value in it.
    pub(super) fn expected(&self, key: &str, what: &str) {
        let found = self.raw(key).map_or_else(|| "nothing".to_owned(), |value| found(value.get_ref()));
        self.problem(key, format!("expected {what}, found {found}"));
    }

    /// The same where what the file says must not be seen.
    pub(super) fn expected_unseen(&self, key: &str, what: &str) {
        let found = self.raw(key).map_or("nothing", |value| kind(value.get_ref()));
        self.problem(key, format!("expected {what}, found {found}"));
    }

    fn string(&self, key: &'static str, what: &str) -> Option<String> {
        let value = self.value(key)?;
        match value.get_ref() {
            DeValue::String(raw) if !raw.is_empty() => {
                self.findings().expanded(raw).map_err(|why| self.problem(key, why)).ok()
            }
            DeValue::String(_) => {
                self.problem(key, format!("expected {what}, found an empty text"));
                None
            }
            _ => {
                self.expected_unseen(key, what);
                None
            }
        }
    }

    /// A text, when there is one.
    pub(super) fn text(&self, key: &'static str, what: &str) -> Option<String> {
        self.string(key, what)
    }

    /// A text that must be there; an absent one is a problem and reads as empty.
    pub(super) fn required(&self, key: &'static str, what: &str) -> String {
        if !self.has(key) {
            self.expected(key, what);
        }
        self.string(key, what).unwrap_or_default()
    }

    /// A text of a certain form; without one, the other.
    pub(super) fn checked(&self, key: &'static str, check: Check, default: Option<&str>) -> String {
        let text = match default {
            Some(default) => self.string(key, check.what).unwrap_or_else(|| default.to_owned()),
            None => self.required(key, check.what),
        };
        if self.has(key) && !text.is_empty() && !(check.fits)(&text) {
            // Whoever pastes an address there may paste a password with it.
            if text.contains('@') && text.contains(':') {
                self.expected_unseen(key, check.what);
            } else {
                self.expected(key, check.what);
            }
        }
        text
    }

    /// A text that is never shown, as it is or in a file.
    pub(super) fn secret(&self, key: &'static str, file_key: &'static str, what: &str) -> Option<Secret> {
        if self.has(key) && self.has(file_key) {
            self.problem(file_key, format!("expected one of {key} and {file_key}, found both"));
            return None;
        }
        if self.hides_secrets() {
            let seen = self.seen(key, file_key);
            if self.must_see_none() && seen.is_some_and(|secret| !self.findings().knows(&secret)) {
                self.problem(if self.has(key) { key } else { file_key }, OUT_OF_SIGHT);
            }
            return None;
        }
        let text = self.string(key, what);
        let path = self.string(file_key, "the path of a file").and_then(|path| {
            let text = read_file(Path::new(&path)).map_err(|why| self.problem(file_key, why)).ok()?;
            let text = text.strip_suffix('\n').unwrap_or(&text);
            let text = text.strip_suffix('\r').unwrap_or(text);
            if text.is_empty() {
                self.problem(file_key, format!("expected {what} in the file, found nothing"));
            }
            Some(text.to_owned())
        });
        text.or(path).map(Secret::new)
    }

    /// Whether the secrets in this are not for whoever reads.
    pub(super) fn hides_secrets(&self) -> bool {
        self.must_see_none() || self.findings().role() == Role::Command
    }

    /// Whether this is an account, whose secrets the half that reads must not even be able to see.
    pub(super) fn must_see_none(&self) -> bool {
        self.findings().role() == Role::Intake && self.general.starts_with(ACCOUNTS)
    }

    /// A secret as far as it can be seen: a variable that is not set or a file that cannot be read is no problem.
    pub(super) fn seen(&self, key: &'static str, file_key: &'static str) -> Option<Secret> {
        let text = |key| match self.value(key)?.get_ref() {
            DeValue::String(raw) => match self.findings().expanded(raw) {
                Ok(text) => Some(text),
                Err(Unexpanded::Unset(_)) => None,
                Err(why @ Unexpanded::Syntax) => {
                    self.problem(key, why);
                    None
                }
            },
            _ => {
                self.expected_unseen(key, "a text");
                None
            }
        };
        let in_file = text(file_key).and_then(|path| read_file(Path::new(&path)).ok());
        let in_file = in_file.map(|text| text.trim_end_matches(['\r', '\n']).to_owned());
        text(key).or(in_file).filter(|text| !text.is_empty()).map(Secret::new)
    }

    /// Whether one of this table's texts could be told although it is a secret: it comes from a variable, or its name says
    /// so. Those that could are problems.
    pub(super) fn hide_texts(&self) {
        self.forgive();
        for (name, value) in self.table.into_iter().flatten() {
            let DeValue::String(raw) = value.get_ref() else { continue };
            let name = name.get_ref().as_ref();
            let is_told = raw.contains("${") || TELLING.iter().any(|word| name.to_ascii_lowercase().contains(word));
            let text = self.findings().expanded(raw).ok().map(Secret::new);
            if is_told && text.is_some_and(|text| !self.findings().knows(&text)) {
                self.problem(name, OUT_OF_SIGHT);
            }
        }
    }

    /// The same when it must be there.
    pub(super) fn required_secret(&self, key: &'static str, file_key: &'static str, what: &str) -> Secret {
        if !self.has(key) && !self.has(file_key) && !self.hides_secrets() {
            self.problem(key, format!("expected {what}, here or by {file_key}, found nothing"));
        }
        self.secret(key, file_key, what).unwrap_or_else(|| Secret::new(String::new()))
    }

    /// true or false.
    pub(super) fn truth(&self, key: &'static str, default: bool) -> bool {
        let Some(value) = self.value(key) else { return default };
        value.get_ref().as_bool().unwrap_or_else(|| {
            self.expected(key, "true or false");
            default
        })
    }

    /// A whole number within bounds.
    pub(super) fn whole<T: TryFrom<i64>>(
        &self,
        key: &'static str,
        what: &str,
        bounds: RangeInclusive<i64>,
    ) -> Option<T> {
        let DeValue::Integer(digits) = self.value(key)?.get_ref() else {
            self.expected(key, &format!("{what} (a whole number)"));
            return None;
        };
        let number = i64::from_str_radix(digits.as_str(), digits.radix()).ok().filter(|number| bounds.contains(number));
        let number = number.and_then(|number| T::try_from(number).ok());
        if number.is_none() {
            self.expected(key, &format!("{what} from {} to {}", bounds.start(), bounds.end()));
        }
        number
    }

    /// A port.
    pub(super) fn port(&self, key: &'static str, default: u16) -> u16 {
        self.whole(key, "a port", 1..=65_535).unwrap_or(default)
    }

    /// A number, whole or not.
    pub(super) fn number(&self, key: &'static str, what: &str) -> Option<f64> {
        let number = match self.value(key)?.get_ref() {
            DeValue::Integer(digits) => i64::from_str_radix(digits.as_str(), digits.radix()).ok().map(|n| n as f64),
            DeValue::Float(digits) => digits.as_str().parse().ok(),
            _ => None,
        };
        if number.is_none() {
            self.expected(key, what);
        }
        number
    }

    /// One of a few words.
    pub(super) fn one_of<T: Copy>(&self, key: &'static str, words: &[(&str, T)]) -> Option<T> {
        let names: Vec<_> = words.iter().map(|(word, _)| *word).collect();
        let text = self.string(key, &format!("one of {}", names.join(", ")))?;
        let word = words.iter().find(|(word, _)| *word == text);
        if word.is_none() {
            let hint = nearest(&text, names.iter().copied());
            let hint = hint.map_or_else(String::new, |word| format!(": did you mean {word}?"));
            let found = self.raw(key).map_or_else(String::new, |value| found(value.get_ref()));
            self.problem(key, format!("expected one of {}, found {found}{hint}", names.join(", ")));
        }
        word.map(|(_, value)| *value)
    }

    /// A list of texts.
    pub(super) fn texts(&self, key: &'static str, what: &str) -> Option<Vec<String>> {
        let DeValue::Array(values) = self.value(key)?.get_ref() else {
            self.expected(key, &format!("a list of {what}"));
            return None;
        };
        let mut texts = Vec::new();
        for value in values.iter() {
            let place = joined(&self.path, key);
            let problem = |what: String| {
                let line = self.document.line(value);
                self.findings().problem(&self.document.file, line, &place, what);
            };
            match value.get_ref() {
                DeValue::String(raw) if !raw.is_empty() => match self.findings().expanded(raw) {
                    Ok(text) => texts.push(text),
                    Err(why) => problem(why.into()),
                },
                other => problem(format!("expected a list of {what}, found {} in it", found(other))),
            }
        }
        if values.is_empty() {
            self.problem(key, format!("expected a list of {what}, found an empty one"));
        }
        Some(texts)
    }

    /// The table under a key; when there is none, the place where it could be.
    pub(super) fn section(&self, key: &'static str) -> Section<'a> {
        let value = self.value(key);
        let table = value.and_then(|value| value.get_ref().as_table());
        if value.is_some() && table.is_none() {
            self.expected_unseen(key, "a table");
        }
        let line = value.map_or(self.line, |value| self.document.line(value));
        self.document.section(table, line, joined(&self.path, key), joined(&self.general, key))
    }

    /// The table under a key, when there is one.
    pub(super) fn optional(&self, key: &'static str) -> Option<Section<'a>> {
        self.has(key).then(|| self.section(key))
    }

    /// The tables in this one, under names of the writer's choice.
    pub(super) fn entries(&self) -> Vec<(String, Section<'a>)> {
        self.forgive();
        let mut entries = Vec::new();
        for (name, value) in self.table.into_iter().flatten() {
            let (name, line) = (name.get_ref().as_ref(), self.document.line(value));
            match value.get_ref() {
                DeValue::Table(table) => {
                    let path = joined(&self.path, &shown_key(name));
                    let section = self.document.section(Some(table), line, path, joined(&self.general, "*"));
                    entries.push((name.to_owned(), section));
                }
                _ => self.expected_unseen(name, "a table"),
            }
        }
        entries
    }

    /// The texts in this table, under names of the writer's choice.
    pub(super) fn named_texts(&self) -> BTreeMap<String, String> {
        self.forgive();
        let mut texts = BTreeMap::new();
        for (name, value) in self.table.into_iter().flatten() {
            let name = name.get_ref().as_ref();
            match value.get_ref() {
                DeValue::String(raw) => match self.findings().expanded(raw) {
                    Ok(text) => _ = texts.insert(name.to_owned(), text),
                    Err(why) => self.problem(name, why),
                },
                _ => self.expected_unseen(name, "a text"),
            }
        }
        texts
    }

    /// All of this table as it is, with variables filled in.
    pub(super) fn json(&self) -> Map<String, Value> {
        self.forgive();
        self.table.map(|table| self.json_table(table)).unwrap_or_default()
    }

    fn json_table(&self, table: &DeTable<'a>) -> Map<String, Value> {
        let value = |(name, value): (&Spanned<_>, _)| (AsRef::<str>::as_ref(name.get_ref()).to_owned(), value);
        let entries = table.iter().map(|(name, inner)| value((name, self.json_value(inner))));
        entries.collect()
    }

    fn json_value(&self, value: &Spanned<DeValue<'a>>) -> Value {
        match value.get_ref() {
            DeValue::String(raw) => self.findings().expanded(raw).map_or_else(
                |why| {
                    self.findings().problem(&self.document.file, self.document.line(value), &self.path, why);
                    Value::Null
                },
                Value::String,
            ),
            DeValue::Integer(digits) => i64::from_str_radix(digits.as_str(), digits.radix()).unwrap_or_default().into(),
            DeValue::Float(digits) => digits.as_str().parse::<f64>().unwrap_or_default().into(),
            DeValue::Boolean(truth) => Value::Bool(*truth),
            DeValue::Datetime(time) => Value::String(time.to_string()),
            DeValue::Array(values) => values.iter().map(|value| self.json_value(value)).collect(),
            DeValue::Table(table) => Value::Object(self.json_table(table)),
        }
    }
}

impl Drop for Section<'_> {
    fn drop(&mut self) {
        if self.is_free.get() {
            return;
        }
        let known = self.known.borrow();
        let keys = self.table.into_iter().flatten().map(|(name, _)| name.get_ref().as_ref());
        for key in keys.filter(|key| !known.contains(key)).take(PROBLEMS_MAX) {
            let what = match nearest(key, known.iter().copied()) {
                Some(near) => format!("found an unknown key: did you mean {near}?"),
                None => "found an unknown key".to_owned(),
            };
            self.problem(key, format!("expected one of {}, {what}", known.join(", ")));
        }
    }
}

fn joined(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// A key as it stands in a path, with nothing in it that a terminal would obey.
fn shown_key(key: &str) -> String {
    let is_bare = !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if is_bare { short(key) } else { format!("{:?}", short(key)) }
}

fn short(text: &str) -> String {
    text.chars().take(SHOWN_CHARS_MAX).collect()
}

fn found(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("{:?}", short(text)),
        DeValue::Integer(digits) => short(digits.as_str()),
        DeValue::Float(digits) => short(digits.as_str()),
        DeValue::Boolean(truth) => truth.to_string(),
        other => kind(other).to_owned(),
    }
}

const fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) => "a whole number",
        DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a time",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|b| *b == b'\n').count() + 1
}

/// What every account's place begins with.
const ACCOUNTS: &str = "tenants.*.accounts.";
/// What the intake role says of a secret that it could tell.
pub(super) const OUT_OF_SIGHT: &str = "expected to be out of the intake role's sight, found it to be seen: have its \
                                       variable or file there for the courier role alone";
/// Words in the names of headers that hold secrets.
const TELLING: [&str; 5] = ["authorization", "cookie", "token", "key", "secret"];
const SHOWN_CHARS_MAX: usize = 80;
