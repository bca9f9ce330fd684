//! The plugin `stamped` in as many versions as one likes, each with its stamp in the mails it asks for, and a service in
//! which it runs.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::world::{definition, failure};
use crate::{Broker, Service, World, guest, request, wait};

/// For what happens at once.
pub const SOON: Duration = Duration::from_secs(60);

/// A world whose plugin `stamped` is in its version 0.
pub async fn world() -> Result<World> {
    let world = World::new(Broker::shared().await?, &["stamped"]).await?;
    world.taskcluster.define_all(|task_id| definition(&json!({"plugins": ["stamped"], "emails": [address(task_id)]})));
    Ok(world)
}

/// Whom the mail about a task goes to.
pub fn address(task_id: &str) -> String {
    format!("{}@example.com", task_id.to_lowercase())
}

/// What a version says of itself.
pub fn stamp(version: u32) -> String {
    format!("stamp-{version:06}")
}

/// A version of the plugin `stamped`: its component with another stamp.
pub fn version(number: u32) -> Result<Vec<u8>> {
    let mut wasm = fs::read(guest("stamped")?)?;
    let (old, new) = (stamp(0), stamp(number));
    let place = wasm.windows(old.len()).position(|bytes| bytes == old.as_bytes()).context("it has a stamp")?;
    wasm.splice(place..place + new.len(), new.into_bytes());
    Ok(wasm)
}

/// Puts a file in its place all at once.
pub fn put(path: &Path, bytes: &[u8]) -> Result<()> {
    let unfinished = path.with_extension("new");
    fs::write(&unfinished, bytes)?;
    Ok(fs::rename(unfinished, path)?)
}

/// Where the plugin's file is.
pub fn file(world: &World) -> PathBuf {
    world.plugin_folder().join("stamped.wasm")
}

/// The lines of the log with this message.
pub fn lines(service: &Service, message: &str) -> Vec<Value> {
    let lines = service.output().lines().map(serde_json::from_str::<Value>).collect::<Vec<_>>();
    lines.into_iter().flatten().filter(|line| line["message"] == message).collect()
}

/// What the log says of a version that is live from now on.
pub const LIVE: &str = "plugin live";
/// What it says of one that is not.
pub const REFUSED: &str = "a plugin's file is not usable: its running version stays";
/// What it says of a file that is deleted.
pub const GONE: &str = "a plugin's file is gone: its running version stays";

/// Waits until there are so many lines with this message, and returns the last.
pub async fn said(service: &Service, message: &str, times: usize) -> Result<Value> {
    wait::until_some(&format!("{message:?} is said {times} times"), SOON, async || {
        let mut lines = lines(service, message);
        ensure!(lines.len() <= times, "{message:?} is said too often: {lines:?}");
        Ok((lines.len() == times).then(|| lines.pop()).flatten())
    })
    .await
}

/// A service in which the plugin is live, and its events.
pub struct Running<'a> {
    world: &'a World,
    /// The service.
    pub service: Service,
    published: AtomicU32,
}

impl<'a> Running<'a> {
    /// Started, with the plugin as its file has it.
    pub async fn new(world: &'a World) -> Result<Self> {
        Ok(Self { world, service: world.running(&["stamped"]).await?, published: AtomicU32::default() })
    }

    /// Stops the service and starts it again.
    pub async fn start_again(&mut self) -> Result<()> {
        self.service.terminate()?;
        self.service.wait_exit(SOON).await?;
        self.service.start()?;
        self.service.wait_for_output("consuming", SOON).await
    }

    /// What the mail about an event that is published now says of the version that made it.
    pub async fn version_of_a_mail(&self) -> Result<String> {
        let number = self.published.fetch_add(1, Ordering::Relaxed);
        let (task_id, message) = failure(number);
        self.world.publish(&message).await?;
        let mail = wait::until_some("the mail has come", SOON, async || {
            Ok(self.world.smtp.mails()?.into_iter().find(|mail| mail.to == [address(&task_id)]))
        });
        mail.await?.header("Subject").context("it has a subject")
    }

    /// What `/readyz` says of plugins that are not live.
    pub async fn refused(&self) -> Result<BTreeMap<String, String>> {
        let answer = request(admin_port(&self.service)?, "GET", "/readyz", &[], "").await?;
        assert_eq!(answer.status, 200, "a file that cannot run does not make it unready");
        let said: Value = serde_json::from_str(&answer.body)?;
        Ok(serde_json::from_value(said.get("refused").cloned().unwrap_or_default())?)
    }
}

/// Where the service answers questions about itself.
pub fn admin_port(service: &Service) -> Result<u16> {
    let address = |line: &str| serde_json::from_str::<Value>(line).ok()?.get("address")?.as_str().map(str::to_owned);
    let address = service.output().lines().find_map(address).context("it says where it serves health")?;
    Ok(address.rsplit(':').next().context("a port")?.parse()?)
}
