//! How busy the machine is, as its system counts, and how large that makes the parts: so none has to fit the machine.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use tokio_util::sync::CancellationToken;

use super::LOOK_EVERY;

/// How large the parts of tenants are that have company. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Load(Arc<Shared>);

/// Parts in thousandths of a least one.
#[derive(Debug)]
struct Shared {
    /// Of those who give way to nobody.
    whole: AtomicU32,
    /// Of those who give way.
    given: AtomicU32,
    /// Since the last look somebody has had company,
    had_company: AtomicBool,
    /// somebody has wanted more than a whole part,
    is_met: AtomicBool,
    /// and somebody has given way,
    is_given: AtomicBool,
    /// which is remembered for so many more looks.
    looks: AtomicU32,
}

/// What the processors did since the system started, all of them together, in hundredths of a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Counted {
    idle: u64,
    all: u64,
}

impl Default for Load {
    /// The least part for all, unless somebody watches the machine.
    fn default() -> Self {
        Self::with(LEAST, LEAST)
    }
}

impl Load {
    fn with(whole: u32, given: u32) -> Self {
        Self(Arc::new(Shared {
            whole: whole.into(),
            given: given.into(),
            had_company: AtomicBool::default(),
            is_met: AtomicBool::default(),
            is_given: AtomicBool::default(),
            looks: AtomicU32::default(),
        }))
    }

    /// Watches the machine this runs on, whoever uses it, until it is to stop. Where there is no `/proc/stat`, or it counts
    /// more processors than the so many this may use, all have the least part.
    pub async fn watch(self, processors: usize, stop: CancellationToken) {
        self.watch_what_is_counted_in("/proc/stat".into(), processors, stop).await;
    }

    async fn watch_what_is_counted_in(self, file: PathBuf, processors: usize, stop: CancellationToken) {
        let mut look = tokio::time::interval(LOOK_EVERY);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut last = None;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = look.tick() => {}
            }
            let file = file.clone();
            // The system counts while it is read, which takes a moment where there are many processors.
            let counted = tokio::task::spawn_blocking(move || Counted::read(&file, processors)).await.ok().flatten();
            match (counted, std::mem::replace(&mut last, counted)) {
                (None, _) => self.set(LEAST, LEAST),
                // Until the machine is seen to be full.
                (Some(_), None) => self.set(MOST, LEAST / 4),
                (Some(now), Some(last)) => now.used_since(last).into_iter().for_each(|share| self.look(share)),
            }
        }
    }

    /// How large the part is, of a least one, of somebody who has company and gives way to nobody; whether he wants more.
    pub(super) fn whole(&self, wants_more: bool) -> f64 {
        self.0.had_company.store(true, Ordering::Relaxed);
        self.0.is_met.fetch_or(wants_more, Ordering::Relaxed);
        of_least(&self.0.whole)
    }

    /// Somebody gives way, which is remembered for a while unless it is with something large, which says nothing about the
    /// processors; how large his part is, of a least one: a tenth or more.
    pub(super) fn give_way(&self, is_large: bool) -> f64 {
        if !is_large {
            self.0.is_given.store(true, Ordering::Relaxed);
            self.0.looks.store(LOOKS_REMEMBERED, Ordering::Relaxed);
        }
        of_least(&self.0.given)
    }

    /// This share of the processors' time was used since the last look.
    pub(super) fn look(&self, share: f64) {
        let Shared { whole, given, had_company, is_met, is_given, looks } = &*self.0;
        let one_less = |looks: u32| looks.checked_sub(1);
        let has_given_way = looks.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_ok();
        let [had_company, is_met, is_given] =
            [had_company, is_met, is_given].map(|flag| flag.swap(false, Ordering::Relaxed));
        let whole = whole_after(whole.load(Ordering::Relaxed), share, is_met || is_given || !had_company);
        let most = if has_given_way { whole } else { LEAST / 4 };
        self.set(whole, given_after(given.load(Ordering::Relaxed), share, most));
    }

    fn set(&self, whole: u32, given: u32) {
        self.0.whole.store(whole, Ordering::Relaxed);
        self.0.given.store(given, Ordering::Relaxed);
    }

    #[cfg(test)]
    pub(super) fn fixed(whole: f64, given: f64) -> Self {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a test's")]
        let parts = [whole, given].map(|part| (part * f64::from(LEAST)) as u32);
        Self::with(parts[0], parts[1])
    }
}

fn of_least(part: &AtomicU32) -> f64 {
    f64::from(part.load(Ordering::Relaxed)) / f64::from(LEAST)
}

/// Whether a line of `/proc/stat` is about one processor.
fn of_one_processor(line: &str) -> bool {
    line.strip_prefix("cpu").is_some_and(|rest| rest.starts_with(|digit: char| digit.is_ascii_digit()))
}

