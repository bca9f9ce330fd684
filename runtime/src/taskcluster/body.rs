//! The body of an answer, piece by piece: unpacked, capped however small it was packed, never waited for in vain.

use std::error::Error;
use std::time::Duration;

use bytes::Bytes;
use reqwest::{RequestBuilder, Response};
use tokio::time::timeout;

use super::{Patience, ReadError};

/// A body on its way. One that ends without an error is whole.
pub struct Body {
    answer: Response,
    bytes_left: u64,
    bytes_max: u64,
    silence: Duration,
}

impl Body {
    pub(super) const fn new(answer: Response, bytes_max: u64, silence: Duration) -> Self {
        Self { answer, bytes_left: bytes_max, bytes_max, silence }
    }

    /// The next piece; none at the end.
    ///
    /// # Errors
    /// When it is too large, cut off or silent for too long.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, ReadError> {
        let chunk = timeout(self.silence, self.answer.chunk()).await;
        let chunk = chunk.map_err(|_| ReadError::Unavailable(silent(self.silence)))?;
        let Some(chunk) = chunk.map_err(|error| ReadError::Unavailable(why(error)))? else { return Ok(None) };
        self.bytes_left = self.bytes_left.checked_sub(chunk.len() as u64).ok_or(ReadError::TooLarge(self.bytes_max))?;
        Ok(Some(chunk))
    }

    pub(super) async fn whole(mut self) -> Result<Vec<u8>, ReadError> {
        let mut body = Vec::new();
        while let Some(chunk) = self.chunk().await? {
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }
}

/// The head of the answer to a request.
pub(super) async fn answer(request: RequestBuilder, patience: Patience) -> Result<Response, String> {
    let request = match patience.whole {
        Some(whole) => request.timeout(whole),
        None => request,
    };
    timeout(patience.silence, request.send()).await.map_err(|_| silent(patience.silence))?.map_err(why)
}

fn silent(silence: Duration) -> String {
    format!("not a byte for {} s", silence.as_secs())
}

/// What went wrong, without the address, which may be signed.
fn why(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
