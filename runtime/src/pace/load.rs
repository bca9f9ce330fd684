//! How busy the machine is, as its system counts, and what that leaves of the tenants' parts.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio_util::sync::CancellationToken;

use super::LOOK_EVERY;

/// How large a tenant's part is at least. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Load {
    /// In thousandths of a whole part.
    least: Arc<AtomicU32>,
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
        Self { least: Arc::new(AtomicU32::new(WHOLE)) }
    }
}

impl Load {
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
                self.least.store(least_after(self.least.load(Ordering::Relaxed), share), Ordering::Relaxed);
            }
        }
    }

    /// How large a part is at least, of a whole one: at least a tenth.
    pub(super) fn least(&self) -> f64 {
        f64::from(self.least.load(Ordering::Relaxed)) / f64::from(WHOLE)
    }

    #[cfg(test)]
    pub(super) fn fixed(least: f64) -> Self {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a test's")]
        Self { least: Arc::new(AtomicU32::new((least * f64::from(WHOLE)) as u32)) }
    }
}

/// How large a part is at least, after a while in which this share of the processors' time was used: it becomes smaller fast
/// and larger slowly, and stays where the machine is neither full nor has room.
fn least_after(least: u32, share: f64) -> u32 {
    if share > 0.8 {
        (least / 5 * 4).max(WHOLE / 10)
    } else if share < 0.7 {
        (least + WHOLE / 20).min(WHOLE)
    } else {
        least
    }
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
    fn parts_become_smaller_fast_down_to_a_tenth_and_larger_slowly() {
        let after = |times: usize, least: u32, share: f64| (0..times).fold(least, |least, _| least_after(least, share));
        assert_eq!([after(1, 1_000, 0.95), after(2, 1_000, 0.95), after(99, 1_000, 1.0)], [800, 640, 100]);
        assert_eq!([after(9, 700, 0.75), after(1, 700, 0.5), after(99, 100, 0.0)], [700, 750, 1_000]);
    }

    #[tokio::test(start_paused = true)]
    async fn the_machine_is_watched_until_it_is_to_stop() {
        let folder = tempfile::tempdir().unwrap();
        let (file, stop, load) = (folder.path().join("stat"), CancellationToken::new(), Load::default());
        let watching = load.clone().watch_what_is_counted_in(file.clone(), stop.clone());
        let full = async {
            for used in 1_u64.. {
                std::fs::write(&file, format!("cpu  {} 0 0 1 0 0 0 0\n", used * 100)).unwrap();
                if load.least() < 0.6 {
                    return stop.cancel();
                }
                tokio::time::sleep(LOOK_EVERY / 2).await;
            }
        };
        tokio::join!(watching, full);
    }
}
