//! The engine's settings: what a guest's code may be, where its memory comes from, and the clock that interrupts it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use wasmtime::{Config, Enabled, Engine, InstanceAllocationStrategy, PoolingAllocationConfig};

use super::budget::Limits;

/// Calls that run at the same time, below what the pool holds: an exhausted pool would be an error, not a wait.
pub(super) const CALLS_MAX: usize = 64;

/// An engine for foreign code.
pub(super) fn engine() -> Result<Engine, wasmtime::Error> {
    Engine::new(settings().allocation_strategy(InstanceAllocationStrategy::Pooling(pool())))
}

/// An engine that only compiles: what it makes, the other one runs.
pub(super) fn compiling() -> Result<Engine, wasmtime::Error> {
    Engine::new(&settings())
}

fn settings() -> Config {
    let mut config = Config::new();
    config
        .strategy(wasmtime::Strategy::Cranelift)
        .wasm_component_model(true)
        .concurrency_support(false)
        .wasm_threads(false)
        .wasm_gc(false)
        .wasm_function_references(false)
        .wasm_exceptions(false)
        .wasm_memory64(false)
        .wasm_tail_call(false)
        .wasm_relaxed_simd(false)
        // Spread over its memory, a few bytes of data must not become megabytes of code to keep.
        .memory_guaranteed_dense_image_size(DENSE_IMAGE_BYTES_MAX)
        // For debuggers and for offsets into a component that nobody asks for.
        .native_unwind_info(false)
        .generate_address_map(false)
        .epoch_interruption(true)
        .max_wasm_stack(STACK_BYTES_MAX);
    config
}

fn pool() -> PoolingAllocationConfig {
    let mut pool = PoolingAllocationConfig::default();
    // More slots than calls: a slot is given back a moment after its call has ended.
    let (slots, most) = (CALLS_MAX as u32 * 2, Limits::MOST.component);
    pool.total_component_instances(slots)
        .total_stacks(slots)
        // What one component may have, all of them may have at once: none can take another's.
        .total_core_instances(slots * most.core_instances_max)
        .total_memories(slots * most.memories_max)
        .total_tables(slots * most.tables_max)
        .max_core_instances_per_component(most.core_instances_max)
        .max_memories_per_component(most.memories_max)
        .max_tables_per_component(most.tables_max)
        .max_component_instance_size(INSTANCE_BYTES_MAX)
        .max_core_instance_size(INSTANCE_BYTES_MAX)
        .max_memory_size(Limits::MOST.memory_bytes_max)
        .table_elements(Limits::MOST.table_elements_max)
        .linear_memory_keep_resident(1 << 20)
        .table_keep_resident(TABLE_BYTES_KEPT)
        .async_stack_keep_resident(64 << 10)
        .decommit_batch_size(16)
        .pagemap_scan(if swaps() { Enabled::No } else { Enabled::Auto });
    pool
}

/// Whether this machine swaps. Pages swapped out would survive from one call to the next when reset by scanning.
fn swaps() -> bool {
    std::fs::read_to_string("/proc/swaps").is_ok_and(|swaps| swaps.lines().nth(1).is_some())
}

/// Ticks the engine's epoch, so that running guests are looked at.
pub(super) struct Ticker {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Ticker {
    pub(super) fn start(engine: &Engine) -> std::io::Result<Self> {
        let (engine, stop) = (engine.weak(), Arc::new(AtomicBool::new(false)));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new().name("epoch".into()).spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                std::thread::sleep(TICK);
                let Some(engine) = engine.upgrade() else { return };
                engine.increment_epoch();
            }
        })?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// What the host keeps about one instance. An interpreter of a hundred modules needs that much.
const INSTANCE_BYTES_MAX: usize = 10 << 20;
/// A guest's table is wiped rather than given back: a page given back costs the next guest a fault.
const TABLE_BYTES_KEPT: usize = 32 << 10;
/// How often a guest that runs is looked at.
pub(super) const TICK: Duration = Duration::from_millis(1);
const STACK_BYTES_MAX: usize = 512 << 10;
const DENSE_IMAGE_BYTES_MAX: u64 = 1 << 20;
