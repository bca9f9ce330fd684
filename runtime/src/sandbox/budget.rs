//! How much one call may use, how that is measured, and the fault when it is more.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use wasmtime::{ResourceLimiter, UpdateDeadline};

use super::census::ComponentLimits;
use crate::fair::{Place, Slot, Slots};

/// What one call may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The guest's own time on a processor.
    pub cpu: Duration,
    /// From start to end, waiting included.
    pub wall_clock: Duration,
    /// Linear memory, all of them together.
    pub memory_bytes_max: usize,
    /// Table elements, all tables together.
    pub table_elements_max: usize,
    /// Effects asked for; a mail is one, however many recipients it has.
    pub effects_max: usize,
    /// Recipients of its effects, those of all mails together.
    pub recipients_max: usize,
    /// One effect.
    pub effect_bytes_max: usize,
    /// All effects together; what the copies of one mail share counts once.
    pub effects_bytes_max: usize,
    /// Calls of host functions.
    pub host_calls_max: u32,
    /// Data passed in one call of a host function.
    pub host_call_bytes_max: usize,
    /// Log lines together.
    pub log_bytes_max: usize,
    /// Random bytes asked for at once.
    pub random_bytes_max: u64,
    /// What it may be made of.
    pub component: ComponentLimits,
}

impl Limits {
    /// What nobody's plugin can be given more of.
    pub const MOST: Self = Self {
        cpu: Duration::from_secs(600),
        wall_clock: Duration::from_secs(600),
        memory_bytes_max: 256 << 20,
        table_elements_max: 100_000,
        effects_max: 10_000,
        recipients_max: 100_000,
        effect_bytes_max: 64 << 20,
        effects_bytes_max: 64 << 20,
        host_calls_max: 1_000_000,
        host_call_bytes_max: 64 << 20,
        log_bytes_max: 16 << 20,
        random_bytes_max: 1 << 20,
        component: ComponentLimits::MOST,
    };
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            cpu: Duration::from_millis(50),
            wall_clock: Duration::from_secs(10),
            memory_bytes_max: 64 << 20,
            table_elements_max: 20_000,
            effects_max: 64,
            recipients_max: 1_024,
            effect_bytes_max: 256 << 10,
            effects_bytes_max: 1 << 20,
            host_calls_max: 1_000,
            host_call_bytes_max: 1 << 20,
            log_bytes_max: 64 << 10,
            random_bytes_max: 64 << 10,
            component: ComponentLimits::default(),
        }
    }
}

/// Why a call gave nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// It used up its time on a processor.
    #[error("out of CPU time: more than {} ms", .0.as_millis())]
    Cpu(Duration),
    /// It took too long altogether.
    #[error("out of time: more than {} s", .0.as_secs_f32())]
    WallClock(Duration),
    /// It wanted more memory.
    #[error("out of memory: more than {0} bytes")]
    Memory(usize),
    /// It wanted larger tables.
    #[error("out of table space: more than {0} elements")]
    Table(usize),
    /// It called the host too often.
    #[error("too many host calls: more than {0}")]
    HostCalls(u32),
    /// It broke a rule of WebAssembly or gave up: a panic, a bad access, an endless recursion.
    #[error("trap: {0}")]
    Trap(String),
    /// The host could not make the call.
    #[error("the host could not run it: {0}")]
    Host(String),
}

impl Fault {
    /// The fault that an engine's error stands for.
    pub(super) fn from_error(error: &wasmtime::Error) -> Self {
        if let Some(fault) = error.downcast_ref::<Self>() {
            return fault.clone();
        }
        if error.is::<wasmtime::PoolConcurrencyLimitError>() {
            return Self::Host(error.to_string());
        }
        let cause = match error.downcast_ref::<wasmtime::Trap>() {
            Some(trap) => trap.to_string(),
            None => error.root_cause().to_string(),
        };
        let place = error.downcast_ref::<wasmtime::WasmBacktrace>().and_then(innermost_function);
        Self::Trap(super::shortened(match place {
            Some(place) => format!("{cause}, in {place}"),
            None => cause,
        }))
    }
}

fn innermost_function(backtrace: &wasmtime::WasmBacktrace) -> Option<String> {
    backtrace.frames().iter().find_map(|frame| frame.func_name()).map(|name| {
        let name = name.to_string();
        name.chars().filter(|c| !c.is_control()).take(200).collect()
    })
}

/// The processor time one call has used. Time in which its thread runs something else, or waits, is not its.
#[derive(Default)]
pub(super) struct CpuMeter {
    spent_ns: AtomicU64,
    resumed_ns: AtomicU64,
}

impl CpuMeter {
    fn resume(&self) {
        self.resumed_ns.store(thread_cpu_ns(), Ordering::Relaxed);
    }

    fn pause(&self) {
        self.spent_ns.store(self.running_ns(), Ordering::Relaxed);
    }

    fn running_ns(&self) -> u64 {
        let since_resumed = thread_cpu_ns().saturating_sub(self.resumed_ns.load(Ordering::Relaxed));
        self.spent_ns.load(Ordering::Relaxed).saturating_add(since_resumed)
    }

