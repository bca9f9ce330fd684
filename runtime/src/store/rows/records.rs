//! What happened, for those who want to see it.

use crate::effect::{Effect, EffectId};

/// Which records, and how many.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// Whose.
    pub tenant: String,
    /// Of one plugin alone.
    pub plugin: Option<String>,
    /// In one state alone.
    pub state: Option<String>,
    /// Only those with something refused in them.
    pub refused: bool,
    /// Those before this one.
    pub before: Option<i64>,
    /// At most so many.
    pub limit: u32,
}

/// How a plugin took a notification.
#[derive(Clone, Debug)]
pub struct InvocationSeen {
    /// Its row; records before it are older.
    pub id: i64,
    /// The event's status.
    pub status: String,
    /// The task.
    pub task_id: String,
    /// The run.
    pub run_id: Option<i64>,
    /// When the event arrived.
    pub received_ms: i64,
    /// The identity.
    pub identity: String,
    /// The plugin.
    pub plugin: String,
    /// The version, in hexadecimal.
    pub digest: String,
    /// How it ended.
    pub state: String,
    /// Why.
    pub reason: Option<String>,
    /// What it was refused.
    pub refusals: Vec<String>,
    /// What it logged.
    pub log: Vec<String>,
    /// Processor time it took, in microseconds.
    pub cpu_us: i64,
    /// The most memory it held, in bytes.
    pub memory_max: i64,
    /// How often it was run.
    pub tries: i64,
    /// When it is run again.
    pub due_ms: Option<i64>,
}

/// An effect and what was tried for it.
#[derive(Clone, Debug)]
pub struct EffectSeen {
    /// Its row; records before it are older.
    pub seq: i64,
    /// Its id, in hexadecimal.
    pub id: String,
    /// The task.
    pub task_id: String,
    /// The plugin that asked for it.
    pub plugin: String,
    /// Whom the sink talks to.
    pub destination: String,
    /// Whom it is for.
    pub recipient: String,
    /// What is asked for.
    pub effect: Effect,
    /// When it was asked for.
    pub created_ms: i64,
    /// Its state.
    pub state: String,
    /// The last answer.
    pub reason: Option<String>,
    /// When it is due.
    pub due_ms: i64,
    /// Attempts whose outcome nobody knows.
    pub in_doubt: i64,
    /// What was tried.
    pub attempts: Vec<AttemptSeen>,
}

/// One attempt.
#[derive(Clone, Debug)]
pub struct AttemptSeen {
    /// Its number, from 1.
    pub number: i64,
    /// When it began.
    pub started_ms: i64,
    /// When it ended.
    pub ended_ms: Option<i64>,
    /// How.
    pub outcome: Option<String>,
    /// What the server answered.
    pub answer: Option<String>,
}

/// A message that was no event.
#[derive(Clone, Debug)]
pub struct DeadDeliverySeen {
    /// Its row; records before it are older.
    pub id: i64,
    /// Where it was published.
    pub exchange: String,
    /// With which routing key.
    pub routing_key: String,
    /// Why it is no event.
    pub reason: String,
    /// The digest of its body, in hexadecimal.
    pub sha256: String,
    /// The size of its body.
    pub bytes: i64,
    /// The beginning of its body.
    pub body: String,
    /// When it arrived.
    pub received_ms: i64,
}

/// An effect that has come to its end.
#[derive(Clone, Debug)]
pub struct Ended {
    /// Its id.
    pub id: EffectId,
    /// The tenant.
    pub tenant: String,
    /// The plugin that asked for it.
    pub plugin: String,
    /// The task.
    pub task_id: String,
    /// The event's status.
    pub status: String,
    /// Its state.
    pub state: String,
    /// The last answer.
    pub reason: String,
    /// What was asked for.
    pub effect: Effect,
}
