//! (e) and (f): what tenants notice of each other.

use std::cell::Cell;
use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use end_to_end::world::{definition, exchange, failure, mail_to};
use end_to_end::{Broker, Message, Service, World, guest, request, wait};
use futures_util::stream::{self, Stream, StreamExt};
use lapin::options::BasicConsumeOptions;
use lapin::types::FieldTable;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{Accepted, PATIENCE, Quantiles, accepting_server, cpu};

// (e) One tenant attacks; what becomes of the mails of the other.

/// What the attacker's tasks say, and how many of them wait in its queue all the time; one that floods publishes instead.
const ATTACKS: [(&str, Attack); 7] = [
    ("endless loops", Attack::Backlog("loop")),
    ("eaten memory", Attack::Backlog("eat memory")),
    ("1 MiB of mails each", Attack::Backlog("megabytes")),
    ("64 KiB of log each", Attack::Backlog("log flood")),
    ("sleeping", Attack::Backlog("sleep")),
    ("a flood, 10 times the neighbour's", Attack::Flood { times: 10, is_first: false }),
    ("the same, there before it", Attack::Flood { times: 10, is_first: true }),
];

#[derive(Clone, Copy)]
enum Attack {
    Backlog(&'static str),
    /// So many times as many as the neighbour's, which is at work when the flood comes, or comes when the flood is there.
    Flood {
        times: u32,
        is_first: bool,
    },
    /// A flood into a queue that nobody consumes: no attack, but what the broker and the machine make of the neighbour's
    /// messages when so many others are published, whoever would consume them.
    Unconsumed {
        times: u32,
    },
}

pub(super) async fn isolation(broker: &Broker) -> Result<()> {
    const SECONDS: u32 = 20;
    println!("(e) blue mails at a fifth of what the machine can do while red attacks: from publishing to acceptance,");
    println!("    and from publishing until a bare consumer has the same messages, which is the broker's part");
    let capacity = capacity(broker).await?;
    let rate = (capacity / 5.0) as u32;
    println!("    capacity {capacity:.0} events/s, one mail each; blue is offered {rate}/s for {SECONDS} s");
    let mut quiet_p99s = Vec::new();
    let mut attacked_p99s = Vec::new();
    // Quiet before and after, so that a machine that changes meanwhile is neither for nor against.
    let attacks = ATTACKS.map(|(name, attack)| (name, Some(attack)));
    let unconsumed = ("quiet, a flood that nobody consumes", Some(Attack::Unconsumed { times: 10 }));
    let rows = [("quiet", None)].into_iter().chain(attacks).chain([unconsumed, ("quiet again", None)]);
    for (name, attack) in rows {
        let took = attacked(broker, rate, SECONDS, attack).await?;
        let (mails, later, bare) =
            (Quantiles::of(took.mails), Quantiles::of(took.later_mails), Quantiles::of(took.bare));
        println!(
            "    {name:36} p50 {:>9.1?}  p99 {:>9.1?}  without the first second {:>9.1?}  broker {:>9.1?} {:>9.1?}  \
             published {:.0}/s, by red {:.0}/s",
            mails.p50, mails.p99, later.p99, bare.p50, bare.p99, took.offered_rate, took.flood_rate
        );
        match attack {
            None => quiet_p99s.push(mails.p99),
            Some(Attack::Unconsumed { .. }) => {}
            Some(_) => attacked_p99s.push((name, mails.p99)),
        }
    }
    let quiet = quiet_p99s.iter().sum::<Duration>() / u32::try_from(quiet_p99s.len())?;
    let aim = quiet * 2 + Duration::from_millis(10);
    println!("    quiet, the mean of both: p99 {quiet:.1?}; the aim is at most twice that and 10 ms, {aim:.1?}");
    for (name, p99) in attacked_p99s {
        println!(
            "    {name:36} {} {:.2} of it",
            if p99 <= aim { "within" } else { "ABOVE " },
            p99.div_duration_f64(aim)
        );
    }
    Ok(())
}

/// Two tenants, ready.
struct Neighbours {
    world: World,
    _service: Service,
    accepted: Accepted,
}

impl Neighbours {
    async fn start(broker: &Broker, attack: Option<Attack>) -> Result<Self> {
        let world = World::new(broker, &["smtp", "hostile"]).await?;
        let said = match attack {
            Some(Attack::Backlog(said)) => said,
            Some(Attack::Flood { .. } | Attack::Unconsumed { .. }) | None => "behave",
        };
        world.taskcluster.define_all(move |task_id| {
            let number: u32 = task_id.get(1..8).and_then(|number| number.parse().ok()).unwrap_or(0);
            definition(&if number < BLUE_MAX {
                mail_to(&format!("{task_id}@blue.example.com"))
            } else {
                let to = format!("{task_id}@red.example.com");
                json!({"plugins": ["hostile"], "emails": [to], "message": said})
            })
        });
        let (port, accepted) = accepting_server().await?;
        let account = |grants: &str, name: &str| {
            let tenant = world.tenant(name, &[]);
            let head = tenant.split("[accounts").next().unwrap_or_default();
            format!(
                "{head}[accounts.mail]\nkind = \"smtp\"\nhost = \"127.0.0.1\"\nport = {port}\nsecurity = \"none\"\n\
                 from = \"b@example.com\"\n{grants}"
            )
        };
        let red = account(
            "[accounts.chat]\nkind = \"irc\"\nhost = \"127.0.0.1\"\nport = 1\nnick = \"red\"\n\
             [plugins.hostile.grant]\nemail = { account = \"mail\", recipients = [\"*@red.example.com\"] }\n\
             irc = { account = \"chat\", channels = [\"#ci\"] }\n",
            "red",
        );
        let blue =
            account("[plugins.smtp.grant.email]\naccount = \"mail\"\nrecipients = [\"*@blue.example.com\"]\n", "blue");
        let mut tenants = vec![("blue", blue.as_str())];
        if let Some(Attack::Unconsumed { .. }) = attack {
            let queue = world.queue_of("red");
            world.vhost.declare_queue(&queue, end_to_end::Queue::Classic).await?;
            world.vhost.bind(&queue, &exchange("task-failed"), "red.#").await?;
        } else {
            tenants.push(("red", red.as_str()));
        }
        let mut service = world.service_of_tenants(&tenants)?.env("LOG_LEVEL", "CRITICAL");
        started(&mut service, &world, "", tenants.len()).await?;
        // What others wrote before would come to the disk half a minute later, before what is committed then.
        ensure!(std::process::Command::new("sync").status()?.success(), "sync failed");
        Ok(Self { world, _service: service, accepted })
    }

