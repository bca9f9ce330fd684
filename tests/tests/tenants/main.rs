//! Tenants that come, change and go while the service runs: all of a state takes effect, or none of it.

mod gone;
mod terms;

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

/// A tenant that also has the plugin that asks to be run again.
fn with_hostile(world: &World, name: &str) -> String {
    let own = format!("*@{name}.example.com");
    let mails = world.tenant(name, &[("smtp", &[&own]), ("hostile", &[&own])]);
    mails
        + "[accounts.chat]\nkind = \"irc\"\nhost = \"localhost\"\nport = 1\nnick = \"nobody\"\n\
           [plugins.hostile.grant.irc]\naccount = \"chat\"\nchannels = [\"#ci\"]\n"
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
