//! What a task wants said about an event: (task, identities, plugins) → notifications. Pure.
//!
//! The rules are the predecessor's, made to hold for every input: nothing a task writes here is an error, it only leads
//! to fewer notifications and to warnings that say why.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde_json::{Map, Value};

use super::event::{Event, kind, text};
use crate::tenant::{On, PluginTerms};

/// Identities by name: what lies over a section that names one in `ids`.
pub type Identities = BTreeMap<String, Map<String, Value>>;

/// The identity of a section as its task wrote it.
pub const DEFAULT_IDENTITY: &str = "default";

/// One section for one identity and one plugin.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notification {
    /// The identity that lies over the section, or `default`.
    pub identity: String,
    /// The plugin that shall say it.
    pub plugin: String,
    /// One line.
    pub subject: String,
    /// The message; its lines are kept.
    pub message: String,
    /// Mail addresses.
    pub emails: Vec<String>,
    /// Nicknames.
    pub nicks: Vec<String>,
    /// Channels.
    pub channels: Vec<String>,
    /// The merged section, a JSON object.
    pub section: String,
}

/// What came out of one task's wishes.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Wishes {
    /// What is to be said.
    pub notifications: Vec<Notification>,
    /// What was wished and cannot be followed, for the log.
    pub warnings: Vec<String>,
}

/// Reads `extra.notifications.<status>` (or the older `extra.notification.<status>`) of a task's definition. A plugin on
/// every event is told as if each section, as its task wrote it, named it; where there is none, the section is empty.
#[must_use]
pub fn wishes(
    event: &Event,
    task: &Value,
    identities: &Identities,
    plugins: &BTreeMap<String, PluginTerms>,
    task_url: &str,
) -> Wishes {
    let mut reader = Reader { event, task, task_url, plugins, wishes: Wishes::default() };
    static NOTHING: LazyLock<Map<String, Value>> = LazyLock::new(Map::new);
    let is_told_anyway = || plugins.values().any(|terms| terms.on == On::Every);
    if let Some(section) = reader.section().or_else(|| is_told_anyway().then_some(&*NOTHING)) {
        for (identity, overlay) in reader.identities(section, identities) {
            let mut merged = section.clone();
            merged.extend(overlay.clone());
            reader.notify(identity, &merged);
        }
    }
    reader.wishes
}

struct Reader<'a> {
    event: &'a Event,
    task: &'a Value,
    task_url: &'a str,
    plugins: &'a BTreeMap<String, PluginTerms>,
    wishes: Wishes,
}

impl<'a> Reader<'a> {
    fn warn(&mut self, warning: String) {
        match self.wishes.warnings.len() {
            WARNINGS_MAX => self.wishes.warnings.push("and more that cannot be followed".into()),
            fewer if fewer < WARNINGS_MAX => self.wishes.warnings.push(warning),
            _ => {}
        }
    }

