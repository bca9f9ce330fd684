//! Tenants that come, change and go while the service runs: all of a state takes effect, or none of it.

use std::fs;
use std::os::unix::fs::symlink;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use end_to_end::tenants::{lines, put_tenant, readiness, remove_tenant, tenant_file};
use end_to_end::world::{mail_to, store};
use end_to_end::{Answer, Behaviour, Broker, Mode, Phase, Service, SmtpServer, World, wait};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(60);
const IN_EFFECT: &str = "the configuration is in effect";
const PROBLEM: &str = "a problem in the configuration: nothing changes";

async fn world() -> Result<World> {
    World::new(Broker::shared().await?, &["smtp", "hostile"]).await
}

/// A tenant that may mail its own people alone.
fn tenant(world: &World, name: &str) -> String {
    world.tenant(name, &[("smtp", &[&format!("*@{name}.example.com")])])
}

/// A service with these tenants, each of which is being consumed.
async fn running(world: &World, names: &[&str]) -> Result<Service> {
    let tenants: Vec<_> = names.iter().map(|name| (*name, tenant(world, name))).collect();
    let tenants: Vec<_> = tenants.iter().map(|(name, file)| (*name, file.as_str())).collect();
    let mut service = world.service_of_tenants(&tenants)?;
    service.start()?;
    consuming(&service, names).await?;
    Ok(service)
}

/// Waits until these tenants, and no others, are being consumed.
async fn consuming(service: &Service, names: &[&str]) -> Result<()> {
    let expected: Value = names.iter().map(|name| ((*name).to_owned(), json!("consuming"))).collect();
    wait::until(&format!("{names:?} are consumed"), SOON, async || {
        Ok(readiness(service).await.is_ok_and(|(_, said)| said.get("queues") == Some(&expected)))
    })
    .await
}

/// Waits until `/readyz` names these problems, each by a part of it; the service stays ready.
async fn problems(service: &Service, expected: &[&str]) -> Result<()> {
    wait::until(&format!("the problems are {expected:?}"), SOON, async || {
        let (status, said) = readiness(service).await?;
        assert_eq!(status, 200, "{said}");
        let found: Vec<String> = serde_json::from_value(said.get("problems").cloned().unwrap_or_default())?;
        let fits = |(found, expected): (&String, &&str)| found.contains(*expected);
        Ok(found.len() == expected.len() && found.iter().zip(expected).all(fits))
    })
    .await
}

/// Publishes a message that makes a mail to `who` at the tenant.
async fn tell(world: &World, tenant: &str, who: &str) -> Result<()> {
    world.publish(&world.failed_task_of(tenant, &mail_to(&format!("{who}@{tenant}.example.com"))).1).await
}

async fn told(world: &World, whom: &str) -> Result<()> {
    let is_there = async || Ok(world.smtp.mails()?.iter().any(|mail| mail.to == [whom]));
    wait::until(&format!("{whom} has a mail"), SOON, is_there).await
}

#[tokio::test]
async fn each_tenant_has_its_own_queue_and_mails_its_own_recipients_alone() -> Result<()> {
    let world = world().await?;
    let _service = running(&world, &["red", "blue"]).await?;
    for tenant in ["red", "blue"] {
        let both = json!({"plugins": ["smtp"], "emails": ["a@red.example.com", "a@blue.example.com"]});
        world.publish(&world.failed_task_of(tenant, &both).1).await?;
    }
    let mut to: Vec<_> = world.smtp.wait_for_mails(2, SOON).await?.iter().map(|mail| mail.to.concat()).collect();
    to.sort();
    assert_eq!(to, ["a@blue.example.com", "a@red.example.com"]);
    Ok(())
}

#[tokio::test]
async fn in_company_a_tenant_has_twenty_events_in_hand_and_its_neighbour_waits_for_none_of_them() -> Result<()> {
    let world = world().await?;
    let _service = running(&world, &["red", "blue"]).await?;
    let mut stuck = Vec::new();
    for number in 0..40 {
        tell(&world, "blue", &number.to_string()).await?;
        let (task_id, message) = world.failed_task_of("red", &mail_to("a@red.example.com"));
        world.taskcluster.answer(&task_id, Answer::Hang);
        world.publish(&message).await?;
        stuck.push(task_id);
    }
    let in_hand = || stuck.iter().filter(|task_id| world.taskcluster.requests(task_id) > 0).count();
    wait::until("red has its hands full", SOON, async || Ok(in_hand() >= 20)).await?;
    for number in 0..40 {
        told(&world, &format!("{number}@blue.example.com")).await?;
    }
    tell(&world, "blue", "last").await?;
    told(&world, "last@blue.example.com").await?;
    assert_eq!(in_hand(), 20);
    Ok(())
}

