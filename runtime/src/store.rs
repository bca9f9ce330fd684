//! What must not be lost: events, invocations, effects and attempts, in one SQL database.
//!
//! Enters: what intake settled and what couriers learned. Leaves: committed rows, claimed effects. A call returns after
//! its commit, so whoever acks or sends afterwards may rely on it. Calls made at the same time share a transaction
//! (`writer`), and nobody else writes.

mod checkpoint;
mod queue;
mod reader;
mod records;
mod registry;
mod rows;
mod sqlite;
mod standing;
mod writer;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use jiff::Timestamp;
use tokio::runtime::Builder;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinError;
use tokio_util::task::TaskTracker;

use reader::Reader;
pub use rows::*;
pub use standing::{Claimer, Given};
use writer::{Write, Written};

/// The database. Cheap to clone.
#[derive(Clone)]
pub struct Store {
    // Closed before the writer, who is the last one then and leaves nothing beside the file.
    reader: Reader,
    /// For long lists of what happened: whoever asks for many of them keeps nobody else from reading.
    lists: Reader,
    writer: mpsc::Sender<(Write, oneshot::Sender<Result<Written, StoreError>>)>,
    health: watch::Receiver<Health>,
}

/// What is claimed of one destination.
pub struct Claims {
    slots: Arc<Semaphore>,
    claimed: mpsc::UnboundedReceiver<Result<Given, StoreError>>,
}

impl Claims {
    /// The next effect, with its slot; none when it is over.
    ///
    /// # Errors
    /// [`StoreError::Rejected`]: the engine refuses the claim; it is tried again.
    pub async fn next(&mut self) -> Option<Result<Given, StoreError>> {
        self.claimed.recv().await
    }
}

/// Whether the database takes what it is given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// It does.
    Ready,
    /// It does not, and why; what was given to it waits.
    Unavailable(String),
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The address is not one of ours.
    #[error("expected sqlite:<path>, found {0:?}")]
    Address(String),
    /// The database cannot be opened or migrated.
    #[error("open {path}: {cause}")]
    Open {
        /// The file.
        path: PathBuf,
        /// What the engine says.
        cause: rusqlite::Error,
    },
    /// A later version of this program made it.
    #[error("open {path}: a later version made it: its schema is {version}, the latest known here is {known}")]
    Newer {
        /// The file.
        path: PathBuf,
        /// How many migrations it has.
        version: usize,
        /// How many there are here.
        known: usize,
    },
    /// Its threads cannot be started, or its file not be made.
    #[error("open {path}: {cause}")]
    System {
        /// The file.
        path: PathBuf,
        /// What the system says.
        cause: std::io::Error,
    },
    /// The engine refuses this one write for what it contains.
    #[error("the database refuses it: {0}")]
    Rejected(String),
    /// All reads of the last half a minute are still under way.
    #[error("the database does not answer")]
    Busy,
    /// A read failed.
    #[error("read: {0}")]
    Read(#[from] rusqlite::Error),
    /// The service is shutting down; nothing was written.
    #[error("the store is closed")]
    Closed,
}

impl StoreError {
    /// Whether it stays until somebody changes the configuration or the file.
    #[must_use]
    pub fn is_lasting(&self) -> bool {
        match self {
            Self::Address(_) | Self::Newer { .. } => true,
            Self::Open { cause, .. } => {
                let code = cause.sqlite_error_code();
                matches!(code, Some(rusqlite::ErrorCode::NotADatabase | rusqlite::ErrorCode::DatabaseCorrupt))
            }
            Self::System { .. } | Self::Rejected(_) | Self::Busy | Self::Read(_) | Self::Closed => false,
        }
    }
}

impl Store {
    /// Opens the database at `sqlite:<path>`, creating and migrating it, and starts its writer, on threads that `tracker` knows of.
    /// The writer ends when the last clone of the store is gone.
    ///
    /// # Errors
    /// [`StoreError::Address`], [`StoreError::System`], [`StoreError::Open`], [`StoreError::Newer`]; [`StoreError::Closed`]
    /// when the service ends meanwhile.
    pub async fn open(address: &str, tracker: &TaskTracker) -> Result<Self, StoreError> {
        let path = address.strip_prefix("sqlite:").map(|path| path.strip_prefix("//").unwrap_or(path));
        let path =
            path.filter(|path| !path.is_empty()).ok_or_else(|| StoreError::Address(without_password(address)))?;
        let path = PathBuf::from(path);
        let system = |cause| StoreError::System { path: path.clone(), cause };
        create_for_us_alone(&path).map_err(system)?;
        let opening = path.clone();
        let opened = tokio::task::spawn_blocking(move || sqlite::open(&opening)).await;
        let connection = opened.unwrap_or_else(over)?;
        let (reader, lists) = (Reader::new(path.clone(), READERS), Reader::new(path.clone(), 1));
        let (writer, writes) = mpsc::channel(WRITES_WAITING_MAX);
        let (health_sender, health) = watch::channel(Health::Ready);
        let (checkpoints, dues) = checkpoint::Checkpoints::new();
        let runtime = Builder::new_current_thread().enable_time().build().map_err(system)?;
        let writing = writer::run(path.clone(), connection, writes, health_sender, checkpoints);
        let running = tracker.token();
        // Threads of their own, where waiting for the engine keeps nobody else waiting.
        let thread = || std::thread::Builder::new().name("store".into());
        let write = move || {
            runtime.block_on(writing);
            drop(running);
        };
        thread().spawn(write).map_err(system)?;
        let (copying, running) = (path.clone(), tracker.token());
        let copy = move || {
            checkpoint::run(&copying, &dues);
            drop(running);
        };
        thread().spawn(copy).map_err(system)?;
        Ok(Self { writer, reader, lists, health })
    }

