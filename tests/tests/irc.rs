//! IRC, on a real server with TLS and a password: what is said, how fast, and what becomes of it when things go wrong.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use end_to_end::world::store;
use end_to_end::{Broker, IrcServer, Service, World, guest, wait};
use pulse_notifier::effect::{Effect, Hash, Origin};
use pulse_notifier::grant::{About, Grant, IrcGrant, Pattern};
use pulse_notifier::intake::event::TaskId;
use pulse_notifier::intake::task::{MemoryTasks, TaskReads, Tasks};
use pulse_notifier::sandbox::{ComponentLimits, Ending, Invocation, Limits, Report, Sandbox, types};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(60);
const FAILED: &str = "\u{3}04";

struct Place {
    world: World,
    irc: IrcServer,
}

impl Place {
    async fn new() -> Result<Self> {
        let world = World::new(Broker::shared().await?, &["smtp", "irc", "hostile"]).await?;
        Ok(Self { world, irc: IrcServer::start().await? })
    }

    /// The service with an account on this server; it trusts the mail server's authority as well.
    fn service(&self, plugins: &[&str]) -> Result<Service> {
        let service = self.world.service(plugins)?;
        let ca_file = service.directory().join("ca.pem");
        let read = |path: &Path| std::fs::read_to_string(path);
        std::fs::write(&ca_file, read(&self.world.smtp.ca_file())? + &read(&self.irc.ca_file())?)?;
        Ok(service
            .env("SSL_CERT_FILE", ca_file.display())
            .env("IRC_PORT", self.irc.port())
            .env("IRC_NAME", "Pulse Notifier")
            .env("IRC_PASS", self.irc.password()))
    }

    async fn started(&self, plugins: &[&str], env: &[(&str, &str)]) -> Result<Service> {
        let mut service = self.service(plugins)?;
        service.start_with(env)?;
        service.wait_for_output("consuming", SOON).await?;
        Ok(service)
    }

    /// Publishes that a task with this section has failed; its id.
    async fn fail(&self, section: Value) -> Result<String> {
        let (task_id, message) = self.world.failed_task(&section);
        self.world.publish(&message).await?;
        Ok(task_id)
    }
}

fn say(message: &str) -> Value {
    json!({"plugins": ["irc"], "channels": ["#ci"], "message": message})
}

#[tokio::test]
async fn a_message_is_said_line_by_line_in_its_colour_and_in_order() -> Result<()> {
    let place = Place::new().await?;
    let reader = place.irc.reader("reader", "#ci").await?;
    let service = place.started(&["irc"], &[]).await?;
    let text = "It broke ☃\r\n\n  PRIVMSG #ci :no\u{3}05 command\nEnd\n";
    let section = json!({"plugins": ["irc"], "channels": ["#ci"], "nicks": ["ann", "bob"], "message": text});
    let task_id = place.fail(section).await?;
    let said = reader.wait_for(3, SOON).await?;
    let expected = [
        format!("{FAILED}ann: bob: {task_id}: It broke ☃{FAILED}"),
        format!("{FAILED}  PRIVMSG #ci :no 05 command{FAILED}"),
        format!("{FAILED}End{FAILED}"),
    ];
    assert_eq!(said.iter().map(|said| said.text.clone()).collect::<Vec<_>>(), expected);
    assert!(said.iter().all(|said| said.nick == "pulse" && said.target == "#ci"), "{said:?}");
    let store = store(&service);
    let effects = "SELECT state || ' ' || destination || ' ' || CAST(recipient AS TEXT) || ' ' || in_doubt || ' ' || \
                   CAST(reason AS TEXT) FROM effect";
    let expected = ["delivered irc/irc #ci 0 said as pulse"];
    wait::until("it is on record", SOON, async || Ok(store.rows(effects)? == expected)).await
}

