//! An InfluxDB 1, with one database.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use tempfile::TempDir;

use crate::broker::free_port;
use crate::keeper::Keeper;
use crate::{request, wait};

/// One running server. Dropping it ends it.
pub struct InfluxServer {
    keeper: Keeper,
    directory: TempDir,
    port: u16,
}

impl InfluxServer {
    /// The name of its database.
    pub const DATABASE: &str = "timings";

    /// Starts a server and creates its database.
    pub async fn start() -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("influx-").tempdir()?;
        let (port, backup_port) = (free_port()?, free_port()?);
        let at = directory.path().display();
        let configuration = format!(
            "reporting-disabled = true\nbind-address = \"127.0.0.1:{backup_port}\"\n\
             [meta]\ndir = \"{at}/meta\"\n[data]\ndir = \"{at}/data\"\nwal-dir = \"{at}/wal\"\n\
             [http]\nbind-address = \"127.0.0.1:{port}\"\n[monitor]\nstore-enabled = false\n"
        );
        fs::write(directory.path().join("influxdb.conf"), configuration)?;
        let mut server = Self { keeper: spawn(directory.path())?, directory, port };
        wait::until("InfluxDB answers", START_TIMEOUT, async || {
            if let Some(status) = server.keeper.exit_status()? {
                bail!("InfluxDB ended with {status}:\n{}", Keeper::output(server.directory.path()));
            }
            Ok(matches!(request(port, "GET", "/ping", &[], "").await, Ok(answer) if answer.status == 204))
        })
        .await?;
        server.query(&format!("CREATE DATABASE {}", Self::DATABASE)).await?;
        Ok(server)
    }

    /// The port it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// What it answers to a query, as JSON.
    pub async fn query(&self, query: &str) -> Result<String> {
        let encoded: String = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let path = format!("/query?db={}&q={encoded}", Self::DATABASE);
        let answer = request(self.port, "POST", &path, &[], "").await?;
        ensure!(answer.status == 200, "{query}: {} {}", answer.status, answer.body);
        Ok(answer.body)
    }
}

fn spawn(directory: &Path) -> Result<Keeper> {
    let home = ("HOME".to_owned(), directory.display().to_string());
    Keeper::spawn(directory, Path::new("/usr/bin/influxd"), &["-config", "influxdb.conf"], &[home])
}

const START_TIMEOUT: Duration = Duration::from_secs(60);
