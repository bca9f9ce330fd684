//! A stream, gzipped in parts of a size. Enters: a body on its way. Leaves: parts, of which one is in memory.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use tokio::task::spawn_blocking;

use crate::taskcluster::{Body, ReadError};

/// A body that is being gzipped.
pub(super) struct Gzipped {
    source: Body,
    /// Writes into the part that is being filled; away while it works.
    encoder: Option<GzEncoder<Vec<u8>>>,
    begun: Instant,
}

/// A part of what comes of it.
pub(super) enum Part {
    /// Of about [`PART_BYTES`], and more follow.
    OneOfMany(Bytes),
    /// The end, of any size but none.
    Last(Bytes),
}

impl Gzipped {
    pub(super) fn new(source: Body) -> Self {
        Self { source, encoder: Some(GzEncoder::new(part(), Compression::default())), begun: Instant::now() }
    }

    /// The next part.
    pub(super) async fn part(&mut self) -> Result<Part, ReadError> {
        loop {
            let (pieces, is_end) = self.pieces().await?;
            let encoder = self.encoder.take().ok_or_else(|| ReadError::Unavailable("it has ended".into()))?;
            let work = move || if is_end { finish(encoder, &pieces) } else { write(encoder, &pieces) };
            // Long enough to make everybody else on this thread wait.
            let worked = spawn_blocking(work).await.map_err(io::Error::other).flatten();
            match worked.map_err(|error| ReadError::Unavailable(format!("gzip: {error}")))? {
                Worked::On(encoder) => self.encoder = Some(encoder),
                Worked::Filled(encoder, part) => {
                    self.encoder = Some(encoder);
                    return Ok(Part::OneOfMany(part));
                }
                Worked::Ended(part) => return Ok(Part::Last(part)),
            }
        }
    }

    /// As many pieces as are worth the way to another thread, and whether they are the last.
    async fn pieces(&mut self) -> Result<(Vec<Bytes>, bool), ReadError> {
        let (mut pieces, mut bytes) = (Vec::new(), 0);
        while bytes < PIECES_BYTES {
            if self.begun.elapsed() > TIME_MAX {
                return Err(ReadError::Unavailable(format!("not copied within {} minutes", TIME_MAX.as_secs() / 60)));
            }
            let Some(piece) = self.source.chunk().await? else { return Ok((pieces, true)) };
            bytes += piece.len();
            pieces.push(piece);
        }
        Ok((pieces, false))
    }
}

/// What came of some pieces.
enum Worked {
    On(GzEncoder<Vec<u8>>),
    Filled(GzEncoder<Vec<u8>>, Bytes),
    Ended(Bytes),
}

fn write(mut encoder: GzEncoder<Vec<u8>>, pieces: &[Bytes]) -> io::Result<Worked> {
    pieces.iter().try_for_each(|piece| encoder.write_all(piece))?;
    if encoder.get_ref().len() < PART_BYTES {
        return Ok(Worked::On(encoder));
    }
    let filled = std::mem::replace(encoder.get_mut(), part());
    Ok(Worked::Filled(encoder, filled.into()))
}

fn finish(mut encoder: GzEncoder<Vec<u8>>, pieces: &[Bytes]) -> io::Result<Worked> {
    pieces.iter().try_for_each(|piece| encoder.write_all(piece))?;
    Ok(Worked::Ended(encoder.finish()?.into()))
}

/// Room for a part and for what the last pieces make of it: memory is taken as it is filled.
fn part() -> Vec<u8> {
    Vec::with_capacity(PART_BYTES + 2 * PIECES_BYTES)
}

const PART_BYTES: usize = 8 << 20;
const PIECES_BYTES: usize = 256 << 10;
/// Enough for the largest, and an end for one that trickles.
const TIME_MAX: Duration = Duration::from_secs(60 * 60);