#[tokio::test]
async fn without_channels_the_operators_is_told_and_without_that_nobody() -> Result<()> {
    let place = Place::new().await?;
    let reader = place.irc.reader("reader", "#default").await?;
    let mut service = place.started(&["irc"], &[]).await?;
    place.fail(json!({"plugins": ["irc"], "message": "unheard"})).await?;
    let store = store(&service);
    let done = "SELECT COUNT(*) FROM invocation WHERE state = 'done' AND CAST(log AS TEXT) LIKE '%nobody to tell%'";
    wait::until("nobody is told", SOON, async || Ok(store.count(done)? == 1)).await?;
    assert_eq!(store.count("SELECT COUNT(*) FROM effect")?, 0);
    service.terminate()?;
    assert!(service.wait_exit(SOON).await?.success());
    service.start_with(&[("IRC_CHAN", "#default")])?;
    service.wait_for_output("consuming", SOON).await?;
    let task_id = place.fail(json!({"plugins": ["irc"], "message": "heard"})).await?;
    assert_eq!(reader.wait_for(1, SOON).await?[0].text, format!("{FAILED}{task_id}: heard{FAILED}"));
    service.terminate()?;
    assert!(service.wait_exit(SOON).await?.success());
    wait::until("it takes its leave", SOON, async || {
        Ok(reader.heard().iter().any(|line| line.starts_with(":pulse!") && line.contains(" QUIT ")))
    })
    .await
}

#[tokio::test]
async fn when_the_server_dies_what_waited_is_said_once_it_is_back() -> Result<()> {
    let mut place = Place::new().await?;
    let reader = place.irc.reader("reader", "#ci").await?;
    let mut service = place.started(&["irc"], &[]).await?;
    place.fail(say("before")).await?;
    reader.wait_for(1, SOON).await?;
    let store = store(&service);
    let delivered = "SELECT COUNT(*) FROM effect WHERE state = 'delivered'";
    wait::until("it is on record", SOON, async || Ok(store.count(delivered)? == 1)).await?;
    place.irc.kill()?;
    service.wait_for_output("the IRC connection is lost", SOON).await?;
    for number in 0..5 {
        place.fail(say(&format!("meanwhile {number}"))).await?;
    }
    let tried = "SELECT COUNT(DISTINCT effect_seq) FROM attempt WHERE outcome = 'transient'";
    wait::until("each was tried in vain", SOON, async || Ok(store.count(tried)? == 5)).await?;
    place.irc.restart().await?;
    let reader = place.irc.reader("reader", "#ci").await?;
    let said: BTreeSet<String> = reader.wait_for(5, SOON).await?.into_iter().map(|said| said.text).collect();
    for number in 0..5 {
        assert!(said.iter().any(|text| text.contains(&format!("meanwhile {number}"))), "{number}: {said:?}");
    }
    wait::until("all are on record", SOON, async || Ok(store.count(delivered)? == 6)).await?;
    assert_eq!(reader.said().len(), 5, "none is said twice");
    assert_eq!(store.count("SELECT COUNT(*) FROM effect WHERE in_doubt > 0")?, 0);
    Ok(())
}

#[tokio::test]
async fn a_line_whose_arrival_nobody_confirms_is_said_again_and_flagged_in_doubt() -> Result<()> {
    let mut place = Place::new().await?;
    let reader = place.irc.reader("reader", "#ci").await?;
    let service = place.started(&["irc"], &[]).await?;
    place.fail(say("before")).await?;
    reader.wait_for(1, SOON).await?;
    let store = store(&service);
    let delivered = "SELECT COUNT(*) FROM effect WHERE state = 'delivered'";
    wait::until("it is on record", SOON, async || Ok(store.count(delivered)? == 1)).await?;
    place.irc.freeze()?;
    place.fail(say("perhaps")).await?;
    let in_doubt = "SELECT COUNT(*) FROM attempt WHERE outcome = 'in doubt'";
    wait::until("nobody knows", SOON, async || Ok(store.count(in_doubt)? == 1)).await?;
    place.irc.thaw()?;
    let said = reader.wait_for(3, SOON).await?;
    assert_eq!(said[1].text, said[2].text);
    let flagged = "SELECT COUNT(*) FROM effect WHERE state = 'delivered' AND in_doubt = 1 AND attempt = 2";
    wait::until("it is flagged", SOON, async || Ok(store.count(flagged)? == 1)).await
}

