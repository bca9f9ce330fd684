//! Guests that attack, against the real engine: each gets its fault, and whoever runs beside it notices nothing.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use end_to_end::guest;
use futures_util::StreamExt;
use futures_util::future::join_all;
use pulse_notifier::effect::{Hash, Origin};
use pulse_notifier::grant::{About, EmailGrant, Grant, IrcGrant, Pattern};
use pulse_notifier::intake::event::TaskId;
use pulse_notifier::intake::task::{MemoryTasks, TaskReads, Tasks};
use pulse_notifier::sandbox::{
    AdmissionError, ComponentLimits, Ending, Fault, Invocation, Limits, Report, Sandbox, Version, types,
};

fn grant() -> Grant {
    Grant {
        email: Some(EmailGrant { account: "smtp".into(), recipients: vec![Pattern::new("*@example.com")] }),
        irc: Some(IrcGrant { account: "irc".into(), channels: vec![Pattern::new("#*")] }),
        ..Grant::default()
    }
}

fn admit(sandbox: &Sandbox, wasm: &[u8]) -> Result<Version, AdmissionError> {
    sandbox.admit("hostile", wasm, &grant(), &ComponentLimits::default())
}

fn hostile() -> (Arc<Sandbox>, Version) {
    let sandbox = Sandbox::start().unwrap();
    let wasm = std::fs::read(guest("hostile").unwrap()).unwrap();
    let version = admit(&sandbox, &wasm).unwrap();
    (sandbox, version)
}

fn invocation(message: &str, limits: Limits) -> Invocation {
    let task_id = TaskId::new("A35mWTRuQmyj88yMnIF0fA").unwrap();
    let tasks = Tasks::Memory(MemoryTasks::new("https://tc.example.com".parse().unwrap()));
    let event = Hash::of_bytes(b"event");
    Invocation {
        origin: Origin { event, generation: 0, identity: "default".into(), plugin: "hostile".into() },
        about: About { task_id: task_id.clone(), hops: 0, log_addresses: Vec::new() },
        event: event_saying(message, &task_id),
        time: "2018-01-30T14:25:17Z".parse().unwrap(),
        grant: Arc::new(grant()),
        settings: Arc::new(BTreeMap::new()),
        limits,
        reads: TaskReads::new(Arc::new(tasks), task_id),
    }
}

fn event_saying(message: &str, task_id: &TaskId) -> types::Event {
    types::Event {
        id: String::new(),
        tenant: "default".into(),
        status: "task-failed".into(),
        exchange: String::new(),
        routing_key: String::new(),
        cc_routes: Vec::new(),
        redelivered: false,
        time: "2018-01-30T14:25:17Z".into(),
        task_id: task_id.to_string(),
        run_id: Some(0),
        task_group_id: task_id.to_string(),
        task_url: String::new(),
        task_group_url: String::new(),
        body: "{}".into(),
        task: "{}".into(),
        logs: Vec::new(),
        notification: types::Notification {
            identity: "default".into(),
            subject: String::new(),
            message: message.into(),
            emails: vec!["a@example.com".into()],
            nicks: Vec::new(),
            channels: Vec::new(),
            section: "{}".into(),
        },
    }
}

async fn attack(message: &str) -> Report {
    let (sandbox, version) = hostile();
    sandbox.invoke(&version, invocation(message, Limits::default())).await
}

fn planned(report: &Report) -> usize {
    match &report.ending {
        Ending::Planned(plan) => plan.effects.len(),
        _ => 0,
    }
}

fn fault(report: Report) -> Fault {
    match report.ending {
        Ending::Faulted(fault) => fault,
        other => panic!("expected a fault, found {other:?}"),
    }
}

#[tokio::test]
async fn an_endless_loop_ends_when_its_cpu_time_is_used_up() {
    let report = attack("loop").await;
    let cpu = report.cpu;
    assert_eq!(fault(report), Fault::Cpu(Duration::from_millis(50)));
    assert!(cpu >= Duration::from_millis(50) && cpu < Duration::from_millis(500), "{cpu:?}");
}

#[tokio::test]
async fn a_plugin_that_eats_memory_ends_at_its_limit() {
    let report = attack("eat memory").await;
    let held = report.memory_max;
    assert_eq!(fault(report), Fault::Memory(64 << 20));
    assert!(held > 32 << 20 && held <= 64 << 20, "{held}");
}

#[tokio::test]
async fn an_endless_recursion_traps() {
    // Whichever of its two stacks ends first: the engine's, or its own in linear memory.
    let fault = fault(attack("recurse").await).to_string();
    assert!(fault.contains("call stack exhausted") || fault.contains("out of bounds memory access"), "{fault}");
}

#[tokio::test]
async fn a_panic_traps_and_what_it_said_is_logged() {
    let report = attack("trap").await;
    assert!(report.log.iter().any(|line| line.contains("on purpose")), "{:?}", report.log);
    assert!(matches!(fault(report), Fault::Trap(_)));
}

#[tokio::test]
async fn a_failure_after_asking_for_a_mail_gives_no_mail() {
    assert!(matches!(attack("fail").await.ending, Ending::Failed(why) if why == "as the task wished"));
    assert!(matches!(attack("retry").await.ending, Ending::Retry(why) if why == "the world is not ready"));
}

