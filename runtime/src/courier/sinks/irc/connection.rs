//! One connection to an IRC server, registered, with the channels it has joined.

use std::collections::HashSet;
use std::fmt;
use std::time::Duration;

use irc_proto::{Command, Message, Prefix, Response};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::time::{sleep_until, timeout};

use super::pace::Pace;
use crate::config::IrcAccount;
use crate::courier::Receipt;
use crate::effect::Irc;
use crate::tls;

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

pub(super) struct Connection {
    reader: BufReader<ReadHalf<Box<dyn Stream>>>,
    writer: WriteHalf<Box<dyn Stream>>,
    /// A line that has arrived in part; kept here so that giving up a read loses nothing.
    partial: Vec<u8>,
    nick: String,
    joined: HashSet<String>,
    fences: u64,
    usable: bool,
}

/// What went wrong with a connection.
#[derive(Debug)]
pub(super) enum Trouble {
    /// The network, or the server went away.
    Lost(String),
    /// The server does not want us, or cannot prove who it is: a person has to mend it.
    Unwelcome(String),
    /// The server turned this channel down.
    Channel(String),
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lost(why) | Self::Unwelcome(why) | Self::Channel(why) => f.write_str(why),
        }
    }
}

impl Trouble {
    /// What it means for an effect of which nothing was said yet.
    pub(super) fn before_any_line(self) -> Receipt {
        match self {
            Self::Lost(why) => Receipt::Transient(why),
            Self::Unwelcome(why) => Receipt::Suspended(why),
            Self::Channel(why) => Receipt::Permanent(why),
        }
    }

    /// What it means for an effect whose lines were said in part or whole.
    fn after_lines(self) -> Receipt {
        match self {
            Self::Lost(why) | Self::Unwelcome(why) => Receipt::InDoubt(why),
            Self::Channel(why) => Receipt::Permanent(why),
        }
    }
}

impl Connection {
    /// Connects and registers.
    pub(super) async fn open(account: &IrcAccount) -> Result<Self, Trouble> {
        let stream = within("connect", dial(account)).await?;
        let (reader, writer) = tokio::io::split(stream);
        let mut connection = Self {
            reader: BufReader::new(reader),
            writer,
            partial: Vec::new(),
            nick: account.nick.clone(),
            joined: HashSet::new(),
            fences: 0,
            usable: true,
        };
        within("register", connection.register(account)).await?;
        tracing::info!(host = %account.host, nick = %connection.nick, "IRC connected");
        Ok(connection)
    }

    async fn register(&mut self, account: &IrcAccount) -> Result<(), Trouble> {
        if let Some(password) = &account.password {
            self.send(Command::PASS(password.expose().to_owned())).await?;
        }
        self.send(Command::NICK(self.nick.clone())).await?;
        self.send(Command::USER(account.nick.clone(), "0".into(), account.real_name.clone())).await?;
        loop {
            match self.receive().await?.command {
                Command::Response(Response::RPL_WELCOME, arguments) => {
                    self.nick = arguments.into_iter().next().unwrap_or_else(|| self.nick.clone());
                    return Ok(());
                }
                Command::Response(Response::ERR_NICKNAMEINUSE | Response::ERR_UNAVAILRESOURCE, _) => {
                    self.nick = another(&self.nick, &account.nick);
                    self.send(Command::NICK(self.nick.clone())).await?;
                }
                Command::Response(response, arguments) if response.is_error() => {
                    let why = arguments.last().map_or("", String::as_str);
                    return Err(Trouble::Unwelcome(format!("register: {} {}", response as u16, printable(why))));
                }
                Command::ERROR(why) => return Err(Trouble::Unwelcome(format!("register: {}", printable(&why)))),
                _ => {}
            }
        }
    }

    /// Says the lines of an effect and waits until the server has them.
    pub(super) async fn say(&mut self, irc: &Irc, pace: &mut Pace) -> Receipt {
        if let Err(trouble) = within("join", self.join(&irc.channel)).await {
            return self.end(trouble, Trouble::before_any_line);
        }
        for (number, line) in irc.lines.iter().enumerate() {
            let after = if number == 0 { Trouble::before_any_line } else { Trouble::after_lines };
            if let Err(trouble) = self.wait_until(pace.next()).await {
                return self.end(trouble, after);
            }
            let said = self.send(Command::PRIVMSG(irc.channel.clone(), line.clone()));
            if let Err(trouble) = within("say", said).await {
                return self.end(trouble, Trouble::after_lines);
            }
        }
        match within("fence", self.fence(&irc.channel)).await {
            Ok(()) => Receipt::Delivered(format!("{} lines reached the server", irc.lines.len())),
            Err(trouble) => self.end(trouble, Trouble::after_lines),
        }
    }

    fn end(&mut self, trouble: Trouble, receipt: fn(Trouble) -> Receipt) -> Receipt {
        self.usable = self.usable && matches!(trouble, Trouble::Channel(_));
        receipt(trouble)
    }

    /// Whether another effect may use it.
    pub(super) const fn is_usable(&self) -> bool {
        self.usable
    }

    async fn join(&mut self, channel: &str) -> Result<(), Trouble> {
        if self.joined.contains(&channel.to_lowercase()) {
            return Ok(());
        }
        self.send(Command::JOIN(channel.to_owned(), None, None)).await?;
        while !self.joined.contains(&channel.to_lowercase()) {
            let message = self.receive().await?;
            refused(&message, channel)?;
        }
        Ok(())
    }