    /// Commits what intake decided about an event, with everything its plugins asked for.
    ///
    /// # Errors
    /// [`StoreError::Rejected`] when the engine refuses its content, [`StoreError::Closed`].
    pub async fn settle(&self, settled: Settled) -> Result<Verdict, StoreError> {
        match self.write(Write::Settle(settled)).await? {
            Written::Verdict(verdict) => Ok(verdict),
            _ => Err(StoreError::Closed),
        }
    }

    /// Commits the outcome of an invocation that had asked to be run again.
    ///
    /// # Errors
    /// As [`Store::settle`].
    pub async fn settle_retry(&self, retried: Retried) -> Result<Verdict, StoreError> {
        match self.write(Write::Retried(retried)).await? {
            Written::Verdict(verdict) => Ok(verdict),
            _ => Err(StoreError::Closed),
        }
    }

    /// Keeps a delivery that is no event.
    ///
    /// # Errors
    /// As [`Store::settle`].
    pub async fn bury(&self, dead: DeadDelivery) -> Result<(), StoreError> {
        self.write(Write::Bury(dead)).await.map(drop)
    }

    /// Takes the deferred events whose time has come, as many as there is room for; they come back after a minute unless settled.
    ///
    /// # Errors
    /// [`StoreError::Closed`].
    pub async fn due_events(&self, room: Room) -> Result<Vec<DeferredEvent>, StoreError> {
        match self.write(Write::DueEvents { room }).await? {
            Written::Events(events) => Ok(events),
            _ => Err(StoreError::Closed),
        }
    }

    /// Takes the invocations whose retry is due, as many as there is room for; they come back after a minute unless settled.
    ///
    /// # Errors
    /// [`StoreError::Closed`].
    pub async fn due_retries(&self, room: Room) -> Result<Vec<DueRetry>, StoreError> {
        match self.write(Write::DueRetries { room }).await? {
            Written::Retries(retries) => Ok(retries),
            _ => Err(StoreError::Closed),
        }
    }

    /// Claims what is due at a destination from now on, as soon as there is something and a slot for it, and records the
    /// attempt that is about to be made on each effect.
    ///
    /// # Errors
    /// [`StoreError::Closed`].
    pub async fn claims(&self, claimer: Claimer) -> Result<Claims, StoreError> {
        let (give, claimed) = mpsc::unbounded_channel();
        let slots = Arc::clone(&claimer.slots);
        self.write(Write::BeginClaims(claimer, give)).await?;
        Ok(Claims { slots, claimed })
    }

    /// Claims nothing more of this; what was claimed until now is still to be taken, and then it is over.
    ///
    /// # Errors
    /// [`StoreError::Closed`].
    pub async fn end_claims(&self, claims: &Claims) -> Result<(), StoreError> {
        self.write(Write::EndClaims(Arc::clone(&claims.slots))).await.map(drop)
    }

    /// Records how an attempt ended. Only the attempt that holds the claim changes the effect. Its slot is free before that
    /// is committed: the next one need not wait for it.
    ///
    /// # Errors
    /// As [`Store::settle`].
    pub async fn finish(&self, finished: Finished, slot: Option<OwnedSemaphorePermit>) -> Result<(), StoreError> {
        self.write(Write::Finish(finished, slot)).await.map(drop)
    }

    /// Extends the leases of effects, named by their rows, that `owner` is performing at the moment of the commit, and takes
    /// back what anybody has let lapse: it is to be performed again, in doubt.
    ///
    /// # Errors
    /// [`StoreError::Closed`].
    pub async fn keep_claims(&self, owner: &str, in_flight: Arc<Mutex<HashSet<i64>>>) -> Result<(), StoreError> {
        self.write(Write::Keep { owner: owner.to_owned(), in_flight }).await.map(drop)
    }