    fn mailed(&self, tenant: &str) -> usize {
        let accepted = self.accepted.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let address = format!("@{tenant}.example.com");
        accepted.keys().filter(|to| to.ends_with(&address)).count()
    }
}

const BLUE_MAX: u32 = 1_000_000;

fn message(tenant: &str, number: u32) -> (String, Message) {
    let (task_id, message) = failure(if tenant == "red" { BLUE_MAX + number } else { number });
    let routing_key = format!("{tenant}.{}", message.routing_key);
    (task_id, Message { routing_key, ..message })
}

async fn capacity(broker: &Broker) -> Result<f64> {
    const EVENTS: u32 = 5_000;
    let neighbours = Neighbours::start(broker, None).await?;
    let started = Instant::now();
    let messages = (0..EVENTS).map(|number| message("blue", number).1);
    neighbours.world.vhost.publisher().await?.publish_many(messages).await?;
    wait::until("all mails are accepted", PATIENCE, async || Ok(neighbours.mailed("blue") >= EVENTS as usize)).await?;
    Ok(f64::from(EVENTS) / started.elapsed().as_secs_f64())
}

/// How long blue's mails take, and how long its messages take to a consumer that does nothing.
struct Took {
    mails: Vec<Duration>,
    /// Without those of the first second, in which the other one still has in hand what it took when there was room.
    later_mails: Vec<Duration>,
    bare: Vec<Duration>,
    /// How many a second were published, by blue and by red, meanwhile.
    offered_rate: f64,
    flood_rate: f64,
}

async fn attacked(broker: &Broker, rate: u32, seconds: u32, attack: Option<Attack>) -> Result<Took> {
    let neighbours = Neighbours::start(broker, attack).await?;
    let had = bare_consumer(&neighbours.world).await?;
    // What a backlog costs to publish is not the attack.
    if let Some(Attack::Backlog(_)) = attack {
        let red = neighbours.world.vhost.publisher().await?;
        red.publish_many((0..40_000).map(|number| message("red", number).1)).await?;
    }
    let blue = neighbours.world.vhost.publisher().await?;
    let (over, mut flood_rate) = (Cell::new(false), 0.0);
    let attacking = async {
        let Some(Attack::Flood { times, .. } | Attack::Unconsumed { times }) = attack else { return Ok(()) };
        let (per_second, count) = (rate * times, rate * times * (seconds + FLOOD_LONGER_S));
        let flood = (0..count).map(|number| message("red", number).1);
        let took = neighbours.world.vhost.flood(&exchange("task-failed"), flood, per_second).await?;
        ensure!(over.get(), "the flood was over too soon");
        flood_rate = f64::from(count) / took;
        Ok(())
    };
    let is_flooded = async || {
        let has_begun = async || {
            Ok(match attack {
                None | Some(Attack::Backlog(_)) => true,
                Some(Attack::Flood { .. }) => neighbours.mailed("red") > 0,
                Some(Attack::Unconsumed { .. }) => {
                    neighbours.world.vhost.ready(&neighbours.world.queue_of("red")).await? > Some(0)
                }
            })
        };
        wait::until("the flood has begun", PATIENCE, has_begun).await
    };
    let offering = async {
        let mut published = HashMap::new();
        let offered = at_rate(rate).map(|number| {
            let (task_id, message) = message("blue", number);
            published.insert(task_id, Instant::now());
            message
        });
        let enough = CancellationToken::new();
        let publishing = blue.publish_as_they_come(offered.take_until(enough.cancelled()));
        let measured = async {
            is_flooded().await?;
            let from = Instant::now();
            tokio::time::sleep(Duration::from_secs(seconds.into())).await;
            enough.cancel();
            Ok(from)
        };
        let from = if let Some(Attack::Flood { is_first: false, .. }) = attack {
            tokio::try_join!(measured, publishing)?.0
        } else {
            is_flooded().await?;
            // The attack is under way before there is anything to measure.
            tokio::time::sleep(Duration::from_secs(1)).await;
            tokio::try_join!(measured, publishing)?.0
        };
        let all = async || Ok(neighbours.mailed("blue") >= published.len());
        wait::until("all of blue's mails", PATIENCE, all).await?;
        over.set(true);
        published.retain(|_, at| *at >= from);
        Ok::<_, anyhow::Error>((published, from))
    };
    let ((published, from), ()) = tokio::try_join!(offering, attacking)?;
    let accepted = neighbours.accepted.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let to = |task_id: &String| format!("{task_id}@blue.example.com");
    let mails =
        published.iter().filter_map(|(task_id, at)| Some((*at, accepted.get(&to(task_id))?.duration_since(*at))));
    let mails: Vec<_> = mails.collect();
    let later_mails = mails.iter().filter(|(at, _)| *at >= from + Duration::from_secs(1));
    let had = had.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let bare = published.iter().filter_map(|(task_id, at)| Some(had.get(task_id)?.duration_since(*at)));
    Ok(Took {
        later_mails: later_mails.map(|(_, took)| *took).collect(),
        mails: mails.into_iter().map(|(_, took)| took).collect(),
        bare: bare.collect(),
        offered_rate: f64::from(u32::try_from(published.len())?) / f64::from(seconds),
        flood_rate,
    })
}

/// For how much longer than blue is measured red floods.
const FLOOD_LONGER_S: u32 = 4;

/// So many numbers a second, from 0 and from when it is first asked, whatever becomes of those before.
fn at_rate(per_second: u32) -> impl Stream<Item = u32> {
    stream::unfold((0, None), move |(number, beat)| async move {
        let mut beat = beat.unwrap_or_else(|| tokio::time::interval(Duration::from_secs(1) / per_second));
        beat.tick().await;
        Some((number, (number + 1, Some(beat))))
    })
}

/// When a consumer of its own had blue's messages, by task.
async fn bare_consumer(world: &World) -> Result<Accepted> {
    let queue = format!("{}/bare", world.queue());
    world.vhost.declare_queue(&queue, end_to_end::Queue::Classic).await?;
    world.vhost.bind(&queue, &exchange("task-failed"), "blue.#").await?;
    let channel = world.vhost.channel(&world.account).await?;
    let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
    let mut consumer = channel.basic_consume(queue.as_str().into(), "".into(), options, FieldTable::default()).await?;
    let had = Accepted::default();
    let arrivals = std::sync::Arc::clone(&had);
    let consuming = async move {
        // As long as the channel lives.
        let _channel = channel;
        while let Some(Ok(delivery)) = consumer.next().await {
            let body: Value = serde_json::from_slice(&delivery.data).unwrap_or_default();
            let Some(task_id) = body.pointer("/status/taskId").and_then(Value::as_str) else { continue };
            let mut had = arrivals.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            had.insert(task_id.to_owned(), Instant::now());
        }
    };
    tokio::runtime::Handle::current().spawn(consuming);
    Ok(had)
}

// (f) Many tenants with a plugin of their own each.

pub(super) async fn two_hundred(broker: &Broker) -> Result<()> {
    const EVENTS: u32 = 10_000;
    println!("(f) {EVENTS} events for one tenant, and for 200 of whom each has a plugin of its own");
    let one = many(broker, 1, EVENTS).await?;
    let all = many(broker, 200, EVENTS).await?;
    for (name, of) in [("one", &one), ("200", &all)] {
        println!(
            "    {name:4} ready in {:.2?} compiling, in {:.2?} with what was compiled; {:.0} MiB; {:.0} events/s, {:.3} ms \
             CPU an event",
            of.cold,
            of.warm,
            of.rss_bytes / f64::from(1 << 20),
            f64::from(EVENTS) / of.took.as_secs_f64(),
            of.cpu.as_secs_f64() * 1_000.0 / f64::from(EVENTS),
        );
    }
    println!(
        "    memory of a tenant with its plugin {:.2} MiB",
        (all.rss_bytes - one.rss_bytes) / 199.0 / f64::from(1 << 20)
    );
    println!("    200 / one, events/s  {:.2}", one.took.as_secs_f64() / all.took.as_secs_f64());
    Ok(())
}

struct Many {
    cold: Duration,
    warm: Duration,
    rss_bytes: f64,
    took: Duration,
    cpu: Duration,
}

async fn many(broker: &Broker, count: usize, events: u32) -> Result<Many> {
    let world = World::new(broker, &[]).await?;
    world.taskcluster.define_all(|_| definition(&mail_to("a@example.com")));
    let mut tenants = Vec::new();
    for number in 0..count {
        let name = format!("t{number}");
        distinct(&world.plugin_folder().join(&name), number)?;
        tenants.push((name.clone(), world.tenant(&name, &[("smtp", &["*"])])));
    }
    let tenants: Vec<(&str, &str)> = tenants.iter().map(|(name, file)| (name.as_str(), file.as_str())).collect();
    let mut service = world.service_of_tenants(&tenants)?.env("LOG_LEVEL", "CRITICAL");
    let capture = "delivery = \"capture\"\n";
    let cold = started(&mut service, &world, capture, count).await?;
    service.terminate()?;
    service.wait_exit(PATIENCE).await?;
    let warm = started(&mut service, &world, capture, count).await?;
    let rss_bytes = rss(&service)?;
    let messages = (0..events).map(|number| {
        let (_, message) = failure(number);
        let routing_key = format!("t{}.{}", number as usize % count, message.routing_key);
        Message { routing_key, ..message }
    });
    let (before, began) = (cpu(&service)?, Instant::now());
    world.vhost.publisher().await?.publish_many(messages).await?;
    let store = end_to_end::world::store(&service);
    let delivered = "SELECT count(*) FROM effect WHERE state = 'delivered'";
    wait::until("everything is captured", PATIENCE, async || Ok(store.count(delivered)? >= i64::from(events))).await?;
    Ok(Many { cold, warm, rss_bytes, took: began.elapsed(), cpu: cpu(&service)?.saturating_sub(before) })
}

/// The smtp guest with a section of its own: other bytes, the same behaviour.
fn distinct(folder: &Path, number: usize) -> Result<()> {
    std::fs::create_dir(folder)?;
    let name = format!("tenant {number}");
    let length = u8::try_from(name.len())?;
    let mut wasm = std::fs::read(guest("smtp")?)?;
    wasm.extend([0, length + 1, length]);
    wasm.extend(name.as_bytes());
    Ok(std::fs::write(folder.join("smtp.wasm"), wasm)?)
}

/// Starts a service with the world's configuration and this before it; how long until so many queues are consumed.
async fn started(service: &mut Service, world: &World, head: &str, count: usize) -> Result<Duration> {
    let port = TcpListener::bind(("127.0.0.1", 0)).await?.local_addr()?.port();
    let configuration = world.configuration().replace("127.0.0.1:0", &format!("127.0.0.1:{port}"));
    std::fs::write(service.directory().join("pn.toml"), format!("{head}{configuration}"))?;
    let began = Instant::now();
    service.start()?;
    wait::until("all queues are consumed", PATIENCE, async || {
        let Ok(answer) = request(port, "GET", "/readyz", &[], "").await else { return Ok(false) };
        let said: Value = serde_json::from_str(&answer.body)?;
        let queues = said.get("queues").and_then(Value::as_object).context("the queues")?;
        Ok(queues.values().filter(|is| **is == "consuming").count() == count)
    })
    .await?;
    Ok(began.elapsed())
}

fn rss(service: &Service) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", service.pid().context("it runs")?))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("its memory")?;
    let kilobytes: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kilobytes * 1_024.0)
}