#[tokio::test]
async fn too_many_or_too_large_effects_are_refused_and_on_record() {
    for (message, expected) in [
        ("many effects", "over the limit: more than 64 effects"),
        ("large effect", "over the limit: an effect of more than 262144 bytes"),
    ] {
        let report = attack(message).await;
        assert_eq!(report.refusals, [expected]);
        assert!(matches!(report.ending, Ending::Failed(why) if why == expected));
    }
}

#[tokio::test]
async fn a_flood_of_host_calls_ends() {
    assert_eq!(fault(attack("many calls").await), Fault::HostCalls(1_000));
}

#[tokio::test]
async fn a_log_flood_is_cut_and_says_so() {
    let report = attack("log flood").await;
    assert_eq!(planned(&report), 1, "it harms nobody, so what it asked for is done");
    assert!(report.log.iter().map(String::len).sum::<usize>() < 70 << 10);
    assert_eq!(report.log.last().unwrap(), "host: further lines dropped: more than 65536 bytes");
}

#[tokio::test]
async fn a_logged_line_cannot_forge_another_or_command_a_terminal() {
    let report = attack("log injection").await;
    assert_eq!(report.log, ["info: one", "info: error: two\u{fffd}\u{fffd}[2J"]);
}

#[tokio::test]
async fn line_breaks_where_a_protocol_has_lines_are_refused_and_on_record() {
    let report = attack("inject").await;
    assert_eq!(planned(&report), 1);
    assert_eq!(report.refusals.len(), 2, "{:?}", report.refusals);
    assert!(report.refusals.iter().all(|refusal| refusal.starts_with("invalid: ")), "{:?}", report.refusals);
}

#[tokio::test]
async fn a_guest_sees_no_environment_no_files_and_a_standing_clock() {
    let report = attack("look around").await;
    let expected = [
        "info: None",
        "info: false",
        "info: SystemTime { tv_sec: 1517322317, tv_nsec: 0 }",
        "stdout: said on standard output",
    ];
    assert_eq!(report.log, expected);
}

#[tokio::test]
async fn no_state_survives_between_calls() {
    const CALLS: usize = 100_000;
    let (sandbox, version) = hostile();
    let call = |number: usize| {
        let mut invocation = invocation("behave", Limits::default());
        invocation.event.tenant = ["red", "blue"][number % 2].into();
        sandbox.invoke(&version, invocation)
    };
    let mut reports = futures_util::stream::iter((0..CALLS).map(call)).buffer_unordered(16);
    let mut planned = 0;
    while let Some(report) = reports.next().await {
        let Ending::Planned(plan) = report.ending else { panic!("{report:?}") };
        let pulse_notifier::effect::Effect::Email(email) = &plan.effects[0].effect else { panic!() };
        assert_eq!(&*email.subject, "behave 1");
        planned += 1;
    }
    assert_eq!(planned, CALLS);
}

#[tokio::test]
async fn waiting_for_a_busy_machine_is_not_charged_to_a_plugin() {
    let (sandbox, version) = hostile();
    let limits = Limits { cpu: Duration::from_millis(300), ..Limits::default() };
    let burning = join_all((0..8).map(|_| sandbox.invoke(&version, invocation("loop", limits))));
    let (burnt, report) = tokio::join!(burning, sandbox.invoke(&version, invocation("behave", Limits::default())));
    assert_eq!(planned(&report), 1, "{report:?}");
    for burnt in burnt {
        assert_eq!(fault(burnt), Fault::Cpu(Duration::from_millis(300)));
    }
}

#[tokio::test]
async fn a_call_that_takes_too_long_altogether_ends() {
    let (sandbox, version) = hostile();
    let limits = Limits { cpu: Duration::from_secs(60), wall_clock: Duration::from_millis(100), ..Limits::default() };
    let report = sandbox.invoke(&version, invocation("loop", limits)).await;
    assert_eq!(fault(report), Fault::WallClock(Duration::from_millis(100)));
}

#[tokio::test]
async fn what_is_no_plugin_is_not_admitted_and_the_reason_is_said() {
    let (sandbox, _) = hostile();
    let wasm = std::fs::read(guest("hostile").unwrap()).unwrap();
    let cases: [(&str, Vec<u8>, &str); 8] = [
        ("nothing", Vec::new(), "expected a WebAssembly component"),
        ("garbage", vec![0x5a; 10_000], "expected a WebAssembly component"),
        ("text", b"(component)".to_vec(), "expected a WebAssembly component"),
        ("a core module", wat::parse_str("(module)").unwrap(), "a core module: expected a component"),
        ("truncated", wasm[..wasm.len() / 2].to_vec(), "it does not compile"),
        (
            "too large",
            vec![0; 11 << 20],
            "11534336 bytes, more than the 10485760 it may have (component_bytes in its limits)",
        ),
        (
            "sockets",
            wat::parse_str(r#"(component (import "wasi:sockets/tcp@0.2.0" (instance)))"#).unwrap(),
            "it imports \"wasi:sockets/tcp@0.2.0\", which no plugin may",
        ),
        ("no notify", wat::parse_str("(component)").unwrap(), "it does not fit the world pulse:notifier/plugin"),
    ];
    for (what, bytes, expected) in cases {
        let error = admit(&sandbox, &bytes).err().unwrap().to_string();
        assert!(error.starts_with(expected), "{what}: {error}");
    }
    let error =
        sandbox.admit("hostile", &wasm, &Grant::default(), &ComponentLimits::default()).err().unwrap().to_string();
    assert!(error.starts_with("its grant does not cover what it imports: email, irc. In the tenant's file"), "{error}");
}
