//! The halves of the service as two processes that share a database: what each needs, and what it must not see.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use anyhow::{Result, ensure};
use end_to_end::tenants::readiness;
use end_to_end::world::mail_to;
use end_to_end::{Broker, Database, Service, World, guest, wait};
use serde_json::json;

const SOON: Duration = Duration::from_secs(60);

async fn world() -> Result<World> {
    World::new(Broker::shared().await?, &["smtp", "repulse"]).await
}

fn tenant(world: &World) -> String {
    world.tenant("red", &[("smtp", &["*@red.example.com"])])
}

async fn ready(service: &Service) -> Result<()> {
    wait::until("it is ready", SOON, async || Ok(readiness(service).await.is_ok_and(|(status, _)| status == 200))).await
}

/// Waits for the end of a service that refuses to start, which says all of this.
async fn refuses(mut service: Service, expected: &[&str]) -> Result<()> {
    service.start()?;
    let status = service.wait_exit(SOON).await?;
    let said = service.output();
    ensure!(status.code() == Some(78), "{status}: {said}");
    for text in expected {
        ensure!(said.contains(text), "{text}: {said}");
    }
    ensure!(!said.contains("hunter") && !said.contains("swordfish"), "it shows no secret: {said}");
    Ok(())
}

#[tokio::test]
async fn what_the_intake_took_in_the_courier_delivers_and_neither_has_the_others_secrets() -> Result<()> {
    let (world, shared) = (world().await?, tempfile::tempdir()?);
    let tenants = [("red", tenant(&world))];
    let tenants = [(tenants[0].0, tenants[0].1.as_str())];
    let mut intake =
        world.service_of_role("intake", shared.path(), &tenants)?.env("PULSE_PASSWORD", &world.account.password);
    let mut courier =
        world.service_of_role("courier", shared.path(), &tenants)?.env("SMTP_PASSWD", world.smtp.password());
    // Both make the database, at the same time.
    intake.start()?;
    courier.start()?;
    ready(&intake).await?;
    ready(&courier).await?;
    intake.wait_for_output("consuming", SOON).await?;
    for number in 0..20 {
        world.publish(&world.failed_task_of("red", &mail_to(&format!("{number}@red.example.com"))).1).await?;
    }
    world.smtp.wait_for_mails(20, SOON).await?;
    assert_eq!(readiness(&courier).await?.1["queues"], json!({}), "it consumes nothing");
    // While the courier is away, what is asked for waits; and it makes no attempt twice.
    courier.terminate()?;
    courier.wait_exit(SOON).await?;
    world.publish(&world.failed_task_of("red", &mail_to("later@red.example.com")).1).await?;
    let store = Database::at(shared.path().join("pulse-notifier.db"));
    let waiting = "SELECT COUNT(*) FROM effect WHERE state = 'pending'";
    wait::until("it waits", SOON, async || Ok(store.count(waiting)? == 1)).await?;
    assert_eq!(world.smtp.mails()?.len(), 20);
    // Without the intake, the courier delivers it.
    intake.terminate()?;
    intake.wait_exit(SOON).await?;
    courier.start()?;
    world.smtp.wait_for_mails(21, SOON).await?;
    let delivered = "SELECT COUNT(*) FROM effect WHERE state = 'delivered' AND attempt = 1 AND in_doubt = 0";
    wait::until("all are on record", SOON, async || Ok(store.count(delivered)? == 21)).await?;
    for half in [&intake, &courier] {
        half.tells_no_secret(&[world.smtp.password(), &world.account.password])?;
    }
    Ok(())
}

