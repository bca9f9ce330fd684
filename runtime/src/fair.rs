//! Slots of something scarce, given out fairly: the next one goes to whoever holds the fewest, so that one who wants many
//! delays the others by no more than what is under way.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

/// So many slots. Clones give out the same ones.
#[derive(Clone)]
pub struct Slots {
    shared: Arc<Shared>,
}

/// One slot, for as long as this lives.
pub struct Slot {
    slots: Slots,
    holder: Arc<str>,
}

/// A place in the queue for a slot.
pub type Place = oneshot::Receiver<Slot>;

/// Whether several compete these days. Who did so a moment ago may do so again.
#[derive(Default)]
pub struct Company {
    last: String,
    changed: Option<Instant>,
}

struct Shared {
    each_max: usize,
    alone_max: usize,
    state: Mutex<State>,
}

struct State {
    company: Company,
    free: usize,
    /// How many were given to those who had to wait, which orders those who hold equally many.
    given: u64,
    /// Everybody who holds a slot or waits for one.
    holders: HashMap<Arc<str>, Holder>,
}

#[derive(Default)]
struct Holder {
    held: usize,
    last_given: u64,
    waiting: VecDeque<oneshot::Sender<Slot>>,
}

impl Slots {
    /// `count` slots, of which nobody holds more than `each_max` at a time; at least one of either.
    #[must_use]
    pub fn new(count: usize, each_max: usize) -> Self {
        Self::with_more_alone(count, each_max, each_max)
    }

    /// As [`Slots::new`], and up to `alone_max` for one who has been alone for a while.
    #[must_use]
    pub fn with_more_alone(count: usize, each_max: usize, alone_max: usize) -> Self {
        let state = State { company: Company::default(), free: count.max(1), given: 0, holders: HashMap::new() };
        let (each_max, alone_max) = (each_max.max(1), alone_max.max(1));
        Self { shared: Arc::new(Shared { each_max, alone_max, state: Mutex::new(state) }) }
    }

    /// Somebody is there who needs no slot: whoever takes one is not alone.
    pub fn saw(&self, who: &str) {
        self.state().company.saw(who);
    }

    /// Whether this one wants more than it has.
    #[must_use]
    pub fn is_waited_for(&self, holder: &str) -> bool {
        self.state().holders.get(holder).is_some_and(|entry| entry.waiting.iter().any(|give| !give.is_closed()))
    }

    /// A slot for one of those that compete for them. Giving up waiting for it loses nothing.
    pub async fn take(&self, holder: &str) -> Slot {
        match self.try_take(holder) {
            Ok(slot) => slot,
            // A place is lost with the slots alone, and those are here.
            Err(place) => place.await.unwrap_or_else(|_| Slot { slots: self.clone(), holder: holder.into() }),
        }
    }

    /// A slot, or a place in the queue for one.
    ///
    /// # Errors
    /// The place, when there is no slot for this holder now.
    pub fn try_take(&self, holder: &str) -> Result<Slot, Place> {
        let mut state = self.state();
        let name = match state.holders.get_key_value(holder) {
            Some((name, _)) => Arc::clone(name),
            None => Arc::from(holder),
        };
        state.company.saw(holder);
        let (is_free, each_max) = (state.free > 0, self.shared.each_max(&state.company));
        let entry = state.holders.entry(Arc::clone(&name)).or_default();
        if is_free && entry.held < each_max {
            entry.held += 1;
            state.free -= 1;
            return Ok(Slot { slots: self.clone(), holder: name });
        }
        let (give, place) = oneshot::channel();
        entry.waiting.push_back(give);
        Err(place)
    }

