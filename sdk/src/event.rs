//! What can be read off an event without parsing JSON.

use crate::{Event, Failure, Refusal};

impl Event {
    /// The day it happened, as people write it: `Jan 30, 2018`.
    #[must_use]
    pub fn date(&self) -> String {
        let mut parts = self.time.splitn(3, '-');
        let (year, month, rest) = (parts.next(), parts.next(), parts.next());
        let month =
            month.and_then(|month| month.parse::<usize>().ok()).and_then(|month| MONTHS.get(month.wrapping_sub(1)));
        match (year, month, rest.and_then(|rest| rest.get(..2))) {
            (Some(year), Some(month), Some(day)) => format!("{month} {day}, {year}"),
            _ => self.time.clone(),
        }
    }

    /// Where people read the collected logs; empty when logs are not collected.
    pub fn log_urls(&self) -> impl Iterator<Item = &str> {
        self.logs.iter().map(|log| log.url.as_str())
    }
}

impl From<Refusal> for Failure {
    /// A refused effect is a reason to fail: the plugin asked for what it may not have.
    fn from(refusal: Refusal) -> Self {
        Self::Failed(match refusal {
            Refusal::NotGranted(why) => format!("not granted: {why}"),
            Refusal::Invalid(why) => format!("invalid: {why}"),
            Refusal::OverLimit(why) => format!("over the limit: {why}"),
        })
    }
}

const MONTHS: [&str; 12] = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
