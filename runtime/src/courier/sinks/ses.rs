//! Mail by SES: one mail, one recipient, one call.

use aws_sdk_ses::Client;
use aws_sdk_ses::primitives::Blob;
use aws_sdk_ses::types::RawMessage;

use super::aws::{self, Meaning, Repeated};
use super::mail;
use crate::config::SesAccount;
use crate::courier::Receipt;
use crate::effect::Email;
use crate::store::Claimed;

/// Calls at the same time; SES allows an account a few mails a second to begin with, and says so when it is too fast.
pub(super) const CALLS_MAX: usize = 8;

/// One account at SES.
pub struct Ses {
    account: SesAccount,
    client: Client,
}

impl Ses {
    /// A client of this account. Nothing is connected yet.
    pub async fn new(account: SesAccount) -> Self {
        let client = Client::new(&aws::settings(&account.aws).await);
        Self { account, client }
    }

    pub(super) async fn perform(&self, claimed: &Claimed, email: &Email) -> Receipt {
        if !email.recipient.is_ascii() {
            return Receipt::Permanent("SES takes no addresses outside ASCII".into());
        }
        let raw = match mail::built(&self.account.sender, claimed, email).await {
            Ok(body) => RawMessage::builder().data(Blob::new(body)).build(),
            Err(error) => return error.receipt(),
        };
        let raw = match raw {
            Ok(raw) => raw,
            Err(error) => return Receipt::Refused(format!("build the mail: {error}")),
        };
        let from = &self.account.sender.from;
        let call = self.client.send_raw_email().source(from).destinations(&email.recipient).raw_message(raw);
        match call.send().await {
            Ok(sent) => Receipt::Delivered(format!("message {}", sent.message_id())),
            Err(error) => aws::receipt(&error, Repeated::IsSeen, |code, message| meaning(code, message, from)),
        }
    }
}

fn meaning(code: &str, message: &str, from: &str) -> Meaning {
    match code {
        // Ours has to be verified by its owner; theirs has to be in an account that may only mail its own.
        "MessageRejected" if names(message, from) => Meaning::Suspended,
        // The account as a whole: "Sending suspended for this account", "Sending paused for this account".
        "MessageRejected" if message.contains("for this account") => Meaning::Suspended,
        "MailFromDomainNotVerified" | "MailFromDomainNotVerifiedException" => Meaning::Suspended,
        "AccountSendingPaused" | "AccountSendingPausedException" => Meaning::Suspended,
        "ConfigurationSetDoesNotExist" | "ConfigurationSetDoesNotExistException" => Meaning::Suspended,
        "ConfigurationSetSendingPaused" | "ConfigurationSetSendingPausedException" => Meaning::Suspended,
        "MessageRejected" | "InvalidParameterValue" | "InvalidParameterCombination" | "ValidationError" => {
            Meaning::Permanent
        }
        _ => Meaning::Transient,
    }
}

/// Whether a text has this address as one of its words.
fn names(text: &str, address: &str) -> bool {
    let words = text.split(|c: char| c.is_whitespace() || ",;:<>()\"'".contains(c));
    words.map(|word| word.trim_end_matches('.')).any(|word| word.eq_ignore_ascii_case(address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_ours_that_is_not_verified_suspends_and_one_of_theirs_kills_its_own_mail() {
        let says = |address: &str| {
            let message =
                format!("Email address is not verified. The following identities failed the check: {address}");
            meaning("MessageRejected", &message, "ci@example.com")
        };
        assert_eq!(says("ci@example.com"), Meaning::Suspended);
        assert_eq!(says("someone@example.org, CI@example.com"), Meaning::Suspended);
        assert_eq!(says("someone@example.org"), Meaning::Permanent);
        assert_eq!(says("not-ci@example.com"), Meaning::Permanent, "an address that ends like ours");
        assert_eq!(meaning("WhatIsThis", "", "ci@example.com"), Meaning::Transient);
    }

    #[test]
    fn an_account_that_may_not_send_suspends() {
        let says = |code: &str, message: &str| meaning(code, message, "ci@example.com");
        assert_eq!(says("MessageRejected", "Sending suspended for this account. For help …"), Meaning::Suspended);
        assert_eq!(says("AccountSendingPausedException", ""), Meaning::Suspended);
        assert_eq!(says("MessageRejected", "Address blacklisted."), Meaning::Permanent);
    }
}
