//! Identities: what lies over a section that names one. Their YAML file, and what is wrong within them.

use std::path::Path;

use serde_json::{Map, Value};

use super::read_file;
use crate::intake::event::kind;
use crate::intake::notification::{DEFAULT_IDENTITY, Identities};

/// Reads the YAML file. A problem's place is the file, or whoever named it when it cannot be read.
pub(super) fn read(path: &Path, problem: impl Fn(Option<&str>, String)) -> Identities {
    let text = match read_file(path) {
        Ok(text) => text,
        Err(why) => {
            problem(None, why);
            return Identities::new();
        }
    };
    let place = path.display().to_string();
    let parsed: Option<Map<String, Value>> = match serde_saphyr::from_str(&text) {
        Ok(parsed) => parsed,
        Err(error) => {
            let error = error.to_string();
            let error = error.lines().next().unwrap_or("");
            problem(Some(&place), format!("expected YAML, identities by name: {error}"));
            return Identities::new();
        }
    };
    let mut identities = Identities::new();
    for (name, value) in parsed.unwrap_or_default() {
        let overlay = match value {
            Value::Object(overlay) => overlay,
            Value::Null => Map::new(),
            other => {
                let found = kind(&other);
                problem(Some(&place), format!("{name}: expected a map such as {{emails: []}}, found {found}"));
                continue;
            }
        };
        for what in checked(&name, &overlay) {
            problem(Some(&place), what);
        }
        identities.insert(name, overlay);
    }
    identities
}

/// What is wrong within an identity.
pub(super) fn checked(name: &str, overlay: &Map<String, Value>) -> Vec<String> {
    let mut problems = Vec::new();
    if name == DEFAULT_IDENTITY {
        problems.push("an identity may not be named default: that is the section as its task wrote it".to_owned());
    }
    for (key, value) in overlay {
        let expected = match (key.as_str(), value) {
            (_, Value::Null) => continue,
            ("plugins", Value::Object(texts)) if texts.values().all(|text| text.is_object() || text.is_null()) => {
                continue;
            }
            ("plugins" | "emails" | "recipients" | "channels" | "nicks", Value::String(_)) => continue,
            ("plugins" | "emails" | "recipients" | "channels" | "nicks", Value::Array(all))
                if all.iter().all(Value::is_string) =>
            {
                continue;
            }
            ("plugins" | "emails" | "recipients" | "channels" | "nicks", _) => "a list of texts",
            ("subject" | "message", Value::String(_)) => continue,
            ("subject" | "message", _) => "a text",
            // Anything else is for plugins to read.
            _ => continue,
        };
        let found = match value {
            Value::Array(_) => "a list with something else in it",
            other => kind(other),
        };
        problems.push(format!("{name}: {key}: expected {expected}, found {found}"));
    }
    problems
}