    /// The section about this event's status; the newer key wins over the older one.
    fn section(&mut self) -> Option<&'a Map<String, Value>> {
        let extra = self.task.get("extra")?;
        let (newer, older) = (extra.get("notifications"), extra.get("notification"));
        if newer.is_some() && older.is_some() {
            self.warn("extra has both notifications and notification: the first is used".into());
        }
        let (name, sections) = match (newer, older) {
            (Some(newer), _) => ("notifications", newer),
            (None, Some(older)) => ("notification", older),
            (None, None) => return None,
        };
        let sections = self.object(sections, &format!("extra.{name}"))?;
        let section = sections.get(&self.event.status)?;
        self.object(section, &format!("extra.{name}.{}", self.event.status))
    }

    fn object(&mut self, value: &'a Value, place: &str) -> Option<&'a Map<String, Value>> {
        if value.as_object().is_none() {
            self.warn(format!("{place}: expected an object, found {}: nothing to notify", kind(value)));
        }
        value.as_object()
    }

    /// The identities a section is seen by: each known one it names, and always itself.
    fn identities<'i>(
        &mut self,
        section: &Map<String, Value>,
        identities: &'i Identities,
    ) -> Vec<(&'i str, &'i Map<String, Value>)> {
        static NOTHING: LazyLock<Map<String, Value>> = LazyLock::new(Map::new);
        let mut seen = Vec::new();
        for id in self.texts(section, "ids") {
            match identities.get_key_value(&id) {
                Some((id, overlay)) => seen.push((id.as_str(), overlay)),
                None => self.warn(format!("ids: unknown identity {}", quoted(&id))),
            }
        }
        seen.push((DEFAULT_IDENTITY, &NOTHING));
        seen
    }

    fn notify(&mut self, identity: &str, section: &Map<String, Value>) {
        let mut named = self.named_plugins(section);
        if identity == DEFAULT_IDENTITY {
            let on_every = self.plugins.iter().filter(|(_, terms)| terms.on == On::Every).map(|(name, _)| name);
            let unnamed: Vec<_> = on_every.filter(|name| named.iter().all(|(other, _)| other != *name)).collect();
            named.extend(unnamed.into_iter().map(|name| (name.clone(), None)));
        }
        if named.is_empty() {
            return;
        }
        let (emails, recipients) = (self.texts(section, "emails"), self.texts(section, "recipients"));
        let emails = merged(emails, recipients);
        let (nicks, channels) = (self.texts(section, "nicks"), self.texts(section, "channels"));
        let nicks: Vec<String> = nicks.iter().map(|nick| one_line(nick)).filter(|nick| !nick.is_empty()).collect();
        let section_json = Value::Object(section.clone()).to_string();
        for (plugin, own_text) in named {
            let subject = self.text(own_text, section, "subject").unwrap_or_else(|| self.fallback_subject());
            let message = self.text(own_text, section, "message").unwrap_or_else(|| self.fallback_message());
            let subject = self.shortened("subject", one_line(&self.filled(&subject)), SUBJECT_BYTES_MAX);
            let message = self.shortened("message", self.filled(&message).replace('\0', ""), MESSAGE_BYTES_MAX);
            self.wishes.notifications.push(Notification {
                identity: identity.to_owned(),
                plugin,
                subject,
                message,
                emails: emails.clone(),
                nicks: nicks.clone(),
                channels: channels.clone(),
                section: section_json.clone(),
            });
        }
    }

    /// The known plugins a section names, each once, with the text meant for it alone.
    fn named_plugins<'s>(&mut self, section: &'s Map<String, Value>) -> Vec<(String, Option<&'s Map<String, Value>>)> {
        let named: Vec<_> = match section.get("plugins") {
            Some(Value::Object(by_name)) => {
                by_name.iter().map(|(name, text)| (name.clone(), text.as_object())).collect()
            }
            _ => self.texts(section, "plugins").into_iter().map(|name| (name, None)).collect(),
        };
        let (known, unknown): (Vec<_>, Vec<_>) =
            named.into_iter().partition(|(name, _)| self.plugins.contains_key(name));
        for (name, _) in unknown {
            self.warn(format!("plugins: unknown plugin {}", quoted(&name)));
        }
        known
    }

    /// A field that holds a list of texts, each once. One text counts as a list of one.
    fn texts(&mut self, section: &Map<String, Value>, field: &str) -> Vec<String> {
        let values = match section.get(field) {
            None | Some(Value::Null) => return Vec::new(),
            Some(Value::String(one)) => {
                return Some(one.trim().to_owned()).into_iter().filter(|one| !one.is_empty()).collect();
            }
            Some(Value::Array(values)) => values,
            Some(other) => {
                self.warn(format!("{field}: expected a list of texts, found {}", kind(other)));
                return Vec::new();
            }
        };
        if values.len() > TEXTS_MAX {
            self.warn(format!("{field}: {} entries, of which the first {TEXTS_MAX} count", values.len()));
        }
        let mut texts: Vec<String> = Vec::new();
        for value in values.iter().take(TEXTS_MAX) {
            match value.as_str().map(str::trim) {
                Some("") => {}
                Some(text) if texts.iter().any(|earlier| earlier == text) => {
                    self.warn(format!("{field}: {} is named twice and counts once", quoted(text)));
                }
                Some(text) => texts.push(text.to_owned()),
                None => self.warn(format!("{field}: expected texts, found {}", kind(value))),
            }
        }
        texts
    }

    /// The plugin's own text, else the section's; white space alone counts as none.
    fn text(&mut self, own: Option<&Map<String, Value>>, section: &Map<String, Value>, field: &str) -> Option<String> {
        for place in own.into_iter().chain([section]) {
            match place.get(field) {
                None | Some(Value::Null) => {}
                Some(Value::String(text)) if one_line(text).is_empty() => {}
                Some(Value::String(text)) => return Some(text.clone()),
                Some(other) => self.warn(format!("{field}: expected a text, found {}", kind(other))),
            }
        }
        None
    }

    /// As much of a text as people can be told; whoever wants more follows the task's link.
    fn shortened(&mut self, field: &str, mut text: String, bytes_max: usize) -> String {
        if text.len() > bytes_max {
            self.warn(format!("{field}: {} bytes, of which the first {bytes_max} are said", text.len()));
            text.truncate(text.floor_char_boundary(bytes_max));
            text.push_str("...");
        }
        text
    }

    fn filled(&self, text: &str) -> String {
        text.replace("{task_id}", self.event.task_id.as_str())
    }

    fn task_name(&self) -> &'a str {
        text(self.task, "/metadata/name").unwrap_or("unnamed")
    }

    fn fallback_subject(&self) -> String {
        format!("Task {}: {}", short_status(&self.event.status), self.task_name())
    }

    fn fallback_message(&self) -> String {
        let state = match short_status(&self.event.status) {
            "exception" => "in exception",
            "artifact-created" => "publishing artifacts",
            other => other,
        };
        format!("Task {} ({}) is {state}. {}", self.event.task_id, self.task_name(), self.task_url)
    }
}

