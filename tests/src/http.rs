//! The smallest HTTP client: one request, one connection, loopback only.

use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// What a server answered.
#[derive(Debug)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// The body; bytes that are not UTF-8 are replaced.
    pub body: String,
}

/// What a server answered, to the byte.
#[derive(Clone, Debug)]
pub struct Raw {
    /// The status code.
    pub status: u16,
    /// The status line and the headers.
    pub head: String,
    /// The body, in the encoding it came in.
    pub body: Vec<u8>,
}

impl Raw {
    /// The value of a header, when there is one.
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.head, name)
    }
}

/// Sends `method path` to a port on loopback. Headers are whole lines without their end; a body is JSON, unless one of
/// them says otherwise.
pub async fn request(port: u16, method: &str, path: &str, headers: &[&str], body: &str) -> Result<Response> {
    let is_typed = headers.iter().any(|header| header.starts_with("content-type:"));
    let headers = [headers, if is_typed { &[] } else { &["content-type: application/json"] }].concat();
    let raw = raw_request(port, method, path, &headers, body.as_bytes()).await?;
    Ok(Response { status: raw.status, body: String::from_utf8_lossy(&raw.body).into_owned() })
}

/// Sends `method path` with any body, whose type is among the headers, and takes the answer as it is.
pub async fn raw_request(port: u16, method: &str, path: &str, headers: &[&str], body: &[u8]) -> Result<Raw> {
    let mut head = format!("{method} {path} HTTP/1.0\r\nhost: localhost\r\ncontent-length: {}\r\n", body.len());
    for header in headers {
        head.push_str(header);
        head.push_str("\r\n");
    }
    let answer = timeout(TIMEOUT, exchange(port, format!("{head}\r\n").as_bytes(), body))
        .await
        .with_context(|| format!("{method} {path}: no answer within {TIMEOUT:?}"))??;
    parse(&answer).with_context(|| format!("{method} {path}: not an HTTP response"))
}

/// Sends a head with its empty line, and a body, and returns all that comes back until the server closes.
pub(crate) async fn exchange(port: u16, head: &[u8], body: &[u8]) -> Result<Vec<u8>> {
    let mut connection = TcpStream::connect(("127.0.0.1", port)).await?;
    connection.write_all(&[head, body].concat()).await?;
    let mut answer = Vec::new();
    connection.read_to_end(&mut answer).await?;
    Ok(answer)
}

/// The value of a header in a head, when there is one.
pub(crate) fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let headers = head.lines().filter_map(|line| line.split_once(':'));
    headers.into_iter().find(|(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
}

/// Where the head ends, its empty line included.
pub(crate) fn head_bytes(message: &[u8]) -> Option<usize> {
    message.windows(4).position(|window| window == b"\r\n\r\n").map(|position| position + 4)
}

fn parse(answer: &[u8]) -> Option<Raw> {
    let (head, body) = answer.split_at_checked(head_bytes(answer)?)?;
    let head = String::from_utf8_lossy(head).into_owned();
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some(Raw { status, head, body: body.to_vec() })
}

const TIMEOUT: Duration = Duration::from_secs(10);
