//! How fast to speak: a few lines at once, then one at a time. Servers end connections that flood them.

use std::time::Duration;

use tokio::time::Instant;

/// Says when the next line may be said.
pub(super) struct Throttle {
    every: Duration,
    /// What the burst is worth in waiting.
    ahead_max: Duration,
    /// When the lines said so far would have been said one at a time.
    said_until: Instant,
}

impl Throttle {
    pub(super) fn new(burst: u32, every: Duration) -> Self {
        let ahead_max = every.saturating_mul(burst.saturating_sub(1));
        Self { every, ahead_max, said_until: Instant::now() }
    }

    /// When the next line may be said, asked for now; it counts as said then.
    pub(super) fn next(&mut self, now: Instant) -> Instant {
        let ahead = self.said_until.saturating_duration_since(now);
        self.said_until = now + ahead + self.every;
        now + ahead.saturating_sub(self.ahead_max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The seconds, from `began`, at which that many lines are said by one who waits for each turn.
    fn turns(throttle: &mut Throttle, began: Instant, after_s: u64, lines: usize) -> Vec<u64> {
        let mut now = began + Duration::from_secs(after_s);
        let mut say = || {
            now = throttle.next(now);
            (now - began).as_secs()
        };
        (0..lines).map(|_| say()).collect()
    }

    #[test]
    fn four_lines_at_once_then_one_every_two_seconds() {
        let (began, mut throttle) = (Instant::now(), Throttle::new(4, Duration::from_secs(2)));
        let later = began + Duration::from_secs(1); // `new` has looked at the clock as well
        assert_eq!(turns(&mut throttle, later, 0, 8), [0, 0, 0, 0, 2, 4, 6, 8]);
        assert_eq!(turns(&mut throttle, later, 12, 4), [12, 12, 14, 16], "silence earns the burst back");
        assert_eq!(turns(&mut throttle, later, 3_600, 6), [3_600, 3_600, 3_600, 3_600, 3_602, 3_604], "but no more");
    }

    #[test]
    fn a_burst_of_one_is_none() {
        let (began, mut throttle) = (Instant::now(), Throttle::new(1, Duration::from_secs(2)));
        assert_eq!(turns(&mut throttle, began + Duration::from_secs(1), 0, 3), [0, 2, 4]);
    }
}
