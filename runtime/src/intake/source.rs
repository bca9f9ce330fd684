//! Where deliveries come from and where their settlements go. Two halves: `amqp`, the broker, and `ndjson`, a file,
//! standard input or memory. Nothing behind this room knows which.

pub mod amqp;
pub mod ndjson;

use super::event::Delivery;

/// A delivery in hand, with the way to settle it.
pub struct Received {
    /// The message.
    pub delivery: Delivery,
    /// What to tell the broker about it.
    pub settler: Settler,
}

/// Tells whoever delivered what became of it. Dropping it says nothing: the broker delivers again.
pub enum Settler {
    /// A broker that waits for an answer.
    Amqp(amqp::Acker),
    /// Nobody waits.
    Nobody,
}

impl Settler {
    /// The delivery has had its durable outcome.
    pub async fn ack(self) {
        match self {
            Self::Amqp(acker) => acker.ack().await,
            Self::Nobody => {}
        }
    }
}
