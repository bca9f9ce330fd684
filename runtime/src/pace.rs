//! What one tenant may use of the machine while others are there too.
//!
//! Fair turns alone leave a tenant all that nobody else wants at the moment, and on a machine that is full whatever the
//! others do takes long. So what is used goes onto the tenant's clock, at the rate of its part of the machine. While the
//! clock is ahead of the time, the tenant's next piece of work waits. A tenant that is alone waits for nothing.
//!
//! No part has to fit the machine: all grow while it has room, and while it is full they shrink until whoever does most
//! wants more than his. Those who want more give way to those who do not: they have a quarter of a least part at most first,
//! or what another had who gave way a moment ago, more while the machine has room, and less while it is full, whoever fills
//! it, down to a tenth; but for a while not less than twice what they used before, for something may have held them up.
//! Where all want more there is nobody to give way to; and who only now begins to want more, beside others who have for
//! longer, may have had a burst that is over soon, and gives way a while later.

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
    waits: Option<Waits>,
    /// How much of a least part it used in company, the last ten seconds counting most, before it wanted more.
    usual: Duration,
    usual_at: Instant,
}

/// Each piece of work has had to wait, or more has waited behind it.
#[derive(Clone, Copy)]
struct Waits {
    since: Instant,
    /// When the last one of them came,
    last: Instant,
    /// and until when it waits.
    until: Instant,
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
    /// What it uses; what the last ones did, where nobody knows.
    uses: Option<Used>,
    /// Whether more waits behind it, where that says something about the tenant.
    more_wait: Option<bool>,
}

/// What a piece of work uses.
#[derive(Clone, Copy, Debug, Default)]
pub struct Used {
    /// Deliveries that lead to no invocation.
    pub deliveries: u32,
    /// Invocations.
    pub invocations: u32,
    /// Effects that are sent.
    pub effects: u32,
    /// On a processor, by guests.
    pub cpu: Duration,
    /// Written or sent; what is usual is for nothing.
    pub bytes: usize,
}

impl Used {
    const fn is_large(self) -> bool {
        self.bytes > USUAL_BYTES
    }
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
        let work = Work { uses: None, more_wait: Some(more_wait) };
        let Some((begins, expected, part)) = self.reserve(tenant, work) else { return Turn(None) };
        self.wait(tenant, begins).await;
        Turn(Some((expected, part)))
    }

    /// Waits until the tenant may write so many bytes; what is usual waits for nothing.
    pub async fn write(&self, tenant: &str, bytes: usize) {
        self.saw(tenant);
        let used = Used { bytes, ..Used::default() };
        if used.is_large() {
            self.its_turn(tenant, Work { uses: Some(used), more_wait: None }).await;
        }
    }

    /// Waits until the tenant may send an effect of so many bytes, behind which more may wait; none if that says nothing.
    pub async fn send(&self, tenant: &str, bytes: usize, more_wait: Option<bool>) {
        let used = Used { effects: 1, bytes, ..Used::default() };
        self.its_turn(tenant, Work { uses: Some(used), more_wait }).await;
    }

    async fn its_turn(&self, tenant: &str, work: Work) {
        if let Some((begins, ..)) = self.reserve(tenant, work) {
            self.wait(tenant, begins).await;
        }
    }

    /// Waits until then, or until there is nobody any more to wait for. Who waits is there.
    async fn wait(&self, tenant: &str, begins: Instant) {
        while let now = Instant::now()
            && now < begins
            && self.state().has_company(tenant, now)
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
        let takes = work.uses.map_or(clock.mean, |used| self.time_for(used));
        let (is_alone, is_effect) = (!state.company.is_several(), work.uses.is_some());
        let clock = state.clocks.get_mut(tenant)?;
        // In company effects may wait for a slow server, which says neither that it wants more nor that it does not; and one
        // piece that does not wait says nothing where nobody knows what is behind it.
        let has_to_wait = !is_alone && begins + TIMER > now;
        let waits = has_to_wait || work.more_wait.is_some_and(|more_wait| more_wait && (is_alone || !is_effect));
        if waits || work.more_wait == Some(false) {
            clock.comes(waits, now, begins);
        }
        if is_alone {
            if clock.waits(now).is_some() {
                // It saves nothing up for when it has company.
                clock.used_until = now;
            }
            return None;
        }
        // Not what one used who could have all it wanted.
        clock.uses(takes, now);
        let (usual, wants_more) = (clock.usual_part(), clock.wants_more_since(now).is_some());
        let is_large = work.uses.is_some_and(Used::is_large);
        let part = if state.gives_way(tenant, now) {
            self.load.give_way(is_large).max(usual * 2.0).min(self.load.whole(false))
        } else {
            self.load.whole(wants_more)
        };
        // How busy the processors are says nothing about what bytes wait for.
        let part = if is_large { part.min(1.0) } else { part };
        let takes = takes.div_f64(part);
        state.clocks.get_mut(tenant)?.used_until = begins + takes;
        Some((begins, takes, part))
    }

    /// What the work took in the end, or will take.
    pub fn used(&self, tenant: &str, turn: Turn, used: Used) {
        let took = self.time_for(used);
        let mut state = self.state();
        let Some(clock) = state.saw(tenant, Instant::now()) else { return };
        clock.mean = (clock.mean * 7 + took) / 8;
        if let Turn(Some((expected, part))) = turn {
            clock.used_until = clock.used_until + took.div_f64(part) - expected;
        }
    }

    /// How long a least part of the machine takes for it.
    fn time_for(&self, used: Used) -> Duration {
        let bytes = u32::try_from(used.bytes.saturating_sub(USUAL_BYTES)).unwrap_or(u32::MAX);
        let of_one = (DELIVERY.saturating_mul(used.deliveries))
            .saturating_add(INVOCATION.saturating_mul(used.invocations))
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

    /// Whether the tenant, which is there, is not alone.
    fn has_company(&mut self, tenant: &str, now: Instant) -> bool {
        let _ = self.saw(tenant, now);
        self.company.is_several()
    }

    /// Whether the tenant wants more than its part, and somebody is there who does not, or does so since a moment ago while
    /// this one has for longer.
    fn gives_way(&self, tenant: &str, now: Instant) -> bool {
        let wants_more_since = |clock: &Clock| clock.wants_more_since(now);
        let Some(since) = self.clocks.get(tenant).and_then(wants_more_since) else { return false };
        let is_new = |since: Instant, beside: Instant| beside < since && now < since + BURST_MAX;
        let gives_way_to = |clock: &Clock| match wants_more_since(clock) {
            None => now < clock.seen + fair::REMEMBERED,
            Some(other) => is_new(other, since),
        };
        let is_new_beside = |clock: &Clock| wants_more_since(clock).is_some_and(|other| is_new(since, other));
        self.clocks.values().any(gives_way_to) && !self.clocks.values().any(is_new_beside)
    }
}