#[tokio::test]
async fn a_flood_is_said_whole_and_on_one_connection() -> Result<()> {
    const LINES: u32 = 200;
    let place = Place::new().await?;
    let reader = place.irc.reader("reader", "#ci").await?;
    let service = place.started(&["irc"], &[("IRC_LINE_SECONDS", "0.2")]).await?;
    for number in 0..LINES {
        place.fail(say(&format!("line {number}."))).await?;
    }
    let said = reader.wait_for(LINES as usize, Duration::from_secs(120)).await?;
    for number in 0..LINES {
        let times = said.iter().filter(|said| said.text.contains(&format!(": line {number}."))).count();
        assert_eq!(times, 1, "line {number}");
    }
    let store = store(&service);
    let delivered = "SELECT COUNT(*) FROM effect WHERE state = 'delivered' AND attempt = 1 AND in_doubt = 0";
    wait::until("all are on record", SOON, async || Ok(store.count(delivered)? == i64::from(LINES))).await?;
    let came = reader.heard().into_iter().filter(|line| line.starts_with(":pulse!") && !line.contains(" PRIVMSG "));
    let came: Vec<_> = came.collect();
    assert!(came.len() == 1 && came[0].contains(" JOIN "), "it comes once and stays: {came:?}");
    Ok(())
}

#[tokio::test]
async fn lines_keep_the_pace_that_is_set() -> Result<()> {
    let place = Place::new().await?;
    let reader = place.irc.reader("reader", "#ci").await?;
    let _service = place.started(&["irc"], &[("IRC_BURST", "4"), ("IRC_LINE_SECONDS", "1")]).await?;
    let began = Instant::now();
    place.fail(say(&"line\n".repeat(10))).await?;
    reader.wait_for(10, SOON).await?;
    // Joining and ten lines, four of them at once.
    assert!(began.elapsed() >= Duration::from_secs(7), "{:?}", began.elapsed());
    Ok(())
}

#[tokio::test]
async fn what_a_hostile_guest_asks_for_is_refused_and_on_record_and_never_on_the_wire() -> Result<()> {
    let place = Place::new().await?;
    let reader = place.irc.reader("reader", "#ci").await?;
    let nickserv = place.irc.reader("NickServ", "#ci").await?;
    let service = place.started(&["irc", "hostile"], &[]).await?;
    place.fail(json!({"plugins": ["hostile"], "emails": ["a@example.com"], "message": "inject into IRC"})).await?;
    reader.wait_for(1, SOON).await?;
    let last = place.fail(json!({"plugins": ["irc"], "channels": ["NickServ", "#ci"], "message": "last"})).await?;
    let said: Vec<_> = reader.wait_for(2, SOON).await?.into_iter().map(|said| said.text).collect();
    assert_eq!(said, ["only this".to_owned(), format!("{FAILED}{last}: last{FAILED}")]);
    assert!(nickserv.said().iter().all(|said| said.target == "#ci"), "{:?}", nickserv.said());
    assert!(!reader.heard().iter().any(|line| line.contains(" QUIT ")), "{:?}", reader.heard());
    let store = store(&service);
    let refusals = store.rows("SELECT CAST(refusals AS TEXT) FROM invocation ORDER BY id")?;
    let refusals: Vec<Vec<String>> =
        refusals.iter().map(|text| serde_json::from_str(text)).collect::<Result<_, _>>()?;
    assert_eq!(refusals[0].len(), 13, "{refusals:#?}");
    assert_eq!(refusals[0].iter().filter(|refusal| refusal.starts_with("invalid: ")).count(), 13, "{refusals:#?}");
    assert!(refusals[0].contains(&"invalid: expected a channel such as #ci, found \"NickServ\"".to_owned()));
    assert_eq!(refusals[1].len(), 1, "a task's nick is refused alone: {refusals:#?}");
    Ok(())
}

