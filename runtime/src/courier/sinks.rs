//! What performs effects, one file for each way. A sink does one effect once and says what the world answered; it
//! retries nothing and decides nothing.

pub mod capture;
pub mod irc;
pub mod smtp;

use crate::courier::Receipt;
use crate::effect::Effect;
use crate::store::Claimed;
use irc::Irc;
use smtp::Smtp;

/// A way to perform effects, with one account.
pub enum Sink {
    /// Keeps them and sends nothing.
    Capture,
    /// Lines on an IRC server.
    Irc(Irc),
    /// Mail, by an SMTP server.
    Smtp(Box<Smtp>),
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
        }
    }

    /// Performs one effect, once.
    pub async fn perform(&self, claimed: &Claimed) -> Receipt {
        match (self, &claimed.effect) {
            (Self::Capture, _) => capture::perform(),
            (Self::Irc(account), Effect::Irc(irc)) => account.perform(irc).await,
            (Self::Smtp(smtp), Effect::Email(email)) => smtp.perform(claimed, email).await,
            (Self::Irc(_), Effect::Email(_)) | (Self::Smtp(_), Effect::Irc(_)) => {
                Receipt::Permanent("the destination is of another kind".into())
            }
        }
    }
}
