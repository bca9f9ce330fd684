//! What the sinks at AWS have in common: the client's settings, and what an answer means.
//!
//! The SDK retries nothing: the courier does. Whether a failure passes by itself is read from the error's code first,
//! since SES, say, throttles with status 400.

use std::error::Error;
use std::time::Duration;

use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{AppName, BehaviorVersion, Region, SdkConfig};
use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_ses::config::Credentials;
use aws_sdk_ses::error::{ProvideErrorMetadata, SdkError};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use hyper_util::client::legacy::Error as ClientError;

use crate::causes::{causes, find};
use crate::config::AwsAccount;
use crate::courier::Receipt;
use crate::tls::is_about_tls;

/// The settings of a client. Nothing is connected yet; credentials are looked for when they are needed.
pub(super) async fn settings(account: &AwsAccount) -> SdkConfig {
    let mut loader = aws_config::defaults(BehaviorVersion::latest())
        .retry_config(RetryConfig::disabled())
        .timeout_config(timeouts());
    if let Ok(name) = AppName::new("pulse-notifier") {
        loader = loader.app_name(name);
    }
    if let Some(profile) = &account.profile {
        loader = loader.profile_name(profile);
    }
    if let Some(endpoint) = &account.endpoint {
        loader = loader.endpoint_url(endpoint.as_str());
    }
    if let Some((id, secret)) = &account.keys {
        loader = loader.credentials_provider(Credentials::new(id, secret.expose(), None, None, "configuration"));
    }
    let found = match &account.region {
        Some(region) => loader.region(Region::new(region.clone())).load().await,
        None => loader.load().await,
    };
    match found.region() {
        Some(_) => found,
        None => found.into_builder().region(Region::from_static(DEFAULT_REGION)).build(),
    }
}

fn timeouts() -> TimeoutConfig {
    TimeoutConfig::builder()
        .connect_timeout(Duration::from_secs(10))
        .read_timeout(Duration::from_secs(60))
        .operation_attempt_timeout(Duration::from_secs(300))
        .build()
}

/// What a code means that is neither about throttling nor about who we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// The recipient or the content is turned down.
    Permanent,
    /// A person has to mend the configuration.
    Suspended,
    /// It may be better later.
    Transient,
}

/// Whether doing a thing twice is the same as doing it once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Repeated {
    /// It is: an answer that was lost leaves no doubt that matters.
    IsHarmless,
    /// It is not.
    IsSeen,
}

/// What a failed call means for its effect.
pub(super) fn receipt<E>(
    error: &SdkError<E, HttpResponse>,
    repeated: Repeated,
    meaning: impl FnOnce(&str, &str) -> Meaning,
) -> Receipt
where
    E: ProvideErrorMetadata + Error + 'static,
{
    match error {
        SdkError::ServiceError(answered) => {
            let (status, error) = (answered.raw().status().as_u16(), answered.err());
            let (code, message) = (error.code().unwrap_or("no code"), error.message().unwrap_or_default());
            answer(status, code, message, meaning)
        }
        // An answer that is no answer of the service: from a load balancer, or cut short.
        SdkError::ResponseError(answered) if !answered.raw().status().is_success() => {
            answer(answered.raw().status().as_u16(), "no code", "an answer of another kind", meaning)
        }
        _ if find::<CredentialsError>(error).is_some() => {
            Receipt::Suspended("credentials: none that could be used were found".into())
        }
        SdkError::ConstructionFailure(_) => Receipt::Suspended(shortened(&causes(error))),
        _ if was_never_sent(error) && is_about_tls(error) => Receipt::Suspended(shortened(&causes(error))),
        _ if repeated == Repeated::IsHarmless || was_never_sent(error) => Receipt::Transient(shortened(&causes(error))),
        _ => Receipt::InDoubt(shortened(&causes(error))),
    }
}

