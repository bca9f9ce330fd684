//! What a request brings along: its query and its body, within bounds.

use std::time::Duration;

use axum::body::Body;
use axum::http::{StatusCode, Uri};
use bytes::Bytes;

use super::{Error, Result};
use crate::store::Wish;

/// The records that a query wishes for.
pub(super) fn wish(tenant: &str, uri: &Uri, keys: &[&'static str]) -> Result<Wish> {
    let mut wish = Wish { tenant: tenant.to_owned(), limit: LIMIT_DEFAULT, ..Wish::default() };
    for (key, value) in url::form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()) {
        let Some(key) = keys.iter().find(|known| **known == key) else {
            return Err(Error::invalid("query", format!("expected no parameters but {}", keys.join(", "))));
        };
        let number = |bounds: std::ops::RangeInclusive<i64>| {
            let number = value.parse().ok().filter(|number| bounds.contains(number));
            let what = || format!("expected a whole number from {} to {}", bounds.start(), bounds.end());
            number.ok_or_else(|| Error::invalid(key, what()))
        };
        match *key {
            "limit" => wish.limit = u32::try_from(number(1..=LIMIT_MAX)?).unwrap_or(LIMIT_DEFAULT),
            "before" => wish.before = Some(number(0..=i64::MAX)?),
            "plugin" => wish.plugin = Some(value.into_owned()),
            "state" => wish.state = Some(value.into_owned()),
            _ => match &*value {
                "true" => wish.refused = true,
                "false" => wish.refused = false,
                _ => return Err(Error::invalid(key, "expected true or false")),
            },
        }
    }
    Ok(wish)
}

/// A body of at most so many bytes, from somebody who does not dawdle.
pub(super) async fn body(body: Body, bytes_max: usize) -> Result<Bytes> {
    let too_large = || {
        let what = format!("expected at most {bytes_max} bytes");
        Error::new(StatusCode::PAYLOAD_TOO_LARGE, "body", what)
    };
    match tokio::time::timeout(BODY_LIMIT, axum::body::to_bytes(body, bytes_max)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) if is_about_length(&error) => Err(too_large()),
        Ok(Err(_)) => Err(Error::invalid("body", "expected all of it")),
        Err(_) => {
            let what = format!("expected all of it within {} s", BODY_LIMIT.as_secs());
            Err(Error::new(StatusCode::REQUEST_TIMEOUT, "body", what))
        }
    }
}

fn is_about_length(error: &axum::Error) -> bool {
    std::error::Error::source(error).is_some_and(|source| source.to_string().contains("length limit"))
}

const LIMIT_DEFAULT: u32 = 50;
const LIMIT_MAX: i64 = 200;
const BODY_LIMIT: Duration = Duration::from_secs(30);
