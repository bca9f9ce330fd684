//! A RabbitMQ node of our own: loopback only, private directory, free ports, with the management API for speed.

use std::fs::{self, Permissions};
use std::hash::{BuildHasher, RandomState};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;
use tokio::sync::OnceCell;

use crate::certificate::certify;
use crate::keeper::Keeper;
use crate::vhost::Vhost;
use crate::{http, wait};

/// One running node. Dropping it kills the node and removes its data.
pub struct Broker {
    keeper: Keeper,
    node: Arc<Node>,
    vhosts: AtomicUsize,
    _directory: TempDir,
}

impl Broker {
    /// The node that all tests of this process share; each takes a [`Vhost`] of its own.
    pub async fn shared() -> Result<&'static Broker> {
        static SHARED: OnceCell<Broker> = OnceCell::const_new();
        SHARED.get_or_try_init(Broker::private).await
    }

    /// A node for one test, which may kill it.
    pub async fn private() -> Result<Broker> {
        // Another process may take a free port before the node does.
        let mut tries = 1;
        loop {
            match Self::at_free_ports().await {
                Err(error) if tries < 3 && error.to_string().contains("eaddrinuse") => tries += 1,
                started => return started,
            }
        }
    }

    async fn at_free_ports() -> Result<Broker> {
        let directory = tempfile::Builder::new().prefix("broker-").tempdir()?;
        let node = Arc::new(Node::prepare(directory.path())?);
        let keeper = node.spawn()?;
        let mut broker = Broker { keeper, node, vhosts: AtomicUsize::new(1), _directory: directory };
        broker.until_up().await?;
        Ok(broker)
    }

    /// The port that speaks AMQP.
    pub fn port(&self) -> u16 {
        self.node.amqp_port
    }

    /// The port that speaks AMQP over TLS.
    pub fn tls_port(&self) -> u16 {
        self.node.amqps_port
    }

    /// The certificate authority to trust, as PEM.
    pub fn ca_file(&self) -> PathBuf {
        self.node.directory.join("ca.pem")
    }

    /// A fresh virtual host.
    pub async fn vhost(&self) -> Result<Vhost> {
        let name = format!("vhost-{}", self.vhosts.fetch_add(1, Ordering::Relaxed));
        Vhost::create(Arc::clone(&self.node), name).await
    }

    /// Makes the node believe it has no memory left: it takes no message before [`Broker::unblock_publishers`].
    pub async fn block_publishers(&self) -> Result<()> {
        self.node.control(&["set_vm_memory_high_watermark", "absolute", "1MB"]).await.map(drop)
    }

    /// Lets it take messages again.
    pub async fn unblock_publishers(&self) -> Result<()> {
        self.node.control(&["set_vm_memory_high_watermark", "0.6"]).await.map(drop)
    }

    /// Kills the node with SIGKILL. What was declared durable stays, even if it was declared just now.
    pub async fn kill(&mut self) -> Result<()> {
        // A frozen one cannot, and has.
        let _ = self.write_tables().await;
        self.keeper.kill()
    }

    /// Stops the node in its tracks with SIGSTOP: its sockets stay open and say nothing. What was declared durable
    /// before stays, even if the node is killed as it is.
    pub async fn freeze(&mut self) -> Result<()> {
        self.write_tables().await?;
        self.keeper.signal("STOP")?;
        // The signal is sent; each thread stops when it next looks.
        let stopped = |task: fs::DirEntry| {
            fs::read_to_string(task.path().join("status")).map(|status| status.contains("State:\tT"))
        };
        while !fs::read_dir(format!("/proc/{}/task", self.keeper.pid()))?
            .all(|task| task.and_then(stopped).unwrap_or(true))
        {
            std::thread::yield_now();
        }
        Ok(())
    }

    /// A node writes its tables to disk when a parameter changes, otherwise two seconds later.
    async fn write_tables(&self) -> Result<()> {
        let parameter = serde_json::json!({ "value": RandomState::new().hash_one(()) });
        self.node.manage("PUT", "/api/global-parameters/written", &parameter.to_string()).await.map(drop)
    }

    /// Lets a frozen node go on.
    pub fn thaw(&mut self) -> Result<()> {
        self.keeper.signal("CONT")
    }

    /// Starts a killed node, on the same ports with the same data.
    pub async fn start_again(&mut self) -> Result<()> {
        self.keeper.kill()?;
        self.keeper = self.node.spawn()?;
        self.until_up().await
    }

    async fn until_up(&mut self) -> Result<()> {
        wait::until("the broker is up", START_TIMEOUT, async || {
            if let Some(status) = self.keeper.exit_status()? {
                bail!("the broker ended with {status}:\n{}", Keeper::output(&self.node.directory));
            }
            // AMQP comes last; the management API, asked too early, would not answer at all.
            Ok(self.node.listens().await && self.node.manage("GET", "/api/vhosts", "").await.is_ok())
        })
        .await
    }
}

