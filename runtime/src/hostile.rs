//! Hostile input by the thousand, for property tests.

use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Map, Value};

/// How much of it: the properties together see more than 100,000 cases.
pub(crate) fn thousands() -> ProptestConfig {
    ProptestConfig { cases: 20_000, failure_persistence: None, max_shrink_iters: 2_000, ..ProptestConfig::default() }
}

/// Text as an attacker writes it: breaks, commands, codes, other scripts, and sometimes an honest word.
pub(crate) fn text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        4 => "[a-z0-9._@#/-]{0,12}",
        2 => any::<char>().prop_map(String::from),
        2 => proptest::sample::select(PIECES).prop_map(str::to_owned),
        1 => (0_u8..0x20).prop_map(|byte| char::from(byte).to_string()),
    ];
    vec(piece, 0..8).prop_map(|pieces| pieces.concat())
}

/// Any JSON, with keys that mean something to us more often than chance would have it.
pub(crate) fn json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-1.0e300..1.0e300).prop_map(Value::from),
        text().prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 6, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..5).prop_map(Value::from),
            vec((key(), inner), 0..6).prop_map(|fields| Value::Object(fields.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

fn key() -> impl Strategy<Value = String> {
    prop_oneof![3 => proptest::sample::select(KEYS).prop_map(str::to_owned), 1 => text()]
}

const PIECES: &[&str] = &[
    "\r\n",
    "\n",
    "\r",
    "\0",
    "\r\n.\r\n",
    "\r\nBcc: x@example.org",
    "\u{1}ACTION ",
    "\u{3}04",
    "\u{1b}[2J",
    "\u{202e}",
    "\u{85}",
    "\u{2028}",
    "\u{feff}",
    "../",
    "..",
    "//",
    "\\",
    "%0d%0a",
    "=?utf-8?q?=0D=0A?=",
    "{task_id}",
    "{{",
    "<b>",
    "a@example.com",
    "#ci",
    ",",
    ":",
    ";",
    "\"",
    "'",
    "*",
    "ü",
    "☃",
    "𝄞",
];
const KEYS: &[&str] = &[
    "status",
    "taskId",
    "taskGroupId",
    "runs",
    "runId",
    "started",
    "resolved",
    "scheduled",
    "state",
    "artifact",
    "name",
    "extra",
    "notifications",
    "notification",
    "task-failed",
    "plugins",
    "smtp",
    "irc",
    "subject",
    "message",
    "emails",
    "recipients",
    "nicks",
    "channels",
    "ids",
    "metadata",
    "build_props",
    "payload",
    "properties",
    "branch",
    "product",
    "version",
    "build_number",
    "platform",
    "repo_path",
];
