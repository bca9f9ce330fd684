//! The store by itself, on a real database: who wins, what waits for what, and what may be taken over.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use end_to_end::{Database, wait};
use pulse_notifier::effect::{Effect, Email, Hash, Origin, Plan, Planned};
use pulse_notifier::grant::quota::{OverQuota, Quota};
use pulse_notifier::intake::event::Delivery;
use pulse_notifier::store::{
    Basis, Binding, Claimed, Claimer, DeadDelivery, Fate, Finished, Invocation, Next, Outcome, Room, Settled, Store,
    Verdict, Withdrawn,
};
use rusqlite::Connection;
use tempfile::TempDir;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

const SOON: Duration = Duration::from_secs(30);
const DESTINATION: &str = "email/smtp";

struct Opened {
    store: Store,
    folder: TempDir,
}

impl Opened {
    async fn new() -> Result<Self> {
        Self::at(tempfile::tempdir()?).await
    }

    async fn at(folder: TempDir) -> Result<Self> {
        let store = Store::open(&format!("sqlite:{}/s.db", folder.path().display()), &TaskTracker::new()).await?;
        Ok(Self { store, folder })
    }

    /// What is due now.
    async fn claim(&self, owner: &str) -> Result<Vec<Claimed>> {
        self.claim_of(owner, DESTINATION, 10).await
    }

    async fn claim_of(&self, owner: &str, destination: &str, slots: usize) -> Result<Vec<Claimed>> {
        let slots = Arc::new(Semaphore::new(slots));
        let claimer = Claimer { owner: owner.into(), destination: destination.into(), slots };
        let mut claims = self.store.claims(claimer).await?;
        // In whose transaction the claim is tried.
        self.store.unbound("none", Binding { exchange: String::new(), routing_key: String::new() }).await?;
        self.store.end_claims(&claims).await?;
        let mut all = Vec::new();
        while let Some(claimed) = claims.next().await {
            all.push(claimed?.0);
        }
        Ok(all)
    }

    /// Keeps the claims of what an owner performs, and takes back the others that lapsed.
    async fn keep_claims(&self, owner: &str, in_flight: &[i64]) -> Result<()> {
        Ok(self.store.keep_claims(owner, Arc::new(Mutex::new(in_flight.iter().copied().collect()))).await?)
    }

    async fn finish(&self, owner: &str, claimed: &Claimed, outcome: &'static str, next: Next) -> Result<()> {
        Ok(self.store.finish(finished(owner, claimed, outcome, next), None).await?)
    }

    /// As if the database had been away for longer than a lease.
    fn let_leases_lapse(&self) -> Result<()> {
        self.database().change("UPDATE effect SET lease_ms = 0 WHERE state = 'claimed'")
    }

    fn database(&self) -> Database {
        Database::at(self.folder.path().join("s.db"))
    }
}

fn finished(owner: &str, claimed: &Claimed, outcome: &'static str, next: Next) -> Finished {
    Finished {
        seq: claimed.seq,
        owner: owner.into(),
        attempt: claimed.attempt,
        destination: DESTINATION.into(),
        ended_ms: 1,
        outcome,
        answer: "answer".into(),
        in_doubt: outcome == "in doubt",
        next,
    }
}

/// An event whose one plugin asked for a mail to each of these, in this order.
fn settled(key: &str, recipients: &[&str]) -> Settled {
    let event = Hash::of_bytes(key.as_bytes());
    let origin = Origin { event, generation: 0, identity: "default".into(), plugin: "smtp".into() };
    let planned = recipients.iter().zip(0..).map(|(recipient, index)| Planned {
        id: origin.effect(index, recipient),
        call: origin.call(index),
        effect: Effect::Email(Email {
            account: "smtp".into(),
            recipient: (*recipient).into(),
            to: [(*recipient).to_owned()].into(),
            subject: format!("{index}").into(),
            text: "".into(),
            html: None,
            thread: None,
        }),
        refused: None,
    });
    let invocation = Invocation {
        generation: 0,
        identity: "default".into(),
        plugin: "smtp".into(),
        digest: Hash::of_bytes(b""),
        outcome: Outcome::Done(Plan { effects: planned.collect() }),
        quotas: Arc::default(),
        refusals: Vec::new(),
        log: Vec::new(),
        cpu_us: 0,
        memory_max: 0,
    };
    Settled {
        key: event,
        tenant: "default".into(),
        status: "task-failed".into(),
        task_id: key.into(),
        run_id: None,
        delivery: Arc::new(Delivery::default()),
        received_ms: 0,
        fate: Fate::Planned(vec![invocation]),
        basis: Basis::Delivery,
    }
}