/// Where a node listens, where it lives, and how it is told what to do.
pub(crate) struct Node {
    pub(crate) amqp_port: u16,
    amqps_port: u16,
    management_port: u16,
    directory: PathBuf,
    env: Vec<(String, String)>,
}

impl Node {
    fn prepare(directory: &Path) -> Result<Self> {
        let [amqp_port, amqps_port, management_port, distribution_port, epmd_port] =
            [free_port()?, free_port()?, free_port()?, free_port()?, free_port()?];
        certify(directory)?;
        let cookie = directory.join(".erlang.cookie");
        fs::write(&cookie, "HARNESS")?;
        fs::set_permissions(&cookie, Permissions::from_mode(0o400))?;
        fs::write(directory.join("enabled_plugins"), "[rabbitmq_management].")?;
        let at = directory.display();
        let configuration = format!(
            "management.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {management_port}\ndisk_free_limit.absolute = 10MB\n\
             listeners.ssl.1 = 127.0.0.1:{amqps_port}\nssl_options.cacertfile = {at}/ca.pem\n\
             ssl_options.certfile = {at}/certificate.pem\nssl_options.keyfile = {at}/key.pem\n"
        );
        fs::write(directory.join("rabbitmq.conf"), configuration)?;

        let file = |name: &str| directory.join(name).display().to_string();
        let env = [
            ("PATH", "/usr/local/bin:/usr/bin:/bin".to_owned()),
            ("HOME", directory.display().to_string()),
            ("ERL_EPMD_ADDRESS", "127.0.0.1".to_owned()),
            ("ERL_EPMD_PORT", epmd_port.to_string()),
            // The server script then becomes the node instead of waiting beside it.
            ("NOTIFY_SOCKET", file("unused")),
            ("RABBITMQ_CONF_ENV_FILE", "/dev/null".to_owned()),
            ("RABBITMQ_CONFIG_FILE", file("rabbitmq.conf")),
            ("RABBITMQ_CTL_ERL_ARGS", "-kernel inet_dist_use_interface {127,0,0,1} -start_epmd false".to_owned()),
            ("RABBITMQ_DIST_PORT", distribution_port.to_string()),
            ("RABBITMQ_ENABLED_PLUGINS_FILE", file("enabled_plugins")),
            ("RABBITMQ_GENERATED_CONFIG_DIR", file("config")),
            ("RABBITMQ_LOG_BASE", file("log")),
            ("RABBITMQ_MNESIA_BASE", file("data")),
            ("RABBITMQ_NODENAME", "harness@localhost".to_owned()),
            ("RABBITMQ_NODE_IP_ADDRESS", "127.0.0.1".to_owned()),
            ("RABBITMQ_NODE_PORT", amqp_port.to_string()),
            ("RABBITMQ_PID_FILE", file("pid")),
            ("RABBITMQ_SCHEMA_DIR", file("schema")),
            (
                "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS",
                "-kernel inet_dist_use_interface {127,0,0,1} +sbwt none +sbwtdcpu none +sbwtdio none".to_owned(),
            ),
        ]
        .map(|(name, value)| (name.to_owned(), value));
        Ok(Self { amqp_port, amqps_port, management_port, directory: directory.to_owned(), env: env.into() })
    }

    fn spawn(&self) -> Result<Keeper> {
        Keeper::spawn::<&str>(&self.directory, &Path::new(RABBITMQ).join("rabbitmq-server"), &[], &self.env)
    }

    async fn listens(&self) -> bool {
        tokio::net::TcpStream::connect(("127.0.0.1", self.amqp_port)).await.is_ok()
    }

    /// One call of the management API; an answer other than success is an error.
    pub(crate) async fn manage(&self, method: &str, path: &str, body: &str) -> Result<String> {
        let response = http::request(self.management_port, method, path, &[ADMINISTRATOR], body).await?;
        ensure!((200..300).contains(&response.status), "{method} {path} was answered {response:?}");
        Ok(response.body)
    }

    /// Runs `rabbitmqctl`: exact, and slow (a second).
    pub(crate) async fn control(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(Path::new(RABBITMQ).join("rabbitmqctl"));
        command.arg("--quiet").args(arguments).env_clear().envs(self.env.iter().map(|(name, value)| (name, value)));
        let output =
            tokio::task::spawn_blocking(move || command.output()).await?.context("failed to run rabbitmqctl")?;
        ensure!(output.status.success(), "rabbitmqctl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    }
}

/// A port nobody listens on, below the range the kernel takes outgoing ports from: it stays free while a node is down.
pub(crate) fn free_port() -> Result<u16> {
    for _ in 0..100 {
        let port = 10_000 + (RandomState::new().hash_one(()) % 22_000) as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no port is free")
}

/// Debian's wrappers elsewhere refuse other users than theirs.
const RABBITMQ: &str = "/usr/lib/rabbitmq/bin";
/// `guest:guest`, whom a node lets in from loopback.
const ADMINISTRATOR: &str = "authorization: Basic Z3Vlc3Q6Z3Vlc3Q=";
const START_TIMEOUT: Duration = Duration::from_secs(90);
