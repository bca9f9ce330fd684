//! What one call of a plugin may use, and what its component may be made of: by plugin, and for all of them the most
//! that a plugin can be given.

use std::time::Duration;

use super::super::document::Section;
use crate::sandbox::{ComponentLimits, Limits};

/// The operator's ceiling: for all that it does not name, what the sandbox has room for.
pub(super) fn ceiling(section: &Section<'_>) -> Limits {
    limits(section, Limits::MOST, Limits::MOST)
}

/// A plugin's limits: for all that they do not name the usual ones, and never more than the most.
pub(super) fn of_plugin(section: &Section<'_>, most: Limits) -> Limits {
    limits(section, Limits::default(), most)
}

fn limits(section: &Section<'_>, usual: Limits, most: Limits) -> Limits {
    let number = |key, what, usual: u64, most: u64| {
        let bound = i64::try_from(most).unwrap_or(i64::MAX);
        section.whole(key, what, 1..=bound).unwrap_or(usual).min(most)
    };
    let millis = |key, usual: Duration, most: Duration| {
        let whole = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Duration::from_millis(number(key, "milliseconds", whole(usual), whole(most)))
    };
    let sized = |key, what, usual: usize, most: usize| {
        let wide = |size| u64::try_from(size).unwrap_or(u64::MAX);
        usize::try_from(number(key, what, wide(usual), wide(most))).unwrap_or(usual)
    };
    let bytes = |key, usual, most| sized(key, "a number of bytes", usual, most);
    let count = |key, usual, most| sized(key, "a number", usual, most);
    let small =
        |key, usual: u32, most: u32| u32::try_from(number(key, "a number", usual.into(), most.into())).unwrap_or(usual);
    let (part, parts) = (usual.component, most.component);
    Limits {
        cpu: millis("cpu_ms", usual.cpu, most.cpu),
        wall_clock: millis("wall_clock_ms", usual.wall_clock, most.wall_clock),
        memory_bytes_max: bytes("memory_bytes", usual.memory_bytes_max, most.memory_bytes_max),
        table_elements_max: count("table_elements", usual.table_elements_max, most.table_elements_max),
        effects_max: count("effects", usual.effects_max, most.effects_max),
        recipients_max: count("recipients", usual.recipients_max, most.recipients_max),
        effect_bytes_max: bytes("effect_bytes", usual.effect_bytes_max, most.effect_bytes_max),
        effects_bytes_max: bytes("effects_bytes", usual.effects_bytes_max, most.effects_bytes_max),
        host_calls_max: small("host_calls", usual.host_calls_max, most.host_calls_max),
        host_call_bytes_max: bytes("host_call_bytes", usual.host_call_bytes_max, most.host_call_bytes_max),
        log_bytes_max: bytes("log_bytes", usual.log_bytes_max, most.log_bytes_max),
        random_bytes_max: number("random_bytes", "a number of bytes", usual.random_bytes_max, most.random_bytes_max),
        component: ComponentLimits {
            bytes_max: bytes("component_bytes", part.bytes_max, parts.bytes_max),
            functions_max: small("functions", part.functions_max, parts.functions_max),
            function_bytes_max: bytes("function_bytes", part.function_bytes_max, parts.function_bytes_max),
            core_instances_max: small("core_instances", part.core_instances_max, parts.core_instances_max),
            memories_max: small("memories", part.memories_max, parts.memories_max),
            tables_max: small("tables", part.tables_max, parts.tables_max),
            compile_cpu: Duration::from_secs(number(
                "compile_seconds",
                "a number of seconds",
                part.compile_cpu.as_secs(),
                parts.compile_cpu.as_secs(),
            )),
            compile_bytes_max: bytes("compile_memory_bytes", part.compile_bytes_max, parts.compile_bytes_max),
        },
    }
}