#[tokio::test]
async fn a_wrong_password_kills_nothing_and_everything_is_said_once_it_is_mended() -> Result<()> {
    let place = Place::new().await?;
    let reader = place.irc.reader("reader", "#ci").await?;
    let mut service = place.started(&["irc"], &[("IRC_PASS", "wrong-secret")]).await?;
    for number in 0..3 {
        place.fail(say(&format!("line {number}"))).await?;
    }
    let store = store(&service);
    let waiting = "SELECT COUNT(*) FROM effect WHERE state = 'pending' AND failures = 0";
    let suspended = "SELECT COUNT(*) FROM suspension WHERE destination = 'irc/irc'";
    wait::until("all wait", SOON, async || Ok(store.count(suspended)? == 1 && store.count(waiting)? == 3)).await?;
    let knocks = place.irc.wrong_passwords();
    assert!((1..=2).contains(&knocks), "suspended means that nobody keeps knocking: {knocks}");
    assert!(!service.output().contains("wrong-secret"));
    assert!(reader.said().is_empty());
    service.terminate()?;
    assert!(service.wait_exit(SOON).await?.success());
    service.start_with(&[("IRC_PASS", place.irc.password())])?;
    reader.wait_for(3, SOON).await?;
    wait::until("none is suspended", SOON, async || Ok(store.count(suspended)? == 0)).await
}

#[tokio::test]
async fn a_server_that_cannot_prove_who_it_is_is_told_nothing() -> Result<()> {
    let place = Place::new().await?;
    let other_ca = place.world.smtp.ca_file().display().to_string();
    let service = place.started(&["irc"], &[("SSL_CERT_FILE", &other_ca)]).await?;
    place.fail(say("secret")).await?;
    let store = store(&service);
    let reason = "SELECT CAST(reason AS TEXT) FROM suspension";
    wait::until("it is suspended", SOON, async || Ok(!store.rows(reason)?.is_empty())).await?;
    let reason = store.rows(reason)?.concat();
    assert!(reason.starts_with("TLS: ") && reason.contains("certificate"), "{reason}");
    Ok(())
}

#[tokio::test]
async fn when_the_nick_is_in_use_another_is_taken() -> Result<()> {
    let place = Place::new().await?;
    let reader = place.irc.reader("pulse", "#ci").await?;
    let _service = place.started(&["irc"], &[]).await?;
    let task_id = place.fail(say("hello")).await?;
    let said = reader.wait_for(1, SOON).await?;
    assert_eq!((said[0].nick.as_str(), &said[0].text), ("pulse_", &format!("{FAILED}{task_id}: hello{FAILED}")));
    Ok(())
}

#[tokio::test]
async fn a_channel_that_takes_nothing_from_us_loses_only_its_own() -> Result<()> {
    let place = Place::new().await?;
    let reader = place.irc.reader("reader", "#ci").await?;
    let mut moderated = place.irc.reader("moderator", "#moderated").await?;
    let mut private = place.irc.reader("host", "#private").await?;
    moderated.order("MODE #moderated +m")?;
    private.order("MODE #private +i")?;
    for (owner, mode) in [(&moderated, "MODE #moderated +m"), (&private, "MODE #private +i")] {
        let is_set = async || Ok(owner.heard().iter().any(|line| line.ends_with(mode)));
        wait::until("the mode is set", SOON, is_set).await?;
    }
    let service = place.started(&["irc"], &[]).await?;
    place.fail(json!({"plugins": ["irc"], "channels": ["#private", "#moderated", "#ci"], "message": "a\nb"})).await?;
    reader.wait_for(2, SOON).await?;
    let store = store(&service);
    let states = "SELECT CAST(recipient AS TEXT) || ' ' || state || ' ' || COALESCE(CAST(reason AS TEXT), '') \
                  FROM effect ORDER BY 1";
    let expected = [
        "#ci delivered said as pulse",
        "#moderated dead PRIVMSG: Cannot send to channel (404)",
        "#private dead JOIN: Cannot join channel (+i) -- Invited users only (473)",
    ];
    let mut seen = Vec::new();
    let settled = wait::until("each has had its answer", SOON, async || {
        seen = store.rows(states)?;
        Ok(seen.iter().all(|row| !row.contains(" pending ") && !row.contains(" claimed ")))
    });
    settled.await?;
    assert_eq!(seen, expected);
    assert!(moderated.said().is_empty() && private.said().is_empty());
    Ok(())
}

#[tokio::test]
async fn a_nick_as_long_as_the_server_allows_gives_way_to_one_as_long() -> Result<()> {
    let place = Place::new().await?;
    let reader = place.irc.reader("ninebytes", "#ci").await?;
    let _service = place.started(&["irc"], &[("IRC_NICK", "ninebytes")]).await?;
    place.fail(say("hello")).await?;
    assert_eq!(reader.wait_for(1, SOON).await?[0].nick, "ninebyte_");
    Ok(())
}