#[tokio::test]
async fn a_tenant_that_goes_is_left_by_both_halves() -> Result<()> {
    let (world, shared) = (world().await?, tempfile::tempdir()?);
    let (red, blue) = (tenant(&world), world.tenant("blue", &[("smtp", &["*@blue.example.com"])]));
    let mut intake = world
        .service_of_role("intake", shared.path(), &[("red", &red), ("blue", &blue)])?
        .env("PULSE_PASSWORD", &world.account.password);
    // The courier is not there: what waits, waits for it.
    intake.start()?;
    ready(&intake).await?;
    world.publish(&world.failed_task_of("red", &mail_to("a@red.example.com")).1).await?;
    let store = Database::at(shared.path().join("pulse-notifier.db"));
    wait::until(
        "it waits",
        SOON,
        async || Ok(store.count("SELECT COUNT(*) FROM effect WHERE state = 'pending'")? == 1),
    )
    .await?;
    fs::remove_file(shared.path().join("tenants/red.toml"))?;
    intake.wait_for_output("tenant removed", SOON).await?;
    let mut courier = world.service_of_role("courier", shared.path(), &[])?.env("SMTP_PASSWD", world.smtp.password());
    courier.start()?;
    let refused = "SELECT COUNT(*) FROM effect WHERE state = 'refused' AND CAST(reason AS TEXT) = 'tenant removed'";
    wait::until("it is refused", SOON, async || Ok(store.count(refused)? == 1)).await
}

#[tokio::test]
async fn the_intake_refuses_to_start_with_a_sinks_secret_in_sight_and_names_it() -> Result<()> {
    let world = world().await?;
    let in_file =
        |path: &str| tenant(&world).replace("password = \"${SMTP_PASSWD}\"", &format!("password_file = {path:?}"));
    let red = tenant(&world);
    let half = |content: &str, shared: &tempfile::TempDir| {
        let half = world.service_of_role("intake", shared.path(), &[("red", content)])?;
        anyhow::Ok(half.env("PULSE_PASSWORD", &world.account.password))
    };
    let shared = tempfile::tempdir()?;
    let place = "red.toml:9: accounts.mail.password: expected to be out of the intake role's sight";
    let by_variable = half(&red, &shared)?.env("SMTP_PASSWD", "hunter2");
    refuses(by_variable, &["SMTP_PASSWD: expected to be out of the intake role's sight", place]).await?;
    let by_another = half(&red.replace("SMTP_PASSWD", "MAIL_PW"), &shared)?.env("MAIL_PW", "hunter2");
    refuses(by_another, &[place]).await?;
    refuses(half(&red.replace("${SMTP_PASSWD}", "swordfish"), &shared)?, &[place]).await?;
    for name in ["AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "IRC_PASS"] {
        refuses(half(&red, &shared)?.env(name, "hunter2"), &[&format!("{name}: expected to be out of")]).await?;
    }
    let secret = shared.path().join("secret");
    fs::write(&secret, "[default]\naws_secret_access_key = hunter2\n")?;
    let by_profile = half(&red, &shared)?.env("AWS_SHARED_CREDENTIALS_FILE", secret.display());
    refuses(by_profile, &["AWS_SHARED_CREDENTIALS_FILE: expected to be out of"]).await?;
    let path = secret.display().to_string();
    let place = "red.toml:9: accounts.mail.password_file: expected to be out of the intake role's sight";
    refuses(half(&in_file(&path), &shared)?, &[place]).await?;
    // One that is not there, or not for us, is none that we see.
    let mut unseen = half(&in_file("/nowhere/at/all"), &shared)?;
    unseen.start()?;
    unseen.wait_for_output("consuming", SOON).await?;
    // Then it comes into sight while the service runs: nothing changes.
    fs::write(shared.path().join("tenants/blue.toml"), in_file(&path).replace("\"red", "\"blue"))?;
    unseen.wait_for_output("blue.toml:9: accounts.mail.password_file: expected to be out of", SOON).await
}

