//! Runs foreign code: (notification, plugin) → what it asked for, or why it gave nothing.
//!
//! Nothing leaves this room but the plan. Each call gets an instance of its own that nobody else has used and nobody
//! will use again, and runs on threads of its own, so that a guest which burns its budget delays no I/O.

mod admission;
mod budget;
mod census;
mod compiler;
mod engine;
mod guest;
mod imports;
mod wasi;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::runtime::Builder;
use wasmtime::component::Linker;
use wasmtime::{Engine, Store};

pub use admission::{AdmissionError, Compiled, Version};
pub use budget::{Fault, Limits};
pub use census::{Census, ComponentLimits};
pub use compiler::precompile;
pub use guest::types;

use crate::effect::{Origin, Plan};
use crate::fair::Slots;
use crate::grant::{About, Grant};
use crate::intake::task::TaskReads;
use crate::threads::Threads;
use budget::{CpuMeter, Metered, Processors, Turns};
use guest::{Guest, Record};

/// The engine, its threads and what guests may link to.
pub struct Sandbox {
    engine: Engine,
    linker: Linker<Guest>,
    threads: Threads,
    /// Calls under way, waiting or not.
    calls: Slots,
    /// Processors: what a guest runs on until its next tick.
    processors: Processors,
    _ticker: engine::Ticker,
}

/// Why the sandbox cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The engine refuses its settings, or the machine lacks the address space.
    #[error("start the sandbox: {0:#}")]
    Engine(wasmtime::Error),
    /// No more threads.
    #[error("start the sandbox's threads: {0}")]
    Threads(#[from] std::io::Error),
}

/// One plugin to run on one notification.
pub struct Invocation {
    /// What the ids of its effects are made of.
    pub origin: Origin,
    /// What its requests are checked against besides the grant.
    pub about: About,
    /// What the guest is told.
    pub event: types::Event,
    /// The only time its clock knows.
    pub time: Timestamp,
    /// What it may ask for.
    pub grant: Arc<Grant>,
    /// What the operator set for it.
    pub settings: Arc<BTreeMap<String, String>>,
    /// How much it may use.
    pub limits: Limits,
    /// What it may read of its task.
    pub reads: TaskReads,
}

/// What one call came to.
#[derive(Debug)]
pub struct Report {
    /// How it ended.
    pub ending: Ending,
    /// What it asked for and did not get.
    pub refusals: Vec<String>,
    /// What it logged.
    pub log: Vec<String>,
    /// CPU time it took.
    pub cpu: Duration,
    /// The most memory it held, in bytes.
    pub memory_max: u64,
}

/// How one call ended.
#[derive(Debug)]
pub enum Ending {
    /// `notify` returned ok: this is what it asked for.
    Planned(Plan),
    /// It wants to be run again later.
    Retry(String),
    /// It says it will never work.
    Failed(String),
    /// It trapped or ran out of a limit.
    Faulted(Fault),
}

impl Sandbox {
    /// An engine with its own threads.
    ///
    /// # Errors
    /// When this machine cannot provide what the engine needs: address space, threads.
    pub fn start() -> Result<Arc<Self>, StartError> {
        let engine = engine::engine().map_err(StartError::Engine)?;
        let linker = guest::linker(&engine).map_err(StartError::Engine)?;
        let processors = std::thread::available_parallelism()?.get();
        let mut builder = Builder::new_multi_thread();
        // A call that comes in, and a time limit that is over, wait for one tick of those that run and not for dozens.
        builder.global_queue_interval(1).event_interval(8).enable_time();
        let threads = Threads::start("guest", Processors::turns(processors), &mut builder)?;
        let calls = Slots::new(engine::CALLS_MAX, CALLS_PER_TENANT_MAX);
        let processors = Processors::new(processors);
        let ticker = engine::Ticker::start(&engine)?;
        Ok(Arc::new(Self { engine, linker, threads, calls, processors, _ticker: ticker }))
    }

    /// Checks and compiles a component in this process, for as long as that takes. Nothing but its size bounds what that
    /// costs: for plugins of one's own. The service has another process do it (`registry`).
    ///
    /// # Errors
    /// [`AdmissionError`], in words the operator can act on.
    pub fn admit(
        &self,
        name: &str,
        wasm: &[u8],
        grant: &Grant,
        limits: &ComponentLimits,
    ) -> Result<Version, AdmissionError> {
        self.admit_compiled(name, &compiler::compile(&self.engine, wasm, limits)?, grant, limits)
    }

    /// Checks a compiled component against a grant and limits.
    ///
    /// # Errors
    /// [`AdmissionError`], when the grant or the limits do not cover it or it is no plugin.
    pub fn admit_compiled(
        &self,
        name: &str,
        compiled: &Compiled,
        grant: &Grant,
        limits: &ComponentLimits,
    ) -> Result<Version, AdmissionError> {
        admission::admit(&self.linker, name, compiled, grant, limits)
    }

