//! Copies what was committed from the log into the file, beside the writer: the log can begin anew only when all of it
//! was copied, and the writer, which sees to that, is left with little to copy while everybody waits for it.

use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

use rusqlite::Connection;

use super::sqlite;

/// Counts what is written, and says when a checkpoint is due.
pub(super) struct Checkpoints {
    due: SyncSender<()>,
    bytes: usize,
}

impl Checkpoints {
    pub(super) fn new() -> (Self, Receiver<()>) {
        let (due, dues) = sync_channel(1);
        (Self { due, bytes: 0 }, dues)
    }

    /// So much more is about to be written.
    pub(super) fn wrote(&mut self, bytes: usize) {
        self.bytes += bytes;
        if self.bytes >= EVERY_BYTES {
            self.bytes = 0;
            // One that is due already is due for this too.
            let _ = self.due.try_send(());
        }
    }
}

/// Makes one whenever it is due, until nobody can say so any more. Where that fails, the writer has more to do. Small ones:
/// the disk takes what the writer commits meanwhile after what it has of this.
pub(super) fn run(path: &Path, dues: &Receiver<()>) {
    let mut connection = None;
    while dues.recv().is_ok() {
        if let Err(error) = checkpoint(path, &mut connection) {
            tracing::debug!(%error, "checkpoint");
            connection = None;
        }
        std::thread::sleep(PAUSE);
    }
}

fn checkpoint(path: &Path, connection: &mut Option<Connection>) -> rusqlite::Result<()> {
    let connection = match connection {
        Some(connection) => connection,
        None => connection.insert(sqlite::connect(path)?),
    };
    connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", (), |_| Ok(()))
}

const EVERY_BYTES: usize = 1 << 20;
/// Between two: the more is written, the more pages one copies once that were written often.
const PAUSE: Duration = Duration::from_millis(100);
