//! Copies what was committed from the log into the file, beside the writer: the log can begin anew only when all of it
//! was copied, and the writer, which sees to that, is left with little to copy while everybody waits for it.

use std::path::{Path, PathBuf};

use sqlx::SqliteConnection;
use tokio::sync::mpsc;

use super::sqlite;

/// Counts what is written, and says when a checkpoint is due.
pub(super) struct Checkpoints {
    due: mpsc::Sender<()>,
    bytes: usize,
}

impl Checkpoints {
    pub(super) fn new() -> (Self, mpsc::Receiver<()>) {
        let (due, dues) = mpsc::channel(1);
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

/// Makes one whenever it is due, until nobody can say so any more. Where that fails, the writer has more to do.
pub(super) async fn run(path: PathBuf, mut dues: mpsc::Receiver<()>) {
    let mut connection = None;
    while dues.recv().await.is_some() {
        if let Err(error) = checkpoint(&path, &mut connection).await {
            tracing::debug!(%error, "checkpoint");
            connection = None;
        }
    }
}

async fn checkpoint(path: &Path, connection: &mut Option<SqliteConnection>) -> Result<(), sqlx::Error> {
    let connection = match connection {
        Some(connection) => connection,
        None => connection.insert(sqlite::connect(path).await?),
    };
    sqlx::query("PRAGMA wal_checkpoint(PASSIVE)").execute(connection).await.map(drop)
}

const EVERY_BYTES: usize = 4 << 20;
