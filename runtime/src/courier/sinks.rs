//! What performs effects, one file for each way. A sink does one effect once and says what the world answered; it
//! retries nothing and decides nothing.

pub mod amqp;
mod aws;
pub mod capture;
pub mod irc;
mod mail;
pub mod s3;
pub mod ses;
pub mod smtp;
pub mod sns;
pub mod webhook;

use crate::courier::Receipt;
use crate::effect::Effect;
use crate::store::Claimed;
use amqp::Amqp;
use irc::Irc;
use s3::S3;
use ses::Ses;
use smtp::Smtp;
use sns::Sns;
use webhook::Webhook;

/// A way to perform effects, with one account.
pub enum Sink {
    /// Keeps them and sends nothing.
    Capture,
    /// Mail, by an SMTP server.
    Smtp(Box<Smtp>),
    /// Mail, by SES.
    Ses(Box<Ses>),
    /// Messages to SNS topics.
    Sns(Box<Sns>),
    /// Objects in an S3 bucket.
    S3(Box<S3>),
    /// Lines on an IRC server.
    Irc(Irc),
    /// Messages to exchanges of a broker.
    Amqp(Box<Amqp>),
    /// Posts to receivers on the web.
    Webhook(Box<Webhook>),
}

/// Why there is no sink: the platform's certificates cannot be read, or the host is no name.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// The SMTP client.
    #[error("start the SMTP client: {0}")]
    Smtp(#[from] lettre::transport::smtp::Error),
    /// The client that posts.
    #[error("start the HTTP client: {0}")]
    Webhook(#[from] reqwest::Error),
}

impl Sink {
    /// How many effects it performs at the same time.
    #[must_use]
    pub const fn concurrency(&self) -> usize {
        match self {
            Self::Capture => 256,
            // What waits for its turn waits in the store.
            Self::Irc(_) => 1,
            Self::Smtp(_) => smtp::CONNECTIONS_MAX,
            Self::Ses(_) => ses::CALLS_MAX,
            Self::Sns(_) => sns::CALLS_MAX,
            Self::Amqp(_) => amqp::CHANNELS_MAX,
            Self::S3(_) => s3::OBJECTS_MAX,
            Self::Webhook(_) => webhook::POSTS_MAX,
        }
    }

    /// Performs one effect, once.
    pub async fn perform(&self, claimed: &Claimed) -> Receipt {
        match (self, &claimed.effect) {
            (Self::Capture, _) => capture::perform(),
            (Self::Smtp(account), Effect::Email(email)) => account.perform(claimed, email).await,
            (Self::Ses(account), Effect::Email(email)) => account.perform(claimed, email).await,
            (Self::Sns(account), Effect::Sns(sns)) => account.perform(claimed, sns).await,
            (Self::S3(account), Effect::S3(s3)) => account.perform(claimed, s3).await,
            (Self::Irc(account), Effect::Irc(irc)) => account.perform(irc).await,
            (Self::Amqp(account), Effect::Amqp(amqp)) => account.perform(claimed.id, amqp).await,
            (Self::Webhook(account), Effect::Webhook(webhook)) => account.perform(claimed.id, webhook).await,
            // Destinations are named by their capability, so this is a mistake in the configuration's reader.
            (
                Self::Smtp(_)
                | Self::Ses(_)
                | Self::Sns(_)
                | Self::S3(_)
                | Self::Irc(_)
                | Self::Amqp(_)
                | Self::Webhook(_),
                _,
            ) => Receipt::Suspended("the destination is of another kind".into()),
        }
    }
}
