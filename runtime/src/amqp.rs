//! Connections to a broker, as the half that consumes and the half that publishes make them, and what its answers mean.
//!
//! The client library's own recovery is off: who lost a connection makes a new one, with new channels.

use std::time::Duration;

use lapin::protocol::{AMQPErrorKind, AMQPHardError, AMQPSoftError};
use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo};
use lapin::{Channel, Connection, ConnectionProperties, ErrorKind};
use tokio::time::timeout;

use crate::config::Broker;

/// Why something asked of a broker was not done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AmqpError {
    /// The broker said no, or the connection broke.
    #[error("{what}: {source}")]
    Failed {
        /// What was asked.
        what: &'static str,
        /// The library's error.
        source: lapin::Error,
    },
    /// Nothing came back.
    #[error("{0}: no answer in time")]
    Timeout(&'static str),
}

impl AmqpError {
    /// What the broker said when it closed a channel, if it did.
    pub(crate) fn soft(&self) -> Option<&AMQPSoftError> {
        match self {
            Self::Failed { source, .. } => soft(source),
            Self::Timeout(_) => None,
        }
    }

    /// Whether the broker sent a frame larger than was agreed on.
    pub(crate) fn is_large_frame(&self) -> bool {
        let Self::Failed { source, .. } = self else { return false };
        matches!(source.kind(), ErrorKind::ProtocolError(error)
            if matches!(error.kind(), AMQPErrorKind::Hard(AMQPHardError::FRAMEERROR)))
    }

    /// Whether the library could not read what the broker sent.
    pub(crate) fn is_unreadable(&self) -> bool {
        matches!(self, Self::Failed { source, .. } if is_unreadable(source))
    }
}

/// How large the frames of a connection may be, of which the library sets aside 64.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Frames {
    /// As large as the broker makes them.
    #[default]
    Any,
    /// 8 KiB. The properties of a message, which are never cut, may not fit.
    Small,
}

/// Connects; `purpose` is shown to whoever looks after the broker.
pub(crate) async fn connect(broker: &Broker, purpose: &str, frames: Frames) -> Result<Connection, AmqpError> {
    let name = format!("pulse-notifier, {purpose}");
    let options = ConnectionProperties::default().with_connection_name(name.into());
    within("connect", Connection::connect_uri(uri(broker, frames), options)).await
}

/// Closes a channel that is still open.
pub(crate) async fn close_channel(channel: &Channel) -> Result<(), AmqpError> {
    within("close channel", channel.close(200, "".into())).await
}

/// An answer of the broker, waited for no longer than [`ANSWER_TIMEOUT`].
pub(crate) async fn within<T>(
    what: &'static str,
    answer: impl Future<Output = lapin::Result<T>>,
) -> Result<T, AmqpError> {
    match timeout(ANSWER_TIMEOUT, answer).await {
        Ok(answer) => answer.map_err(|source| AmqpError::Failed { what, source }),
        Err(_) => Err(AmqpError::Timeout(what)),
    }
}

/// What the broker said when it closed a channel, if it did.
pub(crate) fn soft(error: &lapin::Error) -> Option<&AMQPSoftError> {
    match error.kind() {
        ErrorKind::ProtocolError(error) => match error.kind() {
            AMQPErrorKind::Soft(soft) => Some(soft),
            AMQPErrorKind::Hard(_) => None,
        },
        _ => None,
    }
}

/// Whether the library could not read what the broker sent.
pub(crate) fn is_unreadable(error: &lapin::Error) -> bool {
    matches!(error.kind(), ErrorKind::ParsingError(_))
}

fn uri(broker: &Broker, frames: Frames) -> AMQPUri {
    let frame_max = match frames {
        Frames::Any => None,
        Frames::Small => Some(8 << 10),
    };
    AMQPUri {
        scheme: if broker.tls { AMQPScheme::AMQPS } else { AMQPScheme::AMQP },
        authority: AMQPAuthority {
            userinfo: AMQPUserInfo { username: broker.login.clone(), password: broker.password.expose().to_owned() },
            host: broker.host.clone(),
            port: broker.port,
        },
        vhost: broker.vhost.clone(),
        query: AMQPQueryString { heartbeat: Some(HEARTBEAT_S), frame_max, ..AMQPQueryString::default() },
    }
}

/// Counts how often a message was relayed.
pub(crate) const HOPS_HEADER: &str = "x-pulse-notifier-hops";
/// Names the effect that a message is.
pub(crate) const EFFECT_HEADER: &str = "x-pulse-notifier-effect";
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
const HEARTBEAT_S: u16 = 30;
