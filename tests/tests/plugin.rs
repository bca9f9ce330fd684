//! The commands for a plugin's author: `plugin try`, `plugin test`, `plugin new`, as a user meets them.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use end_to_end::guest;
use serde_json::{Value, json};
use tempfile::TempDir;

/// How a command ended, and what it printed.
#[derive(Debug)]
struct Ended {
    code: Option<i32>,
    out: String,
    err: String,
}

/// Runs a command to its end, in a folder and with an empty environment.
fn run(folder: &Path, arguments: &[&str]) -> Result<Ended> {
    let binary = target()?.join("debug/pulse-notifier");
    let done = Command::new(binary).args(arguments).current_dir(folder).env_clear().output()?;
    let text = |bytes| String::from_utf8(bytes).context("a command prints text");
    Ok(Ended { code: done.status.code(), out: text(done.stdout)?, err: text(done.stderr)? })
}

fn target() -> Result<PathBuf> {
    let test = std::env::current_exe()?;
    Ok(test.ancestors().nth(3).context("a test runs inside the target directory")?.to_owned())
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// A folder with `event.json`, in which the plugin is told a message.
fn told(plugin: &str, message: &str) -> Result<TempDir> {
    let folder = tempfile::tempdir()?;
    let section = json!({"plugins": [plugin], "emails": ["a@example.com"], "subject": "It failed", "message": message});
    std::fs::write(folder.path().join("event.json"), format!("{:#}", event(&section)))?;
    Ok(folder)
}

fn event(section: &Value) -> Value {
    json!({
        "exchange": "exchange/taskcluster-queue/v1/task-failed",
        "body": {"status": {"taskId": "A35mWTRuQmyj88yMnIF0fA"}},
        "task": {"extra": {"notifications": {"task-failed": section}}},
    })
}

fn try_out(plugin: &str, message: &str, more: &[&str]) -> Result<Ended> {
    let (folder, wasm) = (told(plugin, message)?, guest(plugin)?.display().to_string());
    run(folder.path(), &[&["plugin", "try", &wasm, "--event", "event.json"], more].concat())
}

#[test]
fn trying_a_plugin_shows_the_mail_it_would_send() -> Result<()> {
    let ended = try_out("smtp", "{task_id} is broken", &[])?;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    for expected in [
        "granted  everything it imports, any recipient; nothing is sent",
        "event    task-failed of task A35mWTRuQmyj88yMnIF0fA",
        "done for identity default (",
        "── task-failed ─ mail to a@example.com ─ asked for\n   To: a@example.com\n   Subject: It failed\n",
        "   A35mWTRuQmyj88yMnIF0fA is broken\n",
    ] {
        assert!(ended.out.contains(expected), "{expected}: {}", ended.out);
    }
    Ok(())
}

#[test]
fn trying_a_plugin_as_json_prints_one_object() -> Result<()> {
    let ended = try_out("smtp", "broken", &["--json"])?;
    let shown: Value = serde_json::from_str(&ended.out)?;
    assert_eq!(shown["plugin"], "smtp");
    assert_eq!(shown["grant"], json!(["*"]));
    assert_eq!(shown["runs"][0]["effects"][0]["recipient"], "a@example.com");
    assert!(shown["runs"][0]["cpu_us"].as_u64() > Some(0), "{shown}");
    Ok(())
}

#[test]
fn settings_and_a_definition_of_their_own_count() -> Result<()> {
    let (folder, wasm) = (told("irc", "")?, guest("smtp")?.display().to_string());
    let definition = event(&json!({"plugins": "smtp", "emails": "b@example.com"}))["task"].to_string();
    std::fs::write(folder.path().join("task.json"), definition)?;
    std::fs::write(folder.path().join("settings.json"), r#"{"template": "own: {{ status }}"}"#)?;
    let files = ["--event", "event.json", "--task", "task.json", "--settings", "settings.json", "--json"];
    let ended = run(folder.path(), &[&["plugin", "try", &wasm][..], &files].concat())?;
    let shown: Value = serde_json::from_str(&ended.out).with_context(|| format!("{ended:?}"))?;
    assert_eq!(shown["runs"][0]["effects"][0]["recipient"], "b@example.com");
    assert_eq!(shown["runs"][0]["effects"][0]["html"], "own: task-failed");
    Ok(())
}

#[test]
fn a_plugin_that_attacks_is_shown_with_its_fault_its_refusals_and_its_log() -> Result<()> {
    for (attack, code, expected) in [
        ("behave", 0, "done for identity default"),
        ("loop", 1, "faulted for identity default: "),
        ("trap", 1, "on purpose"),
        ("fail", 1, "failed for identity default: as the task wished"),
        ("retry", 1, "retry for identity default: the world is not ready"),
        ("inject", 0, "── refused\n   invalid: "),
        ("log injection", 0, "── log\n   info: one\n   info: error: two"),
    ] {
        let ended = try_out("hostile", attack, &[])?;
        assert_eq!(ended.code, Some(code), "{attack}: {ended:?}");
        assert!(ended.out.contains(expected), "{attack}: {ended:?}");
        assert_eq!(ended.err.contains("ended as "), code == 1, "{attack}: {ended:?}");
        let said = ended.out + &ended.err;
        assert!(said.chars().all(|c| c == '\n' || !c.is_control()), "{attack}: {said:?}");
    }
    Ok(())
}

#[test]
fn what_is_not_usable_ends_with_78_and_says_which_file_and_what_was_expected() -> Result<()> {
    let folder = told("smtp", "broken")?;
    let wasm = guest("smtp")?.display().to_string();
    let in_folder = |name: &str, text: &str| std::fs::write(folder.path().join(name), text);
    in_folder("text.json", "no JSON")?;
    in_folder("list.json", "[]")?;
    in_folder("no_task_id.json", r#"{"exchange": "e/task-failed", "body": {}}"#)?;
    in_folder("no_task.json", r#"{"exchange": "e/task-failed", "body": {"status": {"taskId": "A"}}}"#)?;
    let bare = |extra: Value| json!({"exchange": "e/task-failed", "body": {"status": {"taskId": "A"}}, "task": extra});
    in_folder("no_extra.json", &bare(json!({})).to_string())?;
    in_folder("other.json", &bare(json!({"extra": {"notification": {"task-completed": {}}}})).to_string())?;
    in_folder(
        "irc.json",
        &bare(json!({"extra": {"notifications": {"task-failed": {"plugins": ["irc"]}}}})).to_string(),
    )?;
    in_folder("no.wasm", "no plugin")?;
    let cases: [(&[&str], &str); 12] = [
        (&[&wasm, "--event", "none.json"], "none.json: expected an event as JSON: No such file"),
        (&[&wasm, "--event", "text.json"], "text.json: expected {\"exchange\": …, \"body\": …}: expected"),
        (&[&wasm, "--event", "list.json"], "list.json: expected {\"exchange\": …, \"body\": …}: "),
        (&[&wasm, "--event", "no_task_id.json"], "no_task_id.json: expected a task id at status.taskId"),
        (&[&wasm, "--event", "no_task.json"], "no_task.json: expected the definition of task A as \"task\""),
        (
            &[&wasm, "--event", "no_extra.json"],
            "plugin \"smtp\": looked in `plugins` of extra.notifications.task-failed; the task has neither",
        ),
        (
            &[&wasm, "--event", "other.json"],
            "looked in `plugins` of extra.notification.task-failed; found sections for [\"task-completed\"]",
        ),
        (&[&wasm, "--event", "irc.json"], "task-failed; found [\"irc\"]"),
        (&["none.wasm", "--event", "event.json"], "none.wasm: expected a plugin's .wasm file: No such file"),
        (&["no.wasm", "--event", "event.json"], "no.wasm: expected a WebAssembly component"),
        (&[&wasm, "--event", "event.json", "--task", "list.json"], "list.json: expected a task's definition as JSON"),
        (&[&wasm, "--event", "event.json", "--settings", "list.json"], "list.json: expected settings as a JSON object"),
    ];
    for (arguments, expected) in cases {
        let ended = run(folder.path(), &[&["plugin", "try"], arguments].concat())?;
        assert_eq!(ended.code, Some(78), "{arguments:?}: {ended:?}");
        assert!(ended.err.contains(expected), "{expected}: {}", ended.err);
        assert_eq!(ended.out, "");
    }
    Ok(())
}

#[test]
fn a_case_that_differs_says_where_and_is_accepted_by_bless() -> Result<()> {
    let (folder, wasm) = (tempfile::tempdir()?, guest("smtp")?.display().to_string());
    let golden = std::fs::read_to_string(workspace().join("guest-plugins/smtp/cases/plain.json"))?;
    let changed = golden.replace("\"Date: Nov 02, 2026\"", "\"Date: never\"");
    std::fs::write(folder.path().join("plain.json"), &changed)?;
    let test = ["plugin", "test", ".", "--wasm", &wasm];

    let ended = run(folder.path(), &test)?;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.out.contains("failed plain\n   [0].effects[0].text["), "{ended:?}");
    assert!(ended.out.contains("     - \"Date: never\"\n     + \"Date: Nov 02, 2026\"\n"), "{ended:?}");

    assert_eq!(run(folder.path(), &[&test[..], &["--bless"]].concat())?.out, "blessed   plain\n");
    assert_eq!(std::fs::read_to_string(folder.path().join("plain.json"))?, golden);
    let ended = run(folder.path(), &test)?;
    assert_eq!((ended.code, ended.out.as_str()), (Some(0), "ok     plain\n"));
    Ok(())
}

#[test]
fn a_folder_without_a_case_or_with_a_wrong_one_ends_with_78() -> Result<()> {
    let (folder, wasm) = (tempfile::tempdir()?, guest("smtp")?.display().to_string());
    let test = ["plugin", "test", ".", "--wasm", &wasm];
    let ended = run(folder.path(), &test)?;
    assert_eq!(ended.code, Some(78));
    assert!(ended.err.contains("expected a folder of cases, one .json file each: found none"), "{ended:?}");
    std::fs::write(folder.path().join("wrong.json"), r#"{"event": {}, "setings": {}}"#)?;
    let ended = run(folder.path(), &test)?;
    assert_eq!(ended.code, Some(78));
    assert!(ended.err.contains("wrong.json: expected a case") && ended.err.contains("setings"), "{ended:?}");
    Ok(())
}

#[test]
fn a_new_plugin_builds_and_passes_its_test_as_it_is() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let sdk = workspace().join("sdk").display().to_string();
    let kinds: [(&str, &[&str]); 3] = [
        ("plain", &[]),
        ("all-of-it", &["--with", "log,settings,taskcluster,email,sns,s3,irc,amqp,webhook"]),
        ("reads", &["--with", "settings,taskcluster"]),
    ];
    for (name, with) in kinds {
        let ended = run(folder.path(), &[&["plugin", "new", name, "--sdk", &sdk], with].concat())?;
        assert_eq!(ended.code, Some(0), "{ended:?}");
        let krate = folder.path().join(name);
        let file = name.replace('-', "_");
        assert!(ended.out.contains(&format!("plugin test cases --wasm target/wasm32-wasip2/release/{file}.wasm")));
        build(&krate)?;
        let formatted = Command::new(env!("CARGO")).args(["fmt", "--check"]).current_dir(&krate).output()?;
        ensure!(formatted.status.success(), "{name}: {}", String::from_utf8_lossy(&formatted.stdout));
        let wasm = target()?.join(format!("wasm32-wasip2/release/{file}.wasm")).display().to_string();
        let ended = run(&krate, &["plugin", "test", "cases", "--wasm", &wasm])?;
        assert_eq!((ended.code, ended.out.as_str()), (Some(0), "ok     failed\n"), "{name}: {}", ended.err);
        let ended = run(&krate, &["plugin", "try", &wasm, "--event", "cases/failed.json"])?;
        assert_eq!(ended.code, Some(0), "{name}: {ended:?}");
    }
    Ok(())
}

/// Builds a crate as its author would, but into the workspace's target directory and with the versions fixed there.
fn build(krate: &Path) -> Result<()> {
    std::fs::copy(workspace().join("Cargo.lock"), krate.join("Cargo.lock"))?;
    let built = Command::new(env!("CARGO"))
        .args(["build", "--release", "--target", "wasm32-wasip2", "--offline"])
        .current_dir(krate)
        .env("CARGO_TARGET_DIR", target()?)
        .env("RUSTFLAGS", "--deny warnings")
        .output()?;
    ensure!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    Ok(())
}

#[test]
fn a_new_plugin_among_the_guests_of_a_checkout_inherits_from_its_workspace() -> Result<()> {
    let checkout = tempfile::tempdir()?;
    let guests = checkout.path().join("guest-plugins");
    std::fs::create_dir_all(checkout.path().join("sdk"))?;
    std::fs::create_dir_all(&guests)?;
    std::fs::write(checkout.path().join("sdk/Cargo.toml"), "[package]\nname = \"pulse-notifier-sdk\"\n")?;
    let ended = run(&guests, &["plugin", "new", "inside"])?;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.out.contains("make guests"), "{ended:?}");
    let smtp = std::fs::read_to_string(workspace().join("guest-plugins/smtp/Cargo.toml"))?;
    let inside = std::fs::read_to_string(guests.join("inside/Cargo.toml"))?;
    let keys = |manifest: &str| -> Vec<String> {
        let is_its_own = |line: &&str| line.starts_with("name") || line.starts_with("description");
        manifest.lines().filter(|line| !is_its_own(line)).map(str::to_owned).collect()
    };
    assert_eq!(keys(&inside), keys(&smtp));

    let ended = run(checkout.path(), &["plugin", "new", "beside"])?;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(std::fs::read_to_string(checkout.path().join("beside/Cargo.toml"))?.contains("[workspace]"));
    Ok(())
}

#[test]
fn a_new_plugin_that_cannot_be_ends_with_78_and_leaves_nothing() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let sdk = workspace().join("sdk").display().to_string();
    std::fs::create_dir(folder.path().join("taken"))?;
    let cases: [(&[&str], &str); 6] = [
        (&["taken", "--sdk", &sdk], "taken: expected a folder that does not exist yet"),
        (&["Upper", "--sdk", &sdk], "expected a name of a-z, then a-z 0-9 _ -, found \"Upper\""),
        (&["../out", "--sdk", &sdk], "found \"../out\""),
        (
            &["fine", "--sdk", &sdk, "--with", "email,sms"],
            "settings, taskcluster, email, sns, s3, irc, amqp, webhook, log, found \"sms\"",
        ),
        (&["fine", "--sdk", "nowhere"], "nowhere: expected the folder of the SDK"),
        (&["fine"], "name the SDK's folder with --sdk"),
    ];
    for (arguments, expected) in cases {
        let ended = run(folder.path(), &[&["plugin", "new"], arguments].concat())?;
        assert_eq!(ended.code, Some(78), "{arguments:?}: {ended:?}");
        assert!(ended.err.contains(expected), "{expected}: {}", ended.err);
    }
    let left: Vec<_> = std::fs::read_dir(folder.path())?.collect::<Result<_, _>>()?;
    assert_eq!(left.len(), 1);
    Ok(())
}
