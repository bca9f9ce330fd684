//! Every attack, with what must come of it.

use anyhow::Result;

use crate::core::{component, notifying, reallocating, with};

/// What becomes of an attack that is a plugin.
pub(crate) struct Attack {
    /// What it is.
    pub(crate) name: &'static str,
    /// The plugin that makes it, which is told so by the task's message.
    pub(crate) plugin: &'static str,
    /// The plugin's component, when it is made for this.
    pub(crate) component: Option<Vec<u8>>,
    /// The state of its invocation.
    pub(crate) state: &'static str,
    /// What the invocation's reason, refusals and log lines must contain, all of it.
    pub(crate) expected: &'static [&'static str],
    /// How many effects are committed for it.
    pub(crate) effects: i64,
}

/// Attacks by a guest written in Rust.
pub(crate) fn by_message() -> Vec<Attack> {
    let attack =
        |name, state, effects, expected| Attack { name, plugin: "hostile", component: None, state, expected, effects };
    let trespass = |name, expected| Attack { plugin: "trespasser", ..attack(name, "done", 0, expected) };
    vec![
        attack("loop", "faulted", 0, &["out of CPU time: more than 200 ms"]),
        attack("recurse", "faulted", 0, &["trap: "]),
        attack("many calls", "faulted", 0, &["too many host calls: more than 1000"]),
        attack("sleep", "faulted", 0, &["out of time: more than 2 s"]),
        attack("eat memory", "faulted", 0, &["out of memory: more than 67108864 bytes"]),
        attack("trap", "faulted", 0, &["trap: ", "on purpose"]),
        attack("large text", "faulted", 0, &["trap: "]),
        attack("fail", "failed", 0, &["as the task wished"]),
        attack("many effects", "failed", 0, &["over the limit: more than 64 effects"]),
        attack("large effect", "failed", 0, &["over the limit: an effect of more than 262144 bytes"]),
        attack("megabytes", "done", 5, &["over the limit: effects of more than 1048576 bytes"]),
        attack("foreign recipient", "done", 1, &["not granted: mail to b@blue.example.com", "invalid: "]),
        attack("inject", "done", 1, &["invalid: a control character in the subject", "RCPT TO"]),
        attack("inject into IRC", "done", 2, &["invalid: a line break", "expected a channel such as #ci"]),
        trespass("foreign keys", &["not granted: ", "invalid: "]),
        trespass("foreign exchanges", &["not granted: ", "invalid: "]),
        attack("log flood", "done", 1, &["host: further lines dropped: more than 65536 bytes"]),
        attack("log injection", "done", 1, &["info: one", "info: error: two\u{fffd}\u{fffd}[2J"]),
        attack("look around", "done", 1, &["info: None", "info: false", "tv_sec: 1517322317"]),
        attack("settings", "done", 1, &["info: [\"red\"] None"]),
        attack("behave", "done", 1, &[]),
    ]
}