#[tokio::test]
async fn a_tenant_that_comes_is_served_and_nobody_else_notices() -> Result<()> {
    let world = world().await?;
    // A folder may begin empty.
    let service = running(&world, &[]).await?;
    put_tenant(&service, "red", &tenant(&world, "red"))?;
    consuming(&service, &["red"]).await?;
    tell(&world, "red", "a").await?;
    told(&world, "a@red.example.com").await?;
    put_tenant(&service, "blue", &tenant(&world, "blue"))?;
    consuming(&service, &["blue", "red"]).await?;
    for name in ["red", "blue"] {
        tell(&world, name, "b").await?;
        told(&world, &format!("b@{name}.example.com")).await?;
    }
    assert_eq!(lines(&service, "consuming").len(), 2, "red is consumed as before");
    assert_eq!(world.smtp.connections()?, 2, "one each: red's was kept");
    assert_eq!(lines(&service, "tenant added").len(), 2);
    Ok(())
}

#[tokio::test]
async fn a_state_with_a_problem_changes_nothing_and_says_why_and_a_later_one_takes_effect() -> Result<()> {
    let world = world().await?;
    let service = running(&world, &["red"]).await?;
    let (place, elsewhere) = (tenant_file(&service, "blue"), service.directory().join("elsewhere.toml"));
    let blue = tenant(&world, "blue");
    fs::write(&elsewhere, &blue)?;
    let put = |content: &str| put_tenant(&service, "blue", content);
    let cases: [(&str, &dyn Fn() -> Result<()>); 8] = [
        ("tenants/blue.toml:3: queue.tpye: ", &|| {
            put(&blue.replacen("name = \"blue\"", "name = \"blue\"\ntpye = \"quorum\"", 1))
        }),
        ("tenants/blue.toml:1: expected TOML", &|| put("[queue")),
        ("tenants/blue.toml:9: accounts.mail.password: expected the variable NOWHERE", &|| {
            put(&blue.replace("SMTP_PASSWD", "NOWHERE"))
        }),
        ("expected a queue for each tenant, found queue/", &|| put(&blue.replace("name = \"blue\"", "name = \"red\""))),
        ("tenant blue: plugin nope: ", &|| put(&format!("{blue}[plugins.nope]\n"))),
        ("tenant blue: plugin hostile: ", &|| put(&format!("{blue}[plugins.hostile]\n"))),
        ("tenants/blue.toml: expected a file of TOML: it leads out of its directory, to ", &|| {
            fs::remove_file(&place)?;
            Ok(symlink(&elsewhere, &place)?)
        }),
        ("tenants/blue.toml: expected a file of TOML: expected a regular file", &|| {
            fs::remove_file(&place)?;
            Ok(fs::create_dir(&place)?)
        }),
    ];
    for (number, (expected, put)) in cases.iter().enumerate() {
        // What is good in the same state takes no effect either.
        put_tenant(&service, "green", &tenant(&world, "green"))?;
        put()?;
        problems(&service, &[expected]).await?;
        consuming(&service, &["red"]).await?;
        let said = lines(&service, PROBLEM);
        assert_eq!(said.len(), number + 1, "each is said once: {said:?}");
        assert!(!service.output().contains(world.smtp.password()), "no secret is shown");
        tell(&world, "red", &format!("beside{number}")).await?;
        told(&world, &format!("beside{number}@red.example.com")).await?;
    }
    assert!(lines(&service, "tenant added").is_empty());
    fs::remove_dir(&place)?;
    put(&blue)?;
    consuming(&service, &["blue", "green", "red"]).await?;
    problems(&service, &[]).await?;
    assert_eq!(lines(&service, IN_EFFECT).len(), 1);
    assert_eq!(lines(&service, "consuming").len(), 3, "red was consumed all the time");
    Ok(())
}

