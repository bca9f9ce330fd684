//! The AMQP half: keeps one consumer on one tenant's queue, through whatever happens to the broker.
//!
//! The client library's own recovery is off: each session has its own connection, declares and binds anew, and its
//! deliveries can be acked on that connection only.

mod headers;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicGetOptions, BasicQosOptions, QueueDeclareOptions,
};
use lapin::protocol::AMQPSoftError;
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Connection, Consumer, Event};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::{Received, Settler};
use crate::amqp::{AmqpError, Frames, close_channel, connect, within};
use crate::config::Broker;
use crate::intake::event::Delivery;
use crate::metrics::{DeliveryOutcome, Metrics};
use crate::retry;
use crate::store::{Binding, DeadDelivery, Store, now_ms};
use crate::tenant::{Queue, QueueKind};

/// One tenant's queue on a broker.
pub struct AmqpSource {
    /// The broker.
    pub broker: Broker,
    /// The queue.
    pub queue: Queue,
    /// Deliveries in hand at the same time.
    pub prefetch: u16,
    /// Remembers which bindings were made.
    pub store: Store,
    /// Whether it is consuming, and what it cannot bind.
    pub consuming: watch::Sender<Consuming>,
    /// The tenant, for the figures.
    pub tenant: String,
    /// Notes how many messages wait.
    pub metrics: Arc<Metrics>,
}

/// Whether a queue is consumed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Consuming {
    /// Whether it is.
    pub is_on: bool,
    /// The exchanges it cannot be bound to, whose messages it does not get.
    pub unbound: BTreeSet<String>,
}

impl Consuming {
    fn yes_but(missing: &[Binding]) -> Self {
        Self { is_on: true, unbound: missing.iter().map(|binding| binding.exchange.clone()).collect() }
    }
}

/// Acks one delivery on the connection it came through.
pub struct Acker(lapin::Acker);

impl Acker {
    pub(super) async fn ack(self) {
        // A connection that broke since took the ack with it; the broker delivers again and the store knows the event.
        if let Err(error) = within("ack", self.0.ack(BasicAckOptions::default())).await {
            tracing::debug!(%error, "not acked: it will be delivered again");
        }
    }
}

/// One connection, and the consumer on it.
struct Session {
    connection: Connection,
    channel: Channel,
    consumer: Consumer,
    /// Bindings that could not be made yet.
    missing: Vec<Binding>,
}

/// What is known of a message that the client library cannot read. It ends every connection that it is delivered on,
/// and then stands in the queue again.
#[derive(Default)]
struct Suspicion {
    /// Whether messages are taken one by one, each acked before the next.
    one_by_one: bool,
    /// Sessions ended by it since then, with nothing delivered in between. What a quorum queue gets back it puts behind
    /// all else that it got back: only what comes twice running is the first message.
    in_a_row: u32,
}

/// How a session ended that nothing is wrong with.
enum Ended {
    /// It was asked to.
    Stopped,
    /// The suspicion was unfounded.
    Trusted,
}

#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error(transparent)]
    Amqp(#[from] AmqpError),
    #[error("the broker cancelled the consumer: its queue was deleted or moved")]
    Cancelled,
    #[error("the connection ended")]
    Ended,
}

