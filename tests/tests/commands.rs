//! The commands as a user meets them: what they print and how they end.

use std::time::Duration;

use anyhow::{Context, Result};
use end_to_end::world::STATUSES;
use end_to_end::{Database, Service, plugins};
use serde_json::Value;

const SOON: Duration = Duration::from_secs(60);

const LEAST: [(&str, &str); 6] = [
    ("PN_SERVICES", "smtp"),
    ("PULSE_LOGIN", "me"),
    ("PULSE_PASSWORD", "hunter2"),
    ("PULSE_QUEUE", "q"),
    ("SMTP_HOST", "mail.example.com"),
    ("SMTP_EMAIL", "ci@example.com"),
];

/// Runs a command to its end; its exit code and what it printed.
async fn run(arguments: &[&str], env: &[(&str, &str)]) -> Result<(Option<i32>, String)> {
    let plugins = plugins(&["irc", "smtp", "hostile"])?;
    let mut service = Service::new(arguments)?.env("PN_PLUGINS", plugins.path().display());
    for (name, value) in env {
        service = service.env(name, value);
    }
    service.start()?;
    let status = service.wait_exit(SOON).await?;
    Ok((status.code(), service.output()))
}

#[tokio::test]
async fn the_demo_shows_every_status_and_lets_no_hostile_text_through() -> Result<()> {
    let (code, output) = run(&["demo", "--once"], &[]).await?;
    assert_eq!(code, Some(0), "{output}");
    for status in STATUSES {
        assert!(output.contains(&format!("── {status} ─ mail to ")), "{status}: {output}");
    }
    assert!(output.contains("Task pending: build-linux64/opt"));
    assert!(output.contains("not granted: mail to mallory@elsewhere.example"));
    assert!(output.chars().all(|c| c == '\n' || !c.is_control()), "{output:?}");
    Ok(())
}

#[tokio::test]
async fn the_demo_as_json_prints_one_object_an_effect() -> Result<()> {
    let (code, output) = run(&["demo", "--once", "--json"], &[]).await?;
    assert_eq!(code, Some(0), "{output}");
    let effects: Vec<Value> = output.lines().map(serde_json::from_str).collect::<Result<_, _>>().context(output)?;
    assert!(effects.iter().all(|effect| {
        ["tenant", "plugin", "capability", "task_id", "status", "state", "payload"]
            .iter()
            .all(|key| !effect[key].is_null())
    }));
    let delivered = effects.iter().filter(|effect| effect["state"] == "delivered").count();
    let refused = effects.iter().filter(|effect| effect["state"] == "refused").count();
    assert_eq!(delivered + refused, effects.len());
    assert_eq!(refused, 2);
    Ok(())
}

#[tokio::test]
async fn the_demo_takes_other_events_and_passes_over_what_is_none() -> Result<()> {
    let plugins = plugins(&["irc", "smtp"])?;
    let mut service =
        Service::new(&["demo", "--once", "--events", "events.ndjson"])?.env("PN_PLUGINS", plugins.path().display());
    let event = r#"{"exchange": "exchange/taskcluster-queue/v1/task-failed",
        "body": {"status": {"taskId": "A35mWTRuQmyj88yMnIF0fA"}},
        "task": {"extra": {"notification": {"task-failed": {"plugins": "smtp", "emails": "a@example.com"}}}}}"#;
    std::fs::write(service.directory().join("events.ndjson"), format!("no event\n{}\n", event.replace('\n', "")))?;
    service.start()?;
    assert!(service.wait_exit(SOON).await?.success());
    let output = service.output();
    assert!(output.contains("line 1: expected"), "{output}");
    assert!(output.contains("── task-failed ─ mail to a@example.com ─ delivered"), "{output}");
    assert!(output.contains("Subject: Task failed: unnamed"), "{output}");
    Ok(())
}

#[tokio::test]
async fn check_explains_a_good_configuration_and_shows_no_secret() -> Result<()> {
    let (code, output) = run(&["check"], &LEAST).await?;
    assert_eq!(code, Some(0), "{output}");
    for expected in [
        "queue/me/q",
        "exchange/taskcluster-queue/v1/task-exception #",
        "mail.example.com:587, STARTTLS",
        "may mail * by account smtp",
        "every plugin may mail anyone and talk in any channel a task names",
    ] {
        assert!(output.contains(expected), "{expected}: {output}");
    }
    assert!(!output.contains("hunter2"));
    Ok(())
}

#[tokio::test]
async fn a_bad_configuration_ends_with_78_and_says_where_and_what() -> Result<()> {
    let cases: [(&[(&str, &str)], &str); 9] = [
        (&[("PULSE_PORT", "many")], "PULSE_PORT: expected a port, found \"many\""),
        (&[("PN_SERVICES", "")], "PN_SERVICES: expected the plugins to enable"),
        (&[("PN_SERVICES", "smtp:nope")], "nope.wasm: read it: No such file"),
        (&[("SMTP_SECURITY", "ssl")], "SMTP_SECURITY: expected one of starttls, tls, none, found \"ssl\""),
        (&[("PN_IDENTITIES", "nowhere.yml")], "PN_IDENTITIES: read nowhere.yml"),
        (&[("PN_STORE", "mysql://u:hunter3@h/d")], "PN_STORE: expected sqlite:<path>"),
        (&[("PN_STORE", "sqlite:nowhere/at/all.db")], "the store: expected a folder that exists, found no nowhere/at"),
        (&[("SSL_CERT_FILE", "nowhere.pem")], "SSL_CERT_FILE: read nowhere.pem"),
        (&[("PN_CONFIG", "nowhere.toml")], "nowhere.toml: expected a file of TOML"),
    ];
    for (changed, expected) in cases {
        for command in ["check", "run"] {
            let env: Vec<_> = LEAST.iter().chain(changed).copied().collect();
            let (code, output) = run(&[command], &env).await?;
            assert_eq!(code, Some(78), "{changed:?}: {output}");
            assert!(output.contains(expected), "{expected}: {output}");
            assert!(!output.contains("hunter"), "{output}");
        }
    }
    Ok(())
}