/// Entries of one list that count.
const TEXTS_MAX: usize = 256;
/// What a subject may have and still be one line of a mail's header.
const SUBJECT_BYTES_MAX: usize = 800;
/// What a message may have and still, escaped and beside its own plain text, be one effect.
const MESSAGE_BYTES_MAX: usize = 32 << 10;
/// Warnings about one event that are said.
const WARNINGS_MAX: usize = 20;

fn short_status(status: &str) -> &str {
    status.strip_prefix("task-").unwrap_or(status)
}

fn one_line(text: &str) -> String {
    let words = text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join(" ")
}

fn merged(mut texts: Vec<String>, more: Vec<String>) -> Vec<String> {
    let new: Vec<_> = more.into_iter().filter(|text| !texts.contains(text)).collect();
    texts.extend(new);
    texts
}

/// Foreign text, safe to stand in a message and short enough.
fn quoted(text: &str) -> String {
    format!("{:?}", text.chars().take(60).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::intake::event::Delivery;
    use serde_json::json;

    fn event(status: &str) -> Event {
        let body = json!({"runId": 0, "status": {"taskId": "A35mWTRuQmyj88yMnIF0fA"}}).to_string().into_bytes();
        let exchange = format!("exchange/taskcluster-queue/v1/{status}");
        Event::read("default", Delivery { exchange, body, ..Delivery::default() }.into()).unwrap()
    }

    fn wishes_of(extra: &Value, identities: &Value) -> Wishes {
        let task = json!({"metadata": {"name": "build"}, "extra": extra});
        let identities = serde_json::from_value(identities.clone()).unwrap();
        let plugins = ["smtp", "irc", "ses"].map(|name| (name.to_owned(), PluginTerms::default())).into();
        wishes(&event("task-failed"), &task, &identities, &plugins, "https://tc/tasks/A35mWTRuQmyj88yMnIF0fA")
    }

    fn of_section(section: Value) -> Wishes {
        wishes_of(&json!({"notifications": {"task-failed": section}}), &json!({}))
    }

    fn said(wishes: &Wishes) -> Vec<(&str, &str)> {
        wishes.notifications.iter().map(|n| (n.identity.as_str(), n.plugin.as_str())).collect()
    }

    #[test]
    fn a_text_too_long_for_people_is_shortened_and_a_warning_says_so() {
        let wishes =
            of_section(json!({"plugins": ["smtp"], "subject": "ü".repeat(5_000), "message": "x".repeat(100_000)}));
        let notification = &wishes.notifications[0];
        assert_eq!(notification.subject, "ü".repeat(400) + "...");
        assert_eq!(notification.message.len(), (32 << 10) + 3);
        assert_eq!(wishes.warnings.len(), 2, "{:?}", wishes.warnings);
    }

    fn told_of_every(extra: &Value, identities: &Value) -> Wishes {
        let task = json!({"metadata": {"name": "build"}, "extra": extra});
        let identities = serde_json::from_value(identities.clone()).unwrap();
        let on = |on| PluginTerms { on, ..PluginTerms::default() };
        let plugins =
            [("smtp", On::Named), ("audit", On::Every)].map(|(name, which)| (name.to_owned(), on(which))).into();
        wishes(&event("task-failed"), &task, &identities, &plugins, "https://tc/tasks/A35mWTRuQmyj88yMnIF0fA")
    }

    #[test]
    fn a_plugin_on_every_event_is_told_of_tasks_that_want_nothing_said() {
        let none = json!({"notifications": {"task-completed": {"plugins": ["smtp"], "emails": ["a@example.com"]}}});
        for extra in [json!({}), json!(null), json!(7), none, json!({"notifications": {"task-failed": "odd"}})] {
            let wishes = told_of_every(&extra, &json!({}));
            assert_eq!(said(&wishes), [("default", "audit")], "{extra}");
            let told = &wishes.notifications[0];
            assert_eq!((told.subject.as_str(), told.section.as_str()), ("Task failed: build", "{}"));
            assert!(told.emails.is_empty() && told.nicks.is_empty() && told.channels.is_empty());
        }
    }

    #[test]
    fn a_plugin_on_every_event_is_told_once_of_what_a_section_says_and_once_more_by_each_identity_that_names_it() {
        let section = |plugins: Value| {
            json!({"notifications": {"task-failed": {
                "plugins": plugins, "subject": "s", "emails": ["a@example.com"], "ids": ["ci", "ops"]}}})
        };
        let identities = json!({"ci": {"plugins": ["smtp"]}, "ops": {"plugins": ["audit"]}});
        for plugins in [json!(["smtp"]), json!(["smtp", "audit"])] {
            let wishes = told_of_every(&section(plugins), &identities);
            let expected = [("ci", "smtp"), ("ops", "audit"), ("default", "smtp"), ("default", "audit")];
            assert_eq!(said(&wishes), expected);
            assert_eq!(
                (wishes.notifications[3].subject.as_str(), &wishes.notifications[3].emails[0][..]),
                ("s", "a@example.com")
            );
        }
        let own = told_of_every(&section(json!({"audit": {"subject": "for it alone"}})), &json!({}));
        assert_eq!(own.notifications[0].subject, "for it alone");
        // Others' tasks name nobody: a plugin that is not on every event is not told.
        assert!(said(&told_of_every(&section(json!([])), &json!({}))).iter().all(|(_, plugin)| *plugin == "audit"));
    }

    #[test]
    fn a_section_names_its_plugins_as_a_list_a_map_or_one_text() {
        for plugins in [json!(["smtp"]), json!({"smtp": {}}), json!({"smtp": null}), json!("smtp")] {
            assert_eq!(said(&of_section(json!({"plugins": plugins}))), [("default", "smtp")]);
        }
    }

    #[test]
    fn both_generations_are_read_and_the_newer_wins() {
        let older = json!({"notification": {"task-failed": {"plugins": ["irc"]}}});
        assert_eq!(said(&wishes_of(&older, &json!({}))), [("default", "irc")]);
        let both =
            json!({"notifications": {"task-failed": {"plugins": ["smtp"]}}, "notification": older["notification"]});
        let wishes = wishes_of(&both, &json!({}));
        assert_eq!(said(&wishes), [("default", "smtp")]);
        assert_eq!(wishes.warnings.len(), 1);
    }

    #[test]
    fn whatever_is_no_section_notifies_nobody_and_is_logged() {
        for odd in [json!(null), json!("no notifications"), json!(["smtp"]), json!(7)] {
            let wishes = of_section(odd.clone());
            assert_eq!((said(&wishes), wishes.warnings.len()), (vec![], 1), "{odd}");
            let wishes = wishes_of(&json!({"notifications": odd}), &json!({}));
            assert_eq!((said(&wishes), wishes.warnings.len()), (vec![], 1), "{odd}");
        }
        assert_eq!(wishes_of(&json!({}), &json!({})), Wishes::default());
        assert_eq!(wishes_of(&json!(null), &json!({})), Wishes::default());
        assert_eq!(wishes_of(&json!({"notifications": {"task-completed": {}}}), &json!({})), Wishes::default());
    }

    #[test]
    fn a_task_with_plugins_and_n_ids_notifies_1_plus_n_times() {
        let identities = json!({"release": {"plugins": ["ses"], "emails": ["r@example.com"]}, "ci": {"emails": []}});
        let section = json!({"plugins": ["smtp"], "ids": ["release", "ci", "who"], "emails": ["t@example.com"]});
        let wishes = wishes_of(&json!({"notifications": {"task-failed": section}}), &identities);
        assert_eq!(said(&wishes), [("release", "ses"), ("ci", "smtp"), ("default", "smtp")]);
        let emails: Vec<_> = wishes.notifications.iter().map(|n| n.emails.join(",")).collect();
        assert_eq!(emails, ["r@example.com", "", "t@example.com"], "the identity wins, each overlay starts afresh");
        assert_eq!(wishes.warnings, ["ids: unknown identity \"who\""]);
    }

    #[test]
    fn ids_without_plugins_take_the_identitys_plugins() {
        let identities = json!({"release": {"plugins": ["ses"]}});
        let extra = json!({"notifications": {"task-failed": {"ids": "release", "subject": "s"}}});
        assert_eq!(said(&wishes_of(&extra, &identities)), [("release", "ses")]);
    }

    #[test]
    fn a_plugin_or_an_id_named_twice_counts_once() {
        let identities = json!({"ci": {}});
        let section = json!({"plugins": ["smtp", "smtp"], "ids": ["ci", "ci"]});
        let wishes = wishes_of(&json!({"notifications": {"task-failed": section}}), &identities);
        assert_eq!(said(&wishes), [("ci", "smtp"), ("default", "smtp")]);
    }

    #[test]
    fn an_unknown_plugin_does_not_stop_the_others() {
        let wishes = of_section(json!({"plugins": ["no\npe", "smtp"]}));
        assert_eq!(said(&wishes), [("default", "smtp")]);
        assert_eq!(wishes.warnings, ["plugins: unknown plugin \"no\\npe\""]);
    }

    #[test]
    fn a_missing_subject_or_message_falls_back() {
        let wishes = of_section(json!({"plugins": ["smtp"], "subject": " \n"}));
        let notification = &wishes.notifications[0];
        assert_eq!(notification.subject, "Task failed: build");
        assert_eq!(
            notification.message,
            "Task A35mWTRuQmyj88yMnIF0fA (build) is failed. https://tc/tasks/A35mWTRuQmyj88yMnIF0fA"
        );
    }

    #[test]
    fn a_plugins_own_text_wins_and_task_id_is_filled_in() {
        let plugins = json!({"irc": {"message": "{task_id} broke"}, "smtp": {"subject": "{name} {task_id}"}});
        let wishes = of_section(json!({"plugins": plugins, "message": "m\nn", "subject": "a\r\n\0b\t{x}\n"}));
        let texts: Vec<_> = wishes.notifications.iter().map(|n| (n.subject.as_str(), n.message.as_str())).collect();
        let id = "A35mWTRuQmyj88yMnIF0fA";
        assert_eq!(texts, [("a b {x}", &*format!("{id} broke")), (&*format!("{{name}} {id}"), "m\nn")]);
    }

    #[test]
    fn recipients_of_the_older_code_count_too() {
        let wishes = of_section(json!({"plugins": ["smtp"], "emails": "a@x", "recipients": ["a@x", "b@x"]}));
        assert_eq!(wishes.notifications[0].emails, ["a@x", "b@x"]);
    }

    #[test]
    fn wrong_types_warn_and_count_as_absent() {
        let section = json!({"plugins": ["smtp", 3], "subject": 7, "emails": {"a": 1}, "nicks": [null, "n"]});
        let wishes = of_section(section);
        let notification = &wishes.notifications[0];
        assert_eq!(
            (notification.subject.as_str(), &*notification.nicks),
            ("Task failed: build", &["n".to_owned()][..])
        );
        assert_eq!(wishes.warnings.len(), 4, "{:?}", wishes.warnings);
    }

    proptest::proptest! {
        #![proptest_config(crate::hostile::thousands())]

        #[test]
        fn whatever_a_task_wishes_a_subject_is_one_line_and_a_plugin_is_known(
            section in crate::hostile::json(),
            plugins in proptest::prop_oneof![proptest::prelude::Just(json!(["smtp", "irc"])), crate::hostile::json()],
            subject in crate::hostile::text(),
        ) {
            let mut section = section;
            if let Some(section) = section.as_object_mut() {
                section.insert("plugins".into(), plugins);
                section.insert("subject".into(), json!(subject));
            }
            let wishes = wishes_of(&json!({"notifications": {"task-failed": section}}), &json!({"a": {"emails": ["x"]}}));
            for notification in &wishes.notifications {
                proptest::prop_assert!(!notification.subject.contains(char::is_control), "{:?}", notification.subject);
                proptest::prop_assert!(!notification.subject.is_empty());
                proptest::prop_assert!(!notification.message.contains('\0'));
                proptest::prop_assert!(["smtp", "irc", "ses"].contains(&notification.plugin.as_str()));
                proptest::prop_assert!(serde_json::from_str::<Value>(&notification.section).is_ok());
            }
            proptest::prop_assert!(wishes.warnings.len() <= WARNINGS_MAX + 1);
        }
    }
}