impl AmqpSource {
    /// Consumes into `out` until `stop`, then keeps the connection until `close`, so that what is in hand can be acked.
    pub async fn run(self, out: mpsc::Sender<Received>, stop: CancellationToken, close: CancellationToken) {
        let mut failures = 0;
        let mut had_queue = false;
        let mut suspicion = Suspicion::default();
        // Each tenant has a connection, and few have messages that need large ones.
        let mut frames = Frames::Small;
        loop {
            let started = Instant::now();
            let opened = tokio::select! {
                opened = self.open(&mut had_queue, &suspicion, frames) => opened,
                () = stop.cancelled() => return,
            };
            let ended = match opened {
                Err(error) => error,
                Ok(mut session) => match self.forward(&mut session, &mut suspicion, &out, &stop).await {
                    Err(error) => error,
                    Ok(Ended::Trusted) => {
                        suspicion = Suspicion::default();
                        continue;
                    }
                    Ok(Ended::Stopped) => {
                        // Nothing more comes; what is in hand is acked on this connection before it closes.
                        drop(out);
                        self.consuming.send_replace(Consuming::default());
                        close.cancelled().await;
                        if let Err(error) = within("close", session.connection.close(200, "bye".into())).await {
                            tracing::warn!(%error, "not everything may have been acked: it is delivered again");
                        }
                        return;
                    }
                },
            };
            self.consuming.send_replace(Consuming::default());
            failures = if started.elapsed() > LONGEST_PAUSE { 0 } else { failures + 1 };
            tracing::error!(queue = %self.queue.name, error = %ended, "not consuming: trying again");
            if matches!(&ended, SessionError::Amqp(error) if error.is_large_frame()) {
                frames = Frames::Any;
            }
            if suspicion.is_confirmed_by(&ended) {
                match self.take_out(&ended, &out).await {
                    Ok(()) => (suspicion, failures) = (Suspicion::default(), 0),
                    Err(error) => tracing::error!(queue = %self.queue.name, %error, "the message is still there"),
                }
            }
            tokio::select! {
                () = tokio::time::sleep(pause(failures)) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// Connects, sees to the queue and its bindings, and begins to consume.
    async fn open(&self, had_queue: &mut bool, suspicion: &Suspicion, frames: Frames) -> Result<Session, SessionError> {
        let connection = connect(&self.broker, "consuming", frames).await?;
        self.declare(&connection, *had_queue).await?;
        *had_queue = true;
        let missing = self.bind(&connection).await?;
        let channel = within("open channel", connection.create_channel()).await?;
        let prefetch = if suspicion.one_by_one { 1 } else { self.prefetch };
        within("set prefetch", channel.basic_qos(prefetch, BasicQosOptions::default())).await?;
        let (queue, options) = (self.queue.name.as_str().into(), BasicConsumeOptions::default());
        let consuming = channel.basic_consume(queue, "".into(), options, FieldTable::default());
        let consumer = within("consume", consuming).await?;
        tracing::info!(queue = %self.queue.name, "consuming");
        self.consuming.send_replace(Consuming::yes_but(&missing));
        Ok(Session { connection, channel, consumer, missing })
    }

    /// Hands deliveries on until asked to stop, and from time to time looks after the queue.
    async fn forward(
        &self,
        session: &mut Session,
        suspicion: &mut Suspicion,
        out: &mpsc::Sender<Received>,
        stop: &CancellationToken,
    ) -> Result<Ended, SessionError> {
        let mut look = tokio::time::interval(LOOK_EVERY);
        let began = Instant::now();
        loop {
            let delivery = tokio::select! {
                delivery = session.consumer.next() => delivery,
                () = stop.cancelled() => break,
                _ = look.tick() => {
                    self.look(&session.channel).await?;
                    session.missing = self.bind_all(&session.connection, &session.missing).await?;
                    self.consuming.send_replace(Consuming::yes_but(&session.missing));
                    if suspicion.one_by_one && began.elapsed() >= LOOK_EVERY {
                        return Ok(Ended::Trusted);
                    }
                    continue;
                }
            };
            let delivery = match delivery {
                Some(Ok(delivery)) => delivery,
                Some(Err(source)) => return Err(AmqpError::Failed { what: "consume", source }.into()),
                None if session.connection.status().connected() => return Err(SessionError::Cancelled),
                None => return Err(SessionError::Ended),
            };
            suspicion.in_a_row = 0;
            tokio::select! {
                sent = out.send(received(delivery)) => if sent.is_err() { break },
                () = stop.cancelled() => break,
            }
        }
        let (tag, options) = (session.consumer.tag(), BasicCancelOptions::default());
        within("stop consuming", session.channel.basic_cancel(tag, options)).await?;
        Ok(Ended::Stopped)
    }

    /// Takes the first message off the queue, and with it the one that no session survives: what it is cannot be read
    /// here either, and asking for it without an ack is the only way to be rid of it.
    async fn take_out(&self, why: &SessionError, out: &mpsc::Sender<Received>) -> Result<(), SessionError> {
        let connection = connect(&self.broker, "taking out what cannot be read", Frames::Any).await?;
        let channel = within("open channel", connection.create_channel()).await?;
        let mut events = Box::pin(connection.events_listener());
        let lost = async {
            loop {
                match events.next().await {
                    Some(Event::Error(source)) => return AmqpError::Failed { what: "take out", source },
                    Some(_) => {}
                    None => std::future::pending().await,
                }
            }
        };
        let get = channel.basic_get(self.queue.name.as_str().into(), BasicGetOptions { no_ack: true });
        // The library does not answer a call that ends in what it cannot read; the connection says so.
        let got = tokio::select! {
            got = within("take out", get) => got,
            error = lost => Err(error),
        };
        match got {
            Err(error) if error.is_unreadable() => self.bury(why).await,
            Err(error) => return Err(error.into()),
            Ok(None) => tracing::warn!(queue = %self.queue.name, "what could not be read is gone from the queue"),
            // Somebody else took it; this one is as good as any.
            Ok(Some(message)) => {
                let received = Received { delivery: delivery(message.delivery).0, settler: Settler::Nobody };
                drop(out.send(received).await);
            }
        }
        Ok(())
    }

    /// Puts on record that a message was taken off the queue unread.
    async fn bury(&self, why: &SessionError) {
        let reason = format!("a header that is no UTF-8, or otherwise not to be read: {why}");
        tracing::error!(queue = %self.queue.name, %reason, "a message was taken off the queue unread");
        let (tenant, delivery) = (self.tenant.clone(), Arc::default());
        let dead = DeadDelivery { tenant, delivery, reason, received_ms: now_ms() };
        match self.store.bury(dead).await {
            Ok(()) => self.metrics.delivery(&self.tenant, DeliveryOutcome::Malformed),
            Err(error) => tracing::error!(queue = %self.queue.name, %error, "of that message there is no record"),
        }
    }

    /// Notes how many messages wait: a queue that backs up is deleted by whoever watches over the broker.
    async fn look(&self, channel: &Channel) -> Result<(), SessionError> {
        let queue = self.queue.name.as_str().into();
        let passive = QueueDeclareOptions { passive: true, durable: true, ..QueueDeclareOptions::default() };
        let queue = within("look at the queue", channel.queue_declare(queue, passive, FieldTable::default())).await?;
        let waiting = queue.message_count();
        self.metrics.queue_depth(&self.tenant, waiting);
        if waiting >= DEPTH_TO_WARN_AT {
            tracing::warn!(queue = %self.queue.name, waiting, "messages pile up in the queue");
        }
        Ok(())
    }

    /// Uses the queue that is there as it is, or declares one. A channel does not survive being told there is none.
    async fn declare(&self, connection: &Connection, had_queue: bool) -> Result<(), SessionError> {
        let queue = || self.queue.name.as_str().into();
        let channel = within("open channel", connection.create_channel()).await?;
        let passive = QueueDeclareOptions { passive: true, durable: true, ..QueueDeclareOptions::default() };
        let looked = within("look at the queue", channel.queue_declare(queue(), passive, FieldTable::default())).await;
        match looked {
            Ok(_) => return Ok(close_channel(&channel).await?),
            Err(error) if matches!(error.soft(), Some(AMQPSoftError::NOTFOUND)) => {}
            Err(error) => return Err(error.into()),
        }
        if had_queue {
            tracing::error!(queue = %self.queue.name, "the queue was deleted: messages were lost there; declaring it anew");
        }
        let channel = within("open channel", connection.create_channel()).await?;
        let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        within("declare the queue", channel.queue_declare(queue(), durable, self.arguments())).await?;
        tracing::info!(queue = %self.queue.name, "queue declared");
        Ok(close_channel(&channel).await?)
    }

    fn arguments(&self) -> FieldTable {
        let mut arguments = FieldTable::default();
        let kind = match self.queue.kind {
            QueueKind::Plain => return arguments,
            QueueKind::Classic => "classic",
            QueueKind::Quorum => "quorum",
        };
        arguments.insert("x-queue-type".into(), AMQPValue::LongString(kind.into()));
        arguments
    }

    /// Makes the configured bindings, takes back those made earlier and configured no longer; returns those that could
    /// not be made.
    async fn bind(&self, connection: &Connection) -> Result<Vec<Binding>, SessionError> {
        let missing = self.bind_all(connection, &self.queue.bindings).await?;
        let Ok(stale) = self.store.bindings(&self.queue.name, self.queue.bindings.clone()).await else {
            return Ok(missing);
        };
        for binding in stale {
            let channel = within("open channel", connection.create_channel()).await?;
            let (queue, exchange) = (self.queue.name.as_str().into(), binding.exchange.as_str().into());
            let key = binding.routing_key.as_str().into();
            match within("unbind", channel.queue_unbind(queue, exchange, key, FieldTable::default())).await {
                Ok(()) => {
                    close_channel(&channel).await?;
                    // Not forgotten, it is only taken back once more at the next start.
                    drop(self.store.unbound(&self.queue.name, binding).await);
                }
                Err(error) => tracing::warn!(exchange = %binding.exchange, %error, "a binding of the past stays"),
            }
        }
        Ok(missing)
    }

    /// Each binding has a channel of its own: one that is refused closes it.
    async fn bind_all(&self, connection: &Connection, bindings: &[Binding]) -> Result<Vec<Binding>, SessionError> {
        let mut missing = Vec::new();
        for binding in bindings {
            let channel = within("open channel", connection.create_channel()).await?;
            let (queue, exchange) = (self.queue.name.as_str().into(), binding.exchange.as_str().into());
            let (key, options) = (binding.routing_key.as_str().into(), Default::default());
            match within("bind", channel.queue_bind(queue, exchange, key, options, FieldTable::default())).await {
                Ok(()) => close_channel(&channel).await?,
                Err(error) if error.soft().is_some() => {
                    tracing::error!(exchange = %binding.exchange, routing_key = %binding.routing_key, %error,
                        "cannot bind: trying again every {} s", LOOK_EVERY.as_secs());
                    missing.push(binding.clone());
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(missing)
    }
}

impl Suspicion {
    /// Whether a session that ended like this leaves no doubt: the first message in the queue is the one.
    fn is_confirmed_by(&mut self, ended: &SessionError) -> bool {
        if !matches!(ended, SessionError::Amqp(error) if error.is_unreadable()) {
            return false;
        }
        if std::mem::replace(&mut self.one_by_one, true) {
            self.in_a_row += 1;
        }
        self.in_a_row >= 2
    }
}

fn received(message: lapin::message::Delivery) -> Received {
    let (delivery, acker) = delivery(message);
    Received { delivery, settler: Settler::Amqp(Acker(acker)) }
}

fn delivery(message: lapin::message::Delivery) -> (Delivery, lapin::Acker) {
    let delivery = Delivery {
        exchange: message.exchange.to_string(),
        routing_key: message.routing_key.to_string(),
        cc_routes: headers::cc_routes(message.properties.headers().as_ref()),
        redelivered: message.redelivered,
        hops: headers::hops(message.properties.headers().as_ref()),
        body: message.data,
    };
    (delivery, message.acker)
}

fn pause(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(8);
    retry::jittered((SHORTEST_PAUSE * 2_u32.pow(doublings)).min(LONGEST_PAUSE))
}

const LOOK_EVERY: Duration = Duration::from_secs(15);
const DEPTH_TO_WARN_AT: u32 = 1_000;
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_taken_out_for_an_error_of_another_kind() {
        let mut suspicion = Suspicion::default();
        let other = || AmqpError::Failed { what: "consume", source: lapin::ErrorKind::MissingHeartbeatError.into() };
        for ended in [SessionError::Ended, SessionError::Cancelled, other().into(), AmqpError::Timeout("look").into()] {
            for _ in 0..3 {
                assert!(!suspicion.is_confirmed_by(&ended), "{ended}");
            }
        }
        assert!(!suspicion.one_by_one);
    }
}
