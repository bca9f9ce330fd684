//! Everything bad or strange that can arrive, row by row, and what becomes of it: on one queue, in one process, each
//! followed by a task as it should be.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use end_to_end::world::{definition, exchange, mail_to, store};
use end_to_end::{Answer, Broker, Service, World, wait};
use lapin::types::{AMQPValue, FieldArray, FieldTable};
use serde_json::{Value, json};

/// A name, the message, what Taskcluster says of its task, and how each line of what [`found`] finds in the end begins.
type Input = (&'static str, Message, Taskcluster, &'static [&'static str]);

enum Message {
    /// A failed task, as it should be.
    Ordinary,
    /// The same with this laid over its body.
    With(Value),
    /// The same from the exchange of another status.
    Of(&'static str, Value),
    /// The same with this header `CC`.
    Cc(Vec<AMQPValue>),
    /// This body.
    Body(Vec<u8>),
}

enum Taskcluster {
    /// A definition as it should be, whose section wants a mail, with this laid over.
    Task(Value),
    /// This answer, always.
    Answers(Answer),
    /// This answer at first, then a definition as it should be.
    AnswersAtFirst(Answer),
}

use Message::{Body, Cc, Of, Ordinary, With};
use Taskcluster::{Answers, AnswersAtFirst, Task};

const NOTHING: &[&str] = &[];
const MAILED: &[&str] = &["planned", "a@example.com: It failed"];
const MAILED_LATER: &[&str] = &["deferred, then planned", "a@example.com: It failed"];
const MAILED_WITH_FALLBACK: &[&str] = &["planned", "a@example.com: Task failed: a test"];
const NOBODY_TOLD: &[&str] = &["planned"];
const MAILED_TO_RELEASE_TOO: &[&str] = &["planned", "a@example.com: It failed", "release@example.com: It failed"];
const NO_OBJECT: &[&str] = &["no event: expected a JSON object as the body: "];
const NO_TASK_ID: &[&str] = &["no event: expected a task id at status.taskId, found none"];
const BAD_TASK_ID: &[&str] = &["no event: expected 1 to 38 characters of A-Z a-z 0-9 - _ at status.taskId, found "];
const UNREADABLE: &[&str] = &["dead: unexpected answer: not JSON: "];
const TOO_LARGE: &[&str] = &["dead: a definition of more than 11000000 bytes"];

fn inputs() -> Vec<Input> {
    vec![
        // First, since it takes longer than all the others together: none of them may wait for it.
        ("an answer that never comes", Ordinary, AnswersAtFirst(Answer::Hang), MAILED_LATER),
        // Bodies.
        ("as it should be", Ordinary, ordinary(), MAILED),
        ("not JSON", Body(b"not json".to_vec()), ordinary(), NO_OBJECT),
        ("an empty body", Body(vec![]), ordinary(), NO_OBJECT),
        ("bytes that are no text", Body(b"\xff\xfe".to_vec()), ordinary(), NO_OBJECT),
        ("a body cut short", Body(br#"{"status": {"taskId": "A35m"#.to_vec()), ordinary(), NO_OBJECT),
        ("two megabytes of nothing", Body(vec![b' '; 2 << 20]), ordinary(), NO_OBJECT),
        ("a body nested 10,000 levels", Body(b"[".repeat(10_000)), ordinary(), NO_OBJECT),
        ("a list as the body", Body(b"[]".to_vec()), ordinary(), NO_OBJECT),
        ("null as the body", Body(b"null".to_vec()), ordinary(), NO_OBJECT),
        ("no status", Body(b"{}".to_vec()), ordinary(), NO_TASK_ID),
        ("status null", With(json!({"status": null})), ordinary(), NO_TASK_ID),
        ("status a text", With(json!({"status": "failed"})), ordinary(), NO_TASK_ID),
        ("a body of 2 MB", With(json!({"more": "x".repeat(2_000_000)})), ordinary(), MAILED),
        ("a body with NULs", With(json!({"\u{0}": "\u{0}"})), ordinary(), MAILED),
        // Task ids.
        ("a number as task id", With(task_id(json!(7))), ordinary(), NO_TASK_ID),
        ("an empty task id", With(task_id(json!(""))), ordinary(), BAD_TASK_ID),
        ("a path as task id", With(task_id(json!("../../auth/v1/clients"))), ordinary(), BAD_TASK_ID),
        ("line breaks in the task id", With(task_id(json!("A\r\nHost: x"))), ordinary(), BAD_TASK_ID),
        ("a task id of 200 characters", With(task_id(json!("A".repeat(200)))), ordinary(), BAD_TASK_ID),
        ("a task id outside ASCII", With(task_id(json!("Äé☃"))), ordinary(), BAD_TASK_ID),
        // Runs, groups, times.
        ("a run that is not among the runs", With(json!({"runId": 7})), ordinary(), MAILED),
        ("no run", With(json!({"runId": null, "status": {"runs": null}})), ordinary(), MAILED),
        ("runs that are none", With(json!({"status": {"runs": [null, 3, {"runId": "0"}]}})), ordinary(), MAILED),
        ("a negative run", With(json!({"runId": -1})), ordinary(), MAILED),
        ("a run beyond 32 bits", With(json!({"runId": u64::MAX})), ordinary(), MAILED),
        ("a run of 1e300", With(json!({"runId": 1e300, "status": {"runs": [{"runId": 1e300}]}})), ordinary(), MAILED),
        ("a time that is none", With(resolved("yesterday")), ordinary(), MAILED),
        ("a time before all times", With(resolved("-009999-01-01T00:00:00Z")), ordinary(), MAILED),
        ("a group that is none", With(json!({"status": {"taskGroupId": "../\r\n"}})), ordinary(), MAILED),
        (
            "an exception that is retried, and so pending",
            Of("task-exception", json!({"status": {"state": "pending", "runs": [{"state": "exception"}]}})),
            Task(json!({"extra": {"notifications": {
                "task-pending": mail_to("pending@example.com"),
                "task-exception": mail_to("exception@example.com"),
            }}})),
            &["planned", "exception@example.com: It failed"],
        ),
        // Headers. A `CC` that is no list never passes a broker.
        ("no CC", Cc(vec![]), ordinary(), MAILED),
        ("100 KB of CC", Cc(vec![AMQPValue::ByteArray(vec![255; 100_000].into())]), ordinary(), MAILED),
        (
            "CC with what is no text",
            Cc(vec![
                AMQPValue::Boolean(true),
                AMQPValue::ShortInt(7),
                AMQPValue::LongLongInt(-7),
                AMQPValue::Double(0.5),
                AMQPValue::Timestamp(7),
                AMQPValue::ByteArray(vec![0, 255].into()),
                AMQPValue::Void,
                AMQPValue::FieldArray(FieldArray::default()),
                AMQPValue::FieldTable(FieldTable::default()),
                AMQPValue::LongString(b"route.\xff".to_vec().into()),
                AMQPValue::LongString("route.b".into()),
            ]),
            ordinary(),
            &["planned", "a@example.com: It failed", "under route.b", "under route.\u{fffd}"],
        ),
        // Answers without a definition.
        ("404 for an event just now", Ordinary, AnswersAtFirst(Answer::Error(404)), MAILED_LATER),
        (
            "404 for an event of the past",
            With(resolved("2019-06-26T19:36:10.316Z")),
            Answers(Answer::Error(404)),
            &["dead: no such task (404)"],
        ),
        ("410", Ordinary, Answers(Answer::Error(410)), &["dead: the task is gone (410)"]),
        ("424", Ordinary, Answers(Answer::Error(424)), &["dead: unexpected answer: 424 Failed Dependency"]),
        ("500", Ordinary, AnswersAtFirst(Answer::Error(500)), MAILED_LATER),
        ("429", Ordinary, AnswersAtFirst(Answer::Error(429)), MAILED_LATER),
        ("403", Ordinary, AnswersAtFirst(Answer::Error(403)), MAILED_LATER),
        ("a redirect", Ordinary, AnswersAtFirst(Answer::Error(303)), MAILED_LATER),
        ("a page that says 200", Ordinary, AnswersAtFirst(Answer::Html(200)), MAILED_LATER),
        ("a definition of 12 MB", Ordinary, Answers(Answer::Big(12_000_000)), TOO_LARGE),
        ("a gzip bomb", Ordinary, Answers(Answer::GzipBomb(100_000_000)), TOO_LARGE),
        // Definitions.
        ("an empty definition", Ordinary, raw(""), UNREADABLE),
        (
            "a definition that is no text",
            Ordinary,
            raw(b"{\"metadata\": {\"name\": \"\xe9\"}}"),
            &["dead: unexpected answer: not UTF-8"],
        ),
        ("a definition that is a list", Ordinary, raw("[]"), &["dead: unexpected answer: not an object but a list"]),
        ("a definition nested 10,000 levels", Ordinary, raw(format!(r#"{{"a":{}"#, "[".repeat(10_000))), UNREADABLE),
        ("a definition with 1e400", Ordinary, raw(r#"{"payload": 1e400}"#), UNREADABLE),
        ("a definition nested 100 levels", Ordinary, Task(json!({"payload": nested(100)})), MAILED),
        ("a definition of 10 MB", Ordinary, Task(json!({"payload": "x".repeat(10_000_000)})), MAILED),
        ("an object without anything", Ordinary, raw("{}"), NOTHING),
        ("extra null", Ordinary, Task(json!({"extra": null})), NOTHING),
        ("extra a list", Ordinary, Task(json!({"extra": [{"notifications": {}}]})), NOTHING),
        ("notifications null", Ordinary, Task(json!({"extra": {"notifications": null}})), NOTHING),
        ("notifications a text", Ordinary, Task(json!({"extra": {"notifications": "none"}})), NOTHING),
        ("notifications a list", Ordinary, Task(json!({"extra": {"notifications": ["task-failed"]}})), NOTHING),
        (
            "the older generation's key",
            Ordinary,
            Answers(Answer::Task(json!({"extra": {"notification": {"task-failed": mail_to("a@example.com")}}}))),
            MAILED,
        ),
        ("a section null", Ordinary, section(json!(null)), NOTHING),
        ("a section that is a text", Ordinary, section(json!("no notifications")), NOTHING),
        ("a section that is a list", Ordinary, section(json!(["smtp"])), NOTHING),
        ("a section nested 100 levels", Ordinary, section(json!({"more": nested(100)})), MAILED),
        ("a task without a name", Ordinary, Task(json!({"metadata": null})), MAILED),
        (
            "neither a name nor a subject",
            Ordinary,
            Task(json!({"metadata": {"name": 7}, "extra": {"notifications": {"task-failed": {"subject": null}}}})),
            &["planned", "a@example.com: Task failed: unnamed"],
        ),
        // Fields of a section.
        (
            "no text at all",
            Ordinary,
            Answers(Answer::Task(definition(&json!({"plugins": ["smtp"], "emails": ["a@example.com"]})))),
            MAILED_WITH_FALLBACK,
        ),
        ("a subject that is a number", Ordinary, section(json!({"subject": 7})), MAILED_WITH_FALLBACK),
        ("a subject of white space", Ordinary, section(json!({"subject": " \r\n\t"})), MAILED_WITH_FALLBACK),
        ("a message that is an object", Ordinary, section(json!({"message": {"a": "b"}})), MAILED),
        ("a message of 300,000 characters", Ordinary, section(json!({"message": "x".repeat(300_000)})), MAILED),
        ("emails that are one text", Ordinary, section(json!({"emails": "a@example.com"})), MAILED),
        ("numbers among emails", Ordinary, section(json!({"emails": [7, "a@example.com", null, []]})), MAILED),
        ("emails an object", Ordinary, section(json!({"emails": {"to": "a@example.com"}})), NOBODY_TOLD),
        ("emails null", Ordinary, section(json!({"emails": null})), NOBODY_TOLD),
        ("an email twice", Ordinary, section(json!({"emails": ["a@example.com", " a@example.com"]})), MAILED),
        (
            "emails that are no addresses beside one that is",
            Ordinary,
            section(json!({"emails": ["nobody", "x@y\r\nBcc: z@example.com", "a@example.com", "<b@example.com>"]})),
            &[
                "planned",
                "<b@example.com> refused: invalid: ",
                "a@example.com: It failed",
                "nobody refused: invalid: ",
                "x@y\r\nBcc: z@example.com refused: invalid: ",
            ],
        ),
        (
            "emails of which none is an address",
            Ordinary,
            section(json!({"emails": ["x@y\r\nBcc: z@example.com"]})),
            &["planned", "smtp failed: invalid: expected a mail address, "],
        ),
        ("nicks null", Ordinary, section(json!({"nicks": null})), MAILED),
        ("channels an object", Ordinary, section(json!({"channels": {"#ci": true}})), MAILED),
        ("plugins that are one text", Ordinary, section(json!({"plugins": "smtp"})), MAILED),
        ("plugins a number", Ordinary, section(json!({"plugins": 3})), NOTHING),
        ("plugins null", Ordinary, section(json!({"plugins": null})), NOTHING),
        ("no plugins", Ordinary, section(json!({"plugins": []})), NOTHING),
        ("a map of plugins with wrong types", Ordinary, section(json!({"plugins": {"smtp": 7, "irc": []}})), MAILED),
        (
            "10,000 unknown plugins",
            Ordinary,
            section(json!({"plugins": (0..10_000).map(|number| format!("plugin-{number}")).collect::<Vec<_>>()})),
            NOTHING,
        ),
        ("an unknown plugin alone", Ordinary, section(json!({"plugins": ["../smtp"]})), NOTHING),
        ("an unknown plugin beside a known one", Ordinary, section(json!({"plugins": ["nope\r\n", "smtp"]})), MAILED),
        ("a plugin twice", Ordinary, section(json!({"plugins": ["smtp", "smtp"]})), MAILED),
        ("ids a text", Ordinary, section(json!({"ids": "release"})), MAILED_TO_RELEASE_TOO),
        ("an id twice", Ordinary, section(json!({"ids": ["release", "release"]})), MAILED_TO_RELEASE_TOO),
        ("ids of nobody and of no type", Ordinary, section(json!({"ids": ["who", 7, null]})), MAILED),
        ("ids an object", Ordinary, section(json!({"ids": {"release": true}})), MAILED),
        (
            "nothing but text outside ASCII",
            Ordinary,
            Task(json!({"metadata": {"name": "größer ☃"}, "extra": {"notifications": {"task-failed":
                {"emails": ["jörg@example.com", "a@example.com"], "subject": null, "message": "żółw 🐢 {task_id}"}}}})),
            &[
                "planned",
                "a@example.com: Task failed: =?utf-8?b?Z3LDtsOfZXIg4piD?=",
                "jörg@example.com dead: RCPT: the server takes no addresses outside ASCII (SMTPUTF8)",
            ],
        ),
        (
            "line breaks, NUL and mail commands as text",
            Ordinary,
            section(json!({"subject": "ü\u{0}\r\nBcc: z@example.com", "message": "\u{0}\r\n.\r\nQUIT ☃"})),
            &["planned", "a@example.com: =?utf-8?b?w7w=?= Bcc: z@example.com"],
        ),
        (
            "a subject of 100,000 characters",
            Ordinary,
            section(json!({"subject": "x".repeat(100_000)})),
            &["planned", "a@example.com: xxxxxxxx"],
        ),
    ]
}

const IDENTITIES: &str = "release:\n  plugins: [smtp]\n  emails: [release@example.com]\n";

#[tokio::test]
async fn whatever_arrives_has_its_fate_and_the_next_message_is_served_at_once() -> Result<()> {
    let world = World::new(Broker::shared().await?, &["smtp"]).await?;
    let service = world.service(&["smtp"])?;
    let identities = service.directory().join("identities.yml");
    std::fs::write(&identities, IDENTITIES)?;
    let mut service = service.env("PN_IDENTITIES", identities.display());
    service.start()?;
    service.wait_for_output("consuming", SOON).await?;

    let mut expected = BTreeMap::new();
    for (name, message, taskcluster, fate) in inputs() {
        let task_id = publish(&world, message, taskcluster).await.context(name)?;
        expected.insert(task_id, (name, fate));
        serve_the_next(&world, name).await?;
    }
    world.queue_is_empty().await?;
    let store = store(&service);
    let unfinished = "SELECT (SELECT COUNT(*) FROM event WHERE state = 'deferred') \
                      + (SELECT COUNT(*) FROM effect WHERE state IN ('pending', 'claimed'))";
    wait::until("nothing is left to do", SOON, async || Ok(store.count(unfinished)? == 0)).await?;

    let mut found = found(&world, &service).await?;
    let wrong: Vec<_> = expected
        .iter()
        .map(|(task_id, (name, fate))| (name, *fate, found.remove(task_id).unwrap_or_default()))
        .filter(|(_, fate, found)| !agree(fate, found))
        .collect();
    assert!(wrong.is_empty(), "name, expected, found: {wrong:#?}");
    let next = ["planned", "next@example.com: It failed"];
    assert!(found.len() == expected.len() && found.values().all(|found| agree(&next, found)), "{found:?}");
    for (task_id, (name, fate)) in expected {
        let is_dead = fate.iter().any(|line| line.starts_with("dead"));
        assert!(!is_dead || world.taskcluster.requests(&task_id) == 1, "{name}: asked for again");
    }
    assert!(!service.output().contains("panicked"));
    assert!(world.smtp.mails()?.iter().all(|mail| mail.header("Bcc").is_none()));
    Ok(())
}

/// Publishes one input; the id of the task it is about, or would be about if nothing were wrong with it.
async fn publish(world: &World, message: Message, taskcluster: Taskcluster) -> Result<String> {
    let (task_id, ordinary) = world.unknown_task();
    let as_it_should_be = definition(&mail_to("a@example.com"));
    match taskcluster {
        Task(over) => world.taskcluster.define(&task_id, laid_over(as_it_should_be, over)),
        Answers(answer) => world.taskcluster.answer(&task_id, answer),
        AnswersAtFirst(answer) => {
            world.taskcluster.answer_once(&task_id, answer);
            world.taskcluster.define(&task_id, as_it_should_be);
        }
    }
    let (mut from, mut headers, mut body) =
        (ordinary.exchange, FieldTable::default(), ordinary.body.to_string().into());
    match message {
        Ordinary => {}
        With(over) => body = laid_over(ordinary.body, over).to_string().into(),
        Of(status, over) => {
            from = exchange(status);
            body = laid_over(ordinary.body, over).to_string().into();
        }
        Cc(routes) => _ = headers.insert("CC".into(), AMQPValue::FieldArray(FieldArray::from(routes))),
        Body(bytes) => body = bytes,
    }
    world.vhost.publisher().await?.publish_with(&from, &ordinary.routing_key, headers, &body).await?;
    Ok(task_id)
}

async fn serve_the_next(world: &World, after: &str) -> Result<()> {
    let (task_id, next) = world.failed_task(&mail_to("next@example.com"));
    world.publish(&next).await?;
    wait::until(&format!("the message after {after:?} is served"), SOON, async || {
        Ok(world.smtp.mails()?.iter().any(|mail| mail.data.contains(&task_id)))
    })
    .await
}

/// What the database and the mail server have of each task, a line for each thing.
async fn found(world: &World, service: &Service) -> Result<BTreeMap<String, Vec<String>>> {
    let store = store(service);
    let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for line in store.rows(ON_RECORD)? {
        let (task_id, line) = line.split_once(' ').context("a task id and more")?;
        found.entry(task_id.to_owned()).or_default().push(line.to_owned());
    }
    let asked_by = "SELECT LOWER(HEX(effect.id)) || ' ' || task_id FROM effect \
                    JOIN invocation ON invocation.id = invocation_id JOIN event ON event.id = event_id";
    let effects = store.rows(asked_by)?;
    let asked_by: BTreeMap<_, _> = effects.iter().filter_map(|effect| effect.split_once(' ')).collect();
    for mail in world.smtp.mails()? {
        let effect = mail.header("X-Pulse-Notifier-Effect").context("the effect of a mail")?;
        let task_id = asked_by.get(effect.as_str()).context("the task of a mail")?;
        let line = format!("{}: {}", mail.to.join(" "), mail.header("Subject").unwrap_or_default());
        found.entry((*task_id).to_owned()).or_default().push(line);
    }
    found.values_mut().filter_map(|lines| lines.get_mut(1..)).for_each(<[String]>::sort);
    Ok(found)
}

fn agree(expected: &[&str], found: &[String]) -> bool {
    expected.len() == found.len() && expected.iter().zip(found).all(|(expected, found)| found.starts_with(expected))
}

fn ordinary() -> Taskcluster {
    Task(json!({}))
}

fn section(over: Value) -> Taskcluster {
    Task(json!({"extra": {"notifications": {"task-failed": over}}}))
}

fn raw(definition: impl AsRef<[u8]>) -> Taskcluster {
    Answers(Answer::Raw(definition.as_ref().to_vec()))
}

fn task_id(task_id: Value) -> Value {
    json!({"status": {"taskId": task_id}})
}

fn resolved(time: &str) -> Value {
    json!({"status": {"runs": [{"runId": 0, "resolved": time}]}})
}

fn nested(levels: usize) -> Value {
    (0..levels).fold(json!(0), |inner, _| json!([inner]))
}

/// A value with another laid over it, object by object.
fn laid_over(under: Value, over: Value) -> Value {
    match (under, over) {
        (Value::Object(mut under), Value::Object(over)) => {
            for (field, over) in over {
                let value = laid_over(under.remove(&field).unwrap_or_default(), over);
                under.insert(field, value);
            }
            Value::Object(under)
        }
        (_, over) => over,
    }
}

const SOON: Duration = Duration::from_secs(30);

/// The routing key of each message begins with `primary.` and the task id.
const ON_RECORD: &str = "
    SELECT task_id || ' ' || IIF(state = 'planned' AND tries > 0, 'deferred, then ', '') || state
        || COALESCE(': ' || CAST(reason AS TEXT), '') FROM event
    UNION ALL SELECT SUBSTR(routing_key, 9, 22) || ' no event: ' || CAST(reason AS TEXT) FROM dead_delivery
    UNION ALL SELECT task_id || ' under ' || value FROM event, JSON_EACH(CAST(delivery AS TEXT), '$.cc_routes')
    UNION ALL SELECT task_id || ' ' || invocation.plugin || ' ' || invocation.state || ': '
        || CAST(invocation.reason AS TEXT) FROM invocation
        JOIN event ON event.id = event_id WHERE invocation.state <> 'done'
    UNION ALL SELECT task_id || ' ' || CAST(recipient AS TEXT) || ' ' || effect.state || ': '
        || CAST(effect.reason AS TEXT) FROM effect
        JOIN invocation ON invocation.id = invocation_id
        JOIN event ON event.id = event_id WHERE effect.state <> 'delivered'";
