//! Messages to exchanges, over one connection that is kept and is not the one that is consumed on.
//!
//! Each message in flight has a channel to itself. A refusal closes the channel it happens on; and of several messages
//! that are confirmed at once the client library cannot tell which one was returned.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use lapin::options::{BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions};
use lapin::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ErrorKind, ExchangeKind};
use tokio::time::{Instant, timeout};

use crate::amqp::{self, AmqpError, EFFECT_HEADER, Frames, HOPS_HEADER, within};
use crate::config::Broker;
use crate::courier::Receipt;
use crate::effect::{self, EffectId};
use crate::retry;
use crate::tls::is_about_tls;

/// Channels at the same time, one for each message in flight.
pub(super) const CHANNELS_MAX: usize = 64;

/// One account at a broker. Dropping it ends its connection.
pub struct Amqp {
    broker: Broker,
    /// Locked while connecting, so that all who wait share the one attempt.
    line: tokio::sync::Mutex<Line>,
}

/// The connection, or what is known of the attempts to have one.
struct Line {
    session: Option<Arc<Session>>,
    /// Attempts to connect since a connection was last of use.
    attempts: u32,
    /// No attempt to connect before this time.
    rest_until: Instant,
    /// What is said until then.
    meanwhile: Receipt,
}

/// One connection.
struct Session {
    connection: Connection,
    /// Channels in confirm mode on which nothing waits for an answer.
    idle: Mutex<Vec<Channel>>,
    /// Exchanges of our own that are there.
    declared: Mutex<HashSet<String>>,
    /// Whether it has carried a message.
    of_use: AtomicBool,
    /// Whether it does not answer any more.
    given_up: AtomicBool,
}

impl Amqp {
    /// A client of this account. Nothing is connected yet.
    #[must_use]
    pub fn new(broker: Broker) -> Self {
        let meanwhile = Receipt::Transient("the connection was lost a moment ago".into());
        let line = Line { session: None, attempts: 0, rest_until: Instant::now(), meanwhile };
        Self { broker, line: tokio::sync::Mutex::new(line) }
    }

    pub(super) async fn perform(&self, id: EffectId, amqp: &effect::Amqp) -> Receipt {
        if amqp.exchange.is_empty() {
            return Receipt::Refused("the default exchange reaches every queue".into());
        }
        match self.channel_for(&amqp.exchange).await {
            Ok((session, channel)) => session.publish(channel, id, amqp).await,
            Err(receipt) => receipt,
        }
    }

    async fn channel_for(&self, exchange: &str) -> Result<(Arc<Session>, Channel), Receipt> {
        let session = self.session().await?;
        session.is_not_blocked()?;
        if exchange
            .strip_prefix("exchange/")
            .and_then(|rest| rest.strip_prefix(&self.broker.login))
            .is_some_and(|rest| rest.starts_with('/'))
        {
            session.declare(exchange).await?;
        }
        let channel = session.channel().await?;
        session.is_not_blocked()?;
        Ok((session, channel))
    }

    /// The connection that is there, or a new one, unless the attempts before it have earned a rest.
    async fn session(&self) -> Result<Arc<Session>, Receipt> {
        let mut line = self.line.lock().await;
        if let Some(session) = &line.session {
            if session.is_there() {
                return Ok(Arc::clone(session));
            }
            if session.of_use.load(Ordering::Relaxed) {
                (line.attempts, line.rest_until) = (0, Instant::now());
            }
            line.session = None;
        }
        if Instant::now() < line.rest_until {
            return Err(line.meanwhile.clone());
        }
        let connected = amqp::connect(&self.broker, "publishing", Frames::Any).await;
        line.attempts = line.attempts.saturating_add(1);
        line.rest_until = Instant::now() + retry::jittered(rest(line.attempts));
        match connected {
            Ok(connection) => {
                line.meanwhile = Receipt::Transient("the connection was lost a moment ago".into());
                let session = Arc::new(Session::new(connection));
                line.session = Some(Arc::clone(&session));
                Ok(session)
            }
            Err(error) => {
                line.meanwhile = not_connected(&error);
                Err(line.meanwhile.clone())
            }
        }
    }
}

impl Session {
    fn new(connection: Connection) -> Self {
        Self {
            connection,
            idle: Mutex::default(),
            declared: Mutex::default(),
            of_use: AtomicBool::new(false),
            given_up: AtomicBool::new(false),
        }
    }

    fn is_there(&self) -> bool {
        self.connection.status().connected() && !self.given_up.load(Ordering::Relaxed)
    }

    /// What is under way on it goes on; nothing more begins on it.
    fn give_up(&self) {
        self.given_up.store(true, Ordering::Relaxed);
    }

    fn is_blocked(&self) -> bool {
        self.connection.status().blocked()
    }

