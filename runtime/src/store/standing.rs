//! Claims that stand as long as their couriers do: tried when a write may have made an effect of their destination due, and
//! every second, for what time alone makes due or another process wrote.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::rows::{Claim, Claimed};

/// Who claims whatever is due at a destination, as far as there is room for it.
#[derive(Clone, Debug)]
pub struct Claimer {
    /// Who.
    pub owner: String,
    /// Of which destination.
    pub destination: String,
    /// One for each effect that can be performed at the same time.
    pub slots: Arc<Semaphore>,
}

impl Claimer {
    /// Whether a slot is free.
    fn has_room(&self) -> bool {
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

/// The claims, each with how to hand over what it got.
pub(super) struct Standing<G> {
    waiting: Vec<(Claimer, G)>,
    /// Destinations of which nothing was left to claim, and nothing was written since that was not claimed with it.
    idle: HashSet<String>,
    look_again: Instant,
}

/// An effect that was claimed for a claimer.
#[derive(Debug)]
pub struct Given {
    /// The effect.
    pub claimed: Claimed,
    /// The slot it takes, until this is dropped.
    pub slot: OwnedSemaphorePermit,
    /// As many were due as there were slots: more may be.
    pub more_wait: bool,
}

/// A claim that is tried, with the slots there are for it.
pub(super) struct Tried<G> {
    pub claimer: Claimer,
    pub slots: OwnedSemaphorePermit,
    pub only_new: bool,
    pub give: G,
}

impl<G> Tried<G> {
    /// What it comes to in a transaction.
    pub(super) fn claim(&self) -> Claim {
        let Claimer { owner, destination, .. } = self.claimer.clone();
        let limit = u32::try_from(self.slots.num_permits()).unwrap_or(u32::MAX);
        Claim { owner, destination, limit, only_new: self.only_new }
    }
}

impl<G> Standing<G> {
    pub(super) fn new() -> Self {
        Self { waiting: Vec::new(), idle: HashSet::new(), look_again: Instant::now() + LOOK_EVERY }
    }

    pub(super) fn push(&mut self, claimer: Claimer, give: G) {
        self.waiting.push((claimer, give));
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

    /// Takes those who have room and for which there may be something: of `new` destinations, for which there will be, all
    /// where nothing else is due; of the others at most `count`.
    pub(super) fn ready(&mut self, count: usize, new: &HashSet<String>) -> Vec<Tried<G>> {
        let (mut ready, mut waiting) = (Vec::new(), Vec::with_capacity(self.waiting.len()));
        let (mut tried, mut looked_for) = (HashSet::new(), 0);
        for (claimer, give) in self.waiting.drain(..) {
            let destination = &claimer.destination;
            let only_new = self.idle.contains(destination);
            let is_wanted = if only_new { new.contains(destination) } else { looked_for < count };
            match (is_wanted && !tried.contains(destination)).then(|| claimer.free_slots()).flatten() {
                Some(slots) => {
                    looked_for += usize::from(!only_new);
                    tried.insert(destination.clone());
                    ready.push(Tried { claimer, slots, only_new, give });
                }
                None => waiting.push((claimer, give)),
            }
        }
        self.waiting = waiting;
        ready
    }

    /// Ends the one with these slots.
    pub(super) fn end(&mut self, slots: &Arc<Semaphore>) {
        self.waiting.retain(|(claimer, _)| !Arc::ptr_eq(&claimer.slots, slots));
    }
}

const LOOK_EVERY: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    fn claimer(destination: &str, slots: usize) -> Claimer {
        Claimer { owner: "me".into(), destination: destination.into(), slots: Arc::new(Semaphore::new(slots)) }
    }

    fn standing(destinations: &[&str]) -> Standing<usize> {
        let mut standing = Standing::new();
        for (number, destination) in destinations.iter().enumerate() {
            standing.push(claimer(destination, 3), number);
        }
        standing
    }

    fn none() -> HashSet<String> {
        HashSet::new()
    }

    fn numbers(tried: Vec<Tried<usize>>) -> Vec<usize> {
        tried.into_iter().map(|tried| tried.give).collect()
    }

    #[test]
    fn a_claim_is_tried_when_something_of_its_destination_may_be_due() {
        let mut standing = standing(&["a", "b"]);
        standing.nothing_is_due("a");
        assert_eq!(numbers(standing.ready(9, &none())), [1]);
        assert!(!standing.is_ready());
        standing.may_be_due("b");
        assert!(!standing.is_ready());
        standing.may_be_due("a");
        assert!(standing.is_ready());
        assert_eq!(numbers(standing.ready(9, &none())), [0]);
        assert_eq!(standing.look_again(), None, "nobody waits");
    }

    #[test]
    fn a_claim_is_for_as_much_as_there_is_room_for_when_it_is_tried() {
        let (mut standing, claimer) = (Standing::new(), claimer("a", 3));
        let slots = Arc::clone(&claimer.slots);
        let busy: Vec<_> = (0..3).filter_map(|_| Arc::clone(&slots).try_acquire_owned().ok()).collect();
        standing.push(claimer, 0);
        assert!(!standing.is_ready());
        assert!(standing.ready(9, &none()).is_empty(), "there is no room");
        drop(busy);
        assert!(standing.is_ready());
        let tried = standing.ready(9, &none());
        assert_eq!((tried[0].claim().limit, slots.available_permits()), (3, 0));
    }

    #[test]
    fn where_nothing_is_due_a_claim_is_for_what_comes() {
        let mut standing = standing(&["a", "b", "c"]);
        ["a", "b"].iter().for_each(|destination| standing.nothing_is_due(destination));
        let tried = standing.ready(9, &HashSet::from(["a".to_owned(), "c".to_owned()]));
        assert_eq!(tried.iter().map(|tried| (tried.give, tried.only_new)).collect::<Vec<_>>(), [(0, true), (2, false)]);
    }

    #[test]
    fn those_that_come_too_many_keep_their_turn() {
        let mut standing = standing(&["a", "b", "c"]);
        assert_eq!(numbers(standing.ready(2, &none())), [0, 1]);
        assert_eq!(numbers(standing.ready(2, &none())), [2]);
    }

    #[test]
    fn all_are_tried_again_after_a_while() {
        let mut standing = standing(&["a", "b"]);
        ["a", "b"].iter().for_each(|destination| standing.nothing_is_due(destination));
        let before = standing.look_again().expect("two wait");
        standing.all_may_be_due();
        assert!(standing.look_again().expect("two wait") >= before);
        let slots = Arc::clone(&standing.waiting[1].0.slots);
        standing.end(&slots);
        assert_eq!(numbers(standing.ready(9, &none())), [0]);
    }
}
