//! What one tenant may use of the machine while others are there too.
//!
//! Fair turns alone leave a tenant all that nobody else wants at the moment, and on a machine that is full whatever the
//! others do takes long. So what is used goes onto the tenant's clock, at the rate of its part of the machine. While the
//! clock is ahead of the time, the tenant's next piece of work waits. A tenant that is alone waits for nothing.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::fair::Company;

/// The clocks of all tenants.
pub struct Pace {
    processors: u32,
    stop: CancellationToken,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    company: Company,
    clocks: HashMap<String, Clock>,
}

struct Clock {
    /// Until when the tenant's part is used up, by what is done and by what is under way.
    used_until: Instant,
    /// What a piece of work takes, as a mean of the last ones: what one that is under way is thought to take.
    mean: Duration,
}

/// A piece of work that has its turn; what it is thought to take, if anybody counts.
#[derive(Debug)]
#[must_use]
pub struct Turn(Option<Duration>);

impl Turn {
    /// Whether it was given to one who was alone.
    #[must_use]
    pub const fn is_free(&self) -> bool {
        self.0.is_none()
    }
}

/// What a piece of work uses.
#[derive(Clone, Copy, Debug, Default)]
pub struct Used {
    /// Invocations.
    pub invocations: u32,
    /// On a processor, by guests.
    pub cpu: Duration,
    /// Written or sent; a few are for nothing.
    pub bytes: usize,
}

impl Pace {
    /// Of a machine with so many processors; once it is to stop, nobody waits any more.
    #[must_use]
    pub fn new(processors: usize, stop: CancellationToken) -> Self {
        Self { processors: u32::try_from(processors).unwrap_or(u32::MAX).max(1), stop, state: Mutex::default() }
    }

    /// The tenant is there, and does what needs no turn.
    pub fn saw(&self, tenant: &str) {
        self.state().company.saw(tenant);
    }

    /// Waits for the tenant's next turn.
    pub async fn turn(&self, tenant: &str) -> Turn {
        let Some((begins, expected)) = self.reserve(tenant, None) else { return Turn(None) };
        self.wait(begins).await;
        Turn(Some(expected))
    }

    /// Waits until the tenant may write or send so many bytes; a few wait for nothing.
    pub async fn bytes(&self, tenant: &str, bytes: usize) {
        self.saw(tenant);
        if bytes > USUAL_BYTES
            && let Some((begins, _)) = self.reserve(tenant, Some(self.time_for(Used { bytes, ..Used::default() })))
        {
            self.wait(begins).await;
        }
    }

    async fn wait(&self, begins: Instant) {
        tokio::select! {
            () = tokio::time::sleep_until(begins) => {}
            () = self.stop.cancelled() => {}
        }
    }

    /// When a piece of work begins, and how long it is thought to take: what it is known to take, or the mean.
    fn reserve(&self, tenant: &str, takes: Option<Duration>) -> Option<(Instant, Duration)> {
        let (mut state, now) = (self.state(), Instant::now());
        state.company.saw(tenant);
        if !state.company.is_several() {
            state.clocks.clear();
            return None;
        }
        let clock = match state.clocks.get_mut(tenant) {
            Some(clock) => clock,
            None => state.clocks.entry(tenant.to_owned()).or_insert(Clock { used_until: now, mean: Duration::ZERO }),
        };
        let begins = clock.used_until.max(now.checked_sub(SAVED_MAX).unwrap_or(now));
        let takes = takes.unwrap_or(clock.mean);
        clock.used_until = begins + takes;
        Some((begins, takes))
    }

    /// What the work took in the end, or will take.
    pub fn used(&self, tenant: &str, turn: Turn, used: Used) {
        let Turn(Some(expected)) = turn else { return };
        let took = self.time_for(used);
        if let Some(clock) = self.state().clocks.get_mut(tenant) {
            clock.used_until = clock.used_until + took - expected;
            clock.mean = (clock.mean * 7 + took) / 8;
        }
    }