/// An event whose one plugin asked for one mail to all of these.
fn copies(key: &str, recipients: &[&str]) -> Settled {
    let mut settled = settled(key, recipients);
    let Fate::Planned(invocations) = &mut settled.fate else { return settled };
    for invocation in invocations {
        let Outcome::Done(plan) = &mut invocation.outcome else { continue };
        let Some(call) = plan.effects.first().map(|first| first.call) else { continue };
        for planned in &mut plan.effects {
            let Effect::Email(email) = &mut planned.effect else { continue };
            planned.call = call;
            email.to = recipients.iter().map(|to| (*to).to_owned()).collect();
            email.subject = "the same".into();
        }
    }
    settled
}

fn recipients(claimed: &[Claimed]) -> Vec<&str> {
    claimed.iter().map(|claimed| claimed.effect.recipient()).collect()
}

#[tokio::test]
async fn who_comes_second_to_an_event_loses_and_leaves_nothing() -> Result<()> {
    let opened = Opened::new().await?;
    let (one, other) =
        tokio::join!(opened.store.settle(settled("e", &["a@x.org"])), opened.store.settle(settled("e", &["b@x.org"])));
    assert_eq!((one?, other?), (Verdict::Won, Verdict::Lost));
    assert_eq!(opened.store.settle(settled("e", &["c@x.org"])).await?, Verdict::Lost);
    assert_eq!(recipients(&opened.claim("me").await?), ["a@x.org"]);
    Ok(())
}

#[tokio::test]
async fn what_goes_to_one_recipient_keeps_its_order_and_holds_back_nobody_else() -> Result<()> {
    let opened = Opened::new().await?;
    opened.store.settle(settled("e", &["a@x.org", "a@x.org", "b@x.org"])).await?;
    let claimed = opened.claim("me").await?;
    let mut told = recipients(&claimed);
    told.sort_unstable();
    assert_eq!(told, ["a@x.org", "b@x.org"]);
    assert!(opened.claim("me").await?.is_empty());
    let first = claimed.iter().find(|claimed| claimed.effect.recipient() == "a@x.org").context("the first")?;
    opened.finish("me", first, "delivered", Next::Delivered).await?;
    assert_eq!(recipients(&opened.claim("me").await?), ["a@x.org"]);
    Ok(())
}

#[tokio::test]
async fn a_lapsed_claim_is_taken_over_in_doubt_but_never_from_an_attempt_that_still_runs_here() -> Result<()> {
    let opened = Opened::new().await?;
    opened.store.settle(settled("e", &["a@x.org"])).await?;
    let claimed = opened.claim("me").await?;
    let mine = claimed.first().context("one effect")?;
    assert!(opened.claim("other").await?.is_empty(), "its lease holds");
    opened.keep_claims("other", &[]).await?;
    assert!(opened.claim("other").await?.is_empty(), "its lease still holds");
    opened.let_leases_lapse()?;
    opened.keep_claims("me", &[mine.seq]).await?;
    opened.keep_claims("other", &[]).await?;
    assert!(opened.claim("other").await?.is_empty(), "it is being performed");
    opened.let_leases_lapse()?;
    opened.keep_claims("other", &[]).await?;
    let taken_over = opened.claim("other").await?;
    let theirs = taken_over.first().context("taken over")?;
    assert_eq!((theirs.id, theirs.attempt, theirs.in_doubt), (mine.id, 2, 1));
    // The receipt of the attempt that lost its claim changes nothing.
    opened.finish("me", mine, "permanent", Next::Dead).await?;
    opened.finish("other", theirs, "delivered", Next::Delivered).await?;
    let state: String = opened.database().value("SELECT state FROM effect")?;
    assert_eq!(state, "delivered");
    Ok(())
}

