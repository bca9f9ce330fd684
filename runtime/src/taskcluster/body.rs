//! The body of an answer, piece by piece: unpacked, capped however small it was packed, never waited for in vain.

use std::io::{self, Write};
use std::time::Duration;

use bytes::Bytes;
use flate2::write::MultiGzDecoder;
use reqwest::header::CONTENT_ENCODING;
use reqwest::{RequestBuilder, Response};
use tokio::time::timeout;

use super::{Patience, ReadError};
use crate::causes::causes;

/// A body on its way. One that ends without an error is whole.
pub struct Body {
    answer: Response,
    /// What came and is not unpacked yet.
    packed: Bytes,
    /// Unpacks all members of a gzip file; the client's own stops silently after the first.
    gunzip: Option<MultiGzDecoder<Vec<u8>>>,
    bytes_left: u64,
    bytes_max: u64,
    silence: Duration,
}

impl Body {
    pub(super) fn new(answer: Response, bytes_max: u64, silence: Duration) -> Self {
        let is_gzip = answer.headers().get(CONTENT_ENCODING).is_some_and(|encoding| encoding == "gzip");
        let gunzip = is_gzip.then(|| MultiGzDecoder::new(Vec::new()));
        Self { answer, packed: Bytes::new(), gunzip, bytes_left: bytes_max, bytes_max, silence }
    }

    /// The next piece; none at the end.
    ///
    /// # Errors
    /// When it is too large, cut off or silent for too long.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, ReadError> {
        let Some(chunk) = self.unpacked().await? else { return Ok(None) };
        self.bytes_left = self.bytes_left.checked_sub(chunk.len() as u64).ok_or(ReadError::TooLarge(self.bytes_max))?;
        Ok(Some(chunk))
    }

    async fn unpacked(&mut self) -> Result<Option<Bytes>, ReadError> {
        let corrupt = |error: io::Error| ReadError::Unavailable(format!("gunzip: {error}"));
        loop {
            if self.packed.is_empty() {
                match (self.received().await?, &mut self.gunzip) {
                    (chunk, None) => return Ok(chunk),
                    (Some(chunk), Some(_)) => self.packed = chunk,
                    (None, Some(gunzip)) => {
                        gunzip.try_finish().map_err(corrupt)?;
                        let rest = std::mem::take(gunzip.get_mut());
                        return Ok(Some(rest).filter(|rest| !rest.is_empty()).map(Bytes::from));
                    }
                }
            }
            let Some(gunzip) = &mut self.gunzip else { return Ok(Some(std::mem::take(&mut self.packed))) };
            let some = self.packed.split_to(self.packed.len().min(PACKED_BYTES));
            gunzip.write_all(&some).map_err(corrupt)?;
            if !gunzip.get_ref().is_empty() {
                return Ok(Some(std::mem::take(gunzip.get_mut()).into()));
            }
        }
    }

    async fn received(&mut self) -> Result<Option<Bytes>, ReadError> {
        let chunk = timeout(self.silence, self.answer.chunk()).await;
        let chunk = chunk.map_err(|_| ReadError::Unavailable(silent(self.silence)))?;
        chunk.map_err(|error| ReadError::Unavailable(why(error)))
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
    causes(&error.without_url())
}

/// Unpacked at once: a thousand times as much at worst.
const PACKED_BYTES: usize = 2 << 10;