/// Attacks by components that no compiler would make.
pub(crate) fn by_component() -> Result<Vec<Attack>> {
    let fault = |name, component: Result<Vec<u8>>, expected| {
        Ok(Attack { name, plugin: name, component: Some(component?), state: "faulted", expected, effects: 0 })
    };
    // What a channel and its lines look like to the host: (channel, bytes, lines, how many, where the answer goes).
    let say = |arguments: &str| notifying(&format!("(call $say {arguments} (i32.const 32))"));
    let attacks: Vec<Result<Attack>> = vec![
        fault("loop-in-start", with("(func $start (loop (br 0))) (start $start)"), &["out of CPU time"]),
        fault("loop-in-realloc", reallocating("(loop (br 0)) unreachable"), &["out of CPU time"]),
        fault("trap-in-realloc", reallocating("unreachable"), &["trap: "]),
        fault("realloc-out-of-bounds", reallocating("(i32.const -65536)"), &["trap: "]),
        fault("realloc-unaligned", reallocating("(i32.const 65537)"), &["trap: "]),
        fault(
            "fill",
            notifying("(loop (memory.fill (i32.const 65536) (i32.const 1) (i32.const 65000000)) (br 0))"),
            &["out of CPU time"],
        ),
        fault("grow", notifying("(loop (drop (memory.grow (i32.const 1))) (br 0))"), &["out of memory"]),
        fault("memory-from-the-start", with("(memory (export \"memory\") 2000)"), &["out of memory"]),
        fault(
            "table",
            component(
                "(table $t 1 funcref) (func (export \"cabi_realloc\") (param i32 i32 i32 i32) (result i32) (i32.const \
                 65536)) (func (export \"notify\") (param i32) (result i32) (loop (drop (table.grow $t (ref.null func) \
                 (i32.const 1000))) (br 0)) unreachable)",
            ),
            &["out of table space: more than 20000 elements"],
        ),
        fault("data-out-of-bounds", with("(data (i32.const 2000000000) \"x\")"), &["trap: "]),
        fault("string-out-of-bounds", say("(i32.const -16) (i32.const 100) (i32.const 0) (i32.const 0)"), &["trap: "]),
        fault("string-of-128-MiB", say("(i32.const 0) (i32.const 134217728) (i32.const 0) (i32.const 0)"), &["trap: "]),
        fault("string-of-60-MiB", say("(i32.const 0) (i32.const 62914560) (i32.const 0) (i32.const 0)"), &["trap: "]),
        fault(
            "string-of-no-UTF-8",
            notifying(
                "(i32.store (i32.const 64) (i32.const -1)) (call $say (i32.const 64) (i32.const 4) (i32.const 0) (i32.const 0) (i32.const 32))",
            ),
            &["trap: "],
        ),
        fault("list-out-of-bounds", say("(i32.const 0) (i32.const 1) (i32.const 0) (i32.const -1)"), &["trap: "]),
        fault(
            // 100,000 lines, each the same 64 KiB.
            "list-amplified",
            notifying(
                "(local $n i32) (loop (i32.store offset=1000000 (i32.shl (local.get $n) (i32.const 3)) (i32.const 0)) \
                 (i32.store offset=1000004 (i32.shl (local.get $n) (i32.const 3)) (i32.const 65536)) \
                 (br_if 0 (i32.lt_u (local.tee $n (i32.add (local.get $n) (i32.const 1))) (i32.const 100000)))) \
                 (call $say (i32.const 0) (i32.const 1) (i32.const 1000000) (i32.const 100000) (i32.const 32))",
            ),
            &["trap: "],
        ),
        fault(
            "answer-out-of-bounds",
            notifying("(call $say (i32.const 0) (i32.const 1) (i32.const 0) (i32.const 0) (i32.const -4))"),
            &["trap: "],
        ),
        fault("bad-discriminant", notifying("(i32.store8 (i32.const 16) (i32.const 7))"), &["trap: "]),
        fault(
            "bad-failure",
            notifying("(i32.store8 (i32.const 16) (i32.const 1)) (i32.store8 (i32.const 20) (i32.const 9))"),
            &["trap: "],
        ),
        fault(
            "huge-result",
            notifying(
                "(i32.store8 (i32.const 16) (i32.const 1)) (i32.store8 (i32.const 20) (i32.const 1)) \
                 (i32.store (i32.const 24) (i32.const 0)) (i32.store (i32.const 28) (i32.const 62914560))",
            ),
            &["trap: "],
        ),
        fault("result-out-of-bounds", notifying("(return (i32.const -4))"), &["trap: "]),
        fault("foreign-handle", notifying("(call $drop_pollable (i32.const 99))"), &["trap: "]),
        fault(
            "double-drop",
            notifying(
                "(local $p i32) (local.set $p (call $subscribe (i64.const 1))) (call $drop_pollable (local.get $p)) \
                 (call $drop_pollable (local.get $p))",
            ),
            &["trap: "],
        ),
        fault("resources", notifying("(loop (drop (call $subscribe (i64.const 1))) (br 0))"), &["trap: "]),
        fault("random", notifying("(call $random (i64.const 100000000) (i32.const 32))"), &["trap: "]),
    ];
    attacks.into_iter().collect()
}

/// Files that must not become plugins, with what is said about them.
pub(crate) fn by_file(good: &[u8]) -> Result<Vec<(&'static str, Vec<u8>, &'static str)>> {
    let repeated = |head: &str, each: &str, times: usize, tail: &str| format!("{head}{}{tail}", each.repeat(times));
    let component = |text: String| wat::parse_str(text);
    let nops = repeated("(module (func ", "nop\n", 5 << 20, "))");
    Ok(vec![
        ("nothing", Vec::new(), "expected a WebAssembly component"),
        ("garbage", vec![0x5a; 10_000], "expected a WebAssembly component"),
        ("text", b"(component)".to_vec(), "expected a WebAssembly component"),
        ("compiled", b"\x7fELF\x02\x01\x01\0 of another".to_vec(), "expected a WebAssembly component"),
        ("core-module", wat::parse_str("(module)")?, "a core module: expected a component"),
        ("truncated", good.get(..good.len() / 2).unwrap_or_default().to_vec(), "does not compile"),
        ("too-large", [good.get(..8).unwrap_or_default(), &vec![0; 11 << 20]].concat(), "bytes"),
        ("sockets", component("(component (import \"wasi:sockets/tcp@0.2.0\" (instance)))".into())?, "sockets"),
        ("http", component("(component (import \"wasi:http/types@0.2.0\" (instance)))".into())?, "http"),
        ("not-granted", with("")?, "irc"),
        ("no-notify", component("(component)".into())?, "world"),
        ("functions", component(repeated("(component (core module ", "(func)", 100_000, "))"))?, "functions"),
        ("one-function", wat::parse_str(format!("(component (core {})", &nops[1..]))?, "function"),
        (
            "nesting",
            component(format!(
                "(component (type $t0 (list u8)) {})",
                (1..2_000).map(|n| format!("(type $t{n} (list $t{}))", n - 1)).collect::<String>()
            ))?,
            "compile",
        ),
        (
            "instances",
            component(repeated("(component (core module $m) ", "(core instance (instantiate $m))", 65, ")"))?,
            "instances",
        ),
        (
            "memories",
            component(repeated("(component (core module $m ", "(memory 1)", 5, ") (core instance (instantiate $m)))"))?,
            "memories",
        ),
    ])
}
