//! What things cost, each beside what it is to be compared with, in one run on one machine.
#![expect(clippy::disallowed_macros, reason = "a benchmark prints its table")]

mod neighbours;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use end_to_end::world::{definition, failure, mail_to};
use end_to_end::{Broker, Message, Service, World, example, guest, request, wait};
use futures_util::StreamExt;
use jiff::Timestamp;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use pulse_notifier::effect::{Hash, Origin};
use pulse_notifier::grant::{About, EmailGrant, Grant, Pattern};
use pulse_notifier::intake::event::TaskId;
use pulse_notifier::intake::task::{MemoryTasks, TaskReads, Tasks};
use pulse_notifier::sandbox::{ComponentLimits, Ending, Invocation, Limits, Sandbox, types};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, BufWriter};
use tokio::net::{TcpListener, TcpStream};

/// The product's own.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const PATIENCE: Duration = Duration::from_secs(300);

/// All of them, or those whose letters are given: `make bench ONLY=ab`.
#[tokio::main]
async fn main() -> Result<()> {
    let only = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let wanted = |letter| only.as_ref().is_none_or(|only| only.contains(letter));
    if wanted('a') {
        sandbox().await?;
    }
    let broker = Broker::private().await?;
    if wanted('b') {
        whole_path(&broker).await?;
    }
    if wanted('c') {
        mails(&broker).await?;
    }
    if wanted('d') {
        latency(&broker).await?;
    }
    if wanted('e') {
        neighbours::isolation(&broker).await?;
    }
    if wanted('f') {
        neighbours::two_hundred(&broker).await?;
    }
    if wanted('g') {
        languages().await?;
    }
    Ok(())
}

// (a) The sandbox.

async fn sandbox() -> Result<()> {
    const CALLS: usize = 50_000;
    let sandbox = Sandbox::start()?;
    let grant = Grant {
        email: Some(EmailGrant { account: "smtp".into(), recipients: vec![Pattern::new("*")] }),
        ..Grant::default()
    };
    let version = sandbox.admit("smtp", &std::fs::read(guest("smtp")?)?, &grant, &ComponentLimits::default())?;
    drop(sandbox.time_fresh(&version, 1_000, invocation).await);
    let reused = sandbox.time_reused(&version, CALLS, invocation).await;
    let fresh = sandbox.time_fresh(&version, CALLS, invocation).await;
    let started = Instant::now();
    let (one, other) =
        tokio::join!(sandbox.time_fresh(&version, CALLS, invocation), sandbox.time_fresh(&version, CALLS, invocation));
    let two_threads = started.elapsed();
    let (reused, fresh) = (Quantiles::of(reused), Quantiles::of(fresh));
    println!("(a) one call of the smtp guest: 600-byte body, 1 KB task, one mail");
    println!("    reused instance      p50 {:?}  p99 {:?}", reused.p50, reused.p99);
    println!("    fresh instance       p50 {:?}  p99 {:?}", fresh.p50, fresh.p99);
    println!("    fresh / reused       {:.2}", fresh.p50.as_secs_f64() / reused.p50.as_secs_f64());
    println!("    fresh, one thread    {:.0} calls/s", 1.0 / fresh.mean.as_secs_f64());
    let calls = (one.len() + other.len()) as f64;
    println!("    fresh, two threads   {:.0} calls/s", calls / two_threads.as_secs_f64());
    Ok(())
}

// (g) The same call of plugins in other languages.

async fn languages() -> Result<()> {
    const CALLS: usize = 2_000;
    println!("(g) one call of a fresh instance, one mail, by the language of the plugin");
    let sandbox = Sandbox::start()?;
    for (language, wasm) in
        [("Rust", guest("smtp")?), ("JavaScript", example("javascript_mail")?), ("Python", example("python_mail")?)]
    {
        let wasm = std::fs::read(wasm)?;
        let started = Instant::now();
        let version = sandbox.admit("mail", &wasm, &Grant::towards(&[]), &ComponentLimits::MOST)?;
        let compiling = started.elapsed();
        // A call that faults is over quickly.
        let report = sandbox.invoke(&version, invocation()).await;
        ensure!(matches!(report.ending, Ending::Planned(_)), "{language}: {:?}", report.ending);
        drop(sandbox.time_fresh(&version, CALLS / 10, invocation).await);
        let fresh = Quantiles::of(sandbox.time_fresh(&version, CALLS, invocation).await);
        println!(
            "    {language:<10} {:>6} KB  compiling {compiling:>6.1?}  p50 {:?}  p99 {:?}",
            wasm.len() >> 10,
            fresh.p50,
            fresh.p99
        );
    }
    Ok(())
}