    /// What was used until the last pause.
    pub(super) fn spent(&self) -> Duration {
        Duration::from_nanos(self.spent_ns.load(Ordering::Relaxed))
    }

    /// Called at each tick while the guest runs: lets others run too, or ends it.
    pub(super) fn check(&self, budget: Duration) -> Result<UpdateDeadline, wasmtime::Error> {
        if Duration::from_nanos(self.running_ns()) > budget {
            return Err(Fault::Cpu(budget).into());
        }
        Ok(UpdateDeadline::Yield(1))
    }
}

fn thread_cpu_ns() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    let (seconds, nanoseconds) = (time.tv_sec.unsigned_abs(), time.tv_nsec.unsigned_abs());
    seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds)
}

/// The processors guests run on. Calls that have become long have turns of their own, of which one tenant has no more than
/// half as many as there are processors; of the turns of short calls neither, where there are several tenants. So what it
/// burns leaves the others their turns.
#[derive(Clone)]
pub(super) struct Processors {
    short: Slots,
    long: Slots,
}

impl Processors {
    pub(super) fn new(count: usize) -> Self {
        Self { short: Slots::with_more_alone(count, count / 2, count), long: Slots::new(count, count / 2) }
    }

    /// How many guests may be on them at the same time. Each has a thread of its own then: what cannot be interrupted for
    /// a tick (a guest that fills or copies tens of megabytes in one instruction) holds up nobody else's turn.
    pub(super) const fn turns(count: usize) -> usize {
        2 * count
    }
}

/// A tenant's turns on the processors: one from each time a guest goes on to the next tick, or until it waits. So a
/// guest that burns its budget delays another tenant's by a tick.
pub(super) struct Turns {
    processors: Processors,
    tenant: String,
    awaited: Option<Place>,
}

impl Turns {
    pub(super) fn new(processors: Processors, tenant: &str) -> Self {
        Self { processors, tenant: tenant.to_owned(), awaited: None }
    }

    fn poll_next(&mut self, is_long: bool, context: &mut Context<'_>) -> Poll<Option<Slot>> {
        let processors = if is_long { &self.processors.long } else { &self.processors.short };
        let place = match &mut self.awaited {
            Some(place) => place,
            None => match processors.try_take(&self.tenant) {
                Ok(slot) => return Poll::Ready(Some(slot)),
                Err(place) => self.awaited.insert(place),
            },
        };
        let slot = std::task::ready!(Pin::new(place).poll(context));
        self.awaited = None;
        // A place is lost with the processors alone, and those are here.
        Poll::Ready(slot.ok())
    }
}

/// A future whose processor time is metered, and which takes turns with those of other tenants.
pub(super) struct Metered<F> {
    future: Pin<Box<F>>,
    meter: Arc<CpuMeter>,
    turns: Turns,
}

impl<F: Future> Metered<F> {
    pub(super) fn new(future: Pin<Box<F>>, meter: Arc<CpuMeter>, turns: Turns) -> Self {
        Self { future, meter, turns }
    }
}

impl<F: Future> Future for Metered<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let is_long = self.meter.spent() >= LONG;
        let _turn = std::task::ready!(self.turns.poll_next(is_long, context));
        self.meter.resume();
        let polled = self.future.as_mut().poll(context);
        self.meter.pause();
        polled
    }
}

/// The memory and tables of one call.
pub(super) struct Space {
    limits: Limits,
    memory_bytes: usize,
    memory_bytes_max: usize,
    table_elements: usize,
}

impl Space {
    pub(super) const fn new(limits: Limits) -> Self {
        Self { limits, memory_bytes: 0, memory_bytes_max: 0, table_elements: 0 }
    }

    pub(super) const fn memory_bytes_max(&self) -> usize {
        self.memory_bytes_max
    }
}

impl ResourceLimiter for Space {
    fn memory_growing(&mut self, current: usize, desired: usize, most: Option<usize>) -> Result<bool, wasmtime::Error> {
        if most.is_some_and(|most| desired > most) {
            return Ok(false);
        }
        self.memory_bytes = self.memory_bytes.saturating_add(desired.saturating_sub(current));
        if self.memory_bytes > self.limits.memory_bytes_max {
            return Err(Fault::Memory(self.limits.memory_bytes_max).into());
        }
        self.memory_bytes_max = self.memory_bytes_max.max(self.memory_bytes);
        Ok(true)
    }

    fn table_growing(&mut self, current: usize, desired: usize, _: Option<usize>) -> Result<bool, wasmtime::Error> {
        self.table_elements = self.table_elements.saturating_add(desired.saturating_sub(current));
        if self.table_elements > self.limits.table_elements_max {
            return Err(Fault::Table(self.limits.table_elements_max).into());
        }
        Ok(true)
    }
}

impl fmt::Debug for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes, {} table elements", self.memory_bytes, self.table_elements)
    }
}

/// A call that has run for so long is a long one.
const LONG: Duration = super::engine::TICK;