/// How large a whole part is after a while in which this share of the processors' time was used: larger while the machine
/// has room, and smaller while it is full, until whoever uses most wants more than it. That would be for nothing where
/// somebody does already, or gives way, or where there is nobody to give way to.
fn whole_after(whole: u32, share: f64, is_for_nothing: bool) -> u32 {
    let whole = if share < ROOM {
        whole + whole / 20
    } else if share <= FULL {
        whole + whole / 100
    } else if is_for_nothing {
        whole
    } else {
        whole / 5 * 4
    };
    whole.clamp(LEAST, MOST)
}

/// How large the part is of those who give way after such a while: it becomes smaller fast, and larger slowly, the more
/// slowly the less room there is. Who is the first to give way has a quarter of a least one at most: so nobody fills a
/// machine before that can be seen.
fn given_after(given: u32, share: f64, most: u32) -> u32 {
    let given = if share > FULL {
        (given / 5 * 4).max(LEAST / 10)
    } else if share < ROOM {
        given + given.max(LEAST) / 20
    } else {
        given + given.max(LEAST) / 100
    };
    given.min(most)
}

impl Counted {
    fn read(file: &Path, processors: usize) -> Option<Self> {
        let stat = std::fs::read_to_string(file).ok()?;
        // In a container it counts those of the whole machine, who may have nothing to do.
        let is_of_these = stat.lines().filter(|line| of_one_processor(line)).count() <= processors;
        is_of_these.then(|| Self::from_text(&stat)).flatten()
    }

    /// From the first line of `/proc/stat`, see proc(5): user, nice, system, idle, iowait, irq, softirq, steal, and guests,
    /// whose time is in user and nice already.
    fn from_text(stat: &str) -> Option<Self> {
        let line = stat.lines().next()?.strip_prefix("cpu ")?;
        let counted = line.split_whitespace().take(8).map(str::parse).collect::<Result<Vec<u64>, _>>().ok()?;
        let [_, _, _, idle, waiting, ..] = counted.as_slice() else { return None };
        let sum = |counted: &[u64]| counted.iter().try_fold(0_u64, |sum, more| sum.checked_add(*more));
        Some(Self { idle: sum(&[*idle, *waiting])?, all: sum(&counted)? })
    }

    /// Which share of the time since then was used, of 1. What waits for a disk may be counted back by a little.
    fn used_since(self, last: Self) -> Option<f64> {
        let (idle, all) = (self.idle.saturating_sub(last.idle), self.all.checked_sub(last.all)?);
        #[expect(clippy::cast_precision_loss, reason = "hundredths of a second between two looks")]
        let share = |part: u64| part as f64 / all as f64;
        (all > 0 && idle <= all).then(|| 1.0 - share(idle))
    }
}

