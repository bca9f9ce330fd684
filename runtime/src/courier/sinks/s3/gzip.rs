//! A stream, gzipped in parts of a size. Enters: a body on its way. Leaves: parts, of which one is in memory.

use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use tokio::task::spawn_blocking;

use super::OBJECTS_MAX;
use crate::taskcluster::{Body, ReadError};

/// Room for parts, used again and again: an allocator that is asked for it each time takes several times as much.
#[derive(Default)]
pub(super) struct Rooms(Mutex<Vec<Vec<u8>>>);

/// A body that is being gzipped.
pub(super) struct Gzipped {
    source: Body,
    /// Writes into the part that is being filled; away while it works.
    encoder: Option<GzEncoder<Vec<u8>>>,
    rooms: Arc<Rooms>,
    begun: Instant,
}

/// A part of what comes of it. The next one takes its room once it is dropped.
pub(super) enum Part {
    /// Of about [`PART_BYTES`], and more follow.
    OneOfMany(Bytes),
    /// The end, of any size but none.
    Last(Bytes),
}

impl Gzipped {
    pub(super) fn new(source: Body, rooms: &Arc<Rooms>) -> Self {
        let encoder = GzEncoder::new(Vec::new(), Compression::default());
        Self { source, encoder: Some(encoder), rooms: Arc::clone(rooms), begun: Instant::now() }
    }

    /// The next part.
    pub(super) async fn part(&mut self) -> Result<Part, ReadError> {
        if let Some(encoder) = &mut self.encoder {
            *encoder.get_mut() = self.rooms.take();
        }
        loop {
            let (pieces, is_end) = self.pieces().await?;
            let encoder = self.encoder.take().ok_or_else(|| ReadError::Unavailable("it has ended".into()))?;
            let work = move || if is_end { finish(encoder, &pieces) } else { write(encoder, &pieces) };
            // Long enough to make everybody else on this thread wait.
            let worked = spawn_blocking(work).await.map_err(io::Error::other).flatten();
            match worked.map_err(|error| ReadError::Unavailable(format!("gzip: {error}")))? {
                Worked::On(encoder) => self.encoder = Some(encoder),
                Worked::Filled(encoder, filled) => {
                    self.encoder = Some(encoder);
                    return Ok(Part::OneOfMany(self.rooms.lend(filled)));
                }
                Worked::Ended(filled) => return Ok(Part::Last(self.rooms.lend(filled))),
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
    Filled(GzEncoder<Vec<u8>>, Vec<u8>),
    Ended(Vec<u8>),
}

fn write(mut encoder: GzEncoder<Vec<u8>>, pieces: &[Bytes]) -> io::Result<Worked> {
    pieces.iter().try_for_each(|piece| encoder.write_all(piece))?;
    if encoder.get_ref().len() < PART_BYTES {
        return Ok(Worked::On(encoder));
    }
    let filled = std::mem::take(encoder.get_mut());
    Ok(Worked::Filled(encoder, filled))
}

fn finish(mut encoder: GzEncoder<Vec<u8>>, pieces: &[Bytes]) -> io::Result<Worked> {
    pieces.iter().try_for_each(|piece| encoder.write_all(piece))?;
    Ok(Worked::Ended(encoder.finish()?))
}

impl Rooms {
    /// Room for a part and for what the last pieces add to it. New memory is taken only as it is filled.
    fn take(&self) -> Vec<u8> {
        let mut rooms = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        rooms.pop().unwrap_or_else(|| Vec::with_capacity(PART_BYTES + 2 * PIECES_BYTES))
    }

    /// A part as what is sent; when nobody has it any more, its room is free.
    fn lend(self: &Arc<Self>, filled: Vec<u8>) -> Bytes {
        Bytes::from_owner(Lent { filled, rooms: Arc::clone(self) })
    }
}

struct Lent {
    filled: Vec<u8>,
    rooms: Arc<Rooms>,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.filled
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut room = std::mem::take(&mut self.filled);
        room.clear();
        let mut rooms = self.rooms.0.lock().unwrap_or_else(PoisonError::into_inner);
        if rooms.len() < OBJECTS_MAX {
            rooms.push(room);
        }
    }
}

/// The least that S3 takes, and enough for 48 GiB in the 10,000 parts of one upload.
const PART_BYTES: usize = 5 << 20;
const PIECES_BYTES: usize = 256 << 10;
/// Enough for the largest, and an end for one that trickles.
const TIME_MAX: Duration = Duration::from_secs(60 * 60);
