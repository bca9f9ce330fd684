//! The host functions, one file for each capability. They check and record; none of them acts on the world.

mod amqp;
mod email;
mod irc;
mod log;
mod s3;
mod settings;
mod sns;
mod taskcluster;
mod webhook;

use super::guest::types;
use crate::grant::Refusal;

impl From<Refusal> for types::Refusal {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::NotGranted(why) => Self::NotGranted(why),
            Refusal::Invalid(why) => Self::Invalid(why),
            Refusal::OverLimit(why) => Self::OverLimit(why),
        }
    }
}