#[tokio::test]
async fn a_suspended_destination_is_probed_by_one_effect_at_a_time() -> Result<()> {
    let opened = Opened::new().await?;
    opened.store.settle(settled("e", &["a@x.org", "b@x.org", "c@x.org"])).await?;
    let claimed = opened.claim("me").await?;
    for claimed in &claimed {
        opened.finish("me", claimed, "suspended", Next::Suspended { probe_ms: i64::MAX }).await?;
    }
    assert!(opened.claim("me").await?.is_empty(), "the probe is not due");
    opened.store.probe_now().await?;
    let probe = opened.claim("me").await?;
    assert_eq!(probe.len(), 1);
    opened.store.probe_now().await?;
    assert!(opened.claim("me").await?.is_empty(), "one is under way");
    let probe = probe.first().context("the probe")?;
    opened.finish("me", probe, "delivered", Next::Delivered).await?;
    assert_eq!(opened.claim("me").await?.len(), 2, "its answer lifts the suspension");
    Ok(())
}

#[tokio::test]
async fn of_each_tenant_comes_back_what_there_is_room_for() -> Result<()> {
    let opened = Opened::new().await?;
    let deferred = |tenant: &str, due_ms: i64| Settled {
        tenant: tenant.into(),
        fate: Fate::Deferred { due_ms, reason: "the task is not there yet".into() },
        ..settled(&format!("{tenant} {due_ms}"), &[])
    };
    for due_ms in 1..=20 {
        opened.store.settle(deferred("loud", due_ms)).await?;
    }
    opened.store.settle(deferred("quiet", 21)).await?;
    opened.store.settle(deferred("quiet", i64::MAX)).await?;
    let come = async |each: u32| -> Result<Vec<String>> {
        let room = Room { tenants: ["loud", "quiet", "unknown"].map(str::to_owned).into(), each };
        let mut tenants: Vec<_> =
            opened.store.due_events(room).await?.into_iter().map(|deferred| deferred.tenant).collect();
        tenants.sort_unstable();
        Ok(tenants)
    };
    assert_eq!(come(3).await?, ["loud", "loud", "loud", "quiet"], "who has many does not come before the others");
    assert_eq!(come(100).await?, vec!["loud"; 17], "what was taken does not come again at once");
    Ok(())
}

/// The same, with so many mails an hour.
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

#[tokio::test]
async fn what_waits_for_those_who_are_gone_is_ended_and_what_is_attempted_is_not() -> Result<()> {
    let opened = Opened::new().await?;
    opened.store.settle(settled("one", &["a@b.cd"])).await?;
    let claimed = opened.claim("alive").await?;
    opened.store.settle(settled("two", &["b@b.cd"])).await?;
    let gone = Arc::new(Mutex::new(Withdrawn {
        destinations: [(DESTINATION.to_owned(), "account removed".to_owned())].into(),
        tenants: [("nobody".to_owned(), "tenant removed".to_owned())].into(),
    }));
    assert_eq!(opened.store.withdraw(Arc::clone(&gone)).await?, 1);
    let states = "SELECT CAST(recipient AS TEXT) || ' ' || state || ' ' || in_doubt FROM effect ORDER BY 1";
    let states = || opened.database().rows(states);
    assert_eq!(states()?, ["a@b.cd claimed 0", "b@b.cd refused 0"]);
    // An attempt that failed would be made again, and one whose courier is dead will never end.
    opened.finish("alive", &claimed[0], "transient", Next::Pending { due_ms: 0 }).await?;
    opened.store.settle(settled("three", &["c@b.cd"])).await?;
    assert_eq!(opened.claim("dead").await?.len(), 2);
    opened.let_leases_lapse()?;
    assert_eq!(opened.store.withdraw(Arc::clone(&gone)).await?, 2);
    assert_eq!(states()?, ["a@b.cd refused 1", "b@b.cd refused 0", "c@b.cd refused 1"]);
    assert_eq!(opened.store.withdraw(Arc::clone(&gone)).await?, 0);
    // Whoever is back when it is the database's turn loses nothing.
    opened.store.settle(settled("four", &["d@b.cd"])).await?;
    *gone.lock().unwrap_or_else(PoisonError::into_inner) = Withdrawn::default();
    assert_eq!(opened.store.withdraw(gone).await?, 0);
    Ok(())
}