    /// Takes a slot back and gives it on.
    fn give_back(&self, holder: &Arc<str>) {
        let mut unwanted = Vec::new();
        let mut state = self.state();
        state.free += 1;
        if let Some(entry) = state.holders.get_mut(holder) {
            entry.held -= 1;
        }
        state.forget_if_done(holder);
        let each_max = self.shared.each_max(&state.company);
        while let Some((name, give)) = state.next(each_max) {
            unwanted.extend(give.send(Slot { slots: self.clone(), holder: name }).err());
        }
        drop(state);
        // Those who went away meanwhile: each gives its slot back in turn, which needs the lock.
        drop(unwanted);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shared {
    fn each_max(&self, company: &Company) -> usize {
        if company.is_several() { self.each_max } else { self.alone_max }
    }
}

impl Company {
    /// This one competes.
    pub fn saw(&mut self, name: &str) {
        if name != self.last {
            if !self.last.is_empty() {
                self.changed = Some(Instant::now());
            }
            name.clone_into(&mut self.last);
        }
    }

    /// Whether it was not one alone in the last seconds.
    #[must_use]
    pub fn is_several(&self) -> bool {
        self.changed.is_some_and(|changed| changed.elapsed() < REMEMBERED)
    }
}

impl State {
    /// Counts the next slot as given, and says to whom.
    fn next(&mut self, each_max: usize) -> Option<(Arc<str>, oneshot::Sender<Slot>)> {
        while self.free > 0 {
            let waits = |(_, entry): &(&Arc<str>, &mut Holder)| !entry.waiting.is_empty() && entry.held < each_max;
            let (name, entry) =
                self.holders.iter_mut().filter(waits).min_by_key(|(_, entry)| (entry.held, entry.last_given))?;
            let name = Arc::clone(name);
            match entry.waiting.pop_front() {
                Some(give) if !give.is_closed() => {
                    self.given += 1;
                    entry.last_given = self.given;
                    entry.held += 1;
                    self.free -= 1;
                    return Some((name, give));
                }
                Some(_) | None => self.forget_if_done(&name),
            }
        }
        None
    }

    fn forget_if_done(&mut self, holder: &Arc<str>) {
        if self.holders.get(holder).is_some_and(|entry| entry.held == 0 && entry.waiting.is_empty()) {
            self.holders.remove(holder);
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.slots.give_back(&self.holder);
    }
}

/// For how long one who competed is one who may do so again.
pub const REMEMBERED: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    fn hold(slots: &Slots, holder: &str) -> Slot {
        slots.try_take(holder).unwrap_or_else(|_| panic!("no slot for {holder}"))
    }

    fn wait(slots: &Slots, holder: &str) -> Place {
        slots.try_take(holder).err().unwrap_or_else(|| panic!("a slot for {holder}"))
    }

    fn has(place: &mut Place) -> Option<Slot> {
        place.try_recv().ok()
    }

    #[test]
    fn the_next_slot_goes_to_whoever_holds_the_fewest() {
        let slots = Slots::new(3, 3);
        let mut loud: Vec<_> = (0..3).map(|_| hold(&slots, "loud")).collect();
        let mut more: Vec<_> = (0..5).map(|_| wait(&slots, "loud")).collect();
        let mut quiet = wait(&slots, "quiet");
        loud.pop();
        let held = has(&mut quiet).expect("the quiet one is first, though it came last");
        assert!(more.iter_mut().all(|place| has(place).is_none()));
        drop(held);
        assert!(has(&mut more[0]).is_some(), "and then those who wait, in order");
    }

    #[test]
    fn those_who_hold_equally_many_take_turns() {
        let slots = Slots::new(1, 1);
        let first = hold(&slots, "a");
        let mut places: Vec<_> = ["a", "a", "b", "b", "c"].map(|name| (name, wait(&slots, name))).into();
        drop(first);
        let mut order = Vec::new();
        while !places.is_empty() {
            let next = places.iter_mut().position(|(_, place)| match has(place) {
                Some(slot) => {
                    drop(slot);
                    true
                }
                None => false,
            });
            order.push(places.remove(next.expect("somebody's turn")).0);
        }
        for pair in order.windows(2) {
            assert_ne!(pair[0], pair[1], "{order:?}");
        }
    }

    #[test]
    fn nobody_holds_more_than_its_share_though_slots_are_free() {
        let slots = Slots::new(4, 2);
        let held = [hold(&slots, "a"), hold(&slots, "a")];
        assert!(!slots.is_waited_for("a"));
        let mut third = wait(&slots, "a");
        assert!(slots.is_waited_for("a") && !slots.is_waited_for("b"));
        let other = hold(&slots, "b");
        drop(other);
        assert!(has(&mut third).is_none());
        drop(held);
        assert!(has(&mut third).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn one_alone_holds_more_until_another_comes_and_a_while_after_it_has_gone() {
        let slots = Slots::with_more_alone(9, 1, 3);
        let mut held: Vec<_> = (0..3).map(|_| hold(&slots, "a")).collect();
        drop(hold(&slots, "b"));
        let mut place = wait(&slots, "a");
        held.truncate(1);
        assert!(has(&mut place).is_none(), "it holds what each may hold");
        tokio::time::advance(REMEMBERED).await;
        let again = hold(&slots, "a");
        drop(again);
        assert!(has(&mut place).is_some());
    }

    #[test]
    fn who_gives_up_waiting_takes_nothing_with_him() {
        let slots = Slots::new(1, 1);
        let held = hold(&slots, "a");
        let (gone, mut stays) = (wait(&slots, "a"), wait(&slots, "b"));
        drop(gone);
        drop(held);
        let held = has(&mut stays).unwrap();
        let gone = wait(&slots, "c");
        drop(held);
        // The slot is his now, though he never looked.
        drop(gone);
        drop(hold(&slots, "d"));
        assert!(slots.state().holders.is_empty(), "whoever is done is forgotten");
        assert_eq!(slots.state().free, 1);
    }

    #[tokio::test]
    async fn all_of_many_get_theirs() {
        let slots = Slots::new(3, 2);
        let all = (0..300).map(async |n| {
            let slot = slots.take(["a", "b", "c", "d"][n % 4]).await;
            tokio::task::yield_now().await;
            drop(slot);
        });
        futures_util::future::join_all(all).await;
        assert_eq!(slots.state().free, 3);
        assert!(slots.state().holders.is_empty());
    }
}
