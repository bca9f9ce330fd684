//! Going back to a version, and forward: at once, and for good.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use end_to_end::guest;
use end_to_end::stamped::{GONE, LIVE, REFUSED, Running, file, lines, put, said, stamp, version, world};
use serde_json::Value;

/// The digest of the version that a line of the log is about.
fn digest(line: &Value) -> Result<String> {
    line["digest"].as_str().map(str::to_owned).context("a digest")
}

#[tokio::test]
async fn a_rollback_is_live_within_a_second_and_stays_until_the_file_holds_something_new() -> Result<()> {
    let world = world().await?;
    let mut running = Running::new(&world).await?;
    for number in 1..=2 {
        put(&file(&world), &version(number)?)?;
        said(&running.service, LIVE, 1 + number as usize).await?;
    }
    let (before, after) = (Instant::now(), running.service.command(&["plugin", "rollback", "stamped"])?);
    let committed = Instant::now();
    let line = said(&running.service, LIVE, 4).await?;
    assert!(committed.elapsed() < Duration::from_secs(1), "{:?} {:?}", committed.elapsed(), before.elapsed());
    assert_eq!(after, format!("default/stamped  {}\n", digest(&line)?));
    assert_eq!(line["source"], "rollback");
    assert_eq!(running.version_of_a_mail().await?, stamp(1));
    // Across a restart, though the file holds the version that was left behind; and though somebody touches it.
    running.start_again().await?;
    assert_eq!(running.version_of_a_mail().await?, stamp(1));
    put(&file(&world), &version(2)?)?;
    assert_eq!(running.version_of_a_mail().await?, stamp(1));
    // Once more, to the very first.
    running.service.command(&["plugin", "rollback", "stamped"])?;
    said(&running.service, LIVE, 2).await?;
    assert_eq!(running.version_of_a_mail().await?, stamp(0));
    assert!(running.service.command(&["plugin", "rollback", "stamped"]).is_err(), "there is nothing before it");
    put(&file(&world), &version(3)?)?;
    said(&running.service, LIVE, 3).await?;
    assert_eq!(running.version_of_a_mail().await?, stamp(3));
    // While it does not run.
    running.service.terminate()?;
    running.service.wait_exit(Duration::from_secs(60)).await?;
    running.service.command(&["plugin", "rollback", "stamped", "--tenant", "default"])?;
    running.service.start()?;
    running.service.wait_for_output("consuming", Duration::from_secs(60)).await?;
    assert_eq!(running.version_of_a_mail().await?, stamp(0));
    Ok(())
}

#[tokio::test]
async fn what_a_command_deploys_is_live_and_what_the_grant_does_not_cover_is_not() -> Result<()> {
    let world = world().await?;
    let mut running = Running::new(&world).await?;
    let elsewhere = running.service.directory().join("stamped.wasm");
    fs::write(&elsewhere, version(5)?)?;
    let path = |path: &Path| path.display().to_string();
    running.service.command(&["plugin", "deploy", &path(&elsewhere)])?;
    assert_eq!(said(&running.service, LIVE, 2).await?["source"], "cli");
    assert_eq!(running.version_of_a_mail().await?, stamp(5));
    assert!(running.service.command(&["plugin", "deploy", "stamped.wasm"])?.contains("was live already"));
    let sns = path(&guest("sns")?);
    for (arguments, why) in [
        (&["plugin", "deploy", sns.as_str(), "--name", "stamped"][..], "[plugins.stamped.grant.sns]"),
        (&["plugin", "deploy", sns.as_str()], "expected one of the plugins stamped, found \"sns\""),
        (&["plugin", "deploy", "nowhere.wasm", "--name", "stamped"], "nowhere.wasm: read it"),
        (&["plugin", "deploy", "stamped.wasm", "--tenant", "red"], "--tenant: expected one of default, found \"red\""),
        (&["plugin", "rollback", "stamped", "--to", "xyz"], "expected 8 to 64 hexadecimal digits"),
        (&["plugin", "rollback", "stamped", "--to", "00000000"], "found none such for default: nothing is changed"),
        (&["plugin", "inspect", "unheard_of"], "expected one of the plugins stamped"),
    ] {
        let refused = running.service.command(arguments).err().context("it is refused")?.to_string();
        assert!(refused.contains(why), "{refused}");
    }
    // It is not in the plugin directory, and stays all the same.
    running.start_again().await?;
    assert_eq!(running.version_of_a_mail().await?, stamp(5));
    let seen = running.service.command(&["plugin", "inspect", "stamped"])?;
    for part in ["by cli", "by file", "imports      ", "email", "shared"] {
        assert!(seen.contains(part), "{part}: {seen}");
    }
    let listed = running.service.command(&["plugin", "list"])?;
    assert!(listed.starts_with("default/stamped  ") && listed.contains("by cli"), "{listed}");
    Ok(())
}

#[tokio::test]
async fn at_a_start_a_file_that_is_gone_or_not_usable_leaves_the_version_that_ran() -> Result<()> {
    let world = world().await?;
    let mut running = Running::new(&world).await?;
    fs::remove_file(file(&world))?;
    said(&running.service, GONE, 1).await?;
    running.start_again().await?;
    assert_eq!(running.version_of_a_mail().await?, stamp(0));
    assert!(running.refused().await?.get("default/stamped").is_some_and(|why| why.contains("it is gone")));
    put(&file(&world), &[0x5a; 10_000])?;
    said(&running.service, REFUSED, 1).await?;
    running.start_again().await?;
    assert_eq!(running.version_of_a_mail().await?, stamp(0));
    let refused = running.refused().await?;
    assert!(refused.get("default/stamped").is_some_and(|why| why.contains("expected a WebAssembly")), "{refused:?}");
    // Dropped while it does not run.
    running.service.terminate()?;
    running.service.wait_exit(Duration::from_secs(60)).await?;
    put(&file(&world), &version(7)?)?;
    running.service.start()?;
    running.service.wait_for_output("consuming", Duration::from_secs(60)).await?;
    assert_eq!(running.version_of_a_mail().await?, stamp(7));
    assert!(running.refused().await?.is_empty());
    assert_eq!(lines(&running.service, LIVE).len(), 1);
    Ok(())
}
