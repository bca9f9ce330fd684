//! What waits to be written, fairly between tenants: each gets as many bytes written as the others, so that one whose
//! plugins ask for much delays the others by one of its plans and not by all of them.
//!
//! Start-time fair queuing: a write begins, on a clock that counts bytes, when the one before it of the same tenant ends,
//! or now; whichever begins first is next.

use std::collections::{BTreeMap, HashMap};

/// Writes that wait.
pub(super) struct Queue<W> {
    /// By when they begin, then by when they came; with what they weigh, in bytes.
    waiting: BTreeMap<(usize, usize), (usize, W)>,
    /// When each tenant's last one ends.
    ends: HashMap<String, usize>,
    /// When the last one taken began.
    now: usize,
    came: usize,
}

impl<W> Queue<W> {
    pub(super) fn new() -> Self {
        Self { waiting: BTreeMap::new(), ends: HashMap::new(), now: 0, came: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(super) fn push(&mut self, whose: &str, weight: usize, write: W) {
        let begins = self.ends.get(whose).map_or(self.now, |ends| self.now.max(*ends));
        let ends = begins.saturating_add(weight.max(1));
        match self.ends.get_mut(whose) {
            Some(end) => *end = ends,
            None => drop(self.ends.insert(whose.to_owned(), ends)),
        }
        self.came += 1;
        self.waiting.insert((begins, self.came), (weight, write));
    }

    /// Takes a group: at least one write, at most `count`, and of several no more than weigh `weight_max` together, so
    /// that light ones do not wait for a heavy one's end.
    pub(super) fn group(&mut self, count: usize, weight_max: usize) -> Vec<W> {
        let (mut group, mut weighs) = (Vec::new(), 0_usize);
        while let Some(next) = self.waiting.first_entry() {
            let ((begins, _), (weight, _)) = (*next.key(), next.get());
            weighs = weighs.saturating_add(*weight);
            if group.len() == count || (weighs > weight_max && !group.is_empty()) {
                break;
            }
            self.now = begins;
            group.push(next.remove().1);
        }
        if self.is_empty() {
            (self.now, self.came) = (0, 0);
            self.ends.clear();
        }
        group
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(writes: &[(&str, usize, u32)]) -> Queue<u32> {
        let mut queue = Queue::new();
        for (whose, weight, write) in writes {
            queue.push(whose, *weight, *write);
        }
        queue
    }

    #[test]
    fn each_has_its_turn_and_its_own_order() {
        let mut queue = queue(&[("loud", 9, 1), ("loud", 9, 2), ("loud", 9, 3), ("quiet", 9, 4), ("", 0, 5)]);
        assert_eq!(queue.group(3, usize::MAX), [1, 4, 5]);
        assert_eq!(queue.group(9, usize::MAX), [2, 3]);
        assert!(queue.is_empty());
        assert_eq!(queue.group(9, usize::MAX), [0; 0]);
    }

    #[test]
    fn who_writes_little_does_not_wait_for_the_bytes_of_who_writes_much() {
        let mut queue = queue(&[("loud", 1_000, 1), ("loud", 1_000, 2), ("loud", 1_000, 3)]);
        assert_eq!(queue.group(1, usize::MAX), [1]);
        for write in 10..15 {
            queue.push("quiet", 10, write);
        }
        assert_eq!(queue.group(6, usize::MAX), [10, 11, 12, 13, 14, 2]);
        // Having been idle saves nothing up.
        for write in 20..23 {
            queue.push("quiet", 800, write);
        }
        assert_eq!(queue.group(9, usize::MAX), [20, 21, 3, 22]);
    }

    #[test]
    fn a_group_ends_before_it_gets_too_heavy_and_is_never_empty() {
        let mut queue = queue(&[("loud", 90, 1), ("loud", 80, 2), ("quiet", 1, 3), ("quiet", 2, 4)]);
        assert_eq!(queue.group(9, 50), [1]);
        assert_eq!(queue.group(9, 50), [3, 4]);
        assert_eq!(queue.group(9, 50), [2]);
    }
}
