//! A plugin's file comes, changes or goes while the service runs: what runs then, and that no event notices.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use end_to_end::world::{count, definition, failure, store};
use end_to_end::{Broker, Service, World, guest, request, wait};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(60);
const LONG: Duration = Duration::from_secs(240);

/// A world whose plugin `stamped` is in its version 0.
async fn world() -> Result<World> {
    let world = World::new(Broker::shared().await?, &["stamped"]).await?;
    world.taskcluster.define_all(|task_id| definition(&json!({"plugins": ["stamped"], "emails": [address(task_id)]})));
    Ok(world)
}

fn address(task_id: &str) -> String {
    format!("{}@example.com", task_id.to_lowercase())
}

fn stamp(version: u32) -> String {
    format!("stamp-{version:06}")
}

/// A version of the plugin `stamped`: its component with another stamp.
fn version(number: u32) -> Result<Vec<u8>> {
    let mut wasm = fs::read(guest("stamped")?)?;
    let (old, new) = (stamp(0), stamp(number));
    let place = wasm.windows(old.len()).position(|bytes| bytes == old.as_bytes()).context("it has a stamp")?;
    wasm.splice(place..place + new.len(), new.into_bytes());
    Ok(wasm)
}

/// Puts a file in its place all at once.
fn put(path: &Path, bytes: &[u8]) -> Result<()> {
    let unfinished = path.with_extension("new");
    fs::write(&unfinished, bytes)?;
    Ok(fs::rename(unfinished, path)?)
}

/// Where the plugin's file is.
fn file(world: &World) -> PathBuf {
    world.plugin_folder().join("stamped.wasm")
}

/// The lines of the log with this message.
fn lines(service: &Service, message: &str) -> Vec<Value> {
    let lines = service.output().lines().map(serde_json::from_str::<Value>).collect::<Vec<_>>();
    lines.into_iter().flatten().filter(|line| line["message"] == message).collect()
}

const LIVE: &str = "plugin live";
const REFUSED: &str = "a plugin's file is not usable: its running version stays";
const GONE: &str = "a plugin's file is gone: its running version stays";

/// Waits until there are so many lines with this message, and returns the last.
async fn said(service: &Service, message: &str, times: usize) -> Result<Value> {
    wait::until_some(&format!("{message:?} is said {times} times"), SOON, async || {
        let mut lines = lines(service, message);
        ensure!(lines.len() <= times, "{message:?} is said too often: {lines:?}");
        Ok((lines.len() == times).then(|| lines.pop()).flatten())
    })
    .await
}

/// A service in which the plugin is live, and its events.
struct Running<'a> {
    world: &'a World,
    service: Service,
    published: AtomicU32,
}

impl<'a> Running<'a> {
    async fn new(world: &'a World) -> Result<Self> {
        Ok(Self { world, service: world.running(&["stamped"]).await?, published: AtomicU32::default() })
    }

    /// What the mail about an event that is published now says of the version that made it.
    async fn version_of_a_mail(&self) -> Result<String> {
        let number = self.published.fetch_add(1, Ordering::Relaxed);
        let (task_id, message) = failure(number);
        self.world.publish(&message).await?;
        let mail = wait::until_some("the mail has come", SOON, async || {
            Ok(self.world.smtp.mails()?.into_iter().find(|mail| mail.to == [address(&task_id)]))
        });
        mail.await?.header("Subject").context("it has a subject")
    }

    async fn refused(&self) -> Result<BTreeMap<String, String>> {
        let address =
            |line: &str| serde_json::from_str::<Value>(line).ok()?.get("address")?.as_str().map(str::to_owned);
        let address = self.service.output().lines().find_map(address).context("it says where it serves health")?;
        let port = address.rsplit(':').next().context("a port")?.parse()?;
        let answer = request(port, "GET", "/readyz", &[], "").await?;
        assert_eq!(answer.status, 200, "a file that cannot run does not make it unready");
        let said: Value = serde_json::from_str(&answer.body)?;
        Ok(serde_json::from_value(said.get("refused").cloned().unwrap_or_default())?)
    }
}

#[tokio::test]
async fn swapped_two_hundred_times_under_load_no_event_is_lost_or_doubled_and_each_mail_is_of_one_version() -> Result<()>
{
    const SWAPS: u32 = 200;
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
                Ok(count(&store, "SELECT COUNT(*) FROM invocation").await? + 8 > number.into())
            })
            .await?;
        }
        anyhow::Ok(live_before)
    };
    let swap = async {
        let of_the_start = lines(&running.service, LIVE).len();
        for number in 1..=SWAPS {
            put(&file, &version(number)?)?;
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
    wait::until("every effect is delivered", SOON, async || Ok(count(&store, open).await? == 0)).await?;
    assert_eq!(world.smtp.mails()?.len(), published, "none is doubled");
    assert_eq!(count(&store, "SELECT COUNT(*) FROM invocation WHERE state = 'done'").await?, published as i64);
    assert_eq!(count(&store, "SELECT COUNT(*) FROM invocation").await?, published as i64);
    let mut versions = BTreeSet::new();
    let mails: BTreeMap<_, _> = mails.into_iter().map(|mail| (mail.to.concat(), mail)).collect();
    for (number, live_before) in live_before.into_iter().enumerate() {
        let mail = mails.get(&address(&failure(number as u32).0)).context("every mail has come")?;
        let subject = mail.header("Subject").context("it has a subject")?;
        assert!(mail.body().contains(&format!("by {subject}")), "{}", mail.data);
        assert!(subject >= stamp(live_before), "{subject} came after version {live_before} was live");
        versions.insert(subject);
    }
    assert!(versions.len() > SWAPS as usize / 2, "events came all the time: {versions:?}");
    let digests = count(&store, "SELECT COUNT(DISTINCT digest) FROM invocation").await?;
    assert_eq!(digests as usize, versions.len(), "the store says which version ran");
    let mut ms: Vec<_> = lines(&running.service, LIVE).iter().filter_map(|line| line["ms"].as_u64()).collect();
    ms.sort_unstable();
    let (p50, p99, most) = (ms[ms.len() / 2], ms[ms.len() * 99 / 100], ms[ms.len() - 1]);
    #[expect(clippy::disallowed_macros, reason = "a figure for whoever asks to see it")]
    {
        eprintln!("{SWAPS} swaps, {published} events; drop to live: p50 {p50} ms, p99 {p99} ms, at most {most} ms");
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
    // While it is gone, what runs stays; and then the shared one counts.
    fs::remove_file(&own)?;
    said(&running.service, GONE, 1).await?;
    assert_eq!(running.version_of_a_mail().await?, stamp(3));
    put(&file(&world), &version(4)?)?;
    said(&running.service, LIVE, 4).await?;
    assert_eq!(running.version_of_a_mail().await?, stamp(4));
    Ok(())
}