#[tokio::test]
async fn a_file_written_slowly_or_moved_away_for_a_moment_is_no_problem_and_what_is_no_tenants_is_none() -> Result<()> {
    let world = world().await?;
    let service = running(&world, &["red"]).await?;
    let (place, red) = (tenant_file(&service, "blue"), tenant_file(&service, "red"));
    // As editors write: a file of their own beside it, the old one moved away, the new one in pieces.
    fs::write(place.with_file_name(".blue.toml.swp"), "no TOML [")?;
    fs::write(place.with_file_name("4913"), "")?;
    let content = fs::read(&red)?;
    fs::rename(&red, red.with_file_name("red.toml~"))?;
    fs::write(&red, &content[..content.len() / 2])?;
    fs::write(&red, &content)?;
    let blue = tenant(&world, "blue");
    fs::write(&place, &blue[..blue.len() / 2])?;
    fs::write(&place, &blue)?;
    consuming(&service, &["blue", "red"]).await?;
    problems(&service, &[]).await?;
    assert!(lines(&service, PROBLEM).is_empty());
    assert_eq!(lines(&service, "consuming").len(), 2, "red did not go for a moment");
    // A folder that vanishes is no wish for all to go.
    let folder = place.parent().context("a folder")?;
    let away = service.directory().join("away");
    fs::rename(folder, &away)?;
    problems(&service, &["tenants: read tenants: No such file"]).await?;
    tell(&world, "red", "meanwhile").await?;
    told(&world, "meanwhile@red.example.com").await?;
    fs::remove_file(away.join("blue.toml"))?;
    fs::rename(&away, folder)?;
    consuming(&service, &["red"]).await?;
    problems(&service, &[]).await
}

#[tokio::test]
async fn of_a_thousand_files_at_once_one_bad_one_keeps_all_from_taking_effect_and_then_all_do() -> Result<()> {
    let world = world().await?;
    let service = running(&world, &["red"]).await?;
    let names: Vec<String> = (0..1_000).map(|number| format!("t{number:03}")).collect();
    for name in &names {
        let content = tenant(&world, name);
        put_tenant(&service, name, if name == "t500" { "[queue" } else { &content })?;
    }
    problems(&service, &["tenants/t500.toml:1: expected TOML"]).await?;
    consuming(&service, &["red"]).await?;
    tell(&world, "red", "a").await?;
    told(&world, "a@red.example.com").await?;
    // As many as one broker takes well.
    let (few, many) = names.split_at(50);
    for name in many {
        remove_tenant(&service, name)?;
    }
    let few: Vec<&str> = few.iter().map(String::as_str).chain(["red"]).collect();
    consuming(&service, &few).await?;
    problems(&service, &[]).await?;
    assert_eq!(lines(&service, "tenant added").len(), 50);
    Ok(())
}

/// Leaves something of the tenant `red` in every state it can wait in: two mails, an event, an invocation.
async fn leave_waiting(world: &World, service: &Service) -> Result<()> {
    world.smtp.behave_for("busy@red.example.com", Behaviour::Reply("451 later".into()))?;
    tell(world, "red", "busy").await?;
    let again = json!({"plugins": {"hostile": {"message": "retry"}}, "emails": ["a@red.example.com"]});
    world.publish(&world.failed_task_of("red", &again).1).await?;
    let (task_id, later) = world.failed_task_of("red", &json!({}));
    world.taskcluster.answer(&task_id, Answer::Error(500));
    world.publish(&later).await?;
    let waiting = "SELECT (SELECT COUNT(*) FROM effect WHERE state = 'pending' AND failures > 0) \
                   + (SELECT COUNT(*) FROM invocation WHERE state = 'retry') \
                   + (SELECT COUNT(*) FROM event WHERE state = 'deferred')";
    let store = store(service);
    wait::until("all wait", SOON, async || Ok(store.count(waiting)? == 3)).await
}

async fn nothing_waits_any_more(service: &Service) -> Result<()> {
    let states = "SELECT 'effect ' || state || ': ' || CAST(reason AS TEXT) FROM effect WHERE tenant = 'red' UNION \
                  SELECT 'invocation ' || state || ': ' || CAST(reason AS TEXT) FROM invocation WHERE state <> 'done' \
                  UNION SELECT 'event ' || state || ': ' || CAST(reason AS TEXT) FROM event WHERE state <> 'planned' \
                  ORDER BY 1";
    let expected =
        ["effect refused: tenant removed", "event dead: tenant removed", "invocation refused: tenant removed"];
    let store = store(service);
    wait::until("all are ended", SOON, async || Ok(store.rows(states)? == expected)).await
}