    /// How long a tenant's part of the machine takes for it.
    fn time_for(&self, used: Used) -> Duration {
        let bytes = u32::try_from(used.bytes.saturating_sub(USUAL_BYTES)).unwrap_or(u32::MAX);
        let of_one = (INVOCATION.saturating_mul(used.invocations))
            .saturating_add(used.cpu.saturating_mul(CPU_PART))
            .saturating_add((MEBIBYTE / (1 << 20)).saturating_mul(bytes));
        (of_one / self.processors).min(COUNTED_MAX)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Of each processor, a tenant's part is 200 invocations a second,
const INVOCATION: Duration = Duration::from_millis(5);
/// or a quarter of its time for guests,
const CPU_PART: u32 = 4;
/// or a mebibyte a second beyond what is usual.
const MEBIBYTE: Duration = Duration::from_secs(1);
/// What an event or an effect usually comes to: what is larger waits for its turn where the rest waits for none.
pub const USUAL_BYTES: usize = 16 << 10;
/// What was not used is saved up for so long.
const SAVED_MAX: Duration = Duration::from_millis(100);
/// However much one piece of work took, it counts as no more: so none waits for long for those before it.
const COUNTED_MAX: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    /// How long it takes until so many pieces of work have had their turns, one after the other.
    async fn take(pace: &Pace, tenant: &str, count: u32, used: Used) -> Duration {
        let began = Instant::now();
        for _ in 0..count {
            let turn = pace.turn(tenant).await;
            pace.used(tenant, turn, used);
        }
        began.elapsed()
    }

    fn about(took: Duration, expected: Duration) {
        let (least, most) = (expected.saturating_sub(SAVED_MAX).mul_f32(0.9), expected.mul_f32(1.1) + SAVED_MAX);
        assert!(took >= least && took <= most, "{took:?}, expected about {expected:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_alone_waits_for_nothing() {
        let pace = Pace::new(2, CancellationToken::new());
        let used = Used { invocations: 1, cpu: Duration::from_secs(1), bytes: 1 << 20 };
        assert_eq!(take(&pace, "a", 1_000, used).await, Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn in_company_each_has_its_part_of_the_machine() {
        for processors in [1, 2, 16] {
            let pace = Pace::new(processors, CancellationToken::new());
            let per_processor = |seconds: u64| Duration::from_secs(seconds) / u32::try_from(processors).unwrap();
            pace.saw("b");
            let many = Used { invocations: 1, ..Used::default() };
            about(take(&pace, "a", 1_000, many).await, per_processor(5));
            pace.saw("b");
            let long = Used { cpu: Duration::from_millis(50), ..Used::default() };
            about(take(&pace, "a", 40, long).await, per_processor(8));
            pace.saw("b");
            let large = Used { bytes: (1 << 20) + USUAL_BYTES, ..Used::default() };
            about(take(&pace, "a", 8, large).await, per_processor(8));
            pace.saw("b");
            about(take(&pace, "b", 10, many).await, Duration::ZERO);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn those_under_way_at_the_same_time_are_counted_as_what_they_are_thought_to_take() {
        let pace = Pace::new(1, CancellationToken::new());
        pace.saw("b");
        let used = Used { invocations: 1, cpu: Duration::from_millis(50), bytes: 0 };
        take(&pace, "a", 30, used).await;
        pace.saw("b");
        let began = Instant::now();
        let all = (0..10).map(async |_| {
            let turn = pace.turn("a").await;
            tokio::time::sleep(Duration::from_secs(9)).await;
            pace.used("a", turn, used);
            began.elapsed() - Duration::from_secs(9)
        });
        let began_after = futures_util::future::join_all(all).await;
        about(began_after.into_iter().max().unwrap_or_default(), Duration::from_millis(205 * 9));
    }

    #[tokio::test(start_paused = true)]
    async fn of_many_large_ones_at_the_same_time_each_waits_for_those_before_it() {
        let pace = Pace::new(1, CancellationToken::new());
        pace.saw("b");
        let began = Instant::now();
        let all = (0..4).map(async |_| {
            pace.bytes("a", (1 << 20) + USUAL_BYTES).await;
            began.elapsed()
        });
        for (number, began_after) in (0..).zip(futures_util::future::join_all(all).await) {
            about(began_after, Duration::from_secs(number));
        }
        pace.bytes("a", USUAL_BYTES).await;
        about(began.elapsed(), Duration::from_secs(3));
    }

    #[tokio::test(start_paused = true)]
    async fn what_counts_is_bounded_whatever_was_used_and_however_many_are_under_way() {
        let pace = Pace::new(1, CancellationToken::new());
        pace.saw("b");
        let boundless =
            Used { invocations: u32::MAX, cpu: Duration::from_secs(u64::from(u32::MAX)), bytes: usize::MAX };
        about(take(&pace, "a", 3, boundless).await, COUNTED_MAX * 2);
        pace.saw("b");
        let began = Instant::now();
        futures_util::future::join_all((0..4).map(async |_| drop(pace.turn("a").await))).await;
        let mean = COUNTED_MAX.mul_f32(1.0 - 0.875_f32.powi(3));
        about(began.elapsed(), COUNTED_MAX + mean * 3);
    }

    #[tokio::test(start_paused = true)]
    async fn once_it_is_to_stop_nobody_waits() {
        let stop = CancellationToken::new();
        let pace = Pace::new(1, stop.clone());
        pace.saw("b");
        let large = Used { bytes: 2 << 20, ..Used::default() };
        take(&pace, "a", 2, large).await;
        let began = Instant::now();
        tokio::join!(async { drop(pace.turn("a").await) }, async { stop.cancel() });
        take(&pace, "a", 100, large).await;
        assert_eq!(began.elapsed(), Duration::ZERO);
    }
}