    fn is_not_blocked(&self) -> Result<(), Receipt> {
        if self.is_blocked() { Err(Receipt::Transient(BLOCKED.into())) } else { Ok(()) }
    }

    /// Sees to an exchange of our own, once. One that is there and is different is used as it is.
    async fn declare(&self, exchange: &str) -> Result<(), Receipt> {
        if self.declared().contains(exchange) {
            return Ok(());
        }
        // A channel of its own: a refusal closes it.
        let channel = self.open().await?;
        let options = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        let declared = channel.exchange_declare(exchange.into(), ExchangeKind::Topic, options, FieldTable::default());
        match self.unless_blocked("declare the exchange", declared).await? {
            Ok(()) => drop(amqp::close_channel(&channel).await),
            Err(error) if matches!(error.soft(), Some(AMQPSoftError::PRECONDITIONFAILED)) => {
                tracing::info!(exchange, %error, "the exchange is used as it is");
            }
            Err(error) => return Err(self.not_published(&error)),
        }
        self.declared().insert(exchange.to_owned());
        Ok(())
    }

    /// A channel in confirm mode that nobody else uses.
    async fn channel(&self) -> Result<Channel, Receipt> {
        let idle = self.take_idle();
        if let Some(channel) = idle {
            return Ok(channel);
        }
        let channel = self.open().await?;
        let selected = channel.confirm_select(ConfirmSelectOptions::default());
        match self.unless_blocked("ask for confirmations", selected).await? {
            Ok(()) => Ok(channel),
            Err(error) => Err(self.not_published(&error)),
        }
    }

    async fn open(&self) -> Result<Channel, Receipt> {
        let opened = self.unless_blocked("open channel", self.connection.create_channel()).await?;
        opened.map_err(|error| {
            // The library may answer for a channel of the past that had the same number, and would do so again.
            self.give_up();
            Receipt::Transient(error.to_string())
        })
    }

