//! A golden case: a file with what a plugin is told and what came of it when a person last looked. Enters: the file and
//! the plugin on trial. Leaves: where the two differ, or the file with what comes of it now.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use super::{Difference, Occasion, OccasionError, Outcome, Trial, TrialError, read, read_json};
use crate::intake::notification::Identities;
use crate::tenant::{LogCollection, On};

/// One case, as its file has it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Case {
    /// The event, as a line of the demo's, with its task; kept as it is written.
    event: Box<RawValue>,
    /// Which events the plugin is told of; those whose task names it, when it is absent.
    #[serde(default, skip_serializing_if = "is_named")]
    on: On,
    /// The plugin's settings.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    settings: BTreeMap<String, String>,
    /// The operator's identities.
    #[serde(default, skip_serializing_if = "Identities::is_empty")]
    identities: Identities,
    /// Whom and what the plugin may tell, as patterns; anyone and anything when it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    grant: Option<Vec<String>>,
    /// The bucket in which logs are collected; they are not, when it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    log_bucket: Option<String>,
    /// What comes of each notification, a text of several lines as the list of its lines.
    #[serde(default)]
    expected: Value,
}

fn is_named(on: &On) -> bool {
    *on == On::Named
}

impl Case {
    /// The files of a folder that hold cases: its `*.json`, in the order of their names.
    ///
    /// # Errors
    /// When there is none.
    pub fn files(folder: &Path) -> Result<Vec<PathBuf>, TrialError> {
        let expected = "a folder of cases, one .json file each";
        let file_error = |why| TrialError::File { path: folder.to_owned(), expected, why };
        let entries = std::fs::read_dir(folder).map_err(file_error)?;
        let mut files: Vec<_> = entries.map(|entry| Ok(entry.map_err(file_error)?.path())).collect::<Result<_, _>>()?;
        files.retain(|path| path.extension().is_some_and(|extension| extension == "json"));
        if files.is_empty() {
            return Err(TrialError::Content { path: folder.to_owned(), expected, why: "found none".into() });
        }
        files.sort();
        Ok(files)
    }

    /// Runs the case in a file; the differences from what it expects.
    ///
    /// # Errors
    /// When the file holds no case, or there is nothing to tell the plugin.
    pub async fn check_file(path: &Path, trial: &Trial) -> Result<Vec<Difference>, TrialError> {
        let case = Self::from_file(path)?;
        Ok(Difference::between(&case.expected, &case.outcomes(path, trial).await?))
    }

    /// Runs the case in a file and makes it expect what came of it; whether that changed the file.
    ///
    /// # Errors
    /// When the file holds no case or cannot be written, or there is nothing to tell the plugin.
    pub async fn bless_file(path: &Path, trial: &Trial) -> Result<bool, TrialError> {
        let mut case = Self::from_file(path)?;
        case.expected = case.outcomes(path, trial).await?;
        let text = case.to_string();
        if read(path, "a case")? == text {
            return Ok(false);
        }
        match std::fs::write(path, text) {
            Ok(()) => Ok(true),
            Err(why) => Err(TrialError::File { path: path.to_owned(), expected: "a file to write", why }),
        }
    }

    /// A case that expects these outcomes of an event, which is JSON.
    ///
    /// # Errors
    /// When the event is no JSON.
    pub fn new(
        event: String,
        settings: BTreeMap<String, String>,
        outcomes: impl IntoIterator<Item = Outcome>,
    ) -> Result<Self, serde_json::Error> {
        let (event, expected) = (RawValue::from_string(event)?, as_value(outcomes));
        Ok(Self {
            event,
            on: On::Named,
            settings,
            identities: Identities::new(),
            grant: None,
            log_bucket: None,
            expected,
        })
    }

    pub(super) fn parse(text: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(text)
    }

    /// What the plugin is told, and on what terms.
    pub(super) fn occasion(&self) -> Result<Occasion, OccasionError> {
        let mut occasion = Occasion::new(self.event.get())?;
        occasion.on = self.on;
        occasion.settings.clone_from(&self.settings);
        occasion.identities.clone_from(&self.identities);
        if let Some(recipients) = &self.grant {
            occasion.recipients.clone_from(recipients);
        }
        occasion.logs = self.log_bucket.as_deref().and_then(LogCollection::in_bucket);
        Ok(occasion)
    }

    fn from_file(path: &Path) -> Result<Self, TrialError> {
        read_json(
            path,
            "a case {\"event\": …, \"settings\": …, \"identities\": …, \"grant\": …, \"log_bucket\": …, \"expected\": …}",
        )
    }

    async fn outcomes(&self, path: &Path, trial: &Trial) -> Result<Value, TrialError> {
        let unusable = |why| TrialError::Occasion { path: path.to_owned(), why };
        let told = trial.tell_of(path, &self.occasion().map_err(unusable)?).await?;
        Ok(as_value(told.runs.into_iter().map(|run| run.outcome)))
    }
}

/// As its file has it.
impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{}", serde_json::to_string_pretty(self).map_err(|_| std::fmt::Error)?)
    }
}

fn as_value(outcomes: impl IntoIterator<Item = Outcome>) -> Value {
    // Plain data with texts as keys always is a JSON value.
    let value = |outcome| serde_json::to_value(outcome).unwrap_or_default();
    by_line(Value::Array(outcomes.into_iter().map(value).collect()))
}

/// The same with each text of several lines as the list of its lines, so that people can read and compare them.
fn by_line(value: Value) -> Value {
    match value {
        Value::String(text) if text.contains('\n') => text.split('\n').map(Value::from).collect(),
        Value::Array(values) => values.into_iter().map(by_line).collect(),
        Value::Object(fields) => fields.into_iter().map(|(name, value)| (name, by_line(value))).collect(),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn texts_of_several_lines_are_lists_of_lines() {
        assert_eq!(by_line(json!([{"text": "a\nb\n", "to": "c"}])), json!([{"text": ["a", "b", ""], "to": "c"}]));
    }

    #[test]
    fn a_written_case_keeps_its_event_as_it_is_written() {
        let text =
            "{\n  \"event\": {\"b\": 1,\n     \"a\":  2},\n  \"grant\": [\n    \"*\"\n  ],\n  \"expected\": []\n}\n";
        assert_eq!(Case::parse(text).unwrap().to_string(), text);
    }

    #[test]
    fn a_case_with_a_field_that_means_nothing_is_none() {
        assert!(Case::parse(r#"{"event": {}, "setings": {}}"#).is_err());
    }
}