/// A tenant that also has the plugin that asks to be run again.
fn with_hostile(world: &World, name: &str) -> String {
    let own = format!("*@{name}.example.com");
    let mails = world.tenant(name, &[("smtp", &[&own]), ("hostile", &[&own])]);
    mails
        + "[accounts.chat]\nkind = \"irc\"\nhost = \"localhost\"\nport = 1\nnick = \"nobody\"\n\
           [plugins.hostile.grant.irc]\naccount = \"chat\"\nchannels = [\"#ci\"]\n"
}

#[tokio::test]
async fn what_waits_for_a_tenant_that_went_is_ended_and_its_queue_stays() -> Result<()> {
    let world = world().await?;
    let service = running(&world, &["red", "blue"]).await?;
    put_tenant(&service, "red", &with_hostile(&world, "red"))?;
    wait::until("it has changed", SOON, async || Ok(lines(&service, "tenant changed").len() == 1)).await?;
    leave_waiting(&world, &service).await?;
    remove_tenant(&service, "red")?;
    consuming(&service, &["blue"]).await?;
    nothing_waits_any_more(&service).await?;
    // Its queue still takes what is published, and nobody takes it out.
    wait::until("nobody consumes", SOON, async || {
        Ok(world.vhost.depth(&world.queue_of("red")).await?.is_some_and(|depth| depth.consumers == 0))
    })
    .await?;
    tell(&world, "red", "later").await?;
    tell(&world, "blue", "a").await?;
    told(&world, "a@blue.example.com").await?;
    assert_eq!(world.vhost.ready(&world.queue_of("red")).await?, Some(1));
    // Back again, it gets what came meanwhile.
    put_tenant(&service, "red", &tenant(&world, "red"))?;
    told(&world, "later@red.example.com").await
}

#[tokio::test]
async fn what_waits_for_a_tenant_that_went_while_the_service_was_down_is_ended_at_the_start() -> Result<()> {
    let world = world().await?;
    let mut service =
        world.service_of_tenants(&[("red", &with_hostile(&world, "red")), ("blue", &tenant(&world, "blue"))])?;
    service.start()?;
    consuming(&service, &["blue", "red"]).await?;
    leave_waiting(&world, &service).await?;
    service.terminate()?;
    service.wait_exit(SOON).await?;
    remove_tenant(&service, "red")?;
    service.start()?;
    nothing_waits_any_more(&service).await
}

#[tokio::test]
async fn that_all_tenants_go_at_once_is_believed_only_when_it_is_asked_for() -> Result<()> {
    let world = world().await?;
    let mut service = world.service_of_tenants(&[("red", &with_hostile(&world, "red"))])?;
    service.start()?;
    consuming(&service, &["red"]).await?;
    leave_waiting(&world, &service).await?;
    let waiting = "SELECT COUNT(*) FROM effect WHERE state = 'refused'";
    remove_tenant(&service, "red")?;
    problems(&service, &["the tenants that ran stay"]).await?;
    consuming(&service, &["red"]).await?;
    // Nor at a start.
    service.terminate()?;
    service.wait_exit(SOON).await?;
    service.start()?;
    consuming(&service, &[]).await?;
    assert_eq!(store(&service).count(waiting)?, 0, "what waits for red waits on");
    put_tenant(&service, "red", &with_hostile(&world, "red"))?;
    consuming(&service, &["red"]).await?;
    remove_tenant(&service, "red")?;
    problems(&service, &["SIGHUP takes all of them away"]).await?;
    service.signal("HUP")?;
    consuming(&service, &[]).await?;
    nothing_waits_any_more(&service).await
}