    /// An answer, unless the connection is blocked before it comes.
    async fn unless_blocked<T>(
        &self,
        what: &'static str,
        answer: impl Future<Output = lapin::Result<T>>,
    ) -> Result<Result<T, AmqpError>, Receipt> {
        let blocked = async {
            // The library tells one listener only, and many wait here.
            while !self.is_blocked() {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        tokio::select! {
            answer = within(what, answer) => Ok(answer),
            () = blocked => Err(Receipt::Transient(BLOCKED.into())),
        }
    }

    async fn publish(&self, channel: Channel, id: EffectId, amqp: &effect::Amqp) -> Receipt {
        let (exchange, key) = (amqp.exchange.as_str().into(), amqp.routing_key.as_str().into());
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let properties = properties(id, amqp);
        let written = channel.basic_publish(exchange, key, options, &amqp.body, properties);
        let confirmation = match timeout(ANSWER_TIMEOUT, written).await {
            Ok(Ok(confirmation)) => confirmation,
            // Not written, or not to its end.
            Ok(Err(source)) => return self.not_published(&AmqpError::Failed { what: "publish", source }),
            Err(_) => return self.unanswered("it may still be written"),
        };
        let confirmation = match timeout(CONFIRM_TIMEOUT, confirmation).await {
            Ok(Ok(confirmation)) => confirmation,
            Ok(Err(error)) if amqp::soft(&error).is_some() => {
                self.declared().remove(&amqp.exchange);
                return self.not_published(&AmqpError::Failed { what: "publish", source: error });
            }
            Ok(Err(error)) => return Receipt::InDoubt(format!("published, and not confirmed: {error}")),
            Err(_) => return self.unanswered("published, and no confirmation in time"),
        };
        self.of_use.store(true, Ordering::Relaxed);
        self.idle().push(channel);
        match confirmation {
            Confirmation::Ack(None) => Receipt::Delivered("confirmed".into()),
            Confirmation::Ack(Some(_)) if amqp.unrouted => Receipt::Delivered("unrouted".into()),
            Confirmation::Ack(Some(_)) => Receipt::Transient("unrouted: no queue is bound there".into()),
            Confirmation::Nack(_) => Receipt::Transient("the broker could not take it".into()),
            Confirmation::NotRequested => Receipt::InDoubt("published on a channel without confirmations".into()),
        }
    }

    /// Nobody knows whether the broker has it or will have it.
    fn unanswered(&self, what: &str) -> Receipt {
        if self.is_blocked() {
            // The broker reads on once it has room, and what is written now, before that.
            return Receipt::InDoubt(format!("{what}: {BLOCKED}"));
        }
        self.give_up();
        Receipt::InDoubt(what.into())
    }

    /// The broker does not have it.
    fn not_published(&self, error: &AmqpError) -> Receipt {
        let why = error.to_string();
        match error.soft() {
            // About this exchange, which a plugin chose: messages to others do not wait for it.
            Some(AMQPSoftError::ACCESSREFUSED) => Receipt::Transient(why),
            // It is about the message itself.
            Some(AMQPSoftError::CONTENTTOOLARGE | AMQPSoftError::PRECONDITIONFAILED) => Receipt::Permanent(why),
            Some(
                AMQPSoftError::NOTFOUND
                | AMQPSoftError::NOROUTE
                | AMQPSoftError::NOCONSUMERS
                | AMQPSoftError::RESOURCELOCKED,
            ) => Receipt::Transient(why),
            None => {
                self.give_up();
                Receipt::Transient(why)
            }
        }
    }

    fn take_idle(&self) -> Option<Channel> {
        let mut idle = self.idle();
        idle.retain(|channel| channel.status().connected());
        idle.pop()
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Channel>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn declared(&self) -> MutexGuard<'_, HashSet<String>> {
        self.declared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn properties(id: EffectId, amqp: &effect::Amqp) -> BasicProperties {
    let id = id.to_string();
    let mut headers = FieldTable::default();
    headers.insert(HOPS_HEADER.into(), AMQPValue::LongUInt(amqp.hops));
    headers.insert(EFFECT_HEADER.into(), AMQPValue::LongString(id.as_str().into()));
    BasicProperties::default()
        .with_content_type(amqp.content_type.as_str().into())
        .with_delivery_mode(PERSISTENT)
        .with_message_id(id.into())
        .with_headers(headers)
}

/// What it means that there is no connection.
fn not_connected(error: &AmqpError) -> Receipt {
    let why = error.to_string();
    let AmqpError::Failed { source, .. } = error else { return Receipt::Transient(why) };
    let is_for_a_person = match source.kind() {
        // The login, or the virtual host.
        ErrorKind::ProtocolError(error) => matches!(
            error.kind(),
            AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED)
                | AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED | AMQPHardError::INVALIDPATH)
        ),
        _ => is_about_tls(source),
    };
    if is_for_a_person { Receipt::Suspended(why) } else { Receipt::Transient(why) }
}

/// How long not to connect after this many attempts: half a second, doubled each time, at most four.
fn rest(attempts: u32) -> Duration {
    Duration::from_millis(500 << attempts.saturating_sub(1).min(3))
}

const BLOCKED: &str = "connection blocked: the broker has no room";
const LOOK_EVERY: Duration = Duration::from_millis(100);
const PERSISTENT: u8 = 2;
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// A broker that writes to slow disks takes its time.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(20);

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::config::Secret;
    use crate::effect::Hash;

    fn broker(port: u16) -> Broker {
        Broker {
            host: "127.0.0.1".into(),
            port,
            tls: false,
            vhost: "/".into(),
            login: "me".into(),
            password: Secret::new("secret".into()),
        }
    }

    fn message(exchange: &str) -> effect::Amqp {
        effect::Amqp {
            account: "pulse".into(),
            exchange: exchange.into(),
            routing_key: "primary.a".into(),
            content_type: "application/json".into(),
            body: b"{}".to_vec(),
            hops: 1,
            unrouted: true,
        }
    }

    #[test]
    fn the_rest_grows_to_four_seconds() {
        let rests: Vec<_> = [1, 2, 3, 4, 5, u32::MAX].map(|attempts| rest(attempts).as_millis()).into();
        assert_eq!(rests, [500, 1_000, 2_000, 4_000, 4_000, 4_000]);
    }

    #[tokio::test]
    async fn the_default_exchange_is_never_published_to() {
        let receipt = Amqp::new(broker(1)).perform(Hash::of_bytes(b"e"), &message("")).await;
        assert!(matches!(receipt, Receipt::Refused(_)), "{receipt:?}");
    }

    #[tokio::test]
    async fn however_many_want_to_publish_a_broker_that_hangs_up_sees_one_attempt() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let amqp = Amqp::new(broker(listener.local_addr().unwrap().port()));
        let hang_up = async {
            for attempts in 1.. {
                drop(listener.accept().await.unwrap());
                assert_eq!(attempts, 1, "the first earns a rest");
            }
        };
        let everybody = async {
            let message = message("exchange/me/a");
            let all = (0..64_u8).map(|number| amqp.perform(Hash::of_bytes(&[number]), &message));
            futures_util::future::join_all(all).await
        };
        let receipts = tokio::select! {
            receipts = everybody => receipts,
            () = hang_up => unreachable!(),
        };
        let first = &receipts[0];
        assert!(matches!(first, Receipt::Transient(why) if why.starts_with("connect: ")), "{first:?}");
        assert!(receipts.iter().all(|receipt| receipt == first));
    }
}