#[tokio::test]
async fn a_claim_stands_and_gets_what_is_due_as_slots_are_free_until_it_is_ended() -> Result<()> {
    let opened = Opened::new().await?;
    let slots = Arc::new(Semaphore::new(1));
    let (owner, destination) = ("me".to_owned(), DESTINATION.to_owned());
    let mut claims = opened.store.claims(Claimer { owner, destination, slots: Arc::clone(&slots) }).await?;
    opened.store.settle(settled("one", &["a@b.cd", "b@b.cd"])).await?;
    let (first, slot) = claims.next().await.context("one")??;
    assert_eq!(slots.available_permits(), 0, "there was one slot");
    // The next one is claimed in the transaction that notes how the first one ended.
    let finished = finished("me", &first, "delivered", Next::Delivered);
    opened.store.finish(finished, Some(slot)).await?;
    let (second, slot) = claims.next().await.context("the other")??;
    assert_eq!(second.effect.recipient(), "b@b.cd");
    drop(slot);
    opened.store.end_claims(&claims).await?;
    assert!(claims.next().await.is_none());
    Ok(())
}

#[tokio::test]
async fn a_claim_that_stands_probes_a_suspended_destination_as_soon_as_it_may() -> Result<()> {
    let opened = Opened::new().await?;
    opened.store.settle(settled("e", &["a@b.cd"])).await?;
    let claimed = opened.claim("me").await?;
    let claimed = claimed.first().context("one")?;
    opened.finish("me", claimed, "suspended", Next::Suspended { probe_ms: i64::MAX }).await?;
    let claimer = Claimer { owner: "me".into(), destination: DESTINATION.into(), slots: Arc::new(Semaphore::new(9)) };
    let mut claims = opened.store.claims(claimer).await?;
    opened.store.probe_now().await?;
    opened.store.end_claims(&claims).await?;
    let (probe, _slot) = claims.next().await.context("a probe in the same transaction")??;
    assert_eq!((probe.id, probe.attempt), (claimed.id, 2));
    Ok(())
}

#[tokio::test]
async fn claims_that_begin_look_at_once_and_outlive_those_they_follow() -> Result<()> {
    let opened = Opened::new().await?;
    opened.store.settle(settled("one", &["a@b.cd"])).await?;
    let claimed = opened.claim("me").await?;
    opened.finish("me", claimed.first().context("one")?, "transient", Next::Pending { due_ms: i64::MAX }).await?;
    assert!(opened.claim("me").await?.is_empty(), "it is not due");
    opened.database().change("UPDATE effect SET due_ms = 0")?;
    let again = opened.claim("me").await?;
    assert_eq!(recipients(&again), ["a@b.cd"], "what time made due is not waited for");
    // As when an account changes.
    let claimer =
        || Claimer { owner: "me".into(), destination: DESTINATION.into(), slots: Arc::new(Semaphore::new(1)) };
    let mut old = opened.store.claims(claimer()).await?;
    let mut new = opened.store.claims(claimer()).await?;
    opened.store.end_claims(&old).await?;
    assert!(old.next().await.is_none());
    opened.store.settle(settled("two", &["b@b.cd"])).await?;
    let (claimed, _slot) = new.next().await.context("the new one stands")??;
    assert_eq!(claimed.effect.recipient(), "b@b.cd");
    Ok(())
}