#[tokio::test]
async fn a_nick_that_is_none_waits_for_whoever_mends_it() -> Result<()> {
    let place = Place::new().await?;
    let reader = place.irc.reader("reader", "#ci").await?;
    let mut service = place.started(&["irc"], &[("IRC_NICK", "pulse-notifier")]).await?;
    place.fail(say("hello")).await?;
    let store = store(&service);
    let reason = "SELECT CAST(reason AS TEXT) FROM suspension";
    wait::until("it is suspended", SOON, async || Ok(!store.rows(reason)?.is_empty())).await?;
    let reason = store.rows(reason)?.concat();
    assert!(reason.starts_with("register: ") && reason.ends_with("(432)"), "{reason}");
    service.terminate()?;
    assert!(service.wait_exit(SOON).await?.success());
    service.start_with(&[("IRC_NICK", "pulse")])?;
    reader.wait_for(1, SOON).await?;
    Ok(())
}

#[tokio::test]
async fn a_channel_that_is_full_is_waited_for_while_others_are_told() -> Result<()> {
    let place = Place::new().await?;
    let reader = place.irc.reader("reader", "#ci").await?;
    let mut owner = place.irc.reader("owner", "#full").await?;
    owner.order("MODE #full +l 1")?;
    let is_set = async || Ok(owner.heard().iter().any(|line| line.ends_with("MODE #full +l 1")));
    wait::until("the mode is set", SOON, is_set).await?;
    let service = place.started(&["irc"], &[]).await?;
    place.fail(json!({"plugins": ["irc"], "channels": ["#full", "#ci"], "message": "hello"})).await?;
    reader.wait_for(1, SOON).await?;
    let store = store(&service);
    let waits = "SELECT COUNT(*) FROM attempt WHERE outcome = 'transient' AND CAST(answer AS TEXT) LIKE 'JOIN: %(471)'";
    wait::until("the channel is full", SOON, async || Ok(store.count(waits)? >= 1)).await?;
    owner.order("MODE #full -l")?;
    owner.wait_for(1, SOON).await?;
    let delivered = "SELECT COUNT(*) FROM effect WHERE state = 'delivered' AND in_doubt = 0";
    wait::until("both are on record", SOON, async || Ok(store.count(delivered)? == 2)).await
}

#[tokio::test]
async fn more_channels_than_the_server_allows_at_once_are_told_all_the_same() -> Result<()> {
    const CHANNELS: u32 = 12; // two more than allowed
    let place = Place::new().await?;
    let service = place.started(&["irc"], &[("IRC_LINE_SECONDS", "0.1")]).await?;
    let channels: Vec<String> = (0..CHANNELS).map(|number| format!("#ci{number}")).collect();
    place.fail(json!({"plugins": ["irc"], "channels": channels, "message": "hello"})).await?;
    let store = store(&service);
    let delivered = "SELECT COUNT(*) FROM effect WHERE state = 'delivered' AND in_doubt = 0";
    wait::until("all are told", SOON, async || Ok(store.count(delivered)? == i64::from(CHANNELS))).await?;
    let too_many = "SELECT COUNT(*) FROM attempt WHERE CAST(answer AS TEXT) LIKE 'JOIN: %(405)'";
    assert_eq!(store.count(too_many)?, 1, "the next connection is in no channel");
    Ok(())
}

#[tokio::test]
async fn who_was_thrown_out_of_a_channel_comes_back_with_the_next_message() -> Result<()> {
    let place = Place::new().await?;
    let mut owner = place.irc.reader("owner", "#ci").await?;
    let _service = place.started(&["irc"], &[]).await?;
    place.fail(say("before")).await?;
    owner.wait_for(1, SOON).await?;
    owner.order("KICK #ci pulse :out")?;
    let is_out = async || Ok(owner.heard().iter().any(|line| line.contains(" KICK #ci pulse ")));
    wait::until("it is thrown out", SOON, is_out).await?;
    place.fail(say("after")).await?;
    assert!(owner.wait_for(2, SOON).await?[1].text.contains("after"));
    Ok(())
}

