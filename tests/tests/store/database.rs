//! The file: of before, of a later version, damaged, made by many.

use end_to_end::wait;
use pulse_notifier::store::DeadDelivery;
use rusqlite::Connection;

use super::*;

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
        database.change(include_str!("../../../runtime/migrations/sqlite/0001_first.sql"))?;
        database.change(include_str!("../../../runtime/migrations/sqlite/0002_followers.sql"))?;
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