/// Runs a command in a folder that has this file, with the password alone in the environment.
async fn run_with_file(arguments: &[&str], file: &str) -> Result<(Option<i32>, String)> {
    let plugins = plugins(&["smtp"])?;
    let directory = |line: &str| match line.starts_with("directory = ") {
        true => format!("directory = \"{}\"\n", plugins.path().display()),
        false => format!("{line}\n"),
    };
    let file: String = file.lines().map(directory).collect();
    let mut service = Service::new(arguments)?.env("PULSE_PASSWORD", "hunter2");
    std::fs::write(service.directory().join("pn.toml"), file)?;
    service.start()?;
    let status = service.wait_exit(SOON).await?;
    Ok((status.code(), service.output()))
}

#[tokio::test]
async fn a_store_of_a_later_version_or_that_is_none_is_refused_and_left_as_it_is() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let file = |name: &str| folder.path().join(name);
    std::fs::write(file("later.db"), "")?;
    Database::at(file("later.db")).change("PRAGMA journal_mode = WAL; PRAGMA user_version = 99")?;
    std::fs::write(file("none.db"), "no database ".repeat(1_000))?;
    for (name, said) in [("later.db", "a later version made it: its schema is 99"), ("none.db", "not a database")] {
        let before = std::fs::read(file(name))?;
        let address = format!("sqlite:{}", file(name).display());
        let env: Vec<_> = LEAST.into_iter().chain([("PN_STORE", address.as_str())]).collect();
        let (code, output) = run(&["run"], &env).await?;
        assert_eq!(code, Some(78), "{name}: {output}");
        assert!(output.contains(said) && output.contains(name), "{name}: {output}");
        assert_eq!(std::fs::read(file(name))?, before, "{name}");
    }
    Ok(())
}

#[tokio::test]
async fn what_migrate_prints_is_a_configuration_that_check_explains() -> Result<()> {
    let (code, file) = run(&["migrate"], &LEAST).await?;
    assert_eq!(code, Some(0), "{file}");
    assert!(file.contains("password = \"${PULSE_PASSWORD}\"") && !file.contains("hunter2"), "{file}");
    let (code, output) = run_with_file(&["check", "--config", "pn.toml"], &file).await?;
    assert_eq!(code, Some(0), "{output}");
    for expected in ["queue/me/q", "mail.example.com:587, STARTTLS", "may mail * by account smtp"] {
        assert!(output.contains(expected), "{expected}: {output}");
    }
    assert!(!output.contains("hunter2"), "{output}");
    Ok(())
}

#[tokio::test]
async fn a_bad_configuration_file_ends_with_78_and_says_file_line_and_key() -> Result<()> {
    let (_, file) = run(&["migrate"], &LEAST).await?;
    let line = file.lines().position(|line| line == "[broker]").context("a broker")? + 2;
    let file = file.replace("[broker]\nhost", "[broker]\nhots");
    for command in ["check", "run"] {
        let (code, output) = run_with_file(&[command, "--config", "pn.toml"], &file).await?;
        assert_eq!(code, Some(78), "{output}");
        assert!(output.contains(&format!("pn.toml:{line}: broker.hots: expected one of host, ")), "{output}");
        assert!(output.contains("did you mean host?"), "{output}");
        assert!(!output.contains("hunter"), "{output}");
    }
    Ok(())
}

#[tokio::test]
async fn the_example_of_a_configuration_wants_only_its_secrets() -> Result<()> {
    let (code, file) = run(&["config", "example"], &[]).await?;
    assert_eq!(code, Some(0), "{file}");
    let (code, output) = run_with_file(&["check", "--config", "pn.toml"], &file).await?;
    assert_eq!(code, Some(78), "{output}");
    let problems: Vec<_> = output.lines().filter(|line| line.starts_with("  ")).collect();
    assert!(problems.iter().all(|problem| problem.contains("to be set in the environment")), "{output}");
    assert_eq!(problems.len(), 7, "{output}");
    Ok(())
}

#[tokio::test]
async fn a_plugin_that_is_none_ends_with_78() -> Result<()> {
    let plugins = plugins(&[])?;
    std::fs::write(plugins.path().join("smtp.wasm"), b"no plugin")?;
    let mut service = Service::new(&["check"])?.env("PN_PLUGINS", plugins.path().display());
    for (name, value) in LEAST {
        service = service.env(name, value);
    }
    service.start()?;
    assert_eq!(service.wait_exit(SOON).await?.code(), Some(78));
    assert!(service.output().contains("expected a WebAssembly component"), "{}", service.output());
    Ok(())
}
