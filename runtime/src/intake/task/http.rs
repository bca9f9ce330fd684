//! Definitions from Taskcluster: remembered for a while, and not asked for while it does not answer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use moka::future::Cache;

use super::Definition;
use super::breaker::Breaker;
use crate::fair::Slots;
use crate::task_id::TaskId;
use crate::taskcluster::{TaskError, Taskcluster};

/// Taskcluster's definitions.
pub struct HttpTasks {
    pub(super) taskcluster: Arc<Taskcluster>,
    breaker: Breaker,
    definitions: Cache<TaskId, Arc<Definition>>,
    calls: Slots,
}

impl HttpTasks {
    /// Those of this Taskcluster.
    #[must_use]
    pub fn new(taskcluster: Arc<Taskcluster>) -> Self {
        let definitions = Cache::builder()
            .max_capacity(CACHE_BYTES_MAX)
            // Parsed, a definition takes a few times its text.
            .weigher(|_, definition: &Arc<Definition>| u32::try_from(definition.json.len() * 4).unwrap_or(u32::MAX))
            .time_to_idle(CACHE_IDLE)
            .build();
        Self {
            taskcluster,
            breaker: Breaker::default(),
            definitions,
            calls: Slots::new(CALLS_MAX, CALLS_PER_TENANT_MAX),
        }
    }

    /// A definition, from the cache if it is there. Whoever wants the same one at the same time shares one call.
    pub(super) async fn definition(&self, tenant: &str, task_id: &TaskId) -> Result<Arc<Definition>, TaskError> {
        let fetched = self.definitions.try_get_with_by_ref(task_id, self.fetch(tenant, task_id)).await;
        fetched.map_err(|error: Arc<TaskError>| (*error).clone())
    }

    async fn fetch(&self, tenant: &str, task_id: &TaskId) -> Result<Arc<Definition>, TaskError> {
        // Held until the definition is read, so that few large ones are in memory at once.
        let _call = self.calls.take(tenant).await;
        if !self.breaker.admits(Instant::now()) {
            return Err(TaskError::Unavailable("it failed five times in a row and is left alone for a while".into()));
        }
        let fetched = self.taskcluster.definition(task_id, Definition::parse).await.map(Arc::new);
        match &fetched {
            Err(TaskError::Unavailable(why)) => {
                if self.breaker.failed(Instant::now()) {
                    tracing::error!(%why, "Taskcluster failed five times in a row: events are deferred without a call");
                }
            }
            Ok(_) | Err(_) => self.breaker.succeeded(),
        }
        fetched
    }
}

const CACHE_BYTES_MAX: u64 = 128 << 20;
const CALLS_MAX: usize = 32;
/// While Taskcluster is slow, one tenant's wishes leave some calls to the others.
const CALLS_PER_TENANT_MAX: usize = 24;
const CACHE_IDLE: Duration = Duration::from_secs(10 * 60);