impl Clock {
    fn new(now: Instant) -> Self {
        Self { seen: now, used_until: now, mean: Duration::ZERO, waits: None, usual: Duration::ZERO, usual_at: now }
    }

    /// One more comes for its turn, which is then, and waits, or others behind it, or not. Of many that wait some do not, when
    /// several were done at once: nobody waits once none has for a moment.
    fn comes(&mut self, waits: bool, now: Instant, begins: Instant) {
        if waits {
            let since = self.waits(now).map_or(now, |waits| waits.since);
            self.waits = Some(Waits { since, last: now, until: begins.max(now) });
        } else if self.waits.is_some_and(|waits| now > waits.until + MOMENT) {
            self.waits = None;
        }
    }

    /// What comes has had to wait, unless that was long ago.
    fn waits(&self, now: Instant) -> Option<Waits> {
        self.waits.filter(|waits| now < waits.until + WAITS_REMEMBERED.max(self.of_several()))
    }

    /// Since when it wants more than it has: it has waited for long, and not for a few pieces that take long.
    fn wants_more_since(&self, now: Instant) -> Option<Instant> {
        let long = WAITS_FOR_MORE.max(self.of_several());
        self.waits(now).filter(|waits| waits.last >= waits.since + long).map(|waits| waits.since)
    }

    /// What several pieces take, between which some time passes: not so long that nobody would ever seem to want more.
    fn of_several(&self) -> Duration {
        (self.mean * 8).min(SEVERAL_MAX)
    }

    /// It uses so much of a least part, which is usual unless it wants more.
    fn uses(&mut self, takes: Duration, now: Instant) {
        let passed = now.duration_since(self.usual_at).div_duration_f64(USUAL_TIME);
        let more = if self.wants_more_since(now).is_none() { takes } else { Duration::ZERO };
        (self.usual, self.usual_at) = (self.usual.mul_f64((-passed).exp()) + more, now);
    }

    /// Which share of a least part it usually used.
    fn usual_part(&self) -> f64 {
        self.usual.div_duration_f64(USUAL_TIME)
    }
}

/// Of each processor, a tenant's least part is 400 invocations a second,
const INVOCATION: Duration = Duration::from_micros(2_500);
/// or 800 deliveries that lead to none,
const DELIVERY: Duration = Duration::from_micros(1_250);
/// or 800 effects,
const EFFECT: Duration = Duration::from_micros(1_250);
/// or a quarter of its time for guests,
const CPU_PART: u32 = 4;
/// or a mebibyte a second beyond what is usual.
const MEBIBYTE: Duration = Duration::from_secs(1);
/// What an event or an effect usually comes to: what is larger waits for its turn where the rest waits for none.
pub const USUAL_BYTES: usize = 16 << 10;
/// Who has had something wait for so long wants more than its part.
const WAITS_FOR_MORE: Duration = Duration::from_millis(100);
/// Who has waited, and then nothing came of it for so long, or for as long as several pieces take, waits no more.
const WAITS_REMEMBERED: Duration = Duration::from_millis(250);
/// Who has waited for nothing for so long waits no more.
const MOMENT: Duration = Duration::from_millis(20);
/// However long they take, who waits behind several pieces for so long wants more.
const SEVERAL_MAX: Duration = Duration::from_secs(1);
/// How often is looked how busy the machine is.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How often those who wait look whether they still have company.
const COMPANY_LOOK_EVERY: Duration = Duration::from_secs(1);
/// For so long one may want more without giving way, where another has for longer.
const BURST_MAX: Duration = Duration::from_secs(10);
/// Who waits wakes up so much too late, at most.
const TIMER: Duration = Duration::from_millis(2);
/// What was used longer ago than this counts little for what is usual.
const USUAL_TIME: Duration = Duration::from_secs(10);
/// What was not used is saved up for so long.
const SAVED_MAX: Duration = Duration::from_millis(50);
/// However much of a least part one piece of work took, it counts as no more: so none waits for very long for those before.
const COUNTED_MAX: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests;