/// The least part that is whole, whatever the machine.
const LEAST: u32 = 1_000;
/// The largest one.
const MOST: u32 = LEAST * 16;
/// A machine of whose processors' time more is used is full: what comes then waits for longer and longer,
const FULL: f64 = 0.7;
/// and one of which less is used has room.
const ROOM: f64 = 0.6;
/// Ten seconds: one whose pieces of work take long has its next turn late.
const LOOKS_REMEMBERED: u32 = 40;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_used_since_the_last_time_is_what_counts() {
        let at = |stat| Counted::from_text(stat).unwrap();
        let first = at("cpu  100 0 100 700 100 0 0 0 0 0\ncpu0 1 2 3 4\n");
        let cases = [
            ("cpu  150 10 120 720 100 0 0 0 0 0\n", Some(0.8)),
            ("cpu  100 0 100 740 160 0 0 0 9 9\n", Some(0.0)),
            ("cpu  200 0 100 700 99 0 0 0\n", Some(1.0)),
            ("cpu  100 0 100 700 100\n", None),
            ("cpu  1 1 1 1 1 1 1 1\n", None),
        ];
        for (said, expected) in cases {
            assert_eq!(at(said).used_since(first), expected, "{said}");
        }
    }

    #[test]
    fn what_is_no_count_says_nothing() {
        let too_much = format!("cpu  {max} {max} 1 1 1", max = u64::MAX);
        for said in
            ["", "cpu", "cpu  ", "cpu0 1 2 3 4 5 6 7 8", "cpu  1 2 3 4", "cpu  1 2 x 4 5", "cpu  1 2 3 -4 5", &too_much]
        {
            assert_eq!(Counted::from_text(said), None, "{said}");
        }
    }

    #[test]
    fn those_who_give_way_have_less_fast_down_to_a_tenth_and_more_slowly_and_a_quarter_at_most_at_first() {
        let after = |times: usize, given: u32, share: f64, most: u32| {
            (0..times).fold(given, |given, _| given_after(given, share, most))
        };
        let given = |times, given, share| after(times, given, share, 3_000);
        assert_eq!([given(1, 1_000, 0.95), given(2, 1_000, 0.95), given(99, 1_000, 1.0)], [800, 640, 100]);
        assert_eq!([given(9, 700, 0.65), given(1, 700, 0.5), given(99, 100, 0.0)], [790, 750, 3_000]);
        assert_eq!([given(1, 2_000, 0.65), given(1, 2_000, 0.5)], [2_020, 2_100]);
        let first = |times, given, share| after(times, given, share, 250);
        assert_eq!([first(1, 1_000, 0.5), first(1, 700, 0.65), first(1, 200, 0.65)], [250, 250, 210]);
        assert_eq!([first(99, 250, 1.0), first(1, 100, 0.5), first(99, 100, 0.5)], [100, 150, 250]);
    }

    #[test]
    fn whole_parts_are_as_large_as_the_machine_has_room_and_smaller_only_where_that_is_for_something() {
        let after = |times: usize, whole: u32, share: f64, is_for_nothing: bool| {
            (0..times).fold(whole, |whole, _| whole_after(whole, share, is_for_nothing))
        };
        let (useful, useless) = (false, true);
        for is_for_nothing in [useful, useless] {
            assert_eq!(after(1, 1_000, 0.59, is_for_nothing), 1_050);
            assert_eq!(after(99, 1_000, 0.0, is_for_nothing), 16_000);
            assert_eq!(after(9, 2_000, 0.65, is_for_nothing), 2_184);
        }
        assert_eq!([after(1, 16_000, 0.71, useful), after(99, 16_000, 1.0, useful)], [12_800, 1_000]);
        assert_eq!(after(99, 16_000, 1.0, useless), 16_000);
    }

    #[test]
    fn parts_follow_what_is_seen_of_the_machine_and_what_tenants_do() {
        let load = Load::fixed(16.0, 0.25);
        let parts = || (of_least(&load.0.whole), of_least(&load.0.given));
        let looks = |times: u32, share: f64, asks: &dyn Fn()| {
            (0..times).for_each(|_| {
                asks();
                load.look(share);
            });
        };
        looks(40, 0.95, &|| ());
        assert_eq!(parts(), (16.0, 0.1), "nobody had company");
        looks(40, 0.1, &|| _ = load.give_way(true));
        assert_eq!(parts(), (16.0, 0.25), "nobody gave way but with something large");
        looks(100, 0.1, &|| _ = load.give_way(false));
        assert_eq!(parts(), (16.0, 16.0));
        looks(LOOKS_REMEMBERED - 1, 0.65, &|| ());
        assert_eq!(parts(), (16.0, 16.0), "somebody did a moment ago");
        looks(1, 0.65, &|| ());
        assert_eq!(parts(), (16.0, 0.25));
        looks(40, 0.95, &|| _ = (load.whole(false), load.give_way(false)));
        assert_eq!(parts(), (16.0, 0.1), "somebody gives way");
        looks(40, 0.95, &|| _ = load.whole(true));
        assert_eq!(parts(), (16.0, 0.1), "somebody wants more");
        looks(40, 0.95, &|| _ = load.whole(false));
        assert_eq!(parts(), (1.0, 0.1));
    }

    #[tokio::test(start_paused = true)]
    async fn the_machine_is_watched_until_it_is_to_stop_if_it_is_the_one_that_is_counted() {
        let folder = tempfile::tempdir().unwrap();
        let (file, stop, load) = (folder.path().join("stat"), CancellationToken::new(), Load::default());
        let watching = load.clone().watch_what_is_counted_in(file.clone(), 2, stop.clone());
        let looks = async {
            // It may read late what is written here, on a thread whose time does not stand still.
            let until = async |processors: u32, whole: u32, given: u32| {
                for looks in 1..10_000 {
                    let each: String = (0..processors).map(|number| format!("cpu{number} 1 0 0 1 0 0 0 0\n")).collect();
                    let (busy, idle) = (looks, looks * 9);
                    std::fs::write(&file, format!("cpu  {busy} 0 0 {idle} 0 0 0 0\n{each}intr 1\n")).unwrap();
                    tokio::time::sleep(LOOK_EVERY).await;
                    let is = [&load.0.whole, &load.0.given].map(|part| part.load(Ordering::Relaxed));
                    if is == [whole, given] {
                        return;
                    }
                }
                panic!("{:?}, expected {whole} and {given}", load.0);
            };
            until(2, MOST, LEAST / 4).await;
            until(3, LEAST, LEAST).await;
            until(1, MOST, LEAST / 4).await;
            std::fs::remove_file(&file).unwrap();
            while load.0.whole.load(Ordering::Relaxed) != LEAST {
                tokio::time::sleep(LOOK_EVERY).await;
            }
            stop.cancel();
        };
        tokio::join!(watching, looks);
    }
}