#[tokio::test]
async fn an_attempt_under_way_is_finished_although_its_tenant_went() -> Result<()> {
    let world = world().await?;
    let service = running(&world, &["red", "blue"]).await?;
    world.smtp.behave(Phase::Dot, Behaviour::DelayMs(3_000))?;
    tell(&world, "red", "slow").await?;
    let store = store(&service);
    let claimed = "SELECT COUNT(*) FROM effect WHERE state = 'claimed'";
    wait::until("it is under way", SOON, async || Ok(store.count(claimed)? == 1)).await?;
    remove_tenant(&service, "red")?;
    consuming(&service, &["blue"]).await?;
    let states = "SELECT state || ' ' || attempt FROM effect";
    wait::until("it has ended", SOON, async || Ok(store.count(claimed)? == 0)).await?;
    assert_eq!(store.rows(states)?, ["delivered 1"]);
    assert_eq!(world.smtp.mails()?.len(), 1);
    Ok(())
}

#[tokio::test]
async fn an_account_that_changes_has_what_waits_for_it_and_one_that_goes_has_it_refused() -> Result<()> {
    let world = world().await?;
    let service = running(&world, &["red"]).await?;
    let store = store(&service);
    // Its server turns us away for good.
    world.smtp.behave(Phase::Auth, Behaviour::Reply("535 5.7.8 no".into()))?;
    tell(&world, "red", "a").await?;
    wait::until("it is suspended", SOON, async || {
        Ok(readiness(&service).await?.1["suspended"]["email/red.mail"].as_str().is_some())
    })
    .await?;
    let other = SmtpServer::start(Mode::Plain).await?;
    let elsewhere = tenant(&world, "red")
        .replace(&format!("port = {}", world.smtp.port()), &format!("port = {}\nsecurity = \"none\"", other.port()))
        .replace("password = \"${SMTP_PASSWD}\"\n", "");
    put_tenant(&service, "red", &elsewhere)?;
    let mails = other.wait_for_mails(1, SOON).await?;
    assert_eq!(mails[0].to, ["a@red.example.com"]);
    // Then the account goes, while a mail waits for it; the tenant has another.
    other.behave_for("busy@red.example.com", Behaviour::Reply("451 later".into()))?;
    tell(&world, "red", "busy").await?;
    let waits = "SELECT COUNT(*) FROM effect WHERE state = 'pending' AND failures > 0";
    wait::until("one waits", SOON, async || Ok(store.count(waits)? == 1)).await?;
    put_tenant(
        &service,
        "red",
        &elsewhere.replace("[accounts.mail]", "[accounts.post]").replace("account = \"mail\"", "account = \"post\""),
    )?;
    let refused = "SELECT CAST(recipient AS TEXT) || ' ' || CAST(reason AS TEXT) FROM effect WHERE state = 'refused'";
    wait::until("it is refused", SOON, async || Ok(store.rows(refused)? == ["busy@red.example.com account removed"]))
        .await?;
    tell(&world, "red", "b").await?;
    wait::until("by the other account", SOON, async || {
        Ok(other.mails()?.iter().any(|mail| mail.to == ["b@red.example.com"]))
    })
    .await?;
    assert_eq!(lines(&service, "consuming").len(), 1, "its queue is consumed as before");
    Ok(())
}

#[tokio::test]
async fn bindings_that_change_are_made_and_taken_back_and_no_event_is_lost() -> Result<()> {
    let world = world().await?;
    let service = running(&world, &["red"]).await?;
    let store = store(&service);
    // One is in hand while its consumer changes.
    world.smtp.behave_for("slow@red.example.com", Behaviour::DelayMs(500))?;
    for _ in 0..50 {
        tell(&world, "red", "slow").await?;
    }
    put_tenant(&service, "red", &tenant(&world, "red").replace("[\"red.#\"]", "[\"crimson.#\"]"))?;
    wait::until("it consumes again", SOON, async || Ok(lines(&service, "consuming").len() == 2)).await?;
    consuming(&service, &["red"]).await?;
    // Nothing is bound for it any more.
    tell(&world, "red", "nobody").await?;
    let crimson = world.failed_task_of("crimson", &mail_to("a@red.example.com")).1;
    world.publish(&crimson).await?;
    told(&world, "a@red.example.com").await?;
    let planned = "SELECT COUNT(*) FROM event WHERE state = 'planned'";
    wait::until("every event is planned", SOON, async || Ok(store.count(planned)? == 51)).await?;
    let depth = world.vhost.depth(&world.queue_of("red")).await?.context("the queue")?;
    assert_eq!((depth.ready, depth.unacked, depth.consumers), (0, 0, 1));
    Ok(())
}

