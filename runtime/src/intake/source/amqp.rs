//! The AMQP half: keeps one consumer on one tenant's queue, through whatever happens to the broker.
//!
//! The client library's own recovery is off: each session has its own connection, declares and binds anew, and its
//! deliveries can be acked on that connection only.

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt;
use lapin::options::{BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicQosOptions, QueueDeclareOptions};
use lapin::protocol::{AMQPErrorKind, AMQPSoftError};
use lapin::types::{AMQPValue, FieldTable};
use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo};
use lapin::{Channel, Connection, ConnectionProperties, Consumer, ErrorKind};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{Received, Settler};
use crate::config::Broker;
use crate::intake::event::Delivery;
use crate::metrics::Metrics;
use crate::retry;
use crate::store::{Binding, Store};
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
    /// Whether it is consuming.
    pub consuming: watch::Sender<bool>,
    /// The tenant, for the figures.
    pub tenant: String,
    /// Notes how many messages wait.
    pub metrics: Arc<Metrics>,
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

#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error("{what}: {source}")]
    Amqp { what: &'static str, source: lapin::Error },
    #[error("{0}: no answer in time")]
    Timeout(&'static str),
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
        loop {
            let started = Instant::now();
            let opened = tokio::select! {
                opened = self.open(&mut had_queue) => opened,
                () = stop.cancelled() => return,
            };
            let ended = match opened {
                Err(error) => error,
                Ok(mut session) => match self.forward(&mut session, &out, &stop).await {
                    Err(error) => error,
                    Ok(()) => {
                        // Nothing more comes; what is in hand is acked on this connection before it closes.
                        drop(out);
                        self.consuming.send_replace(false);
                        close.cancelled().await;
                        if let Err(error) = within("close", session.connection.close(200, "bye".into())).await {
                            tracing::warn!(%error, "not everything may have been acked: it is delivered again");
                        }
                        return;
                    }
                },
            };
            self.consuming.send_replace(false);
            failures = if started.elapsed() > LONGEST_PAUSE { 0 } else { failures + 1 };
            tracing::error!(queue = %self.queue.name, error = %ended, "not consuming: trying again");
            tokio::select! {
                () = tokio::time::sleep(pause(failures)) => {}
                () = stop.cancelled() => return,
            }
        }
    }

    /// Connects, sees to the queue and its bindings, and begins to consume.
    async fn open(&self, had_queue: &mut bool) -> Result<Session, SessionError> {
        let options = ConnectionProperties::default().with_connection_name("pulse-notifier".into());
        let connection = within("connect", Connection::connect_uri(self.uri(), options)).await?;
        self.declare(&connection, *had_queue).await?;
        *had_queue = true;
        let missing = self.bind(&connection).await?;
        let channel = within("open channel", connection.create_channel()).await?;
        within("set prefetch", channel.basic_qos(self.prefetch, BasicQosOptions::default())).await?;
        let (queue, options) = (self.queue.name.as_str().into(), BasicConsumeOptions::default());
        let consuming = channel.basic_consume(queue, "".into(), options, FieldTable::default());
        let consumer = within("consume", consuming).await?;
        tracing::info!(queue = %self.queue.name, "consuming");
        self.consuming.send_replace(true);
        Ok(Session { connection, channel, consumer, missing })
    }

    /// Hands deliveries on until asked to stop, and from time to time looks after the queue.
    async fn forward(
        &self,
        session: &mut Session,
        out: &mpsc::Sender<Received>,
        stop: &CancellationToken,
    ) -> Result<(), SessionError> {
        let mut look = tokio::time::interval(LOOK_EVERY);
        loop {
            let delivery = tokio::select! {
                delivery = session.consumer.next() => delivery,
                () = stop.cancelled() => break,
                _ = look.tick() => {
                    self.look(&session.channel).await?;
                    session.missing = self.bind_all(&session.connection, &session.missing).await?;
                    continue;
                }
            };
            let delivery = match delivery {
                Some(Ok(delivery)) => delivery,
                Some(Err(source)) => return Err(SessionError::Amqp { what: "consume", source }),
                None if session.connection.status().connected() => return Err(SessionError::Cancelled),
                None => return Err(SessionError::Ended),
            };
            tokio::select! {
                sent = out.send(received(delivery)) => if sent.is_err() { break },
                () = stop.cancelled() => break,
            }
        }
        let (tag, options) = (session.consumer.tag(), BasicCancelOptions::default());
        within("stop consuming", session.channel.basic_cancel(tag, options)).await
    }

    fn uri(&self) -> AMQPUri {
        let broker = &self.broker;
        AMQPUri {
            scheme: if broker.tls { AMQPScheme::AMQPS } else { AMQPScheme::AMQP },
            authority: AMQPAuthority {
                userinfo: AMQPUserInfo {
                    username: broker.login.clone(),
                    password: broker.password.expose().to_owned(),
                },
                host: broker.host.clone(),
                port: broker.port,
            },
            vhost: broker.vhost.clone(),
            query: AMQPQueryString { heartbeat: Some(HEARTBEAT_S), ..AMQPQueryString::default() },
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
            Ok(_) => return close_channel(&channel).await,
            Err(SessionError::Amqp { source, .. }) if is_not_found(&source) => {}
            Err(error) => return Err(error),
        }
        if had_queue {
            tracing::error!(queue = %self.queue.name, "the queue was deleted: messages were lost there; declaring it anew");
        }
        let channel = within("open channel", connection.create_channel()).await?;
        let durable = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
        within("declare the queue", channel.queue_declare(queue(), durable, self.arguments())).await?;
        tracing::info!(queue = %self.queue.name, "queue declared");
        close_channel(&channel).await
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
                Err(SessionError::Amqp { source, .. }) if is_refused(&source) => {
                    tracing::error!(exchange = %binding.exchange, routing_key = %binding.routing_key, error = %source,
                        "cannot bind: trying again every {} s", LOOK_EVERY.as_secs());
                    missing.push(binding.clone());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(missing)
    }
}

async fn close_channel(channel: &Channel) -> Result<(), SessionError> {
    within("close channel", channel.close(200, "".into())).await
}

async fn within<T>(what: &'static str, answer: impl Future<Output = lapin::Result<T>>) -> Result<T, SessionError> {
    match timeout(ANSWER_TIMEOUT, answer).await {
        Ok(answer) => answer.map_err(|source| SessionError::Amqp { what, source }),
        Err(_) => Err(SessionError::Timeout(what)),
    }
}

fn is_not_found(error: &lapin::Error) -> bool {
    matches!(soft(error), Some(AMQPSoftError::NOTFOUND))
}

fn is_refused(error: &lapin::Error) -> bool {
    soft(error).is_some()
}

fn soft(error: &lapin::Error) -> Option<&AMQPSoftError> {
    match error.kind() {
        ErrorKind::ProtocolError(error) => match error.kind() {
            AMQPErrorKind::Soft(soft) => Some(soft),
            AMQPErrorKind::Hard(_) => None,
        },
        _ => None,
    }
}

fn received(message: lapin::message::Delivery) -> Received {
    let delivery = Delivery {
        exchange: message.exchange.to_string(),
        routing_key: message.routing_key.to_string(),
        cc_routes: cc_routes(message.properties.headers().as_ref()),
        redelivered: message.redelivered,
        hops: hops(message.properties.headers().as_ref()),
        body: message.data,
    };
    Received { delivery, settler: Settler::Amqp(Acker(message.acker)) }
}

/// How often a plugin has relayed it, by the header that the `amqp` sink writes.
fn hops(headers: Option<&FieldTable>) -> u32 {
    let hops = headers.and_then(|headers| headers.inner().get(HOPS_HEADER));
    match hops {
        Some(AMQPValue::LongInt(hops)) => u32::try_from(*hops).unwrap_or(0),
        Some(AMQPValue::LongUInt(hops)) => *hops,
        _ => 0,
    }
}

/// The `CC` header's routes; what is no text in it is passed over.
fn cc_routes(headers: Option<&FieldTable>) -> Vec<String> {
    let Some(AMQPValue::FieldArray(routes)) = headers.and_then(|headers| headers.inner().get("CC")) else {
        return Vec::new();
    };
    let text = |value: &AMQPValue| match value {
        AMQPValue::LongString(text) => Some(String::from_utf8_lossy(text.as_bytes()).into_owned()),
        AMQPValue::ShortString(text) => Some(text.to_string()),
        _ => None,
    };
    routes.as_slice().iter().filter_map(text).collect()
}

fn pause(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(8);
    retry::jittered((SHORTEST_PAUSE * 2_u32.pow(doublings)).min(LONGEST_PAUSE))
}

/// Counts how often a message was relayed.
pub const HOPS_HEADER: &str = "x-pulse-notifier-hops";
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
const HEARTBEAT_S: u16 = 30;
const LOOK_EVERY: Duration = Duration::from_secs(15);
const DEPTH_TO_WARN_AT: u32 = 1_000;
const SHORTEST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
