//! What one tenant may use of the machine while others are there too.
//!
//! Fair turns alone leave a tenant all that nobody else wants at the moment, and on a machine that is full whatever the
//! others do takes long. So what is used goes onto the tenant's clock, at the rate of its part of the machine. While the
//! clock is ahead of the time, the tenant's next piece of work waits. A tenant that is alone waits for nothing.
//!
//! While the machine is full, whoever fills it, those who want more than their part give way to those who do not: they
//! have less of it, down to a tenth. Where all want more there is nobody to give way to; and who only now begins to want
//! more, beside others who have for longer, may have had a burst that is over soon, and gives way a while later.

mod load;

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::fair::{self, Company};
pub use load::Load;

/// The clocks of all tenants.
pub struct Pace {
    processors: u32,
    load: Load,
    stop: CancellationToken,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    company: Company,
    clocks: HashMap<String, Clock>,
}

struct Clock {
    /// When the tenant did anything.
    seen: Instant,
    /// Until when the tenant's part is used up, by what is done and by what is under way.
    used_until: Instant,
    /// What a piece of work takes, as a mean of the last ones: what one that is under way is thought to take.
    mean: Duration,
    /// Since when each piece of work has had to wait, or more has waited behind it; and when the last one of them came.
    waits: Option<(Instant, Instant)>,
}

/// A piece of work that has its turn; what it is thought to take of a part of which size, if anybody counts.
#[derive(Debug)]
#[must_use]
pub struct Turn(Option<(Duration, f64)>);

impl Turn {
    /// Whether it was given to one who was alone.
    #[must_use]
    pub const fn is_free(&self) -> bool {
        self.0.is_none()
    }
}

/// What comes for its turn.
#[derive(Clone, Copy)]
struct Work {
    /// So much of a whole part; what the last ones took, where nobody knows.
    takes: Option<Duration>,
    /// Whether more waits behind it, where that says something about the tenant.
    more_wait: Option<bool>,
}

/// What a piece of work uses.
#[derive(Clone, Copy, Debug, Default)]
pub struct Used {
    /// Invocations.
    pub invocations: u32,
    /// Effects that are sent.
    pub effects: u32,
    /// On a processor, by guests.
    pub cpu: Duration,
    /// Written or sent; what is usual is for nothing.
    pub bytes: usize,
}

impl Pace {
    /// Of a machine with so many processors; once it is to stop, nobody waits any more.
    #[must_use]
    pub fn new(processors: usize, load: Load, stop: CancellationToken) -> Self {
        let processors = u32::try_from(processors).unwrap_or(u32::MAX).max(1);
        Self { processors, load, stop, state: Mutex::default() }
    }

    /// The tenant is there, and does what needs no turn.
    pub fn saw(&self, tenant: &str) {
        let _ = self.state().saw(tenant, Instant::now());
    }

    /// Waits for the tenant's next turn, behind which more may wait.
    pub async fn turn(&self, tenant: &str, more_wait: bool) -> Turn {
        let Some((begins, expected, part)) = self.reserve(tenant, Work { takes: None, more_wait: Some(more_wait) })
        else {
            return Turn(None);
        };
        self.wait(begins).await;
        Turn(Some((expected, part)))
    }

    /// Waits until the tenant may write so many bytes; what is usual waits for nothing.
    pub async fn write(&self, tenant: &str, bytes: usize) {
        self.saw(tenant);
        if bytes > USUAL_BYTES {
            let takes = self.time_for(Used { bytes, ..Used::default() });
            self.its_turn(tenant, Work { takes: Some(takes), more_wait: None }).await;
        }
    }

    /// Waits until the tenant may send an effect of so many bytes, behind which more may wait; none if that says nothing.
    pub async fn send(&self, tenant: &str, bytes: usize, more_wait: Option<bool>) {
        let takes = self.time_for(Used { effects: 1, bytes, ..Used::default() });
        self.its_turn(tenant, Work { takes: Some(takes), more_wait }).await;
    }

    async fn its_turn(&self, tenant: &str, work: Work) {
        if let Some((begins, ..)) = self.reserve(tenant, work) {
            self.wait(begins).await;
        }
    }

