//! When a version is not run any more: when it has faulted too often. Faults are counted here, in memory, so that an
//! event costs nothing; what comes of it is in the store, where all processes see it.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::store::{Quarantined, now_ms};

/// Counts the faults of one plugin's live version, and knows whether it is in quarantine.
#[derive(Default)]
pub(super) struct Watchman(Mutex<Watched>);

#[derive(Default)]
struct Watched {
    /// Faults in a row.
    faults: u32,
    /// Some of the task groups they were about.
    groups: BTreeSet<String>,
    quarantined: Option<Quarantined>,
}

/// Whether a call may be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Passage {
    /// It may.
    Free,
    /// It may, if nobody else makes one: this one is a probe.
    Probe,
    /// It may not, and why.
    Shut(String),
}

impl Watchman {
    /// Whether a call may be made now.
    pub(super) fn passage(&self) -> Passage {
        match &self.watched().quarantined {
            None => Passage::Free,
            Some(quarantined) if quarantined.probe_ms.is_some_and(|due_ms| due_ms <= now_ms()) => Passage::Probe,
            Some(quarantined) => Passage::Shut(quarantined.reason.clone()),
        }
    }

    /// The next probe is not due before this.
    pub(super) fn probed(&self, next_ms: i64) {
        if let Some(quarantined) = &mut self.watched().quarantined {
            quarantined.probe_ms = Some(next_ms);
        }
    }

    /// A call about a task group has faulted; why the version should be in quarantine from now on, if it should.
    pub(super) fn faulted(&self, group: &str, fault: &str) -> Option<String> {
        let mut watched = self.watched();
        if watched.quarantined.is_some() {
            return None;
        }
        watched.faults = watched.faults.saturating_add(1);
        if watched.groups.len() < GROUPS_MIN {
            watched.groups.insert(group.to_owned());
        }
        let is_enough = watched.faults >= FAULTS_MAX && watched.groups.len() >= GROUPS_MIN;
        let faults = watched.faults;
        is_enough.then(|| format!("it faulted {faults} times in a row, in {GROUPS_MIN} task groups or more: {fault}"))
    }

    /// A call has not faulted.
    pub(super) fn went_well(&self) {
        let mut watched = self.watched();
        if watched.faults > 0 {
            (watched.faults, watched.groups) = (0, BTreeSet::new());
        }
    }

    /// Another version is live: nothing that was counted counts, and only what the operator stopped stays so.
    pub(super) fn begin_anew(&self) {
        let mut watched = self.watched();
        let quarantined = watched.quarantined.take().filter(Quarantined::is_by_operator);
        *watched = Watched { quarantined, ..Watched::default() };
    }

    /// It is in quarantine, or it is not; what is new about that: why it is, or that it is no longer.
    pub(super) fn shut_away(&self, quarantined: Option<Quarantined>) -> Option<Option<String>> {
        let mut watched = self.watched();
        let (was, is) = (watched.quarantined.is_some(), quarantined.is_some());
        if was && !is {
            (watched.faults, watched.groups) = (0, BTreeSet::new());
        }
        watched.quarantined = quarantined;
        (was != is).then(|| watched.quarantined.as_ref().map(|quarantined| quarantined.reason.clone()))
    }

    /// Why it is in quarantine.
    pub(super) fn quarantined(&self) -> Option<Quarantined> {
        self.watched().quarantined.clone()
    }

    fn watched(&self) -> MutexGuard<'_, Watched> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// When the next probe is due.
pub(super) fn next_probe_ms() -> i64 {
    now_ms().saturating_add(i64::try_from(PROBE_EVERY.as_millis()).unwrap_or(i64::MAX))
}

const FAULTS_MAX: u32 = 10;
/// One task group's author must not be able to have a plugin put away.
const GROUPS_MIN: usize = 3;
const PROBE_EVERY: Duration = Duration::from_secs(600);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::effect::Hash;

    fn faults(watchman: &Watchman, groups: &[&str], times: usize) -> Option<String> {
        groups.iter().cycle().take(times).fold(None, |last, group| last.or(watchman.faulted(group, "trap")))
    }

    #[test]
    fn ten_faults_in_a_row_in_three_task_groups_are_enough_and_less_is_not() {
        assert_eq!(faults(&Watchman::default(), &["a", "b", "c"], 9), None);
        assert_eq!(faults(&Watchman::default(), &["a", "b"], 1_000), None);
        let why = faults(&Watchman::default(), &["a", "b", "c"], 10).unwrap();
        assert!(why.contains("10 times in a row") && why.ends_with("trap"), "{why}");
    }

    #[test]
    fn one_call_that_goes_well_begins_the_count_anew() {
        let watchman = Watchman::default();
        for _ in 0..10 {
            assert_eq!(faults(&watchman, &["a", "b", "c"], 9), None);
            watchman.went_well();
        }
    }

    #[test]
    fn in_quarantine_calls_are_shut_out_but_for_probes() {
        let watchman = Watchman::default();
        let (tenant, plugin, reason) = ("red".to_owned(), "smtp".to_owned(), "trap".to_owned());
        let digest = Hash::of_bytes(b"");
        let mut one = Quarantined { tenant, plugin, digest, reason, since_ms: 0, probe_ms: None, probes: 0 };
        assert_eq!(watchman.passage(), Passage::Free);
        assert_eq!(watchman.shut_away(Some(one.clone())), Some(Some("trap".into())));
        assert_eq!(watchman.shut_away(Some(one.clone())), None);
        assert_eq!(watchman.passage(), Passage::Shut("trap".into()));
        assert_eq!(faults(&watchman, &["a", "b", "c"], 100), None);
        one.probe_ms = Some(0);
        watchman.shut_away(Some(one));
        assert_eq!(watchman.passage(), Passage::Probe);
        watchman.probed(next_probe_ms());
        assert_eq!(watchman.passage(), Passage::Shut("trap".into()));
        assert_eq!(watchman.shut_away(None), Some(None));
        assert_eq!(watchman.passage(), Passage::Free);
        assert_eq!(faults(&watchman, &["a", "b", "c"], 9), None);
    }
}
