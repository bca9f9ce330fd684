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

/// Sends `method path` to a port on loopback. Headers are whole lines without their end; a body is sent as JSON.
pub async fn request(port: u16, method: &str, path: &str, headers: &[&str], body: &str) -> Result<Response> {
    let mut head = format!("{method} {path} HTTP/1.0\r\nhost: localhost\r\ncontent-length: {}\r\n", body.len());
    for header in headers.iter().chain(&["content-type: application/json"]) {
        head.push_str(header);
        head.push_str("\r\n");
    }
    let exchange = async {
        let mut connection = TcpStream::connect(("127.0.0.1", port)).await?;
        connection.write_all(format!("{head}\r\n{body}").as_bytes()).await?;
        let mut answer = Vec::new();
        connection.read_to_end(&mut answer).await?;
        anyhow::Ok(answer)
    };
    let answer = timeout(TIMEOUT, exchange)
        .await
        .with_context(|| format!("{method} {path}: no answer within {TIMEOUT:?}"))??;
    parse(&String::from_utf8_lossy(&answer)).with_context(|| format!("{method} {path}: not an HTTP response"))
}

fn parse(answer: &str) -> Option<Response> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    Some(Response { status, body: body.to_owned() })
}

const TIMEOUT: Duration = Duration::from_secs(10);
