//! What the host knows of one running guest, and what all guests link to.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use wasmtime::Engine;
use wasmtime::component::{HasSelf, Linker, ResourceTable};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};

use super::budget::{Fault, Limits, Space};
use super::{Invocation, wasi};
use crate::effect::{Origin, Plan, Planned, bytes_of_call};
use crate::grant::{About, Grant, Refusal};
use crate::intake::task::TaskReads;

mod bindings {
    #![allow(missing_docs, unreachable_pub, clippy::all, reason = "generated code")]
    wasmtime::component::bindgen!({
        path: "../wit",
        world: "plugin",
        imports: { "pulse:notifier/taskcluster": async | trappable, default: trappable },
        exports: { default: async },
    });
}

pub use bindings::pulse::notifier::types;
pub(super) use bindings::pulse::notifier::{amqp, email, irc, log, s3, settings, sns, taskcluster, webhook};
pub(super) use bindings::{Plugin, PluginPre};

/// One running guest.
pub(super) struct Guest {
    pub(super) origin: Origin,
    pub(super) about: About,
    pub(super) grant: Arc<Grant>,
    pub(super) settings: Arc<BTreeMap<String, String>>,
    pub(super) reads: TaskReads,
    pub(super) record: Arc<Record>,
    pub(super) space: Space,
    wasi: WasiCtx,
    resources: ResourceTable,
}

impl Guest {
    pub(super) fn new(invocation: Invocation, record: Arc<Record>) -> (types::Event, Self) {
        let Invocation { origin, about, event, time, grant, settings, limits, reads } = invocation;
        let mut resources = ResourceTable::new();
        resources.set_max_capacity(RESOURCES_MAX);
        let wasi = wasi::nothing(&origin, time, limits, &record);
        (event, Self { origin, about, grant, settings, reads, record, space: Space::new(limits), wasi, resources })
    }
}

impl WasiView for Guest {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.resources }
    }
}

/// What guests may link to: our interfaces, and the WASI that Rust's standard library wants, empty.
pub(super) fn linker(engine: &Engine) -> Result<Linker<Guest>, wasmtime::Error> {
    let mut linker = Linker::new(engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    Plugin::add_to_linker::<_, HasSelf<Guest>>(&mut linker, |guest| guest)?;
    Ok(linker)
}

impl types::Host for Guest {}

/// What one call did, kept outside its store so that it survives whatever becomes of that.
pub(super) struct Record {
    limits: Limits,
    done: Mutex<Done>,
}

#[derive(Default)]
struct Done {
    plan: Plan,
    effects_bytes: usize,
    /// Calls that were accepted.
    accepted: usize,
    calls: u32,
    /// Calls that asked for effects.
    asks: u32,
    refusals: Vec<String>,
    log: Vec<String>,
    log_bytes: usize,
}

impl Record {
    pub(super) fn new(limits: Limits) -> Self {
        Self { limits, done: Mutex::default() }
    }

    pub(super) fn take(&self) -> (Plan, Vec<String>, Vec<String>) {
        let done = std::mem::take(&mut *self.done());
        (done.plan, done.refusals, done.log)
    }

    /// Counts a call of a host function.
    ///
    /// # Errors
    /// The fault that ends the guest when it calls too often.
    pub(super) fn call(&self) -> Result<(), wasmtime::Error> {
        let mut done = self.done();
        done.calls += 1;
        if done.calls > self.limits.host_calls_max {
            return Err(Fault::HostCalls(self.limits.host_calls_max).into());
        }
        Ok(())
    }

    /// Records what a guest asks for; `check` turns the number of the call into its effects.
    ///
    /// # Errors
    /// The refusal to tell the guest, which is on record too.
    pub(super) fn ask(
        &self,
        origin: &Origin,
        check: impl FnOnce(u32) -> Result<Vec<Planned>, Refusal>,
    ) -> Result<String, Refusal> {
        let mut done = self.done();
        let index = done.asks;
        done.asks += 1;
        let asked = check(index).and_then(|planned| self.within_limits(&done, planned));
        match asked {
            Ok((planned, bytes)) => {
                done.effects_bytes += bytes;
                done.accepted += 1;
                done.plan.effects.extend(planned);
                Ok(origin.call(index).to_string())
            }
            Err(refusal) => {
                if done.refusals.len() < REFUSALS_KEPT {
                    done.refusals.push(refusal.to_string());
                }
                Err(refusal)
            }
        }
    }

    fn within_limits(&self, done: &Done, planned: Vec<Planned>) -> Result<(Vec<Planned>, usize), Refusal> {
        let limits = self.limits;
        if done.accepted >= limits.effects_max {
            return Err(Refusal::OverLimit(format!("more than {} effects", limits.effects_max)));
        }
        if done.plan.effects.len() + planned.len() > limits.recipients_max {
            return Err(Refusal::OverLimit(format!("more than {} recipients", limits.recipients_max)));
        }
        if planned.iter().any(|planned| planned.effect.bytes() > limits.effect_bytes_max) {
            return Err(Refusal::OverLimit(format!("an effect of more than {} bytes", limits.effect_bytes_max)));
        }
        let bytes = bytes_of_call(&planned);
        if done.effects_bytes + bytes > limits.effects_bytes_max {
            return Err(Refusal::OverLimit(format!("effects of more than {} bytes", limits.effects_bytes_max)));
        }
        Ok((planned, bytes))
    }

    /// Keeps what a guest logs, line by line, until it has logged too much.
    pub(super) fn log(&self, level: &str, text: &str) {
        let mut done = self.done();
        for line in text.lines() {
            if done.log_bytes > self.limits.log_bytes_max {
                return;
            }
            let mut line = format!("{level}: {}", printable(line));
            done.log_bytes += line.len() + LINE_BYTES;
            if done.log_bytes > self.limits.log_bytes_max {
                line = format!("host: further lines dropped: more than {} bytes", self.limits.log_bytes_max);
            }
            done.log.push(line);
        }
    }

    fn done(&self) -> MutexGuard<'_, Done> {
        self.done.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// A guest's line with nothing in it that a terminal would obey.
fn printable(line: &str) -> String {
    line.chars().map(|c| if c.is_control() && c != '\t' { '\u{fffd}' } else { c }).collect()
}

/// What a line takes beside itself where it is kept.
const LINE_BYTES: usize = 8;
const RESOURCES_MAX: usize = 256;
const REFUSALS_KEPT: usize = 64;