/// What the plugin asks for on an event, without a server.
async fn asked(status: &str, notification: types::Notification, logs: &[&str]) -> Vec<(String, Vec<String>)> {
    let sandbox = Sandbox::start().unwrap();
    let grant =
        Grant { irc: Some(IrcGrant { account: "irc".into(), channels: vec![Pattern::new("*")] }), ..Grant::default() };
    let version = sandbox
        .admit("irc", &std::fs::read(guest("irc").unwrap()).unwrap(), &grant, &ComponentLimits::default())
        .unwrap();
    let task_id = TaskId::new(TASK).unwrap();
    let tasks = Tasks::Memory(MemoryTasks::new("https://tc.example.com".parse().unwrap()));
    let log = |url: &&str| types::CollectedLog {
        run_id: 0,
        artifact: String::new(),
        s3_key: String::new(),
        url: (*url).to_owned(),
    };
    let event = types::Event {
        id: String::new(),
        tenant: "default".into(),
        status: status.into(),
        exchange: String::new(),
        routing_key: String::new(),
        cc_routes: Vec::new(),
        redelivered: false,
        time: "2018-01-30T14:25:17Z".into(),
        task_id: task_id.to_string(),
        run_id: Some(0),
        task_group_id: task_id.to_string(),
        task_url: String::new(),
        task_group_url: String::new(),
        body: "{}".into(),
        task: "{}".into(),
        logs: logs.iter().map(log).collect(),
        notification,
    };
    let origin =
        Origin { event: Hash::of_bytes(b"event"), generation: 0, identity: "default".into(), plugin: "irc".into() };
    let invocation = Invocation {
        origin,
        about: About { task_id: task_id.clone(), hops: 0, log_addresses: Vec::new() },
        event,
        time: "2018-01-30T14:25:17Z".parse().unwrap(),
        grant: Arc::new(grant),
        settings: Arc::new(BTreeMap::new()),
        limits: Limits::default(),
        reads: TaskReads::new(Arc::new(tasks), task_id),
    };
    let Report { ending: Ending::Planned(plan), .. } = sandbox.invoke(&version, invocation).await else {
        return Vec::new();
    };
    let lines = |effect| match effect {
        Effect::Irc(irc) => Some((irc.channel, irc.lines)),
        _ => None,
    };
    plan.effects.into_iter().filter_map(|planned| lines(planned.effect)).collect()
}

fn notification(channels: &[&str], message: &str) -> types::Notification {
    types::Notification {
        identity: "default".into(),
        subject: String::new(),
        message: message.into(),
        emails: Vec::new(),
        nicks: Vec::new(),
        channels: channels.iter().map(|&channel| channel.to_owned()).collect(),
        section: "{}".into(),
    }
}

const TASK: &str = "A35mWTRuQmyj88yMnIF0fA";

#[tokio::test]
async fn each_status_has_its_colour_and_each_log_its_line() {
    for (status, colour) in [
        ("task-completed", "\u{3}03"),
        ("task-failed", "\u{3}04"),
        ("artifact-created", "\u{3}02"),
        ("task-exception", "\u{3}06"),
        ("task-running", ""),
    ] {
        let asked = asked(status, notification(&["#a", "#b"], "m"), &["https://l/0", "https://l/1"]).await;
        let lines: Vec<_> = [format!("{TASK}: m"), "\t\thttps://l/0".into(), "\t\thttps://l/1".into()]
            .map(|line: String| format!("{colour}{line}{colour}"))
            .into();
        assert_eq!(asked, [("#a".to_owned(), lines.clone()), ("#b".to_owned(), lines)], "{status}");
    }
}

#[tokio::test]
async fn the_longest_message_still_is_a_wellformed_effect() {
    let (url, message) = (format!("https://l/{}", "u".repeat(2_000)), "☃".repeat(10_000));
    let asked = asked("task-failed", notification(&["#a"], &message), &[url.as_str(); 3]).await;
    assert_eq!(asked[0].1.len(), 10 + 3);
    assert!(asked[0].1.iter().all(|line| line.len() <= 3 + 2 + 400 + 3));
}