#[tokio::test]
async fn a_plugin_whose_grant_no_longer_covers_it_is_refused_until_it_does_again() -> Result<()> {
    let world = world().await?;
    let mut service = running(&world, &["red"]).await?;
    let store = store(&service);
    let whole = tenant(&world, "red");
    let narrow = whole.split("[plugins.smtp.grant.email]").next().context("what comes before")?;
    put_tenant(&service, "red", &format!("{narrow}[plugins.smtp]\n"))?;
    wait::until("it is refused", SOON, async || {
        let (status, said) = readiness(&service).await?;
        assert_eq!(status, 200);
        let why = said["refused"]["red/smtp"].as_str();
        Ok(why.is_some_and(|why| why.contains("its grant does not cover what it imports: email")))
    })
    .await?;
    tell(&world, "red", "a").await?;
    let states = "SELECT plugin || ' ' || state || ' ' || CAST(reason AS TEXT) FROM invocation";
    wait::until("its invocation is refused", SOON, async || {
        Ok(store.rows(states)? == ["smtp refused no version of the plugin is live"])
    })
    .await?;
    // Nor does it keep anybody from starting.
    service.terminate()?;
    service.wait_exit(SOON).await?;
    service.start()?;
    consuming(&service, &["red"]).await?;
    assert!(readiness(&service).await?.1["refused"]["red/smtp"].is_string());
    put_tenant(&service, "red", &whole)?;
    wait::until("it runs again", SOON, async || {
        Ok(readiness(&service).await?.1["refused"].as_object().is_some_and(|refused| refused.is_empty()))
    })
    .await?;
    tell(&world, "red", "b").await?;
    told(&world, "b@red.example.com").await
}

#[tokio::test]
async fn a_plugin_on_every_event_is_told_of_what_no_task_wants_said() -> Result<()> {
    let world = world().await?;
    let file = tenant(&world, "red");
    let red = file.replace("[plugins.smtp.", "[plugins.smtp]\non = \"every\"\n[plugins.smtp.");
    let mut service = world.service_of_tenants(&[("red", &red)])?;
    service.start()?;
    consuming(&service, &["red"]).await?;
    let store = store(&service);
    let states = "SELECT identity || ' ' || plugin || ' ' || state FROM invocation";
    // Nobody to tell, and told of all the same.
    let (task_id, message) = world.failed_task_of("red", &json!({}));
    world.taskcluster.define(&task_id, json!({"metadata": {"name": "a task that says nothing"}}));
    world.publish(&message).await?;
    wait::until("it was told", SOON, async || Ok(store.rows(states)? == ["default smtp done"])).await?;
    world.publish(&world.failed_task_of("red", &json!({"emails": ["a@red.example.com"]})).1).await?;
    told(&world, "a@red.example.com").await?;
    // It is on every event no longer.
    put_tenant(&service, "red", &file)?;
    wait::until("it has changed", SOON, async || Ok(lines(&service, "tenant changed").len() == 1)).await?;
    world.publish(&world.failed_task_of("red", &json!({"emails": ["nobody@red.example.com"]})).1).await?;
    tell(&world, "red", "b").await?;
    told(&world, "b@red.example.com").await?;
    assert_eq!(world.smtp.mails()?.len(), 2);
    Ok(())
}

