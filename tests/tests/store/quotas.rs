//! What a plugin may ask for within an hour.

use std::collections::BTreeMap;

use pulse_notifier::grant::quota::{OverQuota, Quota};

use super::*;

fn with_quota(mut settled: Settled, per_hour: u32, over: OverQuota) -> Settled {
    if let Fate::Planned(invocations) = &mut settled.fate {
        for invocation in invocations {
            invocation.quotas = [("email", Quota { per_hour, over })].into_iter().collect::<BTreeMap<_, _>>().into();
        }
    }
    settled
}

/// How many effects are in each state, by the hours they are due after that in which they were made.
fn by_hour(opened: &Opened) -> Result<Vec<String>> {
    let by_hour = "SELECT state || ' +' || ((due_ms / 3600000) - (created_ms / 3600000)) || ' ' || COUNT(*) FROM effect \
                   GROUP BY state, (due_ms / 3600000) - (created_ms / 3600000) ORDER BY 1";
    opened.database().rows(by_hour)
}

fn charged(opened: &Opened) -> Result<Vec<i64>> {
    opened.database().column("SELECT effects FROM quota ORDER BY hour")
}

/// What counts by the hour is tried within one hour: not when the next is about to begin.
async fn within_one_hour() {
    let left_ms = 3_600_000 - jiff::Timestamp::now().as_millisecond() % 3_600_000;
    if left_ms < 5_000 {
        tokio::time::sleep(std::time::Duration::from_millis(left_ms as u64 + 10)).await;
    }
}

#[tokio::test]
async fn what_is_over_a_quota_is_due_in_the_next_hours_and_an_event_that_comes_twice_counts_once() -> Result<()> {
    let opened = Opened::new().await?;
    within_one_hour().await;
    let event = |key: &str, to: &[&str]| with_quota(settled(key, to), 3, OverQuota::Wait);
    let seven = ["a@b.cd", "b@b.cd", "c@b.cd", "d@b.cd", "e@b.cd", "f@b.cd", "g@b.cd"];
    assert_eq!(opened.store.settle(event("one", &seven)).await?, Verdict::Won);
    assert_eq!(opened.store.settle(event("one", &seven)).await?, Verdict::Lost);
    assert_eq!(by_hour(&opened)?, ["pending +0 3", "pending +1 3", "pending +2 1"]);
    assert_eq!(charged(&opened)?, [3, 3, 1]);
    // Many at once, in one group of writes or in several.
    let events: Vec<_> = (0..4).map(|number| event(&format!("more {number}"), &["a@b.cd"])).collect();
    for verdict in futures_util::future::join_all(events.into_iter().map(|event| opened.store.settle(event))).await {
        assert_eq!(verdict?, Verdict::Won);
    }
    assert_eq!(charged(&opened)?, [3, 3, 3, 2]);
    let claimed = opened.claim("one").await?;
    assert_eq!(claimed.len(), 3, "what is not due is not claimed");
    // Without a quota, nothing is charged.
    assert_eq!(opened.store.settle(settled("free", &seven)).await?, Verdict::Won);
    assert_eq!(charged(&opened)?, [3, 3, 3, 2]);
    let why = "SELECT DISTINCT CAST(reason AS TEXT) FROM effect WHERE reason IS NOT NULL";
    assert_eq!(opened.database().rows(why)?, ["over quota: 3 an hour"]);
    Ok(())
}

#[tokio::test]
async fn what_would_wait_for_three_days_expires_and_what_shall_not_wait_is_refused() -> Result<()> {
    let opened = Opened::new().await?;
    within_one_hour().await;
    let to: Vec<_> = (0..80).map(|number| format!("{number}@b.cd")).collect();
    let to: Vec<&str> = to.iter().map(String::as_str).collect();
    opened.store.settle(with_quota(settled("waits", &to), 1, OverQuota::Wait)).await?;
    let states = by_hour(&opened)?;
    assert_eq!((states.len(), states[0].as_str()), (73, "expired +0 8"));
    let opened = Opened::new().await?;
    opened.store.settle(with_quota(settled("refused", &to), 79, OverQuota::Refuse)).await?;
    assert_eq!(by_hour(&opened)?, ["pending +0 79", "refused +0 1"]);
    assert_eq!(charged(&opened)?, [79]);
    Ok(())
}

#[tokio::test]
async fn hours_that_are_over_are_forgotten_with_what_is_old() -> Result<()> {
    let opened = Opened::new().await?;
    within_one_hour().await;
    opened.store.settle(with_quota(settled("one", &["a@b.cd", "b@b.cd"]), 1, OverQuota::Wait)).await?;
    opened.database().change("UPDATE quota SET hour = hour - 1")?;
    opened.store.prune(jiff::Timestamp::now()).await?;
    // The hour that was the next one is this one now.
    assert_eq!(charged(&opened)?, [1]);
    opened.store.settle(with_quota(settled("two", &["a@b.cd"]), 2, OverQuota::Refuse)).await?;
    assert_eq!(charged(&opened)?, [2]);
    Ok(())
}