fn invocation() -> Invocation {
    let grant = Grant {
        email: Some(EmailGrant { account: "smtp".into(), recipients: vec![Pattern::new("*")] }),
        ..Grant::default()
    };
    let task_id = "A35mWTRuQmyj88yMnIF0fA";
    let id = TaskId::new(task_id).unwrap_or_else(|| unreachable!("a constant that is an id"));
    let root = "https://tc.example.com".parse().unwrap_or_else(|_| unreachable!("a constant that is a URL"));
    let origin =
        Origin { event: Hash::of_bytes(b""), generation: 0, identity: "default".into(), plugin: "smtp".into() };
    Invocation {
        origin,
        about: About { task_id: id.clone(), hops: 0, log_addresses: Vec::new() },
        event: types::Event {
            id: "0".repeat(64),
            tenant: "default".into(),
            status: "task-failed".into(),
            exchange: "exchange/taskcluster-queue/v1/task-failed".into(),
            routing_key: "primary.A35mWTRuQmyj88yMnIF0fA.0._._.p.t.s.g._".into(),
            cc_routes: Vec::new(),
            redelivered: false,
            time: "2018-01-30T14:25:17Z".into(),
            task_id: task_id.into(),
            run_id: Some(0),
            task_group_id: task_id.into(),
            task_url: format!("https://tc.example.com/tasks/{task_id}"),
            task_group_url: format!("https://tc.example.com/tasks/groups/{task_id}"),
            body: "b".repeat(600),
            task: "t".repeat(1_000),
            logs: Vec::new(),
            notification: types::Notification {
                identity: "default".into(),
                subject: "It failed".into(),
                message: "A task failed & people should know".into(),
                emails: vec!["a@example.com".into()],
                nicks: Vec::new(),
                channels: Vec::new(),
                section: "{}".into(),
            },
        },
        time: Timestamp::UNIX_EPOCH,
        grant: Arc::new(grant),
        settings: Arc::default(),
        limits: Limits { table_elements_max: Limits::MOST.table_elements_max, ..Limits::default() },
        reads: TaskReads::new(Arc::new(Tasks::Memory(MemoryTasks::new(root))), id),
    }
}

// (b) The whole path, beside a consumer that only acks.

async fn whole_path(broker: &Broker) -> Result<()> {
    const EVENTS: u32 = 10_000;
    let alone = ack_only(broker, EVENTS).await?;
    let asked = captured(broker, EVENTS, |_| true).await?;
    let half = captured(broker, EVENTS, |number| number % 2 == 0).await?;
    let rate = |took: Duration| f64::from(EVENTS) / took.as_secs_f64();
    println!("(b) {EVENTS} tasks fetched over HTTP, one effect each, from publishing to the captured effect");
    println!("    only acking          {:.0} messages/s", rate(alone));
    println!("    whole path           {:.0} events/s, {:.3} ms CPU an event", rate(asked.took), asked.cpu_ms(EVENTS));
    println!("    whole path / acking  {:.2}", rate(asked.took) / rate(alone));
    println!("    half of them unasked {:.0} events/s, {:.3} ms CPU an event", rate(half.took), half.cpu_ms(EVENTS));
    Ok(())
}

fn messages(count: u32) -> impl Iterator<Item = Message> {
    (0..count).map(|number| failure(number).1)
}

async fn ack_only(broker: &Broker, count: u32) -> Result<Duration> {
    let world = World::new(broker, &[]).await?;
    world.vhost.declare_queue(&world.queue(), end_to_end::Queue::Classic).await?;
    world.vhost.bind(&world.queue(), &end_to_end::world::exchange("task-failed"), "#").await?;
    let channel = world.vhost.channel(&world.account).await?;
    channel.basic_qos(256, BasicQosOptions::default()).await?;
    let (queue, options) = (world.queue().as_str().into(), BasicConsumeOptions::default());
    let mut consumer = channel.basic_consume(queue, "".into(), options, FieldTable::default()).await?;
    let publisher = world.vhost.publisher().await?;
    let started = Instant::now();
    let consume = async {
        for _ in 0..count {
            let delivery = consumer.next().await.context("the consumer ended")??;
            delivery.acker.ack(BasicAckOptions::default()).await?;
        }
        Ok::<_, anyhow::Error>(())
    };
    tokio::try_join!(publisher.publish_many(messages(count)), consume)?;
    Ok(started.elapsed())
}