    /// Waits until then, or until there is nobody any more to wait for.
    async fn wait(&self, begins: Instant) {
        while let now = Instant::now()
            && now < begins
            && self.state().company.is_several()
        {
            tokio::select! {
                () = tokio::time::sleep_until(begins.min(now + COMPANY_LOOK_EVERY)) => {}
                () = self.stop.cancelled() => return,
            }
        }
    }

    /// When a piece of work begins, how long it is thought to take, and of a part of which size.
    fn reserve(&self, tenant: &str, work: Work) -> Option<(Instant, Duration, f64)> {
        let (mut state, now) = (self.state(), Instant::now());
        let clock = state.saw(tenant, now)?;
        let begins = clock.used_until.max(now.checked_sub(SAVED_MAX).unwrap_or(now));
        let takes = work.takes.unwrap_or(clock.mean);
        let (is_alone, is_effect) = (!state.company.is_several(), work.takes.is_some());
        let clock = state.clocks.get_mut(tenant)?;
        if let Some(more_wait) = work.more_wait {
            // In company effects may wait for a slow server, which says neither that it wants more nor that it does not.
            let waits = begins + TIMER > now || (more_wait && (is_alone || !is_effect));
            if waits || !more_wait {
                clock.comes(waits, now);
            }
        }
        if is_alone {
            return None;
        }
        let part = if state.gives_way(tenant, now) { self.load.least() } else { 1.0 };
        let takes = takes.div_f64(part);
        state.clocks.get_mut(tenant)?.used_until = begins + takes;
        Some((begins, takes, part))
    }

    /// What the work took in the end, or will take.
    pub fn used(&self, tenant: &str, turn: Turn, used: Used) {
        let took = self.time_for(used);
        let mut state = self.state();
        let Some(clock) = state.clocks.get_mut(tenant) else { return };
        clock.mean = (clock.mean * 7 + took) / 8;
        if let Turn(Some((expected, part))) = turn {
            clock.used_until = clock.used_until + took.div_f64(part) - expected;
        }
    }

    /// How long a tenant's part of the machine takes for it.
    fn time_for(&self, used: Used) -> Duration {
        let bytes = u32::try_from(used.bytes.saturating_sub(USUAL_BYTES)).unwrap_or(u32::MAX);
        let of_one = (INVOCATION.saturating_mul(used.invocations))
            .saturating_add(EFFECT.saturating_mul(used.effects))
            .saturating_add(used.cpu.saturating_mul(CPU_PART))
            .saturating_add((MEBIBYTE / (1 << 20)).saturating_mul(bytes));
        (of_one / self.processors).min(COUNTED_MAX)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The tenant does something; its clock, which stands still while it is alone.
    fn saw(&mut self, tenant: &str, now: Instant) -> Option<&mut Clock> {
        self.company.saw(tenant);
        if !self.clocks.contains_key(tenant) {
            self.clocks.insert(tenant.to_owned(), Clock::new(now));
        }
        let is_alone = !self.company.is_several();
        if is_alone && self.clocks.len() > 1 {
            self.clocks.retain(|name, _| name == tenant);
        }
        let clock = self.clocks.get_mut(tenant)?;
        clock.seen = now;
        if is_alone {
            clock.used_until = clock.used_until.min(now);
        }
        Some(clock)
    }

    /// Whether the tenant wants more than its part, somebody is there who does not, and it does not do so since a moment ago
    /// beside one who has for longer.
    fn gives_way(&self, tenant: &str, now: Instant) -> bool {
        let Some(since) = self.clocks.get(tenant).and_then(|clock| clock.wants_more_since(now)) else { return false };
        let is_content = |clock: &Clock| now < clock.seen + fair::REMEMBERED && clock.wants_more_since(now).is_none();
        let has_for_longer = |clock: &Clock| clock.wants_more_since(now).is_some_and(|other| other < since);
        let is_new = now < since + BURST_MAX && self.clocks.values().any(has_for_longer);
        !is_new && self.clocks.values().any(is_content)
    }
}

impl Clock {
    fn new(now: Instant) -> Self {
        Self { seen: now, used_until: now, mean: Duration::ZERO, waits: None }
    }