    /// Makes the next probe of every suspended destination due now: the configuration may just have been mended.
    ///
    /// # Errors
    /// [`StoreError::Closed`].
    pub async fn probe_now(&self) -> Result<(), StoreError> {
        self.write(Write::ProbeNow).await.map(drop)
    }

    /// Ends what waits for destinations and tenants that are gone: effects are refused, deferred events are dead,
    /// invocations that asked to be run again are refused. What is being attempted is left to its attempt. How many
    /// there were.
    ///
    /// # Errors
    /// [`StoreError::Closed`].
    pub async fn withdraw(&self, withdrawn: Arc<Mutex<Withdrawn>>) -> Result<u64, StoreError> {
        match self.write(Write::Withdraw(withdrawn)).await? {
            Written::Count(count) => Ok(count),
            _ => Err(StoreError::Closed),
        }
    }

    /// The destinations and the tenants for which something waits: effects; events and invocations.
    ///
    /// # Errors
    /// [`StoreError::Read`].
    pub async fn waited_for(&self) -> Result<(BTreeSet<String>, BTreeSet<String>), StoreError> {
        self.reader.read(sqlite::figures::waited_for).await
    }

    /// Forgets events received before a time, once nothing about them is left to do.
    ///
    /// # Errors
    /// [`StoreError::Closed`].
    pub async fn prune(&self, before: Timestamp) -> Result<(), StoreError> {
        self.write(Write::Prune { before_ms: before.as_millisecond() }).await.map(drop)
    }

    /// Remembers these bindings of a queue too, and returns those it remembers that are not among them.
    ///
    /// # Errors
    /// [`StoreError::Closed`].
    pub async fn bindings(&self, queue: &str, bindings: Vec<Binding>) -> Result<Vec<Binding>, StoreError> {
        match self.write(Write::Bindings { queue: queue.to_owned(), bindings }).await? {
            Written::Bindings(stale) => Ok(stale),
            _ => Err(StoreError::Closed),
        }
    }

    /// The suspended destinations, with what they answered.
    ///
    /// # Errors
    /// [`StoreError::Read`].
    pub async fn suspended(&self) -> Result<BTreeMap<String, String>, StoreError> {
        self.reader.read(sqlite::figures::suspended).await
    }

    /// What the database counts for the figures.
    ///
    /// # Errors
    /// [`StoreError::Read`].
    pub async fn figures(&self) -> Result<Figures, StoreError> {
        self.reader.read(|connection| sqlite::figures::figures(connection, now_ms())).await
    }

    /// How many events, invocations and effects are not at their end.
    ///
    /// # Errors
    /// [`StoreError::Read`].
    pub async fn unfinished(&self) -> Result<i64, StoreError> {
        self.reader.read(sqlite::figures::unfinished).await
    }

    /// Forgets a binding that was taken back.
    ///
    /// # Errors
    /// [`StoreError::Closed`].
    pub async fn unbound(&self, queue: &str, binding: Binding) -> Result<(), StoreError> {
        self.write(Write::Unbound { queue: queue.to_owned(), binding }).await.map(drop)
    }

    /// Whether the database takes what it is given, and when that changes.
    #[must_use]
    pub fn health(&self) -> watch::Receiver<Health> {
        self.health.clone()
    }

    async fn write(&self, write: Write) -> Result<Written, StoreError> {
        self.hand_in(write).await?.await.map_err(|_| StoreError::Closed)?
    }

    async fn hand_in(&self, write: Write) -> Result<oneshot::Receiver<Result<Written, StoreError>>, StoreError> {
        let (reply, written) = oneshot::channel();
        self.writer.send((write, reply)).await.map_err(|_| StoreError::Closed)?;
        Ok(written)
    }
}

/// What a call comes to that was not made to its end: it panicked, or the service is shutting down.
fn over<T>(gone: JoinError) -> Result<T, StoreError> {
    match gone.try_into_panic() {
        Ok(panic) => std::panic::resume_unwind(panic),
        Err(_) => Err(StoreError::Closed),
    }
}

/// Milliseconds since 1970.
#[must_use]
pub fn now_ms() -> i64 {
    Timestamp::now().as_millisecond()
}

/// It holds every mail: nobody else on this machine is to read it. What SQLite puts beside it takes after it.
fn create_for_us_alone(path: &Path) -> std::io::Result<()> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path).map(drop)
}

fn without_password(address: &str) -> String {
    address.split_once("://").map_or_else(|| address.to_owned(), |(scheme, _)| format!("{scheme}://…"))
}

/// How long a claim holds without being renewed.
pub const LEASE_MS: i64 = 15_000;
/// For how long a deferred event or a retry, once taken, is nobody else's.
const TAKEN_MS: i64 = 60_000;
const WRITES_WAITING_MAX: usize = 1_024;
/// Connections that read.
const READERS: usize = 2;
