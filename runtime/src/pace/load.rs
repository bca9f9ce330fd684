//! How busy the machine is, as its system counts, and what that leaves to those who give way.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio_util::sync::CancellationToken;

use super::LOOK_EVERY;

/// How large the part of a tenant is that gives way. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Load(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// In thousandths of a whole part.
    part: AtomicU32,
    /// For how many more looks it is remembered that somebody gave way.
    looks: AtomicU32,
}

/// What the processors did since the system started, all of them together, in hundredths of a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Counted {
    idle: u64,
    all: u64,
}

impl Default for Load {
    /// A whole part, as long as nobody watches the machine.
    fn default() -> Self {
        Self::with(WHOLE)
    }
}

impl Load {
    fn with(part: u32) -> Self {
        Self(Arc::new(Shared { part: part.into(), looks: AtomicU32::default() }))
    }

    /// Watches the machine this runs on, whoever uses it, until it is to stop. Where there is no `/proc/stat`, parts stay whole.
    pub async fn watch(self, stop: CancellationToken) {
        self.watch_what_is_counted_in("/proc/stat".into(), stop).await;
    }

    async fn watch_what_is_counted_in(self, file: PathBuf, stop: CancellationToken) {
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
            let Ok(Some(now)) = tokio::task::spawn_blocking(move || Counted::read(&file)).await else { continue };
            if let Some(share) = last.replace(now).and_then(|last| now.used_since(last)) {
                let one_less = |looks: u32| looks.checked_sub(1);
                let Shared { part, looks } = &*self.0;
                let has_given_way = looks.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_ok();
                part.store(part_after(part.load(Ordering::Relaxed), share, has_given_way), Ordering::Relaxed);
            }
        }
    }

    /// Somebody gives way, which is remembered for a while; how large his part is, of a whole one: at least a tenth.
    pub(super) fn give_way(&self) -> f64 {
        self.0.looks.store(LOOKS_REMEMBERED, Ordering::Relaxed);
        self.part()
    }

    fn part(&self) -> f64 {
        f64::from(self.0.part.load(Ordering::Relaxed)) / f64::from(WHOLE)
    }

    #[cfg(test)]
    pub(super) fn fixed(part: f64) -> Self {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a test's")]
        Self::with((part * f64::from(WHOLE)) as u32)
    }
}

/// How large the part is after a while in which this share of the processors' time was used, and somebody gave way or
/// nobody did: it becomes smaller fast, and larger slowly, the more slowly the less room there is. Who is the first to give
/// way has a quarter at most: so nobody fills a machine before that can be seen.
fn part_after(part: u32, share: f64, has_given_way: bool) -> u32 {
    let most = if has_given_way { WHOLE } else { WHOLE / 4 };
    let part = if share > 0.8 {
        (part / 5 * 4).max(WHOLE / 10)
    } else if share < 0.7 {
        part + WHOLE / 20
    } else {
        part + WHOLE / 100
    };
    part.min(most)
}

impl Counted {
    fn read(file: &Path) -> Option<Self> {
        Self::from_text(&std::fs::read_to_string(file).ok()?)
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

const WHOLE: u32 = 1_000;
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
    fn parts_become_smaller_fast_down_to_a_tenth_and_larger_slowly_and_begin_as_a_quarter_at_most() {
        let after = |times: usize, part: u32, share: f64, has_given_way: bool| {
            (0..times).fold(part, |part, _| part_after(part, share, has_given_way))
        };
        let given = |times, part, share| after(times, part, share, true);
        assert_eq!([given(1, 1_000, 0.95), given(2, 1_000, 0.95), given(99, 1_000, 1.0)], [800, 640, 100]);
        assert_eq!([given(9, 700, 0.75), given(1, 700, 0.5), given(99, 100, 0.0)], [790, 750, 1_000]);
        let not_given = |times, part, share| after(times, part, share, false);
        assert_eq!([not_given(1, 1_000, 0.5), not_given(1, 700, 0.75), not_given(1, 200, 0.75)], [250, 250, 210]);
        assert_eq!([not_given(99, 250, 1.0), not_given(1, 100, 0.5), not_given(99, 100, 0.5)], [100, 150, 250]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_machine_is_watched_until_it_is_to_stop() {
        let folder = tempfile::tempdir().unwrap();
        let (file, stop, load) = (folder.path().join("stat"), CancellationToken::new(), Load::default());
        let watching = load.clone().watch_what_is_counted_in(file.clone(), stop.clone());
        let counted = std::cell::Cell::new(Counted { idle: 1, all: 1 });
        let look = async |busy: u64, ask: bool| {
            let Counted { idle, all } = counted.get();
            counted.set(Counted { idle: idle + 100 - busy, all: all + 100 });
            let counted = counted.get();
            std::fs::write(&file, format!("cpu  {} 0 0 {} 0 0 0 0\n", counted.all - counted.idle, counted.idle))
                .unwrap();
            if ask {
                load.give_way();
            }
            tokio::time::sleep(LOOK_EVERY).await;
        };
        let looks = async {
            let until = async |ask: bool, busy: u64, part: f64| {
                // It may read late what is written here, on a thread whose time does not stand still.
                for _ in 0..10_000 {
                    look(busy, ask).await;
                    if (load.part() - part).abs() < 0.001 {
                        return;
                    }
                }
                panic!("{} of a part, expected {part}", load.part());
            };
            until(false, 10, 0.25).await;
            look(10, false).await;
            assert!(load.part() < 0.26, "nobody has given way");
            until(true, 10, 1.0).await;
            for _ in 0..LOOKS_REMEMBERED / 2 {
                look(10, false).await;
            }
            assert!(load.part() > 0.99, "somebody did a moment ago");
            until(false, 10, 0.25).await;
            until(true, 95, 0.1).await;
            stop.cancel();
        };
        tokio::join!(watching, looks);
    }
}