    /// Waits for the answer to a ping: it comes after the answers to everything said before.
    async fn fence(&mut self, channel: &str) -> Result<(), Trouble> {
        self.fences += 1;
        let token = format!("fence-{}", self.fences);
        self.send(Command::PING(token.clone(), None)).await?;
        let mut turned_down = Ok(());
        loop {
            let message = self.receive().await?;
            if turned_down.is_ok() {
                turned_down = refused(&message, channel);
            }
            if let Command::PONG(first, second) = &message.command
                && (*first == token || second.as_ref() == Some(&token))
            {
                return turned_down;
            }
        }
    }

    /// Answers pings until the connection is lost.
    pub(super) async fn idle(&mut self) -> Trouble {
        loop {
            if let Err(trouble) = self.receive().await {
                return trouble;
            }
        }
    }

    async fn wait_until(&mut self, at: tokio::time::Instant) -> Result<(), Trouble> {
        tokio::select! {
            () = sleep_until(at) => Ok(()),
            trouble = self.idle() => Err(trouble),
        }
    }

    /// Says goodbye; whether it is heard does not matter.
    pub(super) async fn quit(mut self) {
        drop(timeout(ANSWER_TIMEOUT, self.send(Command::QUIT(None))).await);
    }

    /// The next message; pings are answered and joins noted on the way.
    async fn receive(&mut self) -> Result<Message, Trouble> {
        loop {
            let line = self.line().await?;
            let Ok(message) = line.parse::<Message>() else { continue };
            match &message.command {
                Command::PING(token, _) => {
                    let token = token.clone();
                    self.send(Command::PONG(token, None)).await?;
                    continue;
                }
                Command::JOIN(channel, _, _) if self.is_us(&message) => _ = self.joined.insert(channel.to_lowercase()),
                Command::PART(channel, _) if self.is_us(&message) => _ = self.joined.remove(&channel.to_lowercase()),
                Command::KICK(channel, nick, _) if *nick == self.nick => {
                    _ = self.joined.remove(&channel.to_lowercase())
                }
                Command::NICK(nick) if self.is_us(&message) => self.nick.clone_from(nick),
                _ => {}
            }
            return Ok(message);
        }
    }

    async fn line(&mut self) -> Result<String, Trouble> {
        let read = self.reader.read_until(b'\n', &mut self.partial).await;
        match read {
            Ok(0) => Err(Trouble::Lost("the server closed the connection".into())),
            Ok(_) if self.partial.len() > LINE_BYTES_MAX => Err(Trouble::Lost("the server sends no lines".into())),
            Ok(_) => {
                let line = String::from_utf8_lossy(&self.partial).into_owned();
                self.partial.clear();
                Ok(line)
            }
            Err(error) => Err(Trouble::Lost(error.to_string())),
        }
    }

    async fn send(&mut self, command: Command) -> Result<(), Trouble> {
        let line = Message::from(command).to_string();
        let written = async {
            self.writer.write_all(line.as_bytes()).await?;
            self.writer.flush().await
        };
        written.await.map_err(|error| Trouble::Lost(error.to_string()))
    }

    fn is_us(&self, message: &Message) -> bool {
        matches!(&message.prefix, Some(Prefix::Nickname(nick, _, _)) if *nick == self.nick)
    }
}

async fn dial(account: &IrcAccount) -> Result<Box<dyn Stream>, Trouble> {
    let lost = |error: std::io::Error| Trouble::Lost(format!("connect: {error}"));
    let stream = TcpStream::connect((account.host.as_str(), account.port)).await.map_err(lost)?;
    stream.set_nodelay(true).map_err(lost)?;
    if !account.tls {
        return Ok(Box::new(stream));
    }
    match tls::connect(&account.host, stream).await {
        Ok(stream) => Ok(Box::new(stream)),
        Err(error) if tls::is_about_tls(&error) => Err(Trouble::Unwelcome(format!("TLS: {error}"))),
        Err(error) => Err(lost(error)),
    }
}

/// What the server says against a channel, when that is what the message is.
fn refused(message: &Message, channel: &str) -> Result<(), Trouble> {
    let Command::Response(response, arguments) = &message.command else { return Ok(()) };
    let about_it = arguments.iter().any(|argument| argument.eq_ignore_ascii_case(channel));
    if !(response.is_error() && about_it) {
        return Ok(());
    }
    let why = arguments.last().map_or("", String::as_str);
    Err(Trouble::Channel(format!("{channel}: {} {}", *response as u16, printable(why))))
}

async fn within<T>(what: &str, answer: impl Future<Output = Result<T, Trouble>>) -> Result<T, Trouble> {
    timeout(ANSWER_TIMEOUT, answer).await.unwrap_or_else(|_| Err(Trouble::Lost(format!("{what}: no answer in time"))))
}

/// Another name to try: the wanted one with more and more behind it.
fn another(taken: &str, wanted: &str) -> String {
    let tried = taken.len().saturating_sub(wanted.len());
    format!("{wanted}{}", "_".repeat(tried + 1))
}

fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}

const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// IRC says 512; with tags servers send more.
const LINE_BYTES_MAX: usize = 16 << 10;
