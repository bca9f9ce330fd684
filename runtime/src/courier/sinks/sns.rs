//! Messages to SNS topics: one message, one call. A topic's region is in its name.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use aws_config::{Region, SdkConfig};
use aws_sdk_sns::Client;

use super::aws::{self, Meaning, Repeated};
use crate::config::AwsAccount;
use crate::courier::Receipt;
use crate::effect;
use crate::grant::sns::region;
use crate::store::Claimed;

/// Calls at the same time.
pub(super) const CALLS_MAX: usize = 16;

/// One account at SNS, with a client for each region.
pub struct Sns {
    settings: SdkConfig,
    clients: Mutex<BTreeMap<String, Client>>,
}

impl Sns {
    /// Clients of this account. Nothing is connected yet.
    pub async fn new(account: &AwsAccount) -> Self {
        Self { settings: aws::settings(account).await, clients: Mutex::default() }
    }

    pub(super) async fn perform(&self, claimed: &Claimed, sns: &effect::Sns) -> Receipt {
        let Some(region) = region(&sns.topic) else { return Receipt::Refused("the topic is none".into()) };
        let call = self.client(region).publish().topic_arn(&sns.topic).message(&sns.text);
        let mut call = call.set_subject(sns.subject.clone());
        if sns.topic.ends_with(".fifo") {
            // All in their order; what is sent twice is seen once.
            call = call.message_group_id(GROUP).message_deduplication_id(claimed.id.to_string());
        }
        match call.send().await {
            Ok(sent) => Receipt::Delivered(format!("message {}", sent.message_id().unwrap_or("without an id"))),
            Err(error) => aws::receipt(&error, Repeated::IsSeen, |code, _| meaning(code)),
        }
    }

    fn client(&self, region: &str) -> Client {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || {
            let settings = aws_sdk_sns::config::Builder::from(&self.settings).region(Region::new(region.to_owned()));
            Client::from_conf(settings.build())
        };
        clients.entry(region.to_owned()).or_insert_with(new).clone()
    }
}

fn meaning(code: &str) -> Meaning {
    match code {
        // The topic is gone, or what is said is not what it takes.
        "NotFound"
        | "NotFoundException"
        | "InvalidParameter"
        | "InvalidParameterException"
        | "ParameterValueInvalid"
        | "InvalidParameterValue"
        | "ValidationError"
        | "EndpointDisabled" => Meaning::Permanent,
        // The topic's own key is not for us to use, or not at all.
        "KMSAccessDenied" | "KMSDisabled" | "KMSInvalidState" | "KMSNotFound" | "KMSOptInRequired" => {
            Meaning::Suspended
        }
        _ => Meaning::Transient,
    }
}

const GROUP: &str = "pulse-notifier";
