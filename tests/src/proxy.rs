//! A proxy before a server that speaks like AWS, on a thread of its own: it passes requests on, keeps them, and lets
//! calls fail when told to, with real answers and real broken connections.

use std::collections::{HashMap, VecDeque};
use std::net::TcpListener;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::{Context, Result};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use crate::http::{exchange, head_bytes, header};

/// How a call fails.
#[derive(Clone, Debug)]
pub enum Fault {
    /// An error of AWS: a status code, the error's code and its message, in the form of the service.
    Error(u16, &'static str, &'static str),
    /// A status code with an HTML page, as from a load balancer.
    Html(u16),
    /// No answer, for ever; the server behind never hears of it.
    Hang,
    /// The connection is reset when the request was read; the server behind never hears of it.
    Reset,
    /// The connection is reset when the server behind has answered.
    AcceptThenReset,
}

/// A request that was made.
#[derive(Clone, Debug)]
pub struct Request {
    /// The request line and the headers.
    pub head: String,
    /// The body.
    pub body: Vec<u8>,
}

pub(crate) struct Proxy {
    seen: Arc<Mutex<Seen>>,
    port: u16,
    _running: oneshot::Sender<()>,
}

#[derive(Default)]
struct Seen {
    faults: HashMap<String, VecDeque<Fault>>,
    requests: Vec<(String, Request)>,
}

impl Proxy {
    /// Starts a proxy before a port on loopback.
    pub(crate) fn start(behind: u16) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        listener.set_nonblocking(true)?;
        let port = listener.local_addr()?.port();
        let (running, ended) = oneshot::channel::<()>();
        let seen = Arc::<Mutex<Seen>>::default();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let serving = serve(listener, behind, Arc::clone(&seen));
        thread::Builder::new().name("proxy".to_owned()).spawn(move || {
            runtime.block_on(async {
                tokio::select! {
                    outcome = serving => outcome.context("the proxy failed"),
                    _ = ended => Ok(()),
                }
            })
        })?;
        Ok(Self { seen, port, _running: running })
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn fail(&self, service: &str, times: usize, fault: &Fault) {
        let mut seen = lock(&self.seen);
        seen.faults.entry(service.to_owned()).or_default().extend(vec![fault.clone(); times]);
    }

    pub(crate) fn behave_well(&self) {
        lock(&self.seen).faults.clear();
    }

    pub(crate) fn requests(&self, service: &str) -> Vec<Request> {
        let seen = lock(&self.seen);
        seen.requests.iter().filter(|(other, _)| other == service).map(|(_, request)| request.clone()).collect()
    }
}

impl Request {
    /// The value of a header, when there is one.
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.head, name)
    }

    /// The service that is meant, as the signature has it.
    fn service(&self) -> &str {
        let credential = self.header("authorization").and_then(|header| header.split_once("Credential="));
        credential.and_then(|(_, credential)| credential.split('/').nth(3)).unwrap_or("unsigned")
    }
}

async fn serve(listener: TcpListener, behind: u16, seen: Arc<Mutex<Seen>>) -> Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    loop {
        let (client, _) = listener.accept().await?;
        let seen = Arc::clone(&seen);
        // Whatever breaks here, the client notices.
        #[expect(clippy::disallowed_methods, reason = "ends with the runtime of this thread")]
        tokio::spawn(async move { answer(client, behind, &seen).await });
    }
}

/// One request, one connection.
async fn answer(mut client: TcpStream, behind: u16, seen: &Mutex<Seen>) -> Result<()> {
    let Some(request) = read(&mut client).await? else { return Ok(()) };
    let service = request.service().to_owned();
    let fault = {
        let mut seen = lock(seen);
        seen.requests.push((service.clone(), request.clone()));
        seen.faults.get_mut(&service).and_then(VecDeque::pop_front)
    };
    let pass_on = || exchange(behind, request.head.as_bytes(), &request.body);
    match fault {
        None => client.write_all(&pass_on().await?).await?,
        Some(Fault::Error(status, code, message)) => {
            let error = format!("<Error><Type>Sender</Type><Code>{code}</Code><Message>{message}</Message></Error>");
            let body = match &*service {
                "s3" => error,
                _ => format!("<ErrorResponse>{error}<RequestId>1</RequestId></ErrorResponse>"),
            };
            client.write_all(response(status, "text/xml", &body).as_bytes()).await?;
        }
        Some(Fault::Html(status)) => {
            let page = "<html><body><h1>The server is on its tea break</h1></body></html>";
            client.write_all(response(status, "text/html", page).as_bytes()).await?;
        }
        Some(Fault::Hang) => std::future::pending().await,
        Some(Fault::Reset) => client.set_zero_linger()?,
        Some(Fault::AcceptThenReset) => {
            pass_on().await?;
            client.set_zero_linger()?;
        }
    }
    Ok(())
}

/// The next request of a connection, or nothing when there is none.
pub(crate) async fn read(client: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> Result<Option<Request>> {
    let mut bytes = Vec::new();
    let head = loop {
        if let Some(length) = head_bytes(&bytes) {
            break length;
        }
        if client.read_buf(&mut bytes).await? == 0 {
            return Ok(None);
        }
    };
    let mut body = bytes.split_off(head);
    let mut head = String::from_utf8(bytes)?;
    if header(&head, "expect").is_some() {
        client.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        let lines = head.split_inclusive("\r\n");
        head = lines.filter(|line| !line.to_ascii_lowercase().starts_with("expect:")).collect();
    }
    let length: usize = match header(&head, "content-length") {
        Some(length) => length.parse()?,
        None => 0,
    };
    while body.len() < length {
        if client.read_buf(&mut body).await? == 0 {
            return Ok(None);
        }
    }
    Ok(Some(Request { head, body }))
}

fn response(status: u16, content_type: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "HTTP/1.1 {status} As Asked\r\ncontent-type: {content_type}\r\ncontent-length: {length}\r\n\
         connection: close\r\n\r\n{body}"
    )
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}