#[tokio::test]
async fn what_is_over_a_plugins_quota_is_sent_later_or_refused_and_no_other_tenant_waits() -> Result<()> {
    let world = world().await?;
    let quota = |name: &str, over: &str| {
        tenant(&world, name).replace("recipients", &format!("per_hour = 2\nover_quota = \"{over}\"\nrecipients"))
    };
    let (red, green, blue) = (quota("red", "wait"), quota("green", "refuse"), tenant(&world, "blue"));
    let mut service = world.service_of_tenants(&[("red", &red), ("green", &green), ("blue", &blue)])?;
    service.start()?;
    consuming(&service, &["blue", "green", "red"]).await?;
    // All of it within one hour.
    let is_early = || SystemTime::now().duration_since(UNIX_EPOCH).is_ok_and(|now| now.as_secs() % 3_600 < 3_570);
    wait::until("the hour is not about to end", SOON, async || Ok(is_early())).await?;
    for tenant in ["red", "green", "blue"] {
        for _ in 0..4 {
            // The same message twice is one event.
            let message = world.failed_task_of(tenant, &mail_to(&format!("a@{tenant}.example.com"))).1;
            world.publish(&message).await?;
            world.publish(&message).await?;
        }
    }
    let store = store(&service);
    let states = "SELECT tenant || ' ' || state || ' ' || COUNT(*) FROM effect GROUP BY tenant, state ORDER BY 1";
    let expected = ["blue delivered 4", "green delivered 2", "green refused 2", "red delivered 2", "red pending 2"];
    let all = async || Ok(store.rows(states)? == expected);
    wait::until("each has had its share", SOON, all).await?;
    let why = "SELECT DISTINCT tenant || ' ' || CAST(reason AS TEXT) || ' ' || (due_ms % 3600000 = 0) FROM effect \
               WHERE state IN ('pending', 'refused') ORDER BY 1";
    let due_with_the_hour = store.rows(why)?;
    assert!(due_with_the_hour.contains(&"red over quota: 2 an hour 1".to_owned()), "{due_with_the_hour:?}");
    assert!(
        due_with_the_hour.iter().any(|why| why.starts_with("green over quota: 2 an hour")),
        "{due_with_the_hour:?}"
    );
    Ok(())
}

#[tokio::test]
async fn told_to_read_again_it_takes_what_it_can_and_says_what_waits_for_a_start() -> Result<()> {
    let world = world().await?;
    let mut service = world.service_of_tenants(&[("red", &tenant(&world, "red"))])?;
    let main = service.directory().join("pn.toml");
    let whole = world.configuration().replacen("tenants = \"tenants\"\n", "", 1);
    let in_one = |name: &str| {
        tenant(&world, name).replace("[queue]", "\n[queue]").replace("\n[", &format!("\n[tenants.{name}."))
    };
    fs::write(&main, format!("{whole}{}", in_one("red")))?;
    service.start()?;
    consuming(&service, &["red"]).await?;
    // Nobody asked yet.
    fs::write(
        &main,
        format!("{}{}", whole.replace("/tmp", "/elsewhere").replacen("vhost =", "vhots =", 1), in_one("blue")),
    )?;
    service.signal("HUP")?;
    problems(&service, &["pn.toml:5: broker.vhots: "]).await?;
    let main_text = whole.replacen("[admin]\nlisten = \"127.0.0.1:0\"", "[admin]\nlisten = \"127.0.0.1:1\"", 1);
    fs::write(&main, format!("keep_days = 3\n{main_text}{}{}", in_one("red"), in_one("blue")))?;
    service.signal("HUP")?;
    consuming(&service, &["blue", "red"]).await?;
    problems(&service, &[]).await?;
    let waits = lines(&service, "what has changed there takes effect at the next start");
    assert_eq!(waits.len(), 1);
    assert_eq!(waits[0]["changed"], "admin, keep_days");
    for name in ["red", "blue"] {
        tell(&world, name, "a").await?;
        told(&world, &format!("a@{name}.example.com")).await?;
    }
    Ok(())
}

#[tokio::test]
async fn told_to_read_again_with_variables_it_takes_new_identities() -> Result<()> {
    let world = World::new(Broker::shared().await?, &["smtp"]).await?;
    let service = world.service(&["smtp"])?;
    let identities = service.directory().join("ids.yml");
    fs::write(&identities, "drivers:\n  plugins: [smtp]\n  emails: [old@example.com]\n")?;
    let mut service = service.env("PN_IDENTITIES", identities.display());
    service.start()?;
    service.wait_for_output("consuming", SOON).await?;
    fs::write(&identities, "drivers:\n  plugins: [smtp]\n  emails: [new@example.com]\n")?;
    service.signal("HUP")?;
    wait::until("it is in effect", SOON, async || Ok(lines(&service, IN_EFFECT).len() == 1)).await?;
    world.publish(&world.failed_task(&json!({"ids": ["drivers"]})).1).await?;
    told(&world, "new@example.com").await?;
    fs::write(&identities, "drivers: [no, map]\n")?;
    service.signal("HUP")?;
    problems(&service, &["ids.yml: drivers: expected a map"]).await?;
    world.publish(&world.failed_task(&json!({"ids": ["drivers"]})).1).await?;
    world.smtp.wait_for_mails(2, SOON).await?;
    Ok(())
}
