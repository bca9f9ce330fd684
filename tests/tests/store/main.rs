//! The store by itself, on a real database: who wins, what waits for what, and what may be taken over.

mod claims;
mod database;
mod quotas;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use end_to_end::Database;
use pulse_notifier::effect::{Effect, Email, Hash, Origin, Plan, Planned};
use pulse_notifier::intake::event::Delivery;
use pulse_notifier::store::{
    Basis, Binding, Claimed, Claimer, Fate, Finished, Given, Invocation, Next, Outcome, RegistryChange, Room, Settled,
    Store, Token, Verdict, Withdrawn,
};
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
        while let Some(given) = claims.next().await {
            all.push(given?.claimed);
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
    // Whoever has its name one day is somebody else.
    let token = |id: &str, tenant: Option<&str>| {
        let (id, sha256, tenant) = (id.to_owned(), Hash::of_bytes(id.as_bytes()), tenant.map(str::to_owned));
        RegistryChange::AddToken(Token { id, sha256, tenant, created_ms: 1 })
    };
    for (id, tenant) in [("a", Some("nobody")), ("b", Some("somebody")), ("c", None)] {
        opened.store.change(token(id, tenant)).await?;
    }
    assert!(opened.store.waited_for().await?.1.contains("nobody"));
    opened.store.withdraw(Arc::clone(&gone)).await?;
    let ids: Vec<_> = opened.store.tokens(None).await?.into_iter().map(|token| token.id).collect();
    assert_eq!(ids, ["b", "c"]);
    // Whoever is back when it is the database's turn loses nothing.
    opened.store.settle(settled("four", &["d@b.cd"])).await?;
    *gone.lock().unwrap_or_else(PoisonError::into_inner) = Withdrawn::default();
    assert_eq!(opened.store.withdraw(gone).await?, 0);
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
    while let Some(given) = claims.next().await {
        told.push(given?.claimed.effect.recipient().to_owned());
    }
    assert_eq!(told, ["a@b.cd", "good@b.cd"]);
    Ok(())
}