#[tokio::test]
async fn of_a_group_only_what_the_engine_refuses_fails_and_the_rest_is_claimed() -> Result<()> {
    let opened = Opened::new().await?;
    opened.database().change(
        "CREATE TRIGGER refuse BEFORE INSERT ON effect WHEN CAST(NEW.recipient AS TEXT) = 'bad@b.cd' \
             BEGIN SELECT RAISE(ABORT, 'as the test wished'); END",
    )?;
    let claimer = Claimer { owner: "me".into(), destination: DESTINATION.into(), slots: Arc::new(Semaphore::new(9)) };
    let mut claims = opened.store.claims(claimer).await?;
    // While the first one waits for the database, the others come together.
    let lock = opened.database().connect()?;
    lock.execute_batch("BEGIN IMMEDIATE")?;
    let settle = |key: &'static str, to: &'static str| opened.store.settle(settled(key, &[to]));
    let release = async { lock.execute_batch("ROLLBACK") };
    let (first, bad, good, released) =
        tokio::join!(settle("first", "a@b.cd"), settle("bad", "bad@b.cd"), settle("good", "good@b.cd"), release);
    released?;
    assert_eq!((first?, good?), (Verdict::Won, Verdict::Won));
    let refused = bad.err().context("refused")?.to_string();
    assert!(refused.contains("as the test wished"), "{refused}");
    opened.store.end_claims(&claims).await?;
    let mut told = Vec::new();
    while let Some(claimed) = claims.next().await {
        told.push(claimed?.0.effect.recipient().to_owned());
    }
    assert_eq!(told, ["a@b.cd", "good@b.cd"]);
    Ok(())
}

#[tokio::test]
async fn what_is_claimed_as_it_is_written_is_what_would_be_read_back() -> Result<()> {
    let opened = Opened::new().await?;
    let to = ["a@b.cd", "a@b.cd", "b@b.cd", "c@b.cd"];
    opened.store.settle(copies("before", &to)).await?;
    let read_back = opened.claim("me").await?;
    for claimed in &read_back {
        opened.finish("me", claimed, "delivered", Next::Delivered).await?;
    }
    assert_eq!(recipients(&opened.claim("me").await?), ["a@b.cd"]);
    assert!(opened.claim("me").await?.is_empty(), "nothing is left");
    let claimer = Claimer { owner: "me".into(), destination: DESTINATION.into(), slots: Arc::new(Semaphore::new(2)) };
    let mut claims = opened.store.claims(claimer).await?;
    opened.store.settle(copies("after", &to)).await?;
    let (mut claimed, mut slots) = (Vec::new(), Vec::new());
    for _ in 0..2 {
        let (one, slot) = claims.next().await.context("claimed")??;
        claimed.push(one);
        slots.push(slot);
    }
    opened.store.end_claims(&claims).await?;
    assert!(claims.next().await.is_none(), "both slots are taken");
    drop(slots);
    assert_eq!(recipients(&claimed), ["a@b.cd", "b@b.cd"], "there are two slots, and of two to one only the first");
    let told = |claimed: &Claimed| (claimed.effect.clone(), claimed.attempt, claimed.failures, claimed.in_doubt);
    let of = |claimed: &[Claimed]| claimed.iter().map(told).take(2).collect::<Vec<_>>();
    assert_eq!(of(&claimed), of(&read_back));
    let attempted = "SELECT effect_seq FROM attempt WHERE ended_ms IS NULL AND owner = 'me' ORDER BY effect_seq";
    let attempted: Vec<i64> = opened.database().column(attempted)?;
    assert!(claimed.iter().all(|claimed| attempted.contains(&claimed.seq)), "{attempted:?}");
    opened.finish("me", &claimed[0], "delivered", Next::Delivered).await?;
    assert_eq!(recipients(&opened.claim("me").await?), ["a@b.cd", "c@b.cd"]);
    Ok(())
}

