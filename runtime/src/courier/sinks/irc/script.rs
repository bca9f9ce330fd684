//! The server's side of a connection, for tests that say word by word what it does.

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, DuplexStream, duplex};
use tokio::net::TcpListener;

use super::session::Stream;

/// A server that does what it is told.
pub(super) struct Server {
    wire: BufReader<Box<dyn Stream>>,
}

impl Server {
    /// A server and the stream that leads to it, which takes so many bytes before somebody has to read them.
    pub(super) fn pair(buffer_bytes: usize) -> (Self, DuplexStream) {
        let (near, far) = duplex(buffer_bytes);
        (Self { wire: BufReader::new(Box::new(far)) }, near)
    }

    /// The server's end of the next connection.
    pub(super) async fn accept(listener: &TcpListener) -> Self {
        Self { wire: BufReader::new(Box::new(listener.accept().await.unwrap().0)) }
    }

    /// What the client says next, or nothing when it has hung up.
    pub(super) async fn hear(&mut self) -> Option<String> {
        let mut line = String::new();
        self.wire.read_line(&mut line).await.unwrap();
        let line = line.strip_suffix("\r\n").map(str::to_owned);
        assert!(line.is_some() || self.wire.buffer().is_empty(), "half a line");
        line
    }

    /// Hears exactly this.
    pub(super) async fn expect(&mut self, line: &str) {
        assert_eq!(self.hear().await.as_deref(), Some(line));
    }

    /// Says lines.
    pub(super) async fn say(&mut self, lines: &[&str]) {
        for line in lines {
            self.raw(format!("{line}\r\n").as_bytes()).await;
        }
    }

    /// Says what need not be lines.
    pub(super) async fn raw(&mut self, bytes: &[u8]) {
        self.wire.write_all(bytes).await.unwrap();
        self.wire.flush().await.unwrap();
    }

    /// Lets the client register.
    pub(super) async fn welcome(&mut self, nick: &str) {
        self.expect(&format!("USER {nick} 0 * :{nick}")).await;
        self.expect(&format!("NICK {nick}")).await;
        self.say(&[&format!(":irc.test 001 {nick} :Welcome")]).await;
    }

    /// Lets the client into a channel.
    pub(super) async fn let_in(&mut self, nick: &str, channel: &str) {
        self.expect(&format!("JOIN {channel}")).await;
        self.say(&[&format!(":{nick}!~{nick}@host JOIN :{channel}")]).await;
        self.answer_ping().await;
    }

    /// Answers the client's next question whether we are there.
    pub(super) async fn answer_ping(&mut self) {
        let heard = self.hear().await;
        let token = heard.as_deref().and_then(|line| line.strip_prefix("PING :")).unwrap();
        self.say(&[&format!(":irc.test PONG irc.test :{token}")]).await;
    }
}
