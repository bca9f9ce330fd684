//! What waits to be written, tenant by tenant: a group takes from each in turn, so that one whose plugins ask for much
//! delays the others by one of its plans and not by all of them.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;

/// Writes that wait, by whose they are.
pub(super) struct Queue<W> {
    waiting: BTreeMap<String, VecDeque<W>>,
    /// Whose turn was the last one.
    last: String,
}

impl<W> Queue<W> {
    pub(super) fn new() -> Self {
        Self { waiting: BTreeMap::new(), last: String::new() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(super) fn push(&mut self, whose: &str, write: W) {
        match self.waiting.get_mut(whose) {
            Some(writes) => writes.push_back(write),
            None => drop(self.waiting.insert(whose.to_owned(), VecDeque::from([write]))),
        }
    }

    /// Takes a group: at least one write, at most `count`, and no more once they weigh `weight` together.
    pub(super) fn group(&mut self, count: usize, weight: usize, weigh: impl Fn(&W) -> usize) -> Vec<W> {
        let (mut group, mut weighs) = (Vec::new(), 0);
        while group.len() < count && weighs < weight {
            let Some(write) = self.next() else { break };
            weighs += weigh(&write);
            group.push(write);
        }
        group
    }

    fn next(&mut self) -> Option<W> {
        let after = (Bound::Excluded(self.last.as_str()), Bound::Unbounded);
        let whose = match self.waiting.range::<str, _>(after).next() {
            Some((whose, _)) => whose,
            None => self.waiting.keys().next()?,
        };
        self.last = whose.clone();
        let writes = self.waiting.get_mut(&self.last)?;
        let write = writes.pop_front();
        if writes.is_empty() {
            self.waiting.remove(&self.last);
        }
        write
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(writes: &[(&str, usize)]) -> Queue<usize> {
        let mut queue = Queue::new();
        for (whose, write) in writes {
            queue.push(whose, *write);
        }
        queue
    }

    #[test]
    fn each_has_its_turn_and_its_own_order() {
        let mut queue = queue(&[("loud", 1), ("loud", 2), ("loud", 3), ("quiet", 4), ("", 5)]);
        assert_eq!(queue.group(3, usize::MAX, |_| 1), [1, 4, 5]);
        assert_eq!(queue.group(9, usize::MAX, |_| 1), [2, 3]);
        assert!(queue.is_empty());
        assert_eq!(queue.group(9, usize::MAX, |_| 1), [0; 0]);
    }

    #[test]
    fn a_group_ends_when_it_is_heavy_and_is_never_empty() {
        let mut queue = queue(&[("loud", 90), ("loud", 80), ("quiet", 1)]);
        assert_eq!(queue.group(9, 50, |write| *write), [90]);
        assert_eq!(queue.group(9, 50, |write| *write), [1, 80]);
    }
}