struct Taken {
    took: Duration,
    cpu: Duration,
}

impl Taken {
    fn cpu_ms(&self, events: u32) -> f64 {
        self.cpu.as_secs_f64() * 1_000.0 / f64::from(events)
    }
}

async fn captured(broker: &Broker, count: u32, asked: fn(u32) -> bool) -> Result<Taken> {
    let world = World::new(broker, &["smtp"]).await?;
    world.taskcluster.define_all(move |task_id| {
        let number = task_id.get(1..8).and_then(|number| number.parse().ok()).unwrap_or(0);
        definition(&if asked(number) { mail_to("a@example.com") } else { Value::Null })
    });
    let mut service = world.service(&["smtp"])?.env("PN_DELIVERY", "capture").env("LOG_LEVEL", "WARN");
    let port = start(&mut service).await?;
    let effects = (0..count).filter(|number| asked(*number)).count() as f64;
    let publisher = world.vhost.publisher().await?;
    let (cpu_before, started) = (cpu(&service)?, Instant::now());
    publisher.publish_many(messages(count)).await?;
    let handled = async || {
        let metrics = metrics(port).await?;
        let sum = |name: &str| metrics.iter().filter(|(line, _)| line.starts_with(name)).map(|(_, v)| v).sum::<f64>();
        Ok(sum("pulse_notifier_attempts_total") >= effects
            && sum("pulse_notifier_deliveries_total") >= f64::from(count))
    };
    wait::until("everything is captured", PATIENCE, handled).await?;
    Ok(Taken { took: started.elapsed(), cpu: cpu(&service)?.saturating_sub(cpu_before) })
}

/// Starts a service; the port of its figures.
async fn start(service: &mut Service) -> Result<u16> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let port = listener.local_addr()?.port();
    drop(listener);
    service.start_with(&[("PN_ADMIN", &format!("127.0.0.1:{port}"))])?;
    let ready =
        async || Ok(matches!(request(port, "GET", "/readyz", &[], "").await, Ok(answer) if answer.status == 200));
    wait::until("it is ready", PATIENCE, ready).await?;
    Ok(port)
}

async fn metrics(port: u16) -> Result<BTreeMap<String, f64>> {
    let text = request(port, "GET", "/metrics", &[], "").await?.body;
    let value = |line: &str| {
        let (name, value) = line.rsplit_once(' ')?;
        Some((name.to_owned(), value.parse().ok()?))
    };
    Ok(text.lines().filter_map(value).collect())
}

/// Processor time a service has used.
fn cpu(service: &Service) -> Result<Duration> {
    let pid = service.pid().context("it runs")?;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = stat.rsplit_once(')').context("stat")?.1.split_whitespace().collect();
    let ticks = |place: usize| fields.get(place).and_then(|ticks| ticks.parse::<u64>().ok()).context("ticks");
    // User and system time, in hundredths of a second.
    Ok(Duration::from_millis((ticks(11)? + ticks(12)?) * 10))
}

// (c) and (d): a mail server that accepts everything at once.

/// When each mail was accepted, by its recipient.
type Accepted = Arc<Mutex<HashMap<String, Instant>>>;

/// A server on a thread of its own, which does not wait for what the benchmark does meanwhile; it ends with the process.
async fn accepting_server() -> Result<(u16, Accepted)> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?.into_std()?;
    let (port, accepted) = (listener.local_addr()?.port(), Accepted::default());
    let mails = Arc::clone(&accepted);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let serve = async move {
        let listener = TcpListener::from_std(listener)?;
        loop {
            let (stream, _) = listener.accept().await?;
            tokio::runtime::Handle::current().spawn(accept(stream, Arc::clone(&mails)));
        }
    };
    std::thread::Builder::new()
        .name("mails".to_owned())
        .spawn(move || -> std::io::Result<()> { runtime.block_on(serve) })?;
    Ok((port, accepted))
}

