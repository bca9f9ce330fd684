//! How busy the machine is, as its system counts.

use std::path::{Path, PathBuf};

/// What the processors did since it was asked last.
#[derive(Debug, Default)]
pub struct Load {
    /// Where the system says what they did since it started; nowhere if it does not.
    counted_in: Option<PathBuf>,
    last: Option<Counted>,
}

/// Of all processors together, in hundredths of a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Counted {
    idle: u64,
    all: u64,
}

impl Load {
    /// Of the machine this runs on, whoever uses it; unknown where there is no `/proc/stat`.
    #[must_use]
    pub fn of_the_machine() -> Self {
        Self::counted_in("/proc/stat".as_ref())
    }

    /// Nothing is known.
    #[must_use]
    pub fn unknown() -> Self {
        Self::default()
    }

    pub(super) fn counted_in(file: &Path) -> Self {
        Self { counted_in: Some(file.to_owned()), last: None }
    }

    /// Which share of the processors' time was used since it was asked last, of 1. A file that a kernel makes up as it is
    /// read keeps nobody waiting.
    pub(super) fn share(&mut self) -> Option<f64> {
        let now = Counted::read(&std::fs::read_to_string(self.counted_in.as_ref()?).ok()?)?;
        let last = self.last.replace(now)?;
        let (idle, all) = (now.idle.checked_sub(last.idle)?, now.all.checked_sub(last.all)?);
        #[expect(clippy::cast_precision_loss, reason = "hundredths of a second between two looks")]
        let share = |part: u64| part as f64 / all as f64;
        (all > 0 && idle <= all).then(|| 1.0 - share(idle))
    }
}

impl Counted {
    /// From the first line of `/proc/stat`, see proc(5): user, nice, system, idle, iowait, irq, softirq, steal, and guests,
    /// whose time is in user and nice already.
    fn read(stat: &str) -> Option<Self> {
        let line = stat.lines().next()?.strip_prefix("cpu ")?;
        let counted = line.split_whitespace().take(8).map(str::parse).collect::<Result<Vec<u64>, _>>().ok()?;
        let [_, _, _, idle, waiting, ..] = counted.as_slice() else { return None };
        let sum = |counted: &[u64]| counted.iter().try_fold(0_u64, |sum, more| sum.checked_add(*more));
        Some(Self { idle: sum(&[*idle, *waiting])?, all: sum(&counted)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_used_since_the_last_time_is_what_counts() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("stat");
        let mut load = Load::counted_in(&file);
        assert_eq!(load.share(), None, "no such file");
        let cases = [
            ("cpu  100 0 100 700 100 0 0 0 0 0\ncpu0 1 2 3 4\n", None),
            ("cpu  150 10 120 720 100 0 0 0 0 0\n", Some(0.8)),
            ("cpu  150 10 120 720 100 0 0 0 0 0\n", None),
            ("cpu  150 10 120 760 160 0 0 0 9 9\n", Some(0.0)),
            ("cpu  250 10 120 760 160 0 0 0\n", Some(1.0)),
        ];
        for (said, expected) in cases {
            std::fs::write(&file, said).unwrap();
            let share = load.share();
            assert_eq!(share.map(|share| (share * 100.0).round() / 100.0), expected, "{said}");
        }
    }

    #[test]
    fn what_is_no_count_says_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("stat");
        let mut load = Load::counted_in(&file);
        std::fs::write(&file, "cpu  9 9 9 9 9 9 9 9").unwrap();
        assert_eq!(load.share(), None);
        let max = u64::MAX;
        for said in ["", "cpu", "cpu  ", "cpu0 1 2 3 4 5 6 7 8", "cpu  1 2 3 4", "cpu  1 2 3 x 5", "cpu  1 2 3 -4 5"]
            .map(str::to_owned)
            .into_iter()
            .chain([format!("cpu  {max} {max} 1 1 1"), "cpu  1 1 1 1 1 1 1 1".to_owned()])
        {
            std::fs::write(&file, &said).unwrap();
            assert_eq!(load.share(), None, "{said}");
        }
        assert_eq!(Load::unknown().share(), None);
    }
}
