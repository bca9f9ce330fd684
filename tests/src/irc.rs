//! An IRC server that wants TLS and a password, and somebody who sits in its channels and keeps what is said.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::broker::free_port;
use crate::certificate::certify;
use crate::keeper::Keeper;
use crate::wait;

/// One running server. Dropping it ends it.
pub struct IrcServer {
    keeper: Keeper,
    directory: TempDir,
    port: u16,
    /// For readers only, who need not know of TLS.
    plain_port: u16,
}

impl IrcServer {
    /// Starts a server with a certificate of its own.
    pub async fn start() -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("irc-").tempdir()?;
        certify(directory.path())?;
        let (port, plain_port) = (free_port()?, free_port()?);
        let at = directory.path().display();
        let configuration = format!(
            "[Global]\nName = irc.test\nInfo = a test\nListen = 127.0.0.1\nPorts = {plain_port}\nPassword = {PASSWORD}\n\
             [Limits]\nMaxConnectionsIP = 0\n[Options]\nDNS = no\nIdent = no\nPAM = no\n\
             [SSL]\nPorts = {port}\nCertFile = {at}/certificate.pem\nKeyFile = {at}/key.pem\n"
        );
        fs::write(directory.path().join("ngircd.conf"), configuration)?;
        let keeper = spawn(directory.path())?;
        let mut server = Self { keeper, directory, port, plain_port };
        server.until_up().await?;
        Ok(server)
    }

    /// Kills the server with SIGKILL.
    pub fn kill(&mut self) -> Result<()> {
        self.keeper.kill()
    }

    /// Starts it again on the same port.
    pub async fn restart(&mut self) -> Result<()> {
        self.keeper = spawn(self.directory.path())?;
        self.until_up().await
    }

    /// Stops the server without closing its connections.
    pub fn freeze(&mut self) -> Result<()> {
        self.keeper.signal("STOP")
    }

    /// Lets a frozen server go on.
    pub fn thaw(&mut self) -> Result<()> {
        self.keeper.signal("CONT")
    }

    /// The port on loopback that speaks TLS.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The password of the server.
    pub fn password(&self) -> &'static str {
        PASSWORD
    }

    /// The certificate authority to trust, as PEM.
    pub fn ca_file(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    /// How often a client was turned away for its password.
    pub fn wrong_passwords(&self) -> usize {
        Keeper::output(self.directory.path()).matches("Bad server password!").count()
    }

    /// Somebody with this nick who sits in a channel.
    pub async fn reader(&self, nick: &str, channel: &str) -> Result<Reader> {
        let stream = TcpStream::connect(("127.0.0.1", self.plain_port))?;
        let mut reader = Reader { stream, heard: Arc::default() };
        let (incoming, mut outgoing) = (BufReader::new(reader.stream.try_clone()?), reader.stream.try_clone()?);
        let heard = Arc::clone(&reader.heard);
        thread::Builder::new().name("irc reader".into()).spawn(move || {
            for line in incoming.lines().map_while(Result::ok) {
                if let Some(token) = line.strip_prefix("PING ") {
                    // An error means that the connection has ended, and so will this loop.
                    let _ = write!(outgoing, "PONG {token}\r\n");
                }
                heard.lock().unwrap_or_else(PoisonError::into_inner).push(line);
            }
        })?;
        reader.order(&format!("PASS {PASSWORD}\r\nNICK {nick}\r\nUSER reader 0 * :a reader\r\nJOIN {channel}"))?;
        wait::until("the reader is in the channel", START_TIMEOUT, async || {
            Ok(reader.heard().iter().any(|line| line.contains(&format!(" 366 {nick} {channel} "))))
        })
        .await?;
        Ok(reader)
    }

    async fn until_up(&mut self) -> Result<()> {
        let (port, plain_port) = (self.port, self.plain_port);
        wait::until("the IRC server listens", START_TIMEOUT, async || {
            if let Some(status) = self.keeper.exit_status()? {
                bail!("the IRC server ended with {status}:\n{}", Keeper::output(self.directory.path()));
            }
            Ok([port, plain_port].iter().all(|port| TcpStream::connect(("127.0.0.1", *port)).is_ok()))
        })
        .await
    }
}

/// Somebody in a channel. Dropping it leaves.
pub struct Reader {
    stream: TcpStream,
    heard: Arc<Mutex<Vec<String>>>,
}

/// One line said to a channel or to the reader.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// Who said it.
    pub nick: String,
    /// Where, or to whom.
    pub target: String,
    /// What.
    pub text: String,
}

impl Reader {
    /// Everything the server has sent, line by line.
    pub fn heard(&self) -> Vec<String> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Everything that was said, in the order it came.
    pub fn said(&self) -> Vec<Said> {
        self.heard().iter().filter_map(|line| said(line)).collect()
    }

    /// Waits until at least `count` lines were said, and returns them all.
    pub async fn wait_for(&self, count: usize, timeout: Duration) -> Result<Vec<Said>> {
        let said = wait::until_some("enough lines were said", timeout, async || {
            Ok(Some(self.said()).filter(|said| said.len() >= count))
        });
        said.await.with_context(|| format!("wanted {count}, heard {:#?}", self.heard()))
    }

    /// Sends a command.
    pub fn order(&mut self, command: &str) -> Result<()> {
        Ok(write!(self.stream, "{command}\r\n")?)
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

/// `:nick!user@host PRIVMSG target :text`
fn said(line: &str) -> Option<Said> {
    let (nick, rest) = line.strip_prefix(':')?.split_once('!')?;
    let (_, rest) = rest.split_once(" PRIVMSG ")?;
    let (target, text) = rest.split_once(" :")?;
    Some(Said { nick: nick.to_owned(), target: target.to_owned(), text: text.to_owned() })
}

fn spawn(directory: &Path) -> Result<Keeper> {
    let configuration = directory.join("ngircd.conf");
    Keeper::spawn(directory, Path::new(NGIRCD), &["-n".as_ref(), "-f".as_ref(), configuration.as_os_str()], &[])
}

const NGIRCD: &str = "/usr/sbin/ngircd";
const PASSWORD: &str = "open-sesame";
const START_TIMEOUT: Duration = Duration::from_secs(30);