fn answer(status: u16, code: &str, message: &str, meaning: impl FnOnce(&str, &str) -> Meaning) -> Receipt {
    let with_message = || shortened(&format!("{code} ({status}): {message}"));
    if THROTTLING.contains(&code) || matches!(status, 408 | 429) || status >= 500 {
        return Receipt::Transient(with_message());
    }
    if matches!(status, 401 | 403) || IDENTITY.contains(&code) {
        // What is said here may repeat who we are.
        return Receipt::Suspended(shortened(&format!("{code} ({status})")));
    }
    match meaning(code, message) {
        Meaning::Permanent => Receipt::Permanent(with_message()),
        Meaning::Suspended => Receipt::Suspended(with_message()),
        Meaning::Transient => Receipt::Transient(with_message()),
    }
}

/// Whether no connection was made, so that nothing can have been received: no name, no answer, no proof of who it is.
/// The SDK's own error has a place for this and leaves it empty.
fn was_never_sent(error: &(dyn Error + 'static)) -> bool {
    find::<ClientError>(error).is_some_and(ClientError::is_connect)
}

/// Foreign words as part of a receipt.
fn shortened(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(ANSWER_CHARS_MAX).collect()
}

/// Passes by itself, whatever the status.
const THROTTLING: [&str; 20] = [
    "Throttling",
    "ThrottlingException",
    "ThrottledException",
    "Throttled",
    "RequestThrottled",
    "RequestThrottledException",
    "TooManyRequests",
    "TooManyRequestsException",
    "RequestLimitExceeded",
    "BandwidthLimitExceeded",
    "LimitExceeded",
    "LimitExceededException",
    "PriorRequestNotComplete",
    "SlowDown",
    "RequestTimeout",
    "RequestTimeoutException",
    "KMSThrottling",
    "OperationAborted",
    "InternalError",
    "ServiceUnavailable",
];
/// About who we are, whatever the status.
const IDENTITY: [&str; 18] = [
    "AccessDenied",
    "AccessDeniedException",
    "AuthorizationError",
    "AuthFailure",
    "ExpiredToken",
    "ExpiredTokenException",
    "IncompleteSignature",
    "InvalidAccessKeyId",
    "InvalidClientTokenId",
    "InvalidSecurity",
    "InvalidSignatureException",
    "MissingAuthenticationToken",
    "NotAuthorized",
    "OptInRequired",
    "RequestExpired",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
    "UnrecognizedClientException",
];
const DEFAULT_REGION: &str = "us-west-2";
const ANSWER_CHARS_MAX: usize = 300;

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(status: u16, code: &str) -> &'static str {
        match answer(status, code, "message", |_, _| Meaning::Permanent) {
            Receipt::Transient(_) => "transient",
            Receipt::Suspended(_) => "suspended",
            Receipt::Permanent(_) => "permanent",
            Receipt::Delivered(_) | Receipt::InDoubt(_) | Receipt::Refused(_) => "another",
        }
    }

    #[test]
    fn throttling_is_told_by_its_code_whatever_the_status() {
        assert_eq!(kind(400, "Throttling"), "transient");
        assert_eq!(kind(403, "RequestLimitExceeded"), "transient");
        assert_eq!(kind(503, "SlowDown"), "transient");
        assert_eq!(kind(500, "what"), "transient");
        assert_eq!(kind(429, "what"), "transient");
    }

    #[test]
    fn wrong_keys_suspend_and_say_only_their_code() {
        assert_eq!(kind(403, "InvalidClientTokenId"), "suspended");
        assert_eq!(kind(400, "UnrecognizedClientException"), "suspended");
        assert_eq!(kind(401, "what"), "suspended");
        let said = answer(403, "InvalidAccessKeyId", "AKIAEXAMPLE does not exist", |_, _| Meaning::Permanent);
        assert!(matches!(said, Receipt::Suspended(text) if text == "InvalidAccessKeyId (403)"));
    }

    #[test]
    fn the_rest_is_for_each_service_to_know() {
        assert_eq!(kind(400, "InvalidParameter"), "permanent");
    }
}
