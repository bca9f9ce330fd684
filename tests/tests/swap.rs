//! A plugin's file comes, changes or goes while the service runs: what runs then, and that no event notices.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use end_to_end::stamped::{GONE, LIVE, REFUSED, Running, SOON, address, file, lines, put, said, stamp, version, world};
use end_to_end::world::{failure, store};
use end_to_end::{guest, wait};

const LONG: Duration = Duration::from_secs(240);

#[tokio::test]
async fn of_two_hundred_versions_under_load_each_mail_is_of_one_and_none_is_lost_or_doubled() -> Result<()> {
    swap_under_load(200, 1_000).await
}

#[tokio::test]
async fn swapped_a_thousand_times_between_two_versions_under_load_each_mail_is_of_one_and_none_is_lost_or_doubled()
-> Result<()> {
    swap_under_load(1_000, 2).await
}

/// Swaps from version to version so often, and from the last one of so many to the first one again.
async fn swap_under_load(swaps: u32, versions: u32) -> Result<()> {
    let world = world().await?;
    let running = Running::new(&world).await?;
    let (store, file) = (store(&running.service), file(&world));
    let (live, done) = (AtomicU32::new(0), AtomicBool::new(false));
    let publish = async {
        let publisher = world.vhost.publisher().await?;
        let mut live_before = Vec::new();
        while !done.load(Ordering::Relaxed) {
            live_before.push(live.load(Ordering::Relaxed));
            let number = live_before.len() as u32 - 1;
            publisher.publish_many([failure(number).1]).await?;
            // A few are always on their way.
            wait::until("it is taken in", SOON, async || {
                Ok(store.count("SELECT COUNT(*) FROM invocation")? + 8 > number.into())
            })
            .await?;
        }
        anyhow::Ok(live_before)
    };
    let swap = async {
        let of_the_start = lines(&running.service, LIVE).len();
        for number in 1..=swaps {
            put(&file, &version(number % versions)?)?;
            said(&running.service, LIVE, of_the_start + number as usize).await?;
            live.store(number, Ordering::Relaxed);
        }
        done.store(true, Ordering::Relaxed);
        anyhow::Ok(())
    };
    let (live_before, ()) = tokio::try_join!(publish, swap)?;

    let published = live_before.len();
    let mails = world.smtp.wait_for_mails(published, LONG).await?;
    world.queue_is_empty().await?;
    let open = "SELECT COUNT(*) FROM effect WHERE state <> 'delivered'";
    wait::until("every effect is delivered", SOON, async || Ok(store.count(open)? == 0)).await?;
    assert_eq!(world.smtp.mails()?.len(), published, "none is doubled");
    assert_eq!(store.count("SELECT COUNT(*) FROM invocation WHERE state = 'done'")?, published as i64);
    assert_eq!(store.count("SELECT COUNT(*) FROM invocation")?, published as i64);
    let mut seen = BTreeSet::new();
    let mails: BTreeMap<_, _> = mails.into_iter().map(|mail| (mail.to.concat(), mail)).collect();
    for (number, live_before) in live_before.into_iter().enumerate() {
        let mail = mails.get(&address(&failure(number as u32).0)).context("every mail has come")?;
        let subject = mail.header("Subject").context("it has a subject")?;
        assert!(mail.body().contains(&format!("by {subject}")), "{}", mail.data);
        let is_older = swaps < versions && subject < stamp(live_before);
        assert!(!is_older, "{subject} came after version {live_before} was live");
        seen.insert(subject);
    }
    assert!(seen.len() > swaps.min(versions) as usize / 2, "events came all the time: {seen:?}");
    let digests = store.count("SELECT COUNT(DISTINCT digest) FROM invocation")?;
    assert_eq!(digests as usize, seen.len(), "the store says which version ran");
    let mut ms: Vec<_> = lines(&running.service, LIVE).iter().filter_map(|line| line["ms"].as_u64()).collect();
    ms.sort_unstable();
    let at = |share: usize| ms.get(ms.len() * share / 100).or(ms.last()).copied().unwrap_or_default();
    let (p50, p99, most) = (at(50), at(99), at(100));
    #[expect(clippy::disallowed_macros, reason = "a figure for whoever asks to see it")]
    {
        eprintln!("{swaps} swaps, {published} events; drop to live: p50 {p50} ms, p99 {p99} ms, at most {most} ms");
    }
    Ok(())
}