#[tokio::test]
async fn a_claim_is_of_one_destination_and_for_as_much_as_is_wanted() -> Result<()> {
    let opened = Opened::new().await?;
    for (key, account) in [("one", "a"), ("two", "b"), ("three", "c")] {
        let mut settled = settled(key, &["1@x.org", "2@x.org", "3@x.org"]);
        let Fate::Planned(invocations) = &mut settled.fate else { continue };
        for invocation in invocations {
            let Outcome::Done(plan) = &mut invocation.outcome else { continue };
            for planned in &mut plan.effects {
                let Effect::Email(email) = &mut planned.effect else { continue };
                email.account = account.into();
            }
        }
        opened.store.settle(settled).await?;
    }
    let (a, b) = tokio::try_join!(opened.claim_of("me", "email/a", 1), opened.claim_of("me", "email/b", 2))?;
    assert_eq!(recipients(&a), ["1@x.org"]);
    assert_eq!(recipients(&b), ["1@x.org", "2@x.org"]);
    assert!(opened.claim_of("me", "email/none", 9).await?.is_empty());
    Ok(())
}

#[tokio::test]
async fn what_was_committed_gets_into_the_file_long_before_the_log_is_full() -> Result<()> {
    let opened = Opened::new().await?;
    let bytes = |name: &str| Ok::<_, anyhow::Error>(opened.folder.path().join(name).metadata()?.len());
    for number in 0..8_u8 {
        let body = vec![number; 1 << 20];
        let delivery = Arc::new(Delivery { body, ..Delivery::default() });
        let dead = DeadDelivery { tenant: "default".into(), delivery, reason: "none".into(), received_ms: 0 };
        opened.store.bury(dead).await?;
    }
    assert!(bytes("s.db-wal")? < 32 << 20, "the writer has not stopped for it");
    wait::until("it is copied", SOON, async || Ok(bytes("s.db")? > 4 << 20)).await
}

#[tokio::test]
async fn a_database_of_before_loses_nothing() -> Result<()> {
    // Which migrations were made was kept in a table once.
    let in_a_table = "CREATE TABLE _sqlx_migrations (version BIGINT PRIMARY KEY, success BOOLEAN NOT NULL); \
                      INSERT INTO _sqlx_migrations VALUES (1, TRUE), (2, TRUE)";
    for said in [in_a_table, "PRAGMA user_version = 2"] {
        let folder = tempfile::tempdir()?;
        let database = Database::at(folder.path().join("s.db"));
        std::fs::write(folder.path().join("s.db"), "")?;
        database.change(include_str!("../../runtime/migrations/sqlite/0001_first.sql"))?;
        database.change(include_str!("../../runtime/migrations/sqlite/0002_followers.sql"))?;
        database.change(said)?;
        let email = filled(&database.connect()?)?;
        for _ in 0..2 {
            Store::open(&format!("sqlite:{}/s.db", folder.path().display()), &TaskTracker::new()).await?;
        }
        let opened = Opened::at(folder).await?;
        assert_eq!(database.count("SELECT COUNT(*) FROM sqlite_schema WHERE name = '_sqlx_migrations'")?, 0);
        assert_eq!(database.count("PRAGMA user_version")?, 3);
        let claimed = opened.claim("me").await?;
        assert_eq!(recipients(&claimed), ["a@b.cd", "b@b.cd"]);
        let content = |to: &str| Effect::Email(Email { recipient: to.into(), ..email.clone() });
        assert_eq!(
            claimed.iter().map(|claimed| (claimed.seq, claimed.attempt, claimed.effect.clone())).collect::<Vec<_>>(),
            [(7, 2, content("a@b.cd")), (9, 2, content("b@b.cd"))]
        );
        let attempts = "SELECT effect_seq || ' ' || number || ' ' || owner FROM attempt ORDER BY 1";
        assert_eq!(database.rows(attempts)?, ["7 2 me", "9 1 before", "9 2 me"]);
        database.change("PRAGMA foreign_keys = ON; DELETE FROM event")?;
        let left =
            "SELECT (SELECT COUNT(*) FROM effect) + (SELECT COUNT(*) FROM attempt) + (SELECT COUNT(*) FROM payload)";
        assert_eq!(database.count(left)?, 0, "nothing outlives its event");
    }
    Ok(())
}

