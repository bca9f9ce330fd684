//! How fast lines may follow each other: a few at once, then one every so often.

use std::time::Duration;

use tokio::time::Instant;

/// A bucket of tokens, one for each line.
pub(super) struct Pace {
    burst: u32,
    line_every: Duration,
    /// When the bucket is full again.
    full_at: Instant,
}

impl Pace {
    pub(super) fn new(burst: u32, line_every: Duration) -> Self {
        Self { burst: burst.max(1), line_every, full_at: Instant::now() }
    }

    /// When the next line may be said; that it is said is taken for granted.
    pub(super) fn next(&mut self) -> Instant {
        let now = Instant::now();
        let full_at = self.full_at.max(now) + self.line_every;
        self.full_at = full_at;
        (full_at.checked_sub(self.line_every * self.burst)).map_or(now, |at| at.max(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn four_lines_go_at_once_and_then_one_every_two_seconds() {
        let mut pace = Pace::new(4, Duration::from_secs(2));
        let started = Instant::now();
        let mut said = Vec::new();
        for _ in 0..7 {
            tokio::time::sleep_until(pace.next()).await;
            said.push(started.elapsed().as_secs());
        }
        assert_eq!(said, [0, 0, 0, 0, 2, 4, 6]);
        tokio::time::advance(Duration::from_secs(100)).await;
        let rested = Instant::now();
        for _ in 0..5 {
            tokio::time::sleep_until(pace.next()).await;
        }
        assert_eq!(rested.elapsed().as_secs(), 2, "rest fills the bucket, and no more than that");
    }
}
