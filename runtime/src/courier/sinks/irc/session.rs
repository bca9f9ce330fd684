//! One connection to one server, from the greeting to the end.
//!
//! What was said is known to have reached the server when it has answered the PING that was sent after it: it handles
//! what a client sends in order. Whatever goes wrong before that is told apart by whether a line had been sent.

use std::collections::BTreeSet;
use std::io;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use irc_proto::{Command, Message, Prefix};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::codec::{AnyDelimiterCodec, AnyDelimiterCodecError, Framed};

use super::throttle::Throttle;
use crate::config::IrcAccount;
use crate::courier::Receipt;
use crate::effect;
use crate::tls;

/// What a connection may be made of.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// A connection whose registration the server has accepted.
pub(super) struct Session {
    wire: Framed<Box<dyn Stream>, AnyDelimiterCodec>,
    nick: String,
    /// Channels the server has let us into, in lower case.
    joined: BTreeSet<String>,
    shown: Shown,
    since: Instant,
    /// When the server last said anything.
    heard: Instant,
    fences: u64,
}

/// How long user and host are in `:nick!user@host `, which the server puts before what it passes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Shown {
    user_bytes: usize,
    host_bytes: usize,
}

/// Why a connection is of no more use.
#[derive(Debug, thiserror::Error)]
pub(super) enum Lost {
    /// The server said so.
    #[error("the server ends the connection: {0}")]
    Ended(String),
    /// It said nothing, or nothing that could be read.
    #[error("{0}")]
    Silent(String),
}

/// What the server makes of a nick.
#[derive(Debug, PartialEq, Eq)]
enum Nick {
    Accepted(String),
    Taken,
    /// It is none on this server.
    Erroneous(String),
    /// Whatever the nick, we are not wanted.
    TurnedAway(String),
}

/// How far an effect has come.
#[derive(Default)]
struct Course {
    sent: u32,
    objections: u32,
    /// The first objection: its code and its words.
    first: Option<(u16, String)>,
}

impl Session {
    /// Connects and registers.
    ///
    /// # Errors
    /// The receipt of whatever was to be said.
    pub(super) async fn connect(account: &IrcAccount) -> Result<Self, Receipt> {
        let dial = async {
            let tcp = TcpStream::connect((account.host.as_str(), account.port)).await?;
            // So that a fence follows its lines at once, rather than when those are acknowledged.
            tcp.set_nodelay(true)?;
            Ok(tcp)
        };
        let tcp = step("connect", dial).await?;
        let mut session = if account.tls {
            Self::over(step("TLS", tls::connect(&account.host, tcp)).await?)
        } else {
            Self::over(tcp)
        };
        match session.register(account).await {
            Ok(Ok(())) => Ok(session),
            Ok(Err(receipt)) => Err(receipt),
            // Before it knows us, a server ends the connection for who we are: a password, a ban.
            Err(Lost::Ended(why)) => Err(Receipt::Suspended(format!("register: {why}"))),
            Err(Lost::Silent(why)) => Err(Receipt::Transient(format!("register: {why}"))),
        }
    }

    fn over(stream: impl Stream + 'static) -> Self {
        let codec = AnyDelimiterCodec::new_with_max_length(b"\r\n".to_vec(), b"\r\n".to_vec(), INCOMING_BYTES_MAX);
        Self {
            wire: Framed::new(Box::new(stream), codec),
            nick: String::new(),
            joined: BTreeSet::new(),
            shown: Shown::default(),
            since: Instant::now(),
            heard: Instant::now(),
            fences: 0,
        }
    }

    async fn register(&mut self, account: &IrcAccount) -> Result<Result<(), Receipt>, Lost> {
        let deadline = Instant::now() + REGISTER;
        if let Some(password) = &account.password {
            self.send(&format!("PASS :{}", password.expose())).await?;
        }
        self.send(&format!("USER {} 0 * :{}", account.nick, account.real_name)).await?;
        for nick in nicks(&account.nick) {
            self.send(&format!("NICK {nick}")).await?;
            match self.listen(deadline, answer_to_nick).await? {
                Some(Nick::Accepted(nick)) => {
                    tracing::info!(host = account.host, nick, "connected to IRC");
                    self.nick = nick;
                    return Ok(Ok(()));
                }
                Some(Nick::Taken) => tracing::info!(host = account.host, nick, "this IRC nick is in use"),
                // One that we made up ourselves is no reason to give up.
                Some(Nick::Erroneous(_)) if nick != account.nick => {}
                Some(Nick::Erroneous(why) | Nick::TurnedAway(why)) => {
                    return Ok(Err(Receipt::Suspended(format!("register: {why}"))));
                }
                None => return Err(no_answer("registration", REGISTER)),
            }
        }
        Ok(Err(Receipt::Transient("register: the nick and those like it are in use".into())))
    }