/// Fills a database of before payloads were kept apart: with an event, a plugin's call, a mail to two and an attempt.
fn filled(connection: &Connection) -> Result<Email> {
    let email = Email {
        account: "smtp".into(),
        recipient: "a@b.cd".into(),
        to: ["a@b.cd".to_owned(), "b@b.cd".to_owned()].into(),
        subject: "before".into(),
        text: "text".into(),
        html: None,
        thread: None,
    };
    connection.execute_batch(
        "INSERT INTO event (id, key, tenant, status, task_id, delivery, received_ms, state) \
         VALUES (1, x'01', 'default', 'failed', 'task', x'7b7d', 0, 'planned'); \
         INSERT INTO invocation (id, event_id, tenant, generation, identity, plugin, digest, state, cpu_us, memory_max) \
         VALUES (1, 1, 'default', 0, 'default', 'smtp', zeroblob(32), 'done', 0, 0)",
    )?;
    let insert = "INSERT INTO effect (seq, id, invocation_id, call, copy_of, tenant, plugin, destination, recipient, \
                  payload, created_ms, state, due_ms, attempt) \
                  VALUES (?, ?, 1, zeroblob(32), ?, 'default', 'smtp', ?, ?, ?, 1, 'pending', 1, 1)";
    let first = vec![1; 32];
    for (seq, id, copy_of, to) in [(7, first.clone(), None, "a@b.cd"), (9, vec![2; 32], Some(first), "b@b.cd")] {
        let payload = copy_of.is_none().then(|| serde_json::to_vec(&Effect::Email(email.clone()))).transpose()?;
        connection.execute(insert, (seq, id, copy_of, DESTINATION, to.as_bytes(), payload))?;
    }
    connection.execute("INSERT INTO attempt (effect_seq, number, owner, started_ms) VALUES (9, 1, 'before', 1)", ())?;
    Ok(email)
}

#[tokio::test]
async fn a_database_of_a_later_version_is_left_alone() -> Result<()> {
    let opened = Opened::new().await?;
    opened.database().change("PRAGMA user_version = 99")?;
    let refused = Opened::at(opened.folder).await.err().context("refused")?.to_string();
    assert!(refused.contains("a later version made it: its schema is 99, the latest known here is 3"), "{refused}");
    Ok(())
}

#[tokio::test]
async fn a_row_that_is_damaged_keeps_nobody_else_from_writing() -> Result<()> {
    let opened = Opened::new().await?;
    let mut event = settled("one", &["a@b.cd"]);
    if let Fate::Planned(invocations) = &mut event.fate {
        invocations[0].outcome = Outcome::Retry { due_ms: 0, reason: "later".into() };
    }
    opened.store.settle(event).await?;
    opened.database().change("UPDATE invocation SET identity = CAST(x'ff' AS TEXT)")?;
    let due = opened.store.due_retries(Room { tenants: vec!["default".into()], each: 9 });
    let other = opened.store.settle(settled("two", &["b@b.cd"]));
    let both = async { tokio::join!(due, other) };
    let (due, other) = tokio::time::timeout(SOON, both).await.context("the writer is stuck")?;
    assert!(due.err().context("refused")?.to_string().contains("utf-8"));
    assert_eq!(other?, Verdict::Won);
    Ok(())
}

#[tokio::test]
async fn those_who_make_a_database_at_the_same_time_all_have_it() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let address = format!("sqlite:{}/s.db", folder.path().display());
    let tracker = TaskTracker::new();
    for opened in futures_util::future::join_all((0..8).map(|_| Store::open(&address, &tracker))).await {
        opened?.unfinished().await?;
    }
    Ok(())
}
