//! Every attack on the running service, with a neighbour who notices nothing.

mod attacks;
mod core;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use end_to_end::tenants::readiness;
use end_to_end::world::{mail_to, store};
use end_to_end::{Broker, World, guest, wait};
use serde_json::json;

use attacks::{Attack, by_component, by_file, by_message};

const SOON: Duration = Duration::from_secs(40);

/// What the attacker is allowed: little, but something of each kind.
fn attacker(world: &World, components: &[Attack]) -> String {
    let plugins: Vec<(&str, &[&str])> = vec![("hostile", &["*@red.example.com"])];
    let mut file = world.tenant("red", &plugins);
    let nobody = "host = \"127.0.0.1\"\nport = 1\ntls = false\n";
    file.push_str(&format!(
        "[accounts.chat]\nkind = \"irc\"\n{nobody}nick = \"red\"\n\
         [accounts.objects]\nkind = \"s3\"\nbucket = \"red-bucket\"\nregion = \"us-west-2\"\n\
         endpoint = \"http://127.0.0.1:1\"\naccess_key_id = \"AKIAEXAMPLE\"\nsecret_access_key = \"x\"\n\
         [accounts.pulse]\nkind = \"amqp\"\n\
         [plugins.hostile]\nsettings = {{ red = \"is red's own\" }}\n[plugins.hostile.limits]\nwall_clock_ms = 2000\ncpu_ms = 200\n\
         [plugins.hostile.grant.irc]\naccount = \"chat\"\nchannels = [\"#ci\"]\n\
         [plugins.trespasser.grant.s3]\naccount = \"objects\"\nkeys = [\"red/*\"]\n\
         [plugins.trespasser.grant.amqp]\naccount = \"pulse\"\nexchanges = [\"exchange/red/*\"]\n"
    ));
    for attack in components {
        file.push_str(&format!("[plugins.{}.grant.irc]\naccount = \"chat\"\nchannels = [\"#ci\"]\n", attack.name));
    }
    file
}

#[tokio::test]
async fn every_attack_gets_its_fault_and_the_neighbour_all_of_its_mails() -> Result<()> {
    let world = World::new(Broker::shared().await?, &["smtp", "hostile", "trespasser"]).await?;
    let components = by_component()?;
    for attack in &components {
        let path = world.plugin_folder().join(format!("{}.wasm", attack.name));
        std::fs::write(path, attack.component.as_deref().context("its component")?)?;
    }
    let red = attacker(&world, &components);
    let blue = format!(
        "{}[plugins.smtp]\nsettings = {{ blue = \"is blue's own\" }}\n",
        world.tenant("blue", &[("smtp", &["*@blue.example.com"])])
    );
    let mut service = world.service_of_tenants(&[("red", &red), ("blue", &blue)])?;
    service.start()?;
    wait::until("both are consumed", SOON, async || {
        let queues = readiness(&service).await.map(|(_, said)| said["queues"].clone()).unwrap_or_default();
        Ok(queues == json!({"red": "consuming", "blue": "consuming"}))
    })
    .await?;
    let attacks: Vec<Attack> = by_message().into_iter().chain(components).collect();
    let mut tasks = Vec::new();
    for (number, attack) in attacks.iter().enumerate() {
        let section = json!({"plugins": [attack.plugin], "emails": ["a@red.example.com"], "message": attack.name});
        let (task_id, message) = world.failed_task_of("red", &section);
        world.publish(&message).await?;
        tasks.push(task_id);
        world.publish(&world.failed_task_of("blue", &mail_to(&format!("{number}@blue.example.com"))).1).await?;
    }
    let store = store(&service);
    wait::until("every attack has its end", SOON, async || {
        let ended = store.count("SELECT count(*) FROM invocation WHERE plugin <> 'smtp'").unwrap_or_default();
        Ok(ended == i64::try_from(attacks.len())?)
    })
    .await?;
    let mut wrong = Vec::new();
    for (attack, task_id) in attacks.iter().zip(&tasks) {
        let select = "SELECT i.state, CAST(coalesce(i.reason, '') AS TEXT) || char(10) \
             || CAST(coalesce(i.refusals, '') AS TEXT) || char(10) || CAST(coalesce(i.log, '') AS TEXT), \
             (SELECT count(*) FROM effect f WHERE f.invocation_id = i.id AND f.state <> 'refused') \
             FROM invocation i JOIN event e ON e.id = i.event_id WHERE e.task_id = ?";
        let (state, said, effects): (String, String, i64) =
            store.connect()?.query_row(select, [task_id], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
        let said = said.replace("\\\"", "\"");
        let missing: Vec<_> = attack.expected.iter().filter(|expected| !said.contains(**expected)).collect();
        if state != attack.state || effects != attack.effects || !missing.is_empty() {
            let said: String = said.chars().take(500).collect();
            wrong.push(format!("{}: {state}, {effects} effects, {missing:?} not in {said}", attack.name));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    let is_blue = |to: &[String]| to.iter().any(|to| to.ends_with("@blue.example.com"));
    wait::until("the neighbour has all of its mails", SOON, async || {
        Ok(world.smtp.mails()?.iter().filter(|mail| is_blue(&mail.to)).count() == attacks.len())
    })
    .await?;
    let from_red = "SELECT count(*) FROM effect WHERE tenant = 'red' AND state = 'delivered' \
                    AND recipient LIKE '%@blue.example.com'";
    assert_eq!(store.count(from_red)?, 0);
    assert!(service.exit_status()?.is_none(), "the process is alive");
    Ok(())
}

#[tokio::test]
async fn a_file_that_is_no_plugin_changes_nothing_and_its_reason_is_said() -> Result<()> {
    let world = World::new(Broker::shared().await?, &["smtp"]).await?;
    let good = std::fs::read(guest("smtp")?)?;
    let files = by_file(&good)?;
    let red = world.tenant("red", &[("smtp", &["*@red.example.com"])]);
    let mut service = world.service_of_tenants(&[("red", &red)])?;
    service.start()?;
    service.wait_for_output("consuming", SOON).await?;
    let folder = world.plugin_folder().to_owned();
    let mut wrong = Vec::new();
    for (number, (name, bytes, expected)) in files.iter().enumerate() {
        std::fs::write(folder.join(".new"), bytes)?;
        std::fs::rename(folder.join(".new"), folder.join("smtp.wasm"))?;
        let mut said = String::new();
        let refused = wait::until(name, SOON, async || {
            let (status, readiness) = readiness(&service).await?;
            said = readiness["refused"].to_string();
            Ok(status == 200 && said.contains(expected))
        });
        if refused.await.is_err() {
            wrong.push(format!("{name}: expected {expected}, found {said}"));
        }
        world.publish(&world.failed_task_of("red", &mail_to(&format!("{number}@red.example.com"))).1).await?;
        world.smtp.wait_for_mails(number + 1, SOON).await?;
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(service.exit_status()?.is_none(), "the process is alive");
    Ok(())
}