    /// For how long it has been there.
    pub(super) fn age(&self) -> Duration {
        self.since.elapsed()
    }

    /// Says an effect's lines.
    ///
    /// # Errors
    /// A receipt, when the connection is of no more use.
    pub(super) async fn say(&mut self, throttle: &mut Throttle, irc: &effect::Irc) -> Result<Receipt, Receipt> {
        let transient = |lost: Lost| Receipt::Transient(format!("before the first line: {lost}"));
        if self.heard.elapsed() > SILENCE_MAX {
            self.fence(|_| ()).await.map_err(transient)?;
        }
        if let Some((code, why)) = self.join(throttle, &irc.channel).await.map_err(transient)? {
            return not_let_in(code, &why);
        }
        let mut course = Course::default();
        match self.send_lines(throttle, irc, &mut course).await {
            Ok(()) => Ok(self.outcome(course, &irc.channel)),
            Err(lost) if course.sent == 0 => Err(transient(lost)),
            Err(lost) => Err(Receipt::InDoubt(format!("after a line: {lost}"))),
        }
    }

    /// Makes sure that we are in a channel. What is returned, if anything, is why we are not.
    async fn join(&mut self, throttle: &mut Throttle, channel: &str) -> Result<Option<(u16, String)>, Lost> {
        if self.joined.contains(&folded(channel)) {
            return Ok(None);
        }
        self.listen(throttle.next(Instant::now()), |_| None::<()>).await?;
        self.send(&format!("JOIN {channel}")).await?;
        let nick = self.nick.clone();
        let answer = self.listen(Instant::now() + ANSWER, |message| answer_to_join(message, &nick, channel)).await?;
        match answer.ok_or_else(|| no_answer("JOIN", ANSWER))? {
            Ok(shown) => {
                self.shown = shown;
                self.joined.insert(folded(channel));
                Ok(None)
            }
            Err(refused) => Ok(Some(refused)),
        }
    }

    /// Sends the lines, each in its turn and none after an objection, and waits until the server has handled them.
    async fn send_lines(
        &mut self,
        throttle: &mut Throttle,
        irc: &effect::Irc,
        course: &mut Course,
    ) -> Result<(), Lost> {
        let channel = &irc.channel;
        let room = room(&self.nick, self.shown, channel);
        for piece in irc.lines.iter().flat_map(|line| pieces(line, room)) {
            let turn = throttle.next(Instant::now());
            if self.listen(turn, |message| course.objects(message, channel).then_some(())).await?.is_some() {
                break;
            }
            course.sent += 1;
            self.send(&format!("PRIVMSG {channel} :{piece}")).await?;
        }
        self.fence(|message| _ = course.objects(message, channel)).await
    }

    /// What it amounts to that the server has handled what was sent.
    fn outcome(&mut self, course: Course, channel: &str) -> Receipt {
        let Some((code, why)) = course.first else { return Receipt::Delivered(format!("said as {}", self.nick)) };
        let answer = format!("PRIVMSG: {why} ({code})");
        let is_in = self.joined.contains(&folded(channel));
        match code {
            // Nobody there; no such channel; not in it: next time it is joined again.
            401 | 403 | 442 => _ = self.joined.remove(&folded(channel)),
            // Thrown out of it just now, which is all that this means then.
            404 if !is_in => {}
            // Unavailable; too many channels talked to in a short time.
            437 | 439 => {}
            _ => return Receipt::Permanent(answer),
        }
        if course.objections < course.sent { Receipt::InDoubt(answer) } else { Receipt::Transient(answer) }
    }

    /// Waits until the server has handled all that was sent; `heard` is shown what it says on the way.
    async fn fence(&mut self, mut heard: impl FnMut(&Message)) -> Result<(), Lost> {
        self.fences += 1;
        let token = format!("pulse-{}", self.fences);
        self.send(&format!("PING :{token}")).await?;
        let passed = self.listen(Instant::now() + ANSWER, |message| {
            heard(message);
            is_pong(message, &token).then_some(())
        });
        passed.await?.ok_or_else(|| no_answer("PING", ANSWER))
    }

    /// Listens until the connection is lost. May be cancelled at any time.
    pub(super) async fn listen_on(&mut self) -> Lost {
        loop {
            if let Err(lost) = self.next().await {
                return lost;
            }
        }
    }

