//! One connection to one server, from the greeting to the end.
//!
//! What was said is known to have reached the server when it has answered the PING that was sent after it: it handles
//! what a client sends in order. Whatever goes wrong before that is told apart by whether a line had been sent.

use std::collections::BTreeSet;
use std::io;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use irc_proto::{Command, Message};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::codec::{AnyDelimiterCodec, AnyDelimiterCodecError, Framed};

use super::protocol::{
    HOST_SHOWN, Nick, Shown, answer_to_join, answer_to_nick, cut, error_about, folded, is_pong, is_same, nicks,
    not_let_in, numeric, printable, room,
};
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
            Err(Lost::Ended(why)) => Err(Receipt::Suspended(format!("register: {}", without_password(&why, account)))),
            Err(Lost::Silent(why)) => Err(Receipt::Transient(format!("register: {why}"))),
        }
    }

    pub(super) fn over(stream: impl Stream + 'static) -> Self {
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
                    return Ok(Err(Receipt::Suspended(format!("register: {}", without_password(&why, account)))));
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
        let (nick, mut answer) = (self.nick.clone(), None);
        self.fence(|message| answer = answer.take().or_else(|| answer_to_join(message, &nick, channel))).await?;
        match answer {
            Some(Ok(shown)) => {
                self.shown = shown;
                self.joined.insert(folded(channel));
                Ok(None)
            }
            Some(Err(refused)) => Ok(Some(refused)),
            None => Ok(Some((NO_CODE, "the server says nothing to it".into()))),
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
        let mut left = irc.lines.iter().map(String::as_str).filter(|line| !line.is_empty());
        let mut line = left.next();
        while let Some(whole) = line {
            let turn = throttle.next(Instant::now());
            if self.listen(turn, |message| course.objects(message, channel).then_some(())).await?.is_some() {
                break;
            }
            let (piece, rest) = cut(whole, room(&self.nick, self.shown, channel));
            course.sent += 1;
            self.send(&format!("PRIVMSG {channel} :{piece}")).await?;
            line = rest.or_else(|| left.next());
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
                Command::KICK(channel, nick, _) if *nick == self.nick => self.is_out_of(channel),
                Command::PART(channel, _) if self.is_from_us(&message) => self.is_out_of(channel),
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

    fn is_out_of(&mut self, channel: &str) {
        self.joined.retain(|joined| !is_same(joined, channel));
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
        if self.sent == 0 {
            return false;
        }
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

/// What a server says at the door may repeat what it was told.
fn without_password(words: &str, account: &IrcAccount) -> String {
    match &account.password {
        Some(password) => words.replace(password.expose(), "…"),
        None => words.to_owned(),
    }
}

fn no_answer(what: &str, limit: Duration) -> Lost {
    Lost::Silent(format!("no answer to {what} within {} s", limit.as_secs()))
}

/// Not an answer of the server's.
const NO_CODE: u16 = 0;
/// Servers may put tags before a message (IRCv3).
const INCOMING_BYTES_MAX: usize = 16 << 10;
const ANSWER: Duration = Duration::from_secs(20);
/// Servers look up names and identities first.
const REGISTER: Duration = Duration::from_secs(60);
const LEAVE: Duration = Duration::from_secs(5);
/// After this much silence the server is asked whether it is still there before a line is risked.
const SILENCE_MAX: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::super::protocol::LINE_BYTES_MAX;
    use super::super::script::Server;
    use super::*;
    use crate::config::Secret;

    /// A registered session and its server.
    fn session() -> (Session, Server) {
        session_through(4 << 10)
    }

    fn session_through(buffer_bytes: usize) -> (Session, Server) {
        let (server, stream) = Server::pair(buffer_bytes);
        (Session { nick: "pulse".into(), ..Session::over(stream) }, server)
    }

    fn account(nick: &str) -> IrcAccount {
        IrcAccount {
            host: "irc.test".into(),
            port: 6667,
            tls: false,
            nick: nick.into(),
            real_name: nick.into(),
            password: None,
            burst: 4,
            line_every: Duration::from_secs(2),
        }
    }

    fn lines(lines: &[&str]) -> effect::Irc {
        let lines = lines.iter().map(|&line| line.to_owned()).collect();
        effect::Irc { account: "irc".into(), channel: "#ci".into(), lines }
    }

    fn unhurried() -> Throttle {
        Throttle::new(1, Duration::from_secs(2))
    }

    /// How registering with this nick ends, with a server that gives these answers to the nicks that are tried.
    async fn register(nick: &str, answers: &[(&str, &str)]) -> (Result<Result<(), Receipt>, Lost>, String) {
        let (mut session, mut server) = session();
        let account = account(nick);
        let script = async {
            server.expect(&format!("USER {nick} 0 * :{nick}")).await;
            for (tried, answer) in answers {
                server.expect(&format!("NICK {tried}")).await;
                server.say(&[answer]).await;
            }
            server
        };
        let (registered, _server) = tokio::join!(session.register(&account), script);
        (registered, session.nick)
    }

    #[tokio::test(start_paused = true)]
    async fn another_nick_is_tried_when_one_is_taken_and_fits_where_that_did() {
        let in_use = ":irc.test 433 * ninebytes :Nickname already in use";
        let for_now = ":irc.test 437 * ninebyte_ :Nick/channel is temporarily unavailable";
        let elsewhere = ":irc.test 436 * ninebyte2 :Nickname collision KILL";
        let erroneous = ":irc.test 432 * ninebyte3 :Erroneous nickname";
        let welcome = ":irc.test 001 ninebyte4 :Welcome";
        let answers = [
            ("ninebytes", in_use),
            ("ninebyte_", for_now),
            ("ninebyte2", elsewhere),
            ("ninebyte3", erroneous),
            ("ninebyte4", welcome),
        ];
        let (registered, nick) = register("ninebytes", &answers).await;
        assert!(matches!(registered, Ok(Ok(()))), "{registered:?}");
        assert_eq!(nick, "ninebyte4");
    }

    #[tokio::test(start_paused = true)]
    async fn when_all_nicks_are_in_use_it_is_tried_again_later() {
        let in_use = ":irc.test 433 * pulse :Nickname already in use";
        let answers: Vec<_> = ["pulse", "pulse_", "pulse2", "pulse3", "pulse4", "pulse5"].map(|it| (it, in_use)).into();
        let (registered, _) = register("pulse", &answers).await;
        assert!(matches!(registered, Ok(Err(Receipt::Transient(_)))), "{registered:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_not_wanted_waits_until_that_is_mended() {
        for code in [432, 463, 464, 465, 466] {
            let (registered, _) = register("pulse", &[("pulse", &format!(":irc.test {code} * :No"))]).await;
            let Ok(Err(Receipt::Suspended(why))) = registered else { panic!("{code}: {registered:?}") };
            assert_eq!(why, format!("register: No ({code})"));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_password_goes_before_everything() {
        let (mut session, mut server) = session();
        let account = IrcAccount { password: Some(Secret::new("open sesame".into())), ..account("pulse") };
        let script = async {
            server.expect("PASS :open sesame").await;
            server.welcome("pulse").await;
        };
        let (registered, ()) = tokio::join!(session.register(&account), script);
        assert!(matches!(registered, Ok(Ok(()))), "{registered:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn whatever_the_server_has_against_a_join_is_an_answer_at_once_and_about_that_channel() {
        let dead = [403, 470, 473, 474, 475, 476, 477, 479, 489];
        let waits = [405, 437, 471, 499, 520, 926];
        for code in dead.into_iter().chain(waits) {
            let (mut session, mut server) = session();
            let began = Instant::now();
            let script = async {
                server.expect("JOIN #ci").await;
                server.say(&[&format!(":irc.test {code} pulse #ci :no")]).await;
                server.answer_ping().await;
            };
            let (effect, mut throttle) = (lines(&["a"]), unhurried());
            let (said, ()) = tokio::join!(session.say(&mut throttle, &effect), script);
            assert_eq!(began.elapsed(), Duration::ZERO, "{code}");
            let answer = format!("JOIN: no ({code})");
            let expected = match code {
                405 => Err(Receipt::Transient(answer)), // another connection is in no channel yet
                _ if dead.contains(&code) => Ok(Receipt::Permanent(answer)),
                _ => Ok(Receipt::Transient(answer)),
            };
            assert_eq!(said, expected, "{code}");
            assert!(session.joined.is_empty(), "{code}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_join_that_is_not_answered_costs_nobody_anything() {
        let (mut session, mut server) = session();
        let began = Instant::now();
        let script = async {
            server.expect("JOIN #ci").await;
            server.answer_ping().await;
        };
        let (effect, mut throttle) = (lines(&["a"]), unhurried());
        let (said, ()) = tokio::join!(session.say(&mut throttle, &effect), script);
        assert!(matches!(said, Ok(Receipt::Transient(_))), "{said:?}");
        assert_eq!(began.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_password_that_the_server_repeats_is_not_passed_on() {
        let account = IrcAccount { password: Some(Secret::new("open sesame".into())), ..account("pulse") };
        assert_eq!(without_password("Wrong password: open sesame", &account), "Wrong password: …");
    }

    #[tokio::test(start_paused = true)]
    async fn an_objection_that_comes_between_two_lines_counts_and_no_line_follows_it() {
        let (mut session, mut server) = session();
        let script = async {
            server.let_in("pulse", "#ci").await;
            server.expect("PRIVMSG #ci :a").await;
            server.say(&[":irc.test 404 pulse #ci :Cannot send to channel"]).await;
            server.answer_ping().await;
        };
        let (effect, mut throttle) = (lines(&["a", "b", "c"]), unhurried());
        let (said, ()) = tokio::join!(session.say(&mut throttle, &effect), script);
        assert_eq!(said, Ok(Receipt::Permanent("PRIVMSG: Cannot send to channel (404)".into())));
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_thrown_out_joins_again_and_says_what_was_not_heard() {
        let (mut session, mut server) = session();
        session.joined.insert("#ci".into());
        let (effect, mut throttle) = (lines(&["a"]), unhurried());
        let script = async {
            server.expect("PRIVMSG #ci :a").await;
            let kicked = ":op!o@host KICK #ci pulse :out";
            server.say(&[kicked, ":irc.test 404 pulse #ci :Cannot send to channel"]).await;
            server.answer_ping().await;
            server.let_in("pulse", "#ci").await;
            server.expect("PRIVMSG #ci :a").await;
            server.answer_ping().await;
        };
        let say_twice = async {
            let first = session.say(&mut throttle, &effect).await;
            (first, session.say(&mut throttle, &effect).await)
        };
        let (said, ()) = tokio::join!(say_twice, script);
        let first = Ok(Receipt::Transient("PRIVMSG: Cannot send to channel (404)".into()));
        assert_eq!(said, (first, Ok(Receipt::Delivered("said as pulse".into()))));
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_heard_in_part_is_in_doubt_when_it_is_said_again() {
        let (mut session, mut server) = session();
        session.joined.insert("#ci".into());
        let script = async {
            server.expect("PRIVMSG #ci :a").await;
            server.expect("PRIVMSG #ci :b").await;
            server.say(&[":irc.test 442 pulse #ci :You are not on that channel"]).await;
            server.answer_ping().await;
        };
        let (effect, mut throttle) = (lines(&["a", "b"]), unhurried());
        let (said, ()) = tokio::join!(session.say(&mut throttle, &effect), script);
        assert!(matches!(said, Ok(Receipt::InDoubt(_))), "{said:?}");
        assert!(session.joined.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_ends_after_a_line_leaves_it_in_doubt() {
        let (mut session, mut server) = session();
        session.joined.insert("#ci".into());
        let script = async {
            server.expect("PRIVMSG #ci :a").await;
            server.say(&["ERROR :Closing link"]).await;
        };
        let (effect, mut throttle) = (lines(&["a"]), unhurried());
        let (said, ()) = tokio::join!(session.say(&mut throttle, &effect), script);
        let why = "after a line: the server ends the connection: Closing link";
        assert_eq!(said, Err(Receipt::InDoubt(why.into())));
    }

    #[tokio::test(start_paused = true)]
    async fn after_a_silence_the_server_is_asked_before_a_line_is_risked() {
        for is_there in [true, false] {
            let (mut session, mut server) = session();
            session.joined.insert("#ci".into());
            tokio::time::advance(SILENCE_MAX + Duration::from_secs(1)).await;
            let script = async {
                if is_there {
                    server.answer_ping().await;
                    server.expect("PRIVMSG #ci :a").await;
                    server.answer_ping().await;
                }
            };
            let (effect, mut throttle) = (lines(&["a"]), unhurried());
            let (said, ()) = tokio::join!(session.say(&mut throttle, &effect), script);
            if is_there {
                assert_eq!(said, Ok(Receipt::Delivered("said as pulse".into())));
            } else {
                let why = "before the first line: no answer to PING within 20 s";
                assert_eq!(said, Err(Receipt::Transient(why.into())));
                drop(session);
                server.expect("PING :pulse-1").await;
                assert_eq!(server.hear().await, None);
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_is_interrupted_is_finished_before_anything_else_is_said() {
        let (mut session, mut server) = session_through(8);
        let interrupted = timeout(Duration::from_secs(1), session.listen_on());
        let (ended, ()) = tokio::join!(interrupted, server.say(&["PING :a-long-token"]));
        assert!(ended.is_err(), "nobody reads, so that it hangs in the middle of the PONG");
        session.joined.insert("#ci".into());
        let script = async {
            server.expect("PONG :a-long-token").await;
            server.expect("PRIVMSG #ci :a").await;
            server.answer_ping().await;
        };
        let (effect, mut throttle) = (lines(&["a"]), unhurried());
        let (said, ()) = tokio::join!(session.say(&mut throttle, &effect), script);
        assert_eq!(said, Ok(Receipt::Delivered("said as pulse".into())));
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_without_end_are_not_kept() {
        let (mut session, mut server) = session();
        let mut taken_bytes = 0;
        let chatter = async {
            loop {
                server.raw(&[b'x'; 1 << 10]).await;
                taken_bytes += 1 << 10;
            }
        };
        let lost = tokio::select! {
            lost = session.listen_on() => lost,
            () = chatter => unreachable!(),
        };
        assert_eq!(lost.to_string(), "the server sent 16384 bytes that are no line");
        assert!(taken_bytes <= 2 * INCOMING_BYTES_MAX, "{taken_bytes}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_line_that_would_not_get_through_whole_goes_in_pieces() {
        let (mut session, mut server) = session();
        let line = format!("\u{3}04{}\u{3}04", "☃".repeat(135));
        let host = "a.long.name.of.a.host.somewhere.in.the.cloud.example.com";
        let longer_host = format!("and.{host}");
        let script = async {
            server.expect("JOIN #ci").await;
            server.say(&[&format!(":pulse!~pulse@{host} JOIN :#ci")]).await;
            server.answer_ping().await;
            let shown = format!(":irc.test 396 pulse {longer_host} :is now your displayed host");
            server.say(&[&shown, ":pulse!~pulse@x NICK :pulse-with-a-longer-nick"]).await;
            let prefix = format!(":pulse-with-a-longer-nick!~pulse@{longer_host} ");
            let mut whole = String::new();
            loop {
                let heard = server.hear().await.unwrap();
                let Some(piece) = heard.strip_prefix("PRIVMSG #ci :") else {
                    assert_eq!(heard, "PING :pulse-2");
                    server.say(&["PONG :pulse-2"]).await;
                    break whole;
                };
                assert!(format!("{prefix}{heard}\r\n").len() <= LINE_BYTES_MAX, "{heard}");
                whole.push_str(piece);
            }
        };
        let (effect, mut throttle) = (lines(&[&line]), unhurried());
        let (said, whole) = tokio::join!(session.say(&mut throttle, &effect), script);
        assert_eq!(said, Ok(Receipt::Delivered("said as pulse-with-a-longer-nick".into())));
        assert_eq!(whole, line);
    }
}
