//! What goes into the store and comes out of it. Plain data.

mod records;
mod registry;

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::effect::{Effect, EffectId, EventKey, Hash, Plan};
use crate::grant::quota::Quotas;
use crate::intake::event::Delivery;
pub use records::*;
pub use registry::*;

/// What intake decided about one event.
#[derive(Clone, Debug)]
pub struct Settled {
    /// What makes a repeat the same event.
    pub key: EventKey,
    /// The tenant.
    pub tenant: String,
    /// Its status.
    pub status: String,
    /// Its task.
    pub task_id: String,
    /// Its run.
    pub run_id: Option<u32>,
    /// The message, to handle it again.
    pub delivery: Arc<Delivery>,
    /// When it arrived here.
    pub received_ms: i64,
    /// What becomes of it.
    pub fate: Fate,
    /// What this decision is based on.
    pub basis: Basis,
}

impl Settled {
    /// How much there is to write, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let invocations = match &self.fate {
            Fate::Planned(invocations) => invocations.iter().map(Invocation::bytes).sum(),
            Fate::Deferred { .. } | Fate::Dead { .. } => 0,
        };
        self.delivery.body.len() + invocations
    }
}

/// What becomes of an event.
#[derive(Clone, Debug)]
pub enum Fate {
    /// Its plugins ran, with these outcomes.
    Planned(Vec<Invocation>),
    /// It is handled again later.
    Deferred {
        /// When.
        due_ms: i64,
        /// Why not now.
        reason: String,
    },
    /// It never will be handled.
    Dead {
        /// Why.
        reason: String,
    },
}

/// What a decision is based on, and so when it is void.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Basis {
    /// A delivery: void when the event is known already.
    Delivery,
    /// A deferred event: void when somebody else handled it since.
    Deferred {
        /// How often it had been deferred.
        tries: u32,
    },
}

/// Who decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// This decision was committed.
    Won,
    /// Another one had been before; this one is discarded.
    Lost,
}

/// How one plugin took one notification.
#[derive(Clone, Debug)]
pub struct Invocation {
    /// 0 for the delivery, then one more for each replay.
    pub generation: u32,
    /// The identity.
    pub identity: String,
    /// The plugin.
    pub plugin: String,
    /// The version that ran.
    pub digest: Hash,
    /// How it ended.
    pub outcome: Outcome,
    /// How much it may ask for in an hour.
    pub quotas: Arc<Quotas>,
    /// What it was refused.
    pub refusals: Vec<String>,
    /// What it logged.
    pub log: Vec<String>,
    /// CPU time it took, in microseconds.
    pub cpu_us: u64,
    /// The most memory it held, in bytes.
    pub memory_max: u64,
}

impl Invocation {
    /// How much there is to write, in bytes, each row counted as some.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let plan = match &self.outcome {
            Outcome::Done(plan) => plan.effects.len() * ROW_WEIGHT + plan.bytes(),
            _ => 0,
        };
        ROW_WEIGHT + self.log.iter().chain(&self.refusals).map(String::len).sum::<usize>() + plan
    }
}

/// How an invocation ended.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// It returned ok, and this is what it asked for.
    Done(Plan),
    /// It asked to be run again.
    Retry {
        /// When.
        due_ms: i64,
        /// Why.
        reason: String,
    },
    /// It says it will never work.
    Failed(String),
    /// It trapped or ran out of a limit.
    Faulted(String),
    /// It was not run.
    Refused(String),
    /// It asked to be run again for three days.
    Dead(String),
}

impl Outcome {
    /// The state of an invocation that ended so.
    #[must_use]
    pub const fn state(&self) -> &'static str {
        match self {
            Self::Done(_) => "done",
            Self::Retry { .. } => "retry",
            Self::Failed(_) => "failed",
            Self::Faulted(_) => "faulted",
            Self::Refused(_) => "refused",
            Self::Dead(_) => "dead",
        }
    }
}

/// The outcome of an invocation that had asked to be run again.
#[derive(Clone, Debug)]
pub struct Retried {
    /// The row that waited.
    pub invocation_id: i64,
    /// How often it had been run; void when somebody else ran it since.
    pub tries: u32,
    /// The outcome now.
    pub invocation: Invocation,
    /// The tenant.
    pub tenant: String,
    /// Its event.
    pub received_ms: i64,
}

/// A delivery that is no event.
#[derive(Clone, Debug)]
pub struct DeadDelivery {
    /// The tenant whose queue it came through.
    pub tenant: String,
    /// The message.
    pub delivery: Arc<Delivery>,
    /// Why it is none.
    pub reason: String,
    /// When it arrived.
    pub received_ms: i64,
}

