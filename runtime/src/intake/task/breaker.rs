//! Stops calling a service that does not answer: after five failures in a row nobody calls it for a while, then one
//! caller tries.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Closed until five failures in a row.
#[derive(Default)]
pub(super) struct Breaker(Mutex<State>);

#[derive(Default)]
struct State {
    failures: u32,
    open_until: Option<Instant>,
}

impl Breaker {
    /// Whether a call may be made now. When the wait is over, the first to ask is the one who tries.
    pub(super) fn admits(&self, now: Instant) -> bool {
        let mut state = self.state();
        match state.open_until {
            None => true,
            Some(until) if now < until => false,
            Some(_) => {
                state.open_until = Some(now + pause(state.failures));
                true
            }
        }
    }

    /// The service answered.
    pub(super) fn succeeded(&self) {
        *self.state() = State::default();
    }

    /// It did not; true when that opened the breaker.
    pub(super) fn failed(&self, now: Instant) -> bool {
        let mut state = self.state();
        state.failures += 1;
        let opens = state.failures == FAILURES_MAX;
        if state.failures >= FAILURES_MAX {
            state.open_until = Some(now + pause(state.failures));
        }
        opens
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn pause(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(FAILURES_MAX).min(5);
    SHORTEST * 2_u32.pow(doublings)
}

const FAILURES_MAX: u32 = 5;
const SHORTEST: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn five_failures_in_a_row_open_it_and_one_caller_tries_after_the_pause() {
        let (breaker, start) = (Breaker::default(), Instant::now());
        let opened: Vec<_> = (0..5).map(|_| breaker.failed(start)).collect();
        assert_eq!(opened, [false, false, false, false, true]);
        assert!(!breaker.admits(start));
        let later = start + SHORTEST;
        assert!(breaker.admits(later));
        assert!(!breaker.admits(later), "one at a time");
        breaker.succeeded();
        assert!(breaker.admits(later));
    }

    #[test]
    fn an_answer_in_between_keeps_it_closed() {
        let (breaker, now) = (Breaker::default(), Instant::now());
        for _ in 0..10 {
            (0..4).for_each(|_| _ = breaker.failed(now));
            breaker.succeeded();
        }
        assert!(breaker.admits(now));
    }
}