    /// Runs `notify` once, in an instance of its own, when it is the tenant's turn.
    pub async fn invoke(&self, version: &Version, invocation: Invocation) -> Report {
        let slot = self.calls.take(&invocation.event.tenant).await;
        let (engine, pre, processors) = (self.engine.clone(), version.pre.clone(), self.processors.clone());
        let call = self.threads.handle().spawn(async move {
            let _slot = slot;
            call(&engine, &pre, invocation, processors).await
        });
        call.await.unwrap_or_else(|error| Report::broken(error.to_string()))
    }
}

/// What `make bench` compares.
impl Sandbox {
    /// How long each of so many calls takes on one guest thread, each in an instance of its own.
    pub async fn time_fresh(&self, version: &Version, calls: usize, invocation: fn() -> Invocation) -> Vec<Duration> {
        let (engine, pre, processors) = (self.engine.clone(), version.pre.clone(), self.processors.clone());
        self.timed(async move {
            let mut times = Vec::with_capacity(calls);
            for _ in 0..calls {
                let invocation = invocation();
                let started = Instant::now();
                drop(call(&engine, &pre, invocation, processors.clone()).await);
                times.push(started.elapsed());
            }
            times
        })
        .await
    }

    /// How long each of so many calls takes in one instance that is used again and again, as no service ever does.
    pub async fn time_reused(&self, version: &Version, calls: usize, invocation: fn() -> Invocation) -> Vec<Duration> {
        let (engine, pre) = (self.engine.clone(), version.pre.clone());
        self.timed(async move {
            let record = Arc::new(Record::new(Limits { host_calls_max: u32::MAX, ..Limits::default() }));
            let (event, guest) = Guest::new(invocation(), Arc::clone(&record));
            let mut store = Store::new(&engine, guest);
            store.set_epoch_deadline(1);
            store.epoch_deadline_async_yield_and_update(1);
            let Ok(plugin) = pre.instantiate_async(&mut store).await else { return Vec::new() };
            let mut times = Vec::with_capacity(calls);
            for _ in 0..calls {
                let started = Instant::now();
                if plugin.call_notify(&mut store, &event).await.is_err() {
                    return Vec::new();
                }
                times.push(started.elapsed());
                record.take();
            }
            times
        })
        .await
    }

    async fn timed(&self, calls: impl Future<Output = Vec<Duration>> + Send + 'static) -> Vec<Duration> {
        self.threads.handle().spawn(calls).await.unwrap_or_default()
    }
}

impl Report {
    /// The report of a call that the host could not make.
    fn broken(why: String) -> Self {
        let ending = Ending::Faulted(Fault::Host(why));
        Self { ending, refusals: Vec::new(), log: Vec::new(), cpu: Duration::ZERO, memory_max: 0 }
    }
}

async fn call(
    engine: &Engine,
    pre: &guest::PluginPre<Guest>,
    invocation: Invocation,
    processors: Processors,
) -> Report {
    let limits = invocation.limits;
    let turns = Turns::new(processors, invocation.event.tenant.as_str());
    let meter = Arc::new(CpuMeter::default());
    let record = Arc::new(Record::new(limits));
    let (event, guest) = Guest::new(invocation, Arc::clone(&record));
    let mut store = Store::new(engine, guest);
    store.limiter(|guest| &mut guest.space);
    store.set_hostcall_fuel(limits.host_call_bytes_max);
    store.set_epoch_deadline(1);
    store.epoch_deadline_callback({
        let meter = Arc::clone(&meter);
        move |_| meter.check(limits.cpu)
    });
    let notify = async {
        let plugin = pre.instantiate_async(&mut store).await?;
        plugin.call_notify(&mut store, &event).await
    };
    let metered = Metered::new(Box::pin(notify), Arc::clone(&meter), turns);
    let ended = tokio::time::timeout(limits.wall_clock, metered).await;
    let memory_max = store.data().space.memory_bytes_max() as u64;
    drop(store);
    let (plan, refusals, log) = record.take();
    let ending = match ended {
        Ok(Ok(Ok(()))) => Ending::Planned(plan),
        Ok(Ok(Err(types::Failure::Retry(reason)))) => Ending::Retry(shortened(reason)),
        Ok(Ok(Err(types::Failure::Failed(reason)))) => Ending::Failed(shortened(reason)),
        Ok(Err(error)) => Ending::Faulted(Fault::from_error(&error)),
        Err(_) => Ending::Faulted(Fault::WallClock(limits.wall_clock)),
    };
    Report { ending, refusals, log, cpu: meter.spent(), memory_max }
}

/// A guest's text, short enough to be a reason.
fn shortened(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(REASON_BYTES_MAX));
    text
}

const REASON_BYTES_MAX: usize = 4 << 10;
/// Calls of one tenant at the same time, so that none can take every slot.
const CALLS_PER_TENANT_MAX: usize = 16;