/// Takes commands before it has answered the first, and answers all that it has together.
async fn accept(mut stream: TcpStream, mails: Accepted) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let (reader, writer) = stream.split();
    let (mut reader, mut writer) = (BufReader::new(reader), BufWriter::new(writer));
    let (mut line, mut recipient, mut in_data) = (String::new(), String::new(), false);
    writer.write_all(b"220 ready\r\n").await?;
    loop {
        if !reader.buffer().contains(&b'\n') {
            writer.flush().await?;
        }
        line.clear();
        if reader.read_line(&mut line).await? == 0 {
            return Ok(());
        }
        let answer: &[u8] = match (in_data, line.trim_end()) {
            (true, ".") => {
                in_data = false;
                mails.lock().unwrap_or_else(PoisonError::into_inner).insert(recipient.clone(), Instant::now());
                b"250 accepted\r\n"
            }
            (true, _) => continue,
            (false, "DATA") => {
                in_data = true;
                b"354 go on\r\n"
            }
            (false, said) if said.starts_with("EHLO ") => b"250-localhost\r\n250 PIPELINING\r\n",
            (false, said) => {
                if let Some(to) = said.strip_prefix("RCPT TO:<") {
                    recipient = to.trim_end_matches('>').to_owned();
                }
                b"250 ok\r\n"
            }
        };
        writer.write_all(answer).await?;
    }
}

fn mailing(world: &World, port: u16) -> Result<Service> {
    Ok(world
        .service(&["smtp"])?
        .env("SMTP_HOST", "127.0.0.1")
        .env("SMTP_PORT", port)
        .env("SMTP_SECURITY", "none")
        .env("SMTP_PASSWD", "")
        .env("LOG_LEVEL", "WARN"))
}

async fn mails(broker: &Broker) -> Result<()> {
    const EVENTS: u32 = 250;
    const EACH: usize = 20;
    let world = World::new(broker, &["smtp"]).await?;
    world.taskcluster.define_all(|task_id| {
        let emails: Vec<_> = (0..EACH).map(|number| format!("{number}.{task_id}@example.com")).collect();
        definition(&json!({"plugins": ["smtp"], "emails": emails}))
    });
    let (port, accepted) = accepting_server().await?;
    let mut service = mailing(&world, port)?;
    start(&mut service).await?;
    let started = Instant::now();
    world.vhost.publisher().await?.publish_many(messages(EVENTS)).await?;
    let all = EVENTS as usize * EACH;
    let count = || accepted.lock().unwrap_or_else(PoisonError::into_inner).len();
    wait::until("all mails are accepted", PATIENCE, async || Ok(count() >= all)).await?;
    println!(
        "(c) {all} mails to a server that only accepts: {:.0} mails/s",
        all as f64 / started.elapsed().as_secs_f64()
    );
    Ok(())
}

async fn latency(broker: &Broker) -> Result<()> {
    const EVENTS: u32 = 2_000;
    const PER_SECOND: u32 = 100;
    let world = World::new(broker, &["smtp"]).await?;
    world.taskcluster.define_all(|task_id| definition(&mail_to(&format!("{task_id}@example.com"))));
    let (port, accepted) = accepting_server().await?;
    let mut service = mailing(&world, port)?;
    start(&mut service).await?;
    let publisher = world.vhost.publisher().await?;
    let mut published = HashMap::new();
    let mut beat = tokio::time::interval(Duration::from_secs(1) / PER_SECOND);
    for number in 0..EVENTS {
        beat.tick().await;
        let (task_id, message) = failure(number);
        published.insert(format!("{task_id}@example.com"), Instant::now());
        publisher.publish_many([message]).await?;
    }
    let count = || accepted.lock().unwrap_or_else(PoisonError::into_inner).len();
    wait::until("all mails are accepted", PATIENCE, async || Ok(count() >= EVENTS as usize)).await?;
    let accepted = accepted.lock().unwrap_or_else(PoisonError::into_inner);
    let took = accepted.iter().filter_map(|(address, at)| Some(at.duration_since(*published.get(address)?)));
    let took = Quantiles::of(took.collect());
    println!("(d) from publishing to acceptance at {PER_SECOND}/s: p50 {:?}  p99 {:?}", took.p50, took.p99);
    Ok(())
}

struct Quantiles {
    p50: Duration,
    p99: Duration,
    mean: Duration,
}

impl Quantiles {
    fn of(mut times: Vec<Duration>) -> Self {
        times.sort();
        let at = |share: usize| times.get(times.len() * share / 100).copied().unwrap_or_default();
        let mean = times.iter().sum::<Duration>() / u32::try_from(times.len().max(1)).unwrap_or(u32::MAX);
        Self { p50: at(50), p99: at(99), mean }
    }
}