#[tokio::test]
async fn what_is_no_plugin_changes_nothing_and_the_reason_is_said_once() -> Result<()> {
    let world = world().await?;
    let running = Running::new(&world).await?;
    let (file, whole, elsewhere) = (file(&world), version(1)?, tempfile::tempdir()?);
    fs::write(elsewhere.path().join("stamped.wasm"), &whole)?;
    let cases: [(&str, &dyn Fn() -> Result<()>); 7] = [
        ("expected a WebAssembly component", &|| put(&file, &[0x5a; 10_000])),
        ("it does not compile", &|| put(&file, &whole[..whole.len() / 2])),
        ("its grant does not cover what it imports: sns", &|| put(&file, &fs::read(guest("sns")?)?)),
        ("11534336 bytes, more than the 10485760", &|| put(&file, &vec![0; 11 << 20])),
        ("it leads out of the plugin directory, to ", &|| {
            fs::remove_file(&file)?;
            Ok(symlink(elsewhere.path().join("stamped.wasm"), &file)?)
        }),
        ("expected a regular file", &|| {
            fs::remove_file(&file)?;
            Ok(fs::create_dir(&file)?)
        }),
        ("expected a regular file", &|| {
            fs::remove_dir(&file)?;
            ensure!(Command::new("mkfifo").arg(&file).status()?.success());
            Ok(())
        }),
    ];
    for (number, (reason, put)) in cases.iter().enumerate() {
        put()?;
        let line = said(&running.service, REFUSED, number + 1).await?;
        let said = line["reason"].as_str().context("it gives a reason")?;
        assert!(said.starts_with(reason), "{said}");
        assert_eq!((&line["plugin"], &line["level"]), (&"stamped".into(), &"ERROR".into()));
        assert_eq!(line["path"], file.display().to_string());
        let refused = running.refused().await?;
        assert!(refused.get("default/stamped").is_some_and(|why| why.contains(reason)), "{refused:?}");
        assert_eq!(running.version_of_a_mail().await?, stamp(0));
    }
    put(&world.plugin_folder().join("unheard_of.wasm"), &whole)?;
    put(&file, &whole)?;
    said(&running.service, LIVE, 2).await?;
    assert_eq!(running.version_of_a_mail().await?, stamp(1));
    assert!(running.refused().await?.is_empty());
    assert_eq!(lines(&running.service, REFUSED).len(), cases.len());
    Ok(())
}

#[tokio::test]
async fn a_file_that_is_written_slowly_is_not_live_before_it_is_whole() -> Result<()> {
    let world = world().await?;
    let running = Running::new(&world).await?;
    let whole = version(1)?;
    // Over the old one, in place.
    let mut file = fs::File::create(file(&world))?;
    for (number, part) in whole.chunks(whole.len() / 8).enumerate() {
        if number == 6 {
            // Whoever takes that long is told; nobody before.
            said(&running.service, REFUSED, 1).await?;
        }
        assert_eq!(running.version_of_a_mail().await?, stamp(0));
        assert_eq!(lines(&running.service, LIVE).len(), 1);
        file.write_all(part)?;
    }
    said(&running.service, LIVE, 2).await?;
    assert_eq!(running.version_of_a_mail().await?, stamp(1));
    assert!(running.refused().await?.is_empty());
    Ok(())
}

#[tokio::test]
async fn a_plugin_whose_file_is_deleted_runs_on_and_a_version_that_comes_back_is_live_again() -> Result<()> {
    let world = world().await?;
    let running = Running::new(&world).await?;
    let file = file(&world);
    put(&file, &version(1)?)?;
    said(&running.service, LIVE, 2).await?;
    fs::remove_file(&file)?;
    said(&running.service, GONE, 1).await?;
    assert_eq!(running.version_of_a_mail().await?, stamp(1));
    let refused = running.refused().await?;
    assert!(refused.get("default/stamped").is_some_and(|why| why.contains("it is gone")), "{refused:?}");
    // By a link that stays inside.
    put(&world.plugin_folder().join("stamped-2.of-today"), &version(2)?)?;
    symlink("stamped-2.of-today", &file)?;
    said(&running.service, LIVE, 3).await?;
    assert_eq!(running.version_of_a_mail().await?, stamp(2));
    put(&file, &version(0)?)?;
    said(&running.service, LIVE, 4).await?;
    assert_eq!(running.version_of_a_mail().await?, stamp(0));
    Ok(())
}

#[tokio::test]
async fn a_tenants_own_file_wins_over_the_shared_one() -> Result<()> {
    let world = world().await?;
    let running = Running::new(&world).await?;
    let own = world.plugin_folder().join("default/stamped.wasm");
    fs::create_dir(world.plugin_folder().join("default"))?;
    put(&own, &version(1)?)?;
    let live = said(&running.service, LIVE, 2).await?;
    assert_eq!((&live["tenant"], &live["path"]), (&"default".into(), &own.display().to_string().into()));
    // Were the shared one taken, it would be before the own one, which comes later.
    put(&file(&world), &version(2)?)?;
    assert_eq!(running.version_of_a_mail().await?, stamp(1));
    put(&own, &version(3)?)?;
    said(&running.service, LIVE, 3).await?;
    assert_eq!(running.version_of_a_mail().await?, stamp(3));
    // Once it is gone, the shared one counts.
    fs::remove_file(&own)?;
    said(&running.service, LIVE, 4).await?;
    assert_eq!(running.version_of_a_mail().await?, stamp(2));
    assert!(lines(&running.service, GONE).is_empty());
    put(&file(&world), &version(4)?)?;
    said(&running.service, LIVE, 5).await?;
    assert_eq!(running.version_of_a_mail().await?, stamp(4));
    Ok(())
}