/// For how much of what was put off there is room.
#[derive(Clone, Debug)]
pub struct Room {
    /// The tenants that have room.
    pub tenants: Vec<String>,
    /// How much each of them has.
    pub each: u32,
}

/// A deferred event whose time has come.
#[derive(Clone, Debug)]
pub struct DeferredEvent {
    /// The tenant.
    pub tenant: String,
    /// The message.
    pub delivery: Arc<Delivery>,
    /// When it arrived first.
    pub received_ms: i64,
    /// How often it was deferred.
    pub tries: u32,
}

/// An invocation whose retry is due.
#[derive(Clone, Debug)]
pub struct DueRetry {
    /// Its row.
    pub invocation_id: i64,
    /// Its event's tenant.
    pub tenant: String,
    /// Its event's message.
    pub delivery: Arc<Delivery>,
    /// When that arrived.
    pub received_ms: i64,
    /// Its generation.
    pub generation: u32,
    /// Its identity.
    pub identity: String,
    /// Its plugin.
    pub plugin: String,
    /// How often it was run.
    pub tries: u32,
}

/// A wish for due effects.
#[derive(Clone, Debug)]
pub(super) struct Claim {
    /// Who claims.
    pub owner: String,
    /// Of which destination.
    pub destination: String,
    /// How many at most.
    pub limit: u32,
    /// Whether nothing was due there before what is written with it.
    pub only_new: bool,
}

/// An effect that is this owner's to perform, once.
#[derive(Clone, Debug)]
pub struct Claimed {
    /// Its row.
    pub seq: i64,
    /// Its id.
    pub id: EffectId,
    /// The call that asked for it, shared by the copies of one mail.
    pub call: EffectId,
    /// The tenant.
    pub tenant: String,
    /// The plugin that asked for it.
    pub plugin: String,
    /// The number of this attempt, from 1.
    pub attempt: u32,
    /// Attempts so far that count towards the next wait.
    pub failures: u32,
    /// Attempts so far whose outcome nobody knows.
    pub in_doubt: u32,
    /// When it was asked for.
    pub created_ms: i64,
    /// What is to be done.
    pub effect: Effect,
}

/// How an attempt ended.
#[derive(Clone, Debug)]
pub struct Finished {
    /// The effect's row.
    pub seq: i64,
    /// Who made the attempt.
    pub owner: String,
    /// Its number.
    pub attempt: u32,
    /// Where it went.
    pub destination: String,
    /// The time.
    pub ended_ms: i64,
    /// The kind of answer, as `attempt.outcome` has it.
    pub outcome: &'static str,
    /// The answer in words.
    pub answer: String,
    /// Whether nobody knows if it was done.
    pub in_doubt: bool,
    /// What becomes of the effect.
    pub next: Next,
}

/// What becomes of an effect after an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Done.
    Delivered,
    /// Tried again.
    Pending {
        /// When.
        due_ms: i64,
    },
    /// Waits until its destination can be talked to; the attempt does not count.
    Suspended {
        /// When the destination is probed next.
        probe_ms: i64,
    },
    /// Never tried again: its content or recipient was turned down.
    Dead,
    /// Never tried again: wanted for three days.
    Expired,
    /// Never tried again: the grant no longer covers it.
    Refused,
}

impl Next {
    /// The state of an effect this becomes of.
    #[must_use]
    pub const fn state(&self) -> &'static str {
        match self {
            Self::Delivered => "delivered",
            Self::Pending { .. } | Self::Suspended { .. } => "pending",
            Self::Dead => "dead",
            Self::Expired => "expired",
            Self::Refused => "refused",
        }
    }
}

/// What nothing more is done for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Withdrawn {
    /// Destinations nobody serves any more, with the reason.
    pub destinations: BTreeMap<String, String>,
    /// Tenants that are gone, with the reason.
    pub tenants: BTreeMap<String, String>,
}

/// What the database counts.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    /// How many effects are in the states that may need a person, or on their way.
    pub effects: BTreeMap<String, i64>,
    /// The age of the oldest effect on its way.
    pub oldest_pending_ms: i64,
    /// Effects with an attempt whose end nobody knows.
    pub in_doubt: i64,
    /// Suspended destinations, with what they answered.
    pub suspended: BTreeMap<String, String>,
}

/// One binding of a queue.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Binding {
    /// The exchange.
    pub exchange: String,
    /// The routing key.
    pub routing_key: String,
}

/// What a row counts as beside its texts, in bytes: it takes about as long as writing so many.
pub(super) const ROW_WEIGHT: usize = 4 << 10;
