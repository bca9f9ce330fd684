//! How much a plugin may ask for in an hour: effects that count, and what becomes of those over it. Pure.

use std::collections::BTreeMap;

/// Quotas, by capability.
pub type Quotas = BTreeMap<&'static str, Quota>;

/// So many effects of one capability in each hour of the clock, UTC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// At least one.
    pub per_hour: u32,
    /// What becomes of more.
    pub over: OverQuota,
}

/// What becomes of effects over a quota.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OverQuota {
    /// They are due in the next hours that have room.
    #[default]
    Wait,
    /// They are refused.
    Refuse,
}

/// An hour of the clock: hours since 1970.
pub type Window = i64;

/// The hour in which a time is.
#[must_use]
pub const fn window(time_ms: i64) -> Window {
    time_ms.div_euclid(WINDOW_MS)
}

/// When an hour begins.
#[must_use]
pub const fn begin_ms(window: Window) -> i64 {
    window * WINDOW_MS
}

impl Quota {
    /// The hours in which so many effects are due, each hour with how many, from `first` on; `charged` says how many each
    /// hour has already. What finds no room is in none.
    #[must_use]
    pub fn shares(self, first: Window, charged: &BTreeMap<Window, u32>, mut effects: u32) -> Vec<(Window, u32)> {
        let windows = match self.over {
            OverQuota::Wait => WINDOWS_MAX,
            OverQuota::Refuse => 1,
        };
        let mut shares = Vec::new();
        for window in first..first + windows {
            let room = self.per_hour.saturating_sub(charged.get(&window).copied().unwrap_or(0));
            let share = room.min(effects);
            if share > 0 {
                shares.push((window, share));
                effects -= share;
            }
            if effects == 0 {
                break;
            }
        }
        shares
    }
}

const WINDOW_MS: i64 = 3_600_000;
/// Three days: what does not get its turn until then expires.
const WINDOWS_MAX: i64 = 72;

#[cfg(test)]
mod tests {
    use super::*;

    fn shares(per_hour: u32, over: OverQuota, charged: &[(Window, u32)], effects: u32) -> Vec<(Window, u32)> {
        Quota { per_hour, over }.shares(100, &charged.iter().copied().collect(), effects)
    }

    #[test]
    fn what_an_hour_has_no_room_for_is_due_in_the_next_that_has() {
        assert_eq!(shares(3, OverQuota::Wait, &[], 3), [(100, 3)]);
        assert_eq!(shares(3, OverQuota::Wait, &[], 8), [(100, 3), (101, 3), (102, 2)]);
        assert_eq!(shares(3, OverQuota::Wait, &[(100, 3), (101, 3), (102, 1)], 3), [(102, 2), (103, 1)]);
        // The quota was larger before.
        assert_eq!(shares(3, OverQuota::Wait, &[(100, 9)], 1), [(101, 1)]);
        assert_eq!(shares(3, OverQuota::Wait, &[], 0), []);
    }

    #[test]
    fn nothing_is_due_later_than_in_three_days_and_what_is_to_be_refused_not_in_the_next_hour() {
        let most = shares(1, OverQuota::Wait, &[], u32::MAX);
        assert_eq!((most.len(), most[71]), (72, (171, 1)));
        assert_eq!(shares(3, OverQuota::Refuse, &[(100, 1)], 5), [(100, 2)]);
        assert_eq!(shares(3, OverQuota::Refuse, &[(100, 3)], 5), []);
    }

    #[test]
    fn hours_are_those_of_the_clock() {
        assert_eq!((window(3_599_999), window(3_600_000), begin_ms(window(7_300_000))), (0, 1, 7_200_000));
    }
}
