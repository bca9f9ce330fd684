//! `demo`: sample events through the very same path, into a database that goes away and a sink that sends nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::task::TaskTracker;

use super::run::Signals;
use super::{PluginErrors, render};
use crate::config::{Environment, default_plugins, default_root};
use crate::effect::{EffectId, destination};
use crate::grant::{EmailGrant, Grant, IrcGrant, Pattern};
use crate::intake::source::{Received, Settler, ndjson};
use crate::intake::task::{MemoryTasks, Tasks};
use crate::metrics::Metrics;
use crate::registry::{Compiler, Registry};
use crate::sandbox::Sandbox;
use crate::service::{IntakeParts, Parts, Service, Wanted};
use crate::store::{Ended, Store};
use crate::taskcluster::Taskcluster;
use crate::tenant::{PluginTerms, Queue, QueueKind, Tenant};
use crate::timing::Timing;

#[derive(Args)]
pub(super) struct Arguments {
    /// End once everything is delivered
    #[arg(long)]
    once: bool,
    /// Print one JSON object for each effect
    #[arg(long)]
    json: bool,
    /// Read events from this file instead, one JSON object a line: exchange, body, task; - for standard input
    #[arg(long, value_name = "FILE")]
    events: Option<PathBuf>,
}

pub(super) async fn run(arguments: Arguments, environment: &Environment) -> anyhow::Result<()> {
    let folder = tempfile::tempdir().context("make a temporary directory")?;
    let service = start(environment, &folder.path().join("demo.db").display().to_string()).await?;
    if !arguments.json {
        say!("Events on their way: nothing is sent, and nothing is kept. Mail is granted to *@example.com alone.\n");
    }
    let mut signals = Signals::listen()?;
    let mut shown = BTreeSet::new();
    // Events of one's own have an end, and then there is nothing more to wait for.
    let ends = arguments.once || arguments.events.is_some();
    let inlet = service.inlet(TENANT).context("the demo consumes")?;
    let live = async {
        if ends {
            until_idle(&arguments, &service, inlet, &mut shown).await
        } else {
            for_ever(&arguments, &service, inlet, &mut shown).await
        }
    };
    tokio::select! {
        shown = live => shown?,
        () = signals.next() => {}
    }
    service.drain(Duration::from_secs(5)).await;
    if !arguments.json {
        say!("{WHERE_TO_GO}");
    }
    Ok(())
}

async fn start(environment: &Environment, database: &str) -> anyhow::Result<Service> {
    let plugins = environment.text("PN_PLUGINS").map_or_else(default_plugins, PathBuf::from);
    let tenants = vec![tenant()];
    let sandbox = Sandbox::start()?;
    let registry = Registry::load(Compiler::new(&sandbox), &plugins, &tenants, None).await;
    let registry = registry.map_err(PluginErrors).context("the demo needs the built plugins (`make guests`)")?;
    let captured = |capability| (destination(capability, ACCOUNT), None);
    let accounts = BTreeMap::from([captured("email"), captured("irc")]);
    let tasks = Tasks::Memory(MemoryTasks::new(default_root()));
    let keep = Duration::from_secs(60 * 60 * 24);
    let writer = TaskTracker::new();
    let store = Store::open(&format!("sqlite:{database}"), &writer).await.context("start")?;
    let metrics = Arc::new(Metrics::new().context("name the figures")?);
    let taskcluster = Arc::new(Taskcluster::new(default_root()).context("start the Taskcluster client")?);
    let parts = Parts {
        store,
        writer,
        wanted: Wanted { tenants, accounts },
        intake: Some(IntakeParts { tasks, sandbox, registry }),
        courier: Some(taskcluster),
        keep,
        metrics,
        timing: Timing::default(),
    };
    Service::start(parts).await.context("start")
}

fn tenant() -> Tenant {
    let grant = Grant {
        email: Some(EmailGrant { account: ACCOUNT.into(), recipients: vec![Pattern::new("*@example.com")] }),
        irc: Some(IrcGrant { account: ACCOUNT.into(), channels: vec![Pattern::new("#*")] }),
        ..Grant::default()
    };
    let terms = PluginTerms { grant: Arc::new(grant), ..PluginTerms::default() };
    let release_drivers = json!({"plugins": ["smtp"], "emails": ["release-drivers@example.com"]});
    Tenant {
        name: TENANT.into(),
        queue: Queue { name: String::new(), kind: QueueKind::Plain, bindings: Vec::new() },
        identities: release_drivers
            .as_object()
            .cloned()
            .map(|map| ("release-drivers".into(), map))
            .into_iter()
            .collect(),
        plugins: BTreeMap::from([("irc".to_owned(), terms.clone()), ("smtp".to_owned(), terms)]),
        logs: None,
    }
}