#[tokio::test]
async fn the_courier_needs_the_brokers_password_only_for_accounts_that_are_the_brokers() -> Result<()> {
    let (world, shared) = (world().await?, tempfile::tempdir()?);
    let again = format!("exchange/{}/again", world.account.login);
    let red = tenant(&world)
        + &format!(
            "[accounts.pulse]\nkind = \"amqp\"\n[plugins.repulse]\nsettings = {{ exchange = {again:?} }}\n\
             [plugins.repulse.grant.amqp]\naccount = \"pulse\"\nexchanges = [{again:?}]\n"
        );
    let courier = || {
        let courier = world.service_of_role("courier", shared.path(), &[("red", &red)])?;
        anyhow::Ok(courier.env("SMTP_PASSWD", world.smtp.password()))
    };
    refuses(courier()?, &["red.toml:", "accounts.pulse: expected the password of the service's broker"]).await?;
    world.vhost.declare_exchanges(&[&again]).await?;
    world.vhost.declare_queue("heard", end_to_end::Queue::Classic).await?;
    world.vhost.bind("heard", &again, "#").await?;
    let mut courier = courier()?.env("PULSE_PASSWORD", &world.account.password);
    let mut intake = world
        .service_of_role("intake", shared.path(), &[("red", &red)])?
        .env("PULSE_PASSWORD", &world.account.password);
    courier.start()?;
    intake.start()?;
    intake.wait_for_output("consuming", SOON).await?;
    world.publish(&world.failed_task_of("red", &json!({"plugins": ["repulse"]})).1).await?;
    wait::until_some("it is heard again", SOON, async || world.vhost.take("heard").await).await?;
    assert!(!courier.output().contains("consuming"), "it consumes nothing");
    Ok(())
}

#[tokio::test]
async fn a_command_needs_no_secret_and_leaves_out_a_tenant_whose_file_is_wrong() -> Result<()> {
    let (world, shared) = (world().await?, tempfile::tempdir()?);
    let (red, wrong) = (tenant(&world), "queue = [".to_owned());
    let service = world.service_of_role("intake", shared.path(), &[("red", &red), ("blue", &wrong)])?;
    let config = shared.path().join("pn.toml").display().to_string();
    let run = |arguments: &[&str]| service.command(&[arguments, &["--config", &config]].concat());
    assert_eq!(run(&["plugin", "list"])?, "red/smtp  has not run yet\n");
    run(&["plugin", "deploy", &guest("smtp")?.display().to_string(), "--tenant", "red"])?;
    assert_eq!(run(&["plugin", "quarantine", "smtp"])?, "red/smtp  quarantined\n");
    assert!(run(&["token", "new", "--tenant", "red"])?.starts_with("pn_"));
    let refused = run(&["token", "new", "--tenant", "blue"]).err().map(|why| format!("{why:#}")).unwrap_or_default();
    assert!(refused.contains("a tenant is left out: ") && refused.contains("blue.toml:1"), "{refused}");
    Ok(())
}

#[tokio::test]
async fn with_variables_alone_each_half_starts_with_its_own() -> Result<()> {
    let world = World::new(Broker::shared().await?, &["smtp"]).await?;
    let store = tempfile::tempdir()?;
    fs::set_permissions(store.path(), fs::Permissions::from_mode(0o700))?;
    let of_role = |role: &str, without: &str| {
        let service = world.service_with(&["run", "--role", role], &["smtp"])?;
        anyhow::Ok(service.without(without).env("PN_STORE", format!("sqlite:{}/s.db", store.path().display())))
    };
    refuses(of_role("intake", "")?, &["SMTP_PASSWD: expected to be out of the intake role's sight"]).await?;
    let (mut intake, mut courier) = (of_role("intake", "SMTP_PASSWD")?, of_role("courier", "PULSE_PASSWORD")?);
    courier.start()?;
    intake.start()?;
    intake.wait_for_output("consuming", SOON).await?;
    world.publish(&world.failed_task(&mail_to("a@example.com")).1).await?;
    world.smtp.wait_for_mails(1, SOON).await?;
    Ok(())
}
