//! Who gets what is due, and until when.

use super::*;

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
async fn a_probe_that_is_to_be_tried_again_is_there_for_the_next_one() -> Result<()> {
    let opened = Opened::new().await?;
    opened.store.settle(settled("e", &["a@x.org"])).await?;
    let answers =
        [("suspended", Next::Suspended { probe_ms: i64::MAX }), ("transient", Next::Pending { due_ms: i64::MAX })];
    for (outcome, next) in answers {
        let probe = opened.claim("me").await?.pop().context("it is claimed")?;
        opened.finish("me", &probe, outcome, next).await?;
        assert!(opened.claim("me").await?.is_empty(), "the next probe is not due");
        opened.store.probe_now().await?;
    }
    assert_eq!(opened.claim("me").await?.len(), 1);
    Ok(())
}

#[tokio::test]
async fn what_was_attempted_least_is_the_probe() -> Result<()> {
    let opened = Opened::new().await?;
    opened.store.settle(settled("one", &["a@x.org"])).await?;
    let suspended = || Next::Suspended { probe_ms: i64::MAX };
    for (owner, attempts) in [("me", 1), ("me too", 2)] {
        let claimed = opened.claim(owner).await?.pop().context("it is claimed")?;
        assert_eq!(claimed.attempt, attempts);
        opened.finish(owner, &claimed, "suspended", suspended()).await?;
        opened.store.probe_now().await?;
    }
    opened.store.settle(settled("two", &["b@x.org"])).await?;
    let probe = opened.claim("me").await?;
    assert_eq!(recipients(&probe), ["b@x.org"], "though it came later");
    Ok(())
}

#[tokio::test]
async fn a_claim_stands_and_gets_what_is_due_as_slots_are_free_until_it_is_ended() -> Result<()> {
    let opened = Opened::new().await?;
    let slots = Arc::new(Semaphore::new(1));
    let (owner, destination) = ("me".to_owned(), DESTINATION.to_owned());
    let mut claims = opened.store.claims(Claimer { owner, destination, slots: Arc::clone(&slots) }).await?;
    opened.store.settle(settled("one", &["a@b.cd", "b@b.cd"])).await?;
    let Given { claimed: first, slot, .. } = claims.next().await.context("one")??;
    assert_eq!(slots.available_permits(), 0, "there was one slot");
    // The next one is claimed in the transaction that notes how the first one ended.
    let finished = finished("me", &first, "delivered", Next::Delivered);
    opened.store.finish(finished, Some(slot)).await?;
    let Given { claimed: second, slot, .. } = claims.next().await.context("the other")??;
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
    let Given { claimed: probe, slot: _slot, .. } =
        claims.next().await.context("a probe in the same transaction")??;
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
    let Given { claimed, slot: _slot, .. } = new.next().await.context("the new one stands")??;
    assert_eq!(claimed.effect.recipient(), "b@b.cd");
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
        let Given { claimed: one, slot, .. } = claims.next().await.context("claimed")??;
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
