//! When to try again: the one schedule for effects, deferred events and invocations that asked for it.

use std::time::Duration;

use rand::RngExt;

/// When to try again, in milliseconds since 1970, after `tries` tries of something first wanted at `since_ms`: give or
/// take a fifth, so that what failed together does not come back together. `None` once it has been
/// wanted for three days and tried six times.
#[must_use]
pub fn next_try_ms(tries: u32, since_ms: i64, now_ms: i64) -> Option<i64> {
    let age = Duration::from_millis(u64::try_from(now_ms - since_ms).unwrap_or(0));
    delay(tries, age).map(|wait| after_ms(wait, now_ms))
}

/// The time a wait ends, the wait jittered.
#[must_use]
pub fn after_ms(wait: Duration, now_ms: i64) -> i64 {
    now_ms.saturating_add(i64::try_from(jittered(wait).as_millis()).unwrap_or(i64::MAX))
}

/// A wait, give or take a fifth.
#[must_use]
pub fn jittered(wait: Duration) -> Duration {
    wait.mul_f64(rand::rng().random_range(0.8..1.2))
}

fn delay(tries: u32, age: Duration) -> Option<Duration> {
    let step = tries.saturating_sub(1) as usize;
    // What waited for days without being tried has its first tries yet.
    if age >= GIVE_UP_AFTER && step >= STEPS.len() {
        return None;
    }
    Some(STEPS.get(step).copied().unwrap_or(LONGEST))
}

const STEPS: [Duration; 5] = [
    Duration::from_secs(5),
    Duration::from_secs(30),
    Duration::from_secs(2 * 60),
    Duration::from_secs(10 * 60),
    Duration::from_secs(60 * 60),
];
const LONGEST: Duration = Duration::from_secs(6 * 60 * 60);
const GIVE_UP_AFTER: Duration = Duration::from_secs(3 * 24 * 60 * 60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_waits_grow_to_six_hours_and_end_after_three_days() {
        let waits: Vec<_> =
            (1..=7).filter_map(|tries| delay(tries, Duration::ZERO)).map(|wait| wait.as_secs()).collect();
        assert_eq!(waits, [5, 30, 120, 600, 3_600, 21_600, 21_600]);
        let old = Duration::from_secs(3 * 86_400);
        assert_eq!((delay(5, old), delay(6, old)), (Some(Duration::from_secs(3_600)), None));
    }

    #[test]
    fn jitter_stays_within_a_fifth() {
        for _ in 0..1_000 {
            let wait = jittered(Duration::from_secs(10)).as_secs_f64();
            assert!((8.0..12.0).contains(&wait), "{wait}");
        }
    }
}