    /// Takes leave, and waits for the server to hang up: hanging up first could take back what it has not read yet.
    pub(super) async fn quit(mut self) {
        let leave = async {
            self.send("QUIT").await?;
            Err::<(), _>(self.listen_on().await)
        };
        // Nobody is told how it went, so a failure is nobody's.
        drop(timeout(LEAVE, leave).await);
    }

    /// Listens until `answer` finds what is waited for, or until the deadline.
    async fn listen<T>(
        &mut self,
        deadline: Instant,
        mut answer: impl FnMut(&Message) -> Option<T>,
    ) -> Result<Option<T>, Lost> {
        loop {
            let Ok(message) = timeout_at(deadline, self.next()).await else { return Ok(None) };
            if let Some(answer) = answer(&message?) {
                return Ok(Some(answer));
            }
        }
    }

    /// The next message, once what it means for the connection is done. May be cancelled at any time: of an answer that
    /// was sent in part, `wire` keeps the rest, and sends it before anything else.
    async fn next(&mut self) -> Result<Message, Lost> {
        loop {
            let line = match self.wire.next().await {
                Some(Ok(line)) => line,
                Some(Err(AnyDelimiterCodecError::MaxChunkLengthExceeded)) => {
                    return Err(Lost::Silent(format!("the server sent {INCOMING_BYTES_MAX} bytes that are no line")));
                }
                Some(Err(AnyDelimiterCodecError::Io(error))) => return Err(Lost::Silent(error.to_string())),
                None => return Err(Lost::Silent("the server closed the connection".into())),
            };
            self.heard = Instant::now();
            // CR LF is two delimiters with nothing between them; what is no message is passed over.
            let Ok(message) = String::from_utf8_lossy(&line).parse::<Message>() else { continue };
            match &message.command {
                Command::PING(token, _) => self.send(&format!("PONG :{token}")).await?,
                Command::ERROR(why) => return Err(Lost::Ended(printable(why))),
                Command::KICK(channel, nick, _) if *nick == self.nick => _ = self.joined.remove(&folded(channel)),
                Command::PART(channel, _) if self.is_from_us(&message) => _ = self.joined.remove(&folded(channel)),
                Command::NICK(nick) if self.is_from_us(&message) => self.nick.clone_from(nick),
                _ => {
                    if let Some((HOST_SHOWN, [_, host, ..])) = numeric(&message) {
                        self.shown.host_bytes = host.len();
                    }
                }
            }
            return Ok(message);
        }
    }

    fn is_from_us(&self, message: &Message) -> bool {
        message.source_nickname() == Some(&self.nick)
    }

    async fn send(&mut self, line: &str) -> Result<(), Lost> {
        match timeout(ANSWER, self.wire.send(line)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(Lost::Silent(error.to_string())),
            Err(_) => Err(Lost::Silent("the server takes nothing any more".into())),
        }
    }
}

impl Course {
    /// Whether this is an objection to what was said in the channel, which is then noted.
    fn objects(&mut self, message: &Message, channel: &str) -> bool {
        let Some(objection) = error_about(message, channel) else { return false };
        self.objections = self.objections.saturating_add(1);
        self.first.get_or_insert(objection);
        true
    }
}

/// A step before anything is said, with its limit.
async fn step<T>(name: &str, doing: impl Future<Output = io::Result<T>>) -> Result<T, Receipt> {
    match timeout(ANSWER, doing).await {
        Ok(Ok(done)) => Ok(done),
        // A certificate nobody vouches for, no version in common: the network is not to blame.
        Ok(Err(error)) if tls::is_about_tls(&error) => Err(Receipt::Suspended(format!("{name}: {error}"))),
        Ok(Err(error)) => Err(Receipt::Transient(format!("{name}: {error}"))),
        Err(_) => Err(Receipt::Transient(no_answer(name, ANSWER).to_string())),
    }
}

fn no_answer(what: &str, limit: Duration) -> Lost {
    Lost::Silent(format!("no answer to {what} within {} s", limit.as_secs()))
}

/// The nick, others like it that are no longer, and then some that no server cuts short.
fn nicks(nick: &str) -> impl Iterator<Item = String> {
    let like = |bytes_max: usize| {
        let stem = nick.get(..nick.floor_char_boundary(bytes_max - 1)).unwrap_or_default();
        SUFFIXES.map(|suffix| format!("{stem}{suffix}"))
    };
    let as_long = like(nick.len().max(NICK_BYTES_ANYWHERE));
    let short = (nick.len() > NICK_BYTES_ANYWHERE).then(|| like(NICK_BYTES_ANYWHERE));
    std::iter::once(nick.to_owned()).chain(as_long).chain(short.into_iter().flatten())
}

/// Channel names are the same whatever their case.
fn folded(channel: &str) -> String {
    channel.to_ascii_lowercase()
}