    /// One more comes for its turn, and waits, or others behind it, or not.
    fn comes(&mut self, waits: bool, now: Instant) {
        let since = self.waits(now).map_or(now, |(since, _)| since);
        self.waits = waits.then_some((since, now));
    }

    /// Since when what comes has had to wait, and when the last of it came, unless that was long ago.
    fn waits(&self, now: Instant) -> Option<(Instant, Instant)> {
        self.waits.filter(|(_, last)| now < self.used_until.max(*last) + LOOK_EVERY)
    }

    /// Since when it wants more than it has: it has waited for long.
    fn wants_more_since(&self, now: Instant) -> Option<Instant> {
        self.waits(now).filter(|(since, last)| *last >= *since + WAITS_FOR_MORE).map(|(since, _)| since)
    }
}

/// Of each processor, a tenant's whole part is 400 invocations a second,
const INVOCATION: Duration = Duration::from_micros(2_500);
/// or 800 effects,
const EFFECT: Duration = Duration::from_micros(1_250);
/// or a quarter of its time for guests,
const CPU_PART: u32 = 4;
/// or a mebibyte a second beyond what is usual.
const MEBIBYTE: Duration = Duration::from_secs(1);
/// What an event or an effect usually comes to: what is larger waits for its turn where the rest waits for none.
pub const USUAL_BYTES: usize = 16 << 10;
/// Who has had something wait for so long wants more than its part.
const WAITS_FOR_MORE: Duration = Duration::from_millis(250);
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How often those who wait look whether they still have company.
const COMPANY_LOOK_EVERY: Duration = Duration::from_secs(1);
/// For so long one may want more without giving way, where another has for longer.
const BURST_MAX: Duration = Duration::from_secs(10);
/// Who waits wakes up so much too late, at most.
const TIMER: Duration = Duration::from_millis(2);
/// What was not used is saved up for so long.
const SAVED_MAX: Duration = Duration::from_millis(100);
/// However much of a whole part one piece of work took, it counts as no more: so none waits for long for those before it.
const COUNTED_MAX: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    /// How long it takes until so many pieces of work have had their turns, one after the other.
    async fn take(pace: &Pace, tenant: &str, count: u32, used: Used) -> Duration {
        let began = Instant::now();
        for _ in 0..count {
            let turn = pace.turn(tenant, false).await;
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
        let pace = Pace::new(2, Load::default(), CancellationToken::new());
        let used = Used { invocations: 1, cpu: Duration::from_secs(1), ..Used::default() };
        assert_eq!(take(&pace, "a", 1_000, used).await, Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn in_company_each_has_its_part_of_the_machine() {
        for processors in [1, 2, 16] {
            let pace = Pace::new(processors, Load::default(), CancellationToken::new());
            let per_processor = |seconds: u64| Duration::from_secs(seconds) / u32::try_from(processors).unwrap();
            pace.saw("b");
            let many = Used { invocations: 1, ..Used::default() };
            about(take(&pace, "a", 2_000, many).await, per_processor(5));
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
    async fn effects_are_sent_at_the_pace_of_those_who_have_company() {
        // Those who want more than their part have half of it where the machine is full, once they have waited for a while.
        for (least, took_ms) in [(1.0, 500), (0.5, 750)] {
            let pace = Pace::new(2, Load::fixed(least), CancellationToken::new());
            let send = async |count: u32, bytes: usize| {
                let began = Instant::now();
                for _ in 0..count {
                    pace.send("a", bytes, Some(false)).await;
                }
                began.elapsed()
            };
            assert_eq!(send(1_000, USUAL_BYTES).await, Duration::ZERO, "alone");
            pace.saw("b");
            about(send(800, USUAL_BYTES).await, Duration::from_millis(took_ms));
            pace.saw("b");
            // The last of them waits for three.
            about(send(4, (1 << 20) + USUAL_BYTES).await, Duration::from_millis(1_500).div_f64(least));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_wanted_more_while_it_was_alone_gives_way_at_once() {
        let pace = Pace::new(1, Load::fixed(0.5), CancellationToken::new());
        for _ in 0..3 {
            pace.send("a", 0, Some(true)).await;
            tokio::time::advance(WAITS_FOR_MORE / 2).await;
        }
        pace.saw("b");
        let began = Instant::now();
        for _ in 0..400 {
            pace.send("a", 0, Some(true)).await;
        }
        about(began.elapsed(), Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn in_company_those_who_wait_for_a_slow_server_do_not_want_more() {
        let pace = Pace::new(1, Load::fixed(0.5), CancellationToken::new());
        pace.saw("b");
        for _ in 0..100 {
            pace.send("a", 0, Some(true)).await;
            tokio::time::advance(Duration::from_millis(10)).await;
        }
        assert!(!pace.state().gives_way("a", Instant::now()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_beside_one_who_always_wants_more_does_not_give_way_and_is_soon_over() {
        let pace = Pace::new(1, Load::fixed(0.1), CancellationToken::new());
        let one = Used { invocations: 1, ..Used::default() };
        let turns = async |name: &str, count: u32| {
            for _ in 0..count {
                let turn = pace.turn(name, name == "greedy").await;
                pace.used(name, turn, one);
            }
        };
        let quiet = async {
            loop {
                pace.saw("quiet");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        };
        let bursting = async {
            tokio::time::sleep(Duration::from_secs(5)).await;
            let began = Instant::now();
            turns("bursting", 2_000).await;
            began.elapsed()
        };
        tokio::select! {
            () = async { tokio::join!(quiet, turns("greedy", u32::MAX)); } => unreachable!("they go on"),
            took = bursting => about(took, Duration::from_secs(5)),
        }
        assert!(pace.state().gives_way("greedy", Instant::now()));
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_alone_again_waits_no_longer() {
        let pace = Pace::new(1, Load::default(), CancellationToken::new());
        pace.saw("b");
        let long = Used { cpu: COUNTED_MAX, ..Used::default() };
        let began = Instant::now();
        let all = (0..100).map(async |_| {
            let turn = pace.turn("a", false).await;
            pace.used("a", turn, long);
        });
        take(&pace, "a", 8, long).await;
        pace.saw("b");
        futures_util::future::join_all(all).await;
        assert!(began.elapsed() < fair::REMEMBERED * 3, "{:?}", began.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn those_under_way_at_the_same_time_are_counted_as_what_they_are_thought_to_take() {
        let pace = Pace::new(1, Load::default(), CancellationToken::new());
        pace.saw("b");
        let used = Used { invocations: 1, cpu: Duration::from_millis(50), ..Used::default() };
        take(&pace, "a", 30, used).await;
        pace.saw("b");
        let began = Instant::now();
        let all = (0..10).map(async |_| {
            let turn = pace.turn("a", false).await;
            tokio::time::sleep(Duration::from_secs(9)).await;
            pace.used("a", turn, used);
            began.elapsed() - Duration::from_secs(9)
        });
        let began_after = futures_util::future::join_all(all).await;
        about(began_after.into_iter().max().unwrap_or_default(), Duration::from_millis(205 * 9));
    }

    #[tokio::test(start_paused = true)]
    async fn of_many_large_ones_at_the_same_time_each_waits_for_those_before_it() {
        let pace = Pace::new(1, Load::default(), CancellationToken::new());
        pace.saw("b");
        let began = Instant::now();
        let all = (0..4).map(async |_| {
            pace.write("a", (1 << 20) + USUAL_BYTES).await;
            began.elapsed()
        });
        for (number, began_after) in (0..).zip(futures_util::future::join_all(all).await) {
            about(began_after, Duration::from_secs(number));
        }
        pace.write("a", USUAL_BYTES).await;
        about(began.elapsed(), Duration::from_secs(3));
    }

    /// What two tenants do in a second of whom one wants so much and the other all it can get, on a machine of one processor
    /// on which a part is at least so large.
    async fn rates(wanted: f64, least: f64) -> (f64, f64) {
        let pace = Pace::new(1, Load::fixed(least), CancellationToken::new());
        let (greedy, modest) = (std::cell::Cell::new(0.0), std::cell::Cell::new(0.0));
        let one = Used { invocations: 1, ..Used::default() };
        let tenant = async |name: &str, done: &std::cell::Cell<f64>, per_second: f64| {
            let mut beat = tokio::time::interval(Duration::from_secs(1).div_f64(per_second));
            beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                beat.tick().await;
                let turn = pace.turn(name, name == "greedy").await;
                if name == "greedy" {
                    // A large one that does not wait does not say that nothing waits.
                    pace.write(name, USUAL_BYTES + 1).await;
                }
                pace.used(name, turn, one);
                done.set(done.get() + 1.0);
            }
        };
        let measured = async {
            tokio::time::sleep(Duration::from_secs(10)).await;
            let before = (greedy.get(), modest.get());
            tokio::time::sleep(Duration::from_secs(10)).await;
            ((greedy.get() - before.0) / 10.0, (modest.get() - before.1) / 10.0)
        };
        let (all, some) = (tenant("greedy", &greedy, 900.0), tenant("modest", &modest, wanted));
        tokio::select! {
            () = async { tokio::join!(all, some); } => unreachable!("they go on"),
            measured = measured => measured,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn on_a_machine_that_is_full_who_wants_more_gives_way() {
        for (wanted, least, greedy, modest) in
            [(10.0, 1.0, 400.0, 10.0), (10.0, 0.5, 200.0, 10.0), (280.0, 0.5, 200.0, 280.0), (900.0, 0.5, 400.0, 400.0)]
        {
            let (is_greedy, is_modest) = rates(wanted, least).await;
            let near = |is: f64, expected: f64| (is - expected).abs() <= expected * 0.03;
            assert!(
                near(is_greedy, greedy) && near(is_modest, modest),
                "{wanted} wanted, {least} of a part at least: {is_greedy} and {is_modest}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn only_who_has_waited_all_the_time_wants_more() {
        let mut clock = Clock::new(Instant::now());
        let mut comes = async |waits: bool, after_ms: u64| {
            tokio::time::advance(Duration::from_millis(after_ms)).await;
            clock.comes(waits, Instant::now());
            clock.wants_more_since(Instant::now()).is_some()
        };
        assert!(!comes(true, 0).await && !comes(true, 100).await && !comes(true, 100).await);
        assert!(comes(true, 100).await, "for more than a quarter of a second");
        assert!(!comes(false, 1).await && !comes(true, 1).await, "there was one that waited for nothing");
        assert!(!comes(true, 5_000).await, "and one long after it begins anew");
    }

    #[tokio::test(start_paused = true)]
    async fn what_counts_is_bounded_whatever_was_used_and_however_many_are_under_way() {
        let pace = Pace::new(1, Load::default(), CancellationToken::new());
        pace.saw("b");
        let boundless = Used {
            invocations: u32::MAX,
            effects: u32::MAX,
            cpu: Duration::from_secs(u64::from(u32::MAX)),
            bytes: usize::MAX,
        };
        about(take(&pace, "a", 3, boundless).await, COUNTED_MAX * 2);
        pace.saw("b");
        let began = Instant::now();
        futures_util::future::join_all((0..4).map(async |_| drop(pace.turn("a", false).await))).await;
        let mean = COUNTED_MAX.mul_f32(1.0 - 0.875_f32.powi(3));
        about(began.elapsed(), COUNTED_MAX + mean * 3);
    }

    #[tokio::test(start_paused = true)]
    async fn once_it_is_to_stop_nobody_waits() {
        let stop = CancellationToken::new();
        let pace = Pace::new(1, Load::default(), stop.clone());
        pace.saw("b");
        let large = Used { bytes: 2 << 20, ..Used::default() };
        take(&pace, "a", 2, large).await;
        let began = Instant::now();
        tokio::join!(async { drop(pace.turn("a", false).await) }, async { stop.cancel() });
        take(&pace, "a", 100, large).await;
        assert_eq!(began.elapsed(), Duration::ZERO);
    }
}
