//! A receiver of webhooks, on a thread of its own: it keeps each post and answers as it is told.

use std::collections::VecDeque;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::sync::oneshot;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs::default_provider;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::certificate::certify;
use crate::proxy::read;
use crate::{Request, wait};

/// A running receiver. Dropping it ends it.
pub struct WebhookReceiver {
    told: Arc<Mutex<Told>>,
    port: u16,
    directory: TempDir,
    _running: oneshot::Sender<()>,
}

/// How a post is answered.
#[derive(Clone, Debug)]
pub enum Reply {
    /// A status code and a text.
    Status(u16, String),
    /// A redirect, with this status code, to this address.
    Redirect(u16, String),
    /// 200 with a body that never ends, sent as fast as it is taken.
    Endless,
    /// A status code and a head that promises a body, of which nothing ever comes.
    Silent(u16),
    /// The post is taken and the connection closed without an answer.
    TakeThenClose,
    /// A status code, and in the body every header of the post.
    Echo(u16),
}

#[derive(Default)]
struct Told {
    replies: VecDeque<Reply>,
    posts: Vec<Request>,
    bytes_sent: usize,
}

impl WebhookReceiver {
    /// Starts a receiver that speaks TLS and says 200.
    pub async fn start() -> Result<Self> {
        Self::listen(true)
    }

    /// Starts one that speaks plain HTTP.
    pub async fn start_plain() -> Result<Self> {
        Self::listen(false)
    }

    fn listen(is_tls: bool) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("receiver-").tempdir()?;
        certify(directory.path())?;
        let acceptor = if is_tls { Some(acceptor(&directory)?) } else { None };
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        listener.set_nonblocking(true)?;
        let port = listener.local_addr()?.port();
        let (running, ended) = oneshot::channel::<()>();
        let told = Arc::<Mutex<Told>>::default();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let serving = serve(listener, acceptor, Arc::clone(&told));
        thread::Builder::new().name("receiver".to_owned()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    outcome = serving => outcome.context("the receiver failed"),
                    _ = ended => Ok(()),
                }
            })
        })?;
        Ok(Self { told, port, directory, _running: running })
    }

    /// The port it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The authority that vouches for it.
    pub fn ca_file(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    /// Answers the next post like this; later ones queue up, and then it says 200 again.
    pub fn reply(&self, reply: Reply) {
        lock(&self.told).replies.push_back(reply);
    }

    /// Every post so far.
    pub fn posts(&self) -> Vec<Request> {
        lock(&self.told).posts.clone()
    }

    /// How many bytes of endless answers were taken.
    pub fn bytes_sent(&self) -> usize {
        lock(&self.told).bytes_sent
    }

    /// Waits until there were so many posts.
    pub async fn wait_for_posts(&self, count: usize, timeout: Duration) -> Result<Vec<Request>> {
        let posts = async || Ok(Some(self.posts()).filter(|posts| posts.len() >= count));
        wait::until_some(&format!("{count} posts were made"), timeout, posts).await
    }
}

fn acceptor(directory: &TempDir) -> Result<TlsAcceptor> {
    let chain = vec![CertificateDer::from_pem_file(directory.path().join("certificate.pem"))?];
    let key = PrivateKeyDer::from_pem_file(directory.path().join("key.pem"))?;
    let config = ServerConfig::builder_with_provider(Arc::new(default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

async fn serve(listener: TcpListener, acceptor: Option<TlsAcceptor>, told: Arc<Mutex<Told>>) -> Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    loop {
        let (client, _) = listener.accept().await?;
        let (told, acceptor) = (Arc::clone(&told), acceptor.clone());
        // Whatever breaks here, the client notices.
        #[expect(clippy::disallowed_methods, reason = "ends with the runtime of this thread")]
        tokio::spawn(async move {
            match acceptor {
                Some(acceptor) => answer(acceptor.accept(client).await?, &told).await,
                None => answer(client, &told).await,
            }
        });
    }
}

/// One post, one connection.
async fn answer(mut client: impl AsyncRead + AsyncWrite + Unpin, told: &Mutex<Told>) -> Result<()> {
    let Some(post) = read(&mut client).await? else { return Ok(()) };
    let reply = {
        let mut told = lock(told);
        told.posts.push(post.clone());
        told.replies.pop_front().unwrap_or_else(|| Reply::Status(200, "ok".to_owned()))
    };
    match reply {
        Reply::Status(status, text) => client.write_all(head(status, &[], &text).as_bytes()).await?,
        Reply::Redirect(status, place) => {
            client.write_all(head(status, &[("location", &place)], "").as_bytes()).await?;
        }
        Reply::Echo(status) => client.write_all(head(status, &[], &post.head).as_bytes()).await?,
        Reply::Silent(status) => {
            client.write_all(format!("HTTP/1.1 {status} As Asked\r\ncontent-length: 5\r\n\r\n").as_bytes()).await?;
            client.flush().await?;
            std::future::pending::<()>().await;
        }
        Reply::Endless => {
            client.write_all(b"HTTP/1.1 200 As Asked\r\n\r\n").await?;
            loop {
                client.write_all(&[b'x'; PIECE_BYTES]).await?;
                lock(told).bytes_sent += PIECE_BYTES;
            }
        }
        Reply::TakeThenClose => {}
    }
    Ok(client.shutdown().await?)
}

fn head(status: u16, headers: &[(&str, &str)], body: &str) -> String {
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let length = body.len();
    format!("HTTP/1.1 {status} As Asked\r\n{headers}content-length: {length}\r\nconnection: close\r\n\r\n{body}")
}

fn lock(told: &Mutex<Told>) -> MutexGuard<'_, Told> {
    told.lock().unwrap_or_else(PoisonError::into_inner)
}

const PIECE_BYTES: usize = 16 << 10;
