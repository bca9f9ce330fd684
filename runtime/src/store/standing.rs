//! Claims that wait until there is something to claim: tried again when a write may have made an effect of their
//! destination due, and every second, for what time alone makes due or another process wrote.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::rows::Claim;

/// Who claims whatever is due at a destination, as far as there is room for it.
#[derive(Clone, Debug)]
pub struct Claimer {
    /// Who.
    pub owner: String,
    /// Of which destination.
    pub destination: String,
    /// One for each effect that can be performed at the same time.
    pub slots: Arc<Semaphore>,
    /// The rows this owner is performing.
    pub in_flight: Arc<Mutex<HashSet<i64>>>,
}

impl Claimer {
    /// Whether a slot is free.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.slots.available_permits() > 0
    }

    /// All slots that are free now; none when none is.
    fn free_slots(&self) -> Option<OwnedSemaphorePermit> {
        let mut slots = Arc::clone(&self.slots).try_acquire_owned().ok()?;
        while let Ok(more) = Arc::clone(&self.slots).try_acquire_owned() {
            slots.merge(more);
        }
        Some(slots)
    }
}

/// Claims that wait, each with whom to tell.
pub(super) struct Standing<R> {
    waiting: Vec<(Claimer, R)>,
    /// Destinations of which nothing was left to claim, and nothing was written since.
    idle: HashSet<String>,
    look_again: Instant,
}

/// A claim that is tried, with the slots there are for it.
pub(super) struct Tried<R> {
    pub claimer: Claimer,
    pub slots: OwnedSemaphorePermit,
    pub reply: R,
}

impl<R> Tried<R> {
    fn limit(&self) -> u32 {
        u32::try_from(self.slots.num_permits()).unwrap_or(u32::MAX)
    }
}

/// One claim for all that one owner tries at once, and what it tries; none when nothing is tried.
pub(super) fn of_one_owner<R>(tried: &mut Vec<Tried<R>>) -> Option<(Claim, Vec<Tried<R>>)> {
    let Claimer { owner, in_flight, .. } = tried.first()?.claimer.clone();
    let own: Vec<_> = tried.extract_if(.., |tried| tried.claimer.owner == owner).collect();
    let destinations = own.iter().map(|tried| (tried.claimer.destination.clone(), tried.limit())).collect();
    let in_flight = in_flight.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect();
    Some((Claim { owner, destinations, in_flight }, own))
}

impl<R> Standing<R> {
    pub(super) fn new() -> Self {
        Self { waiting: Vec::new(), idle: HashSet::new(), look_again: Instant::now() + LOOK_EVERY }
    }

    pub(super) fn push(&mut self, claimer: Claimer, reply: R) {
        self.waiting.push((claimer, reply));
    }

    /// Something of this destination may be due.
    pub(super) fn may_be_due(&mut self, destination: &str) {
        self.idle.remove(destination);
    }

    /// Something of any destination may be due.
    pub(super) fn all_may_be_due(&mut self) {
        self.idle.clear();
        self.look_again = Instant::now() + LOOK_EVERY;
    }

    /// Nothing more of this destination is due.
    pub(super) fn nothing_is_due(&mut self, destination: &str) {
        if !self.idle.contains(destination) {
            self.idle.insert(destination.to_owned());
        }
    }

    /// When all of them are tried again, if there are any.
    pub(super) fn look_again(&self) -> Option<Instant> {
        (!self.waiting.is_empty()).then_some(self.look_again)
    }

    pub(super) fn is_ready(&self) -> bool {
        self.waiting.iter().any(|(claimer, _)| !self.idle.contains(&claimer.destination) && claimer.has_room())
    }

    /// Takes at most `count` of those for which there may be something and who have room for it.
    pub(super) fn ready(&mut self, count: usize) -> Vec<Tried<R>> {
        let (mut ready, mut waiting) = (Vec::new(), Vec::with_capacity(self.waiting.len()));
        let mut tried = HashSet::new();
        for (claimer, reply) in self.waiting.drain(..) {
            let is_wanted = ready.len() < count
                && !self.idle.contains(&claimer.destination)
                && !tried.contains(&claimer.destination);
            match is_wanted.then(|| claimer.free_slots()).flatten() {
                Some(slots) => {
                    tried.insert(claimer.destination.clone());
                    ready.push(Tried { claimer, slots, reply });
                }
                None => waiting.push((claimer, reply)),
            }
        }
        self.waiting = waiting;
        ready
    }

    /// Takes those of one destination.
    pub(super) fn end(&mut self, destination: &str) -> Vec<R> {
        self.waiting.extract_if(.., |(claimer, _)| claimer.destination == destination).map(|(_, reply)| reply).collect()
    }
}

const LOOK_EVERY: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    fn claimer(destination: &str, slots: usize) -> Claimer {
        let (owner, slots) = ("me".into(), Arc::new(Semaphore::new(slots)));
        Claimer { owner, destination: destination.into(), slots, in_flight: Arc::default() }
    }

    fn standing(destinations: &[&str]) -> Standing<usize> {
        let mut standing = Standing::new();
        for (number, destination) in destinations.iter().enumerate() {
            standing.push(claimer(destination, 3), number);
        }
        standing
    }

    fn numbers(tried: Vec<Tried<usize>>) -> Vec<usize> {
        tried.into_iter().map(|tried| tried.reply).collect()
    }

    #[test]
    fn a_claim_is_tried_when_something_of_its_destination_may_be_due() {
        let mut standing = standing(&["a", "b"]);
        standing.nothing_is_due("a");
        assert_eq!(numbers(standing.ready(9)), [1]);
        assert!(!standing.is_ready());
        standing.may_be_due("b");
        assert!(!standing.is_ready());
        standing.may_be_due("a");
        assert!(standing.is_ready());
        assert_eq!(numbers(standing.ready(9)), [0]);
        assert_eq!(standing.look_again(), None, "nobody waits");
    }

    #[test]
    fn a_claim_is_for_as_much_as_there_is_room_for_when_it_is_tried() {
        let (mut standing, claimer) = (Standing::new(), claimer("a", 3));
        let slots = Arc::clone(&claimer.slots);
        let busy: Vec<_> = (0..3).filter_map(|_| Arc::clone(&slots).try_acquire_owned().ok()).collect();
        standing.push(claimer, 0);
        assert!(!standing.is_ready());
        assert!(standing.ready(9).is_empty(), "there is no room");
        drop(busy);
        assert!(standing.is_ready());
        let tried = standing.ready(9);
        assert_eq!((tried[0].limit(), slots.available_permits()), (3, 0));
    }

    #[test]
    fn those_that_come_too_many_keep_their_turn() {
        let mut standing = standing(&["a", "b", "c"]);
        assert_eq!(numbers(standing.ready(2)), [0, 1]);
        assert_eq!(numbers(standing.ready(2)), [2]);
    }

    #[test]
    fn all_are_tried_again_after_a_while() {
        let mut standing = standing(&["a", "b"]);
        ["a", "b"].iter().for_each(|destination| standing.nothing_is_due(destination));
        let before = standing.look_again().expect("two wait");
        standing.all_may_be_due();
        assert!(standing.look_again().expect("two wait") >= before);
        assert_eq!(standing.end("b"), [1]);
        assert_eq!(numbers(standing.ready(9)), [0]);
    }
}