async fn feed(arguments: &Arguments, service: &Service, inlet: &mpsc::Sender<Received>) -> anyhow::Result<()> {
    let Some(Tasks::Memory(tasks)) = service.tasks() else { return Ok(()) };
    match &arguments.events {
        None => ndjson::run(SAMPLES.as_bytes(), tasks, inlet).await,
        Some(path) if path.as_os_str() == "-" => {
            ndjson::run(tokio::io::BufReader::new(tokio::io::stdin()), tasks, inlet).await;
        }
        Some(path) => {
            let file = tokio::fs::File::open(path).await.with_context(|| format!("read {}", path.display()))?;
            ndjson::run(tokio::io::BufReader::new(file), tasks, inlet).await;
        }
    }
    Ok(())
}

/// Shows what comes of the events until nothing more will.
async fn until_idle(
    arguments: &Arguments,
    service: &Service,
    inlet: mpsc::Sender<Received>,
    shown: &mut BTreeSet<EffectId>,
) -> anyhow::Result<()> {
    let mut feeding = pin!(async move { feed(arguments, service, &inlet).await });
    loop {
        tokio::select! {
            fed = &mut feeding => break fed?,
            () = tokio::time::sleep(LOOK_EVERY) => show(service.store(), arguments.json, shown).await?,
        }
    }
    while !service.is_idle().await? {
        show(service.store(), arguments.json, shown).await?;
        tokio::time::sleep(LOOK_EVERY).await;
    }
    show(service.store(), arguments.json, shown).await
}

/// Shows what comes of the samples, and makes another event of one every few seconds.
async fn for_ever(
    arguments: &Arguments,
    service: &Service,
    inlet: mpsc::Sender<Received>,
    shown: &mut BTreeSet<EffectId>,
) -> anyhow::Result<()> {
    feed(arguments, service, &inlet).await?;
    let Some(Tasks::Memory(tasks)) = service.tasks() else { return Ok(()) };
    let mut samples = SAMPLES.lines().enumerate().cycle();
    let mut next = tokio::time::interval(EVENT_EVERY);
    next.tick().await;
    loop {
        tokio::select! {
            _ = next.tick() => {
                let Some((number, sample)) = samples.next() else { return Ok(()) };
                let fresh = sample.replace("DemoTask", &format!("{:08x}", rand::random::<u32>()));
                let delivery = ndjson::read(number + 1, &fresh, tasks)?;
                inlet.send(Received { delivery, settler: Settler::Nobody }).await?;
            }
            () = tokio::time::sleep(LOOK_EVERY) => show(service.store(), arguments.json, shown).await?,
        }
    }
}

/// Shows the effects that have come to an end and were not shown yet, in the order of their events.
async fn show(store: &Store, json: bool, shown: &mut BTreeSet<EffectId>) -> anyhow::Result<()> {
    for Ended { id, tenant, plugin, task_id, status, state, reason, effect } in store.ended().await? {
        if !shown.insert(id) {
            continue;
        }
        if json {
            let shown = json!({
                "tenant": tenant, "plugin": plugin, "capability": effect.capability(),
                "task_id": task_id, "status": status, "state": state, "payload": effect,
            });
            say!("{}", render::json(&shown));
        } else {
            let why_not = (state != "delivered").then_some(reason.as_str());
            say!("{}", render::effect(&status, &state, why_not, &effect));
        }
    }
    Ok(())
}

const TENANT: &str = "demo";
const ACCOUNT: &str = "demo";
const SAMPLES: &str = include_str!("demo.ndjson");
const LOOK_EVERY: Duration = Duration::from_millis(20);
const EVENT_EVERY: Duration = Duration::from_secs(3);
const WHERE_TO_GO: &str = "\
Each came from an event, through the sandboxed plugin, the database and the courier that real events take.
  pulse-notifier demo --events FILE   your own events, one JSON object a line
  pulse-notifier check                what your configuration amounts to
  pulse-notifier run                  the real thing
The README says how to configure it and how to write a plugin.";