/// The code of a numeric reply and its parameters.
fn numeric(message: &Message) -> Option<(u16, &[String])> {
    match &message.command {
        Command::Response(response, parameters) => Some((*response as u16, parameters)),
        Command::Raw(code, parameters) => Some((code.parse().ok()?, parameters)),
        _ => None,
    }
}

fn answer_to_nick(message: &Message) -> Option<Nick> {
    let (code, parameters) = numeric(message)?;
    let why = || format!("{} ({code})", words(parameters));
    match code {
        1 => Some(Nick::Accepted(parameters.first()?.clone())),
        // In use; in use on another server; not to be had for the moment.
        433 | 436 | 437 => Some(Nick::Taken),
        432 => Some(Nick::Erroneous(why())),
        // Not from this host; a wrong password; banned; about to be.
        463..=466 => Some(Nick::TurnedAway(why())),
        _ => None,
    }
}

/// How we are shown once we are in the channel, or the numeric that says why we are not.
fn answer_to_join(message: &Message, nick: &str, channel: &str) -> Option<Result<Shown, (u16, String)>> {
    match (&message.command, &message.prefix) {
        (Command::JOIN(joined, ..), Some(Prefix::Nickname(name, user, host))) => {
            let is_ours = name == nick && folded(joined) == folded(channel);
            is_ours.then(|| Ok(Shown { user_bytes: user.len(), host_bytes: host.len() }))
        }
        _ => error_about(message, channel).map(Err),
    }
}

/// What the server has against something about this channel, known to us or not: its code and its words.
fn error_about(message: &Message, channel: &str) -> Option<(u16, String)> {
    let (code, parameters) = numeric(message)?;
    let is_about = parameters.iter().any(|parameter| folded(parameter) == folded(channel));
    (code >= ERRORS && is_about).then(|| (code, words(parameters)))
}

fn is_pong(message: &Message, token: &str) -> bool {
    match &message.command {
        Command::PONG(_, Some(answered)) | Command::PONG(answered, None) => answered == token,
        _ => false,
    }
}

/// What it means not to be let into a channel; an error when another connection would fare better.
fn not_let_in(code: u16, why: &str) -> Result<Receipt, Receipt> {
    let answer = format!("JOIN: {why} ({code})");
    match code {
        // In too many channels: the next connection is in none.
        405 => Err(Receipt::Transient(answer)),
        // No such channel, forwarded elsewhere, invitation only, banned, a key, a bad name, for registered nicks or over
        // TLS only: about this channel, and no other has to wait for it.
        403 | 470 | 473..=477 | 479 | 489 => Ok(Receipt::Permanent(answer)),
        // Unavailable (437), full (471), whatever else a server may have against it now.
        _ => Ok(Receipt::Transient(answer)),
    }
}

/// How many bytes of a line get through to a channel's members.
fn room(nick: &str, shown: Shown, channel: &str) -> usize {
    let around = ":!@ PRIVMSG  :\r\n".len() + nick.len() + shown.user_bytes + shown.host_bytes + channel.len();
    LINE_BYTES_MAX.saturating_sub(around).max(ROOM_MIN)
}

/// A line in pieces that get through whole, cut between two characters.
fn pieces(mut line: &str, room: usize) -> impl Iterator<Item = &str> {
    std::iter::from_fn(move || {
        let (piece, rest) = line.split_at(line.floor_char_boundary(room));
        line = rest;
        (!piece.is_empty()).then_some(piece)
    })
}

/// What a numeric says to a person.
fn words(parameters: &[String]) -> String {
    parameters.last().map_or_else(String::new, |words| printable(words))
}

fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(WORDS_CHARS_MAX).collect()
}

/// From now on we are shown with another host.
const HOST_SHOWN: u16 = 396;
/// Numerics from here on are errors, as far as they are about a channel.
const ERRORS: u16 = 400;
const SUFFIXES: [char; 5] = ['_', '2', '3', '4', '5'];
/// RFC 2812.
const NICK_BYTES_ANYWHERE: usize = 9;
/// RFC 2812, with CR LF.
const LINE_BYTES_MAX: usize = 512;
const ROOM_MIN: usize = 64;
/// Servers may put tags before a message (IRCv3).
const INCOMING_BYTES_MAX: usize = 16 << 10;
const WORDS_CHARS_MAX: usize = 200;
const ANSWER: Duration = Duration::from_secs(20);
/// Servers look up names and identities first.
const REGISTER: Duration = Duration::from_secs(60);
const LEAVE: Duration = Duration::from_secs(5);
/// After this much silence the server is asked whether it is still there before a line is risked.
const SILENCE_MAX: Duration = Duration::from_secs(60);
