//! Messages to exchanges.

use crate::config::Broker;
use crate::courier::Receipt;
use crate::effect;

/// One account at a broker.
pub struct Amqp {
    broker: Broker,
}

impl Amqp {
    /// A client of this account.
    pub fn new(broker: Broker) -> Self {
        Self { broker }
    }

    pub(super) async fn perform(&self, _: &effect::Amqp) -> Receipt {
        Receipt::Transient(format!("not built: {}", self.broker.host))
    }
}
