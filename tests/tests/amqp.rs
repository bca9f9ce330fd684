//! Messages to exchanges, on a real broker: what is published, and what becomes of it when things go wrong.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result};
use end_to_end::world::{definition, exchange, failure, mail_to, store};
use end_to_end::{Account, Broker, Mode, Queue, Service, SmtpServer, Unreadable, Vhost, World, wait};
use futures_util::future::join_all;
use lapin::ExchangeKind;
use lapin::message::Delivery;
use lapin::options::ExchangeDeclareOptions;
use lapin::types::{AMQPValue, FieldTable};
use pulse_notifier::config::{self, Secret};
use pulse_notifier::courier::Receipt;
use pulse_notifier::courier::sinks::Sink;
use pulse_notifier::courier::sinks::amqp::Amqp;
use pulse_notifier::effect::{self, Effect, Hash};
use pulse_notifier::store::Claimed;
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(60);
const HOPS: &str = "x-pulse-notifier-hops";
const RECEIVED: &str = "received";

// ---- the service, with the plugin `repulse`

async fn world() -> Result<World> {
    World::new(Broker::shared().await?, &["smtp", "repulse"]).await
}

/// The exchange of this name that belongs to the world's user.
fn own(world: &World, name: &str) -> String {
    format!("exchange/{}/{name}", world.account.login)
}

/// Somebody listens: whatever is published to this exchange of the user's comes into a queue.
async fn listen(world: &World, name: &str) -> Result<()> {
    let exchange = own(world, name);
    world.vhost.declare_exchanges(&[&exchange]).await?;
    world.vhost.declare_queue(RECEIVED, Queue::Classic).await?;
    world.vhost.bind(RECEIVED, &exchange, "#").await
}

async fn received(vhost: &Vhost) -> Result<Delivery> {
    wait::until_some("a message comes", SOON, async || vhost.take(RECEIVED).await).await
}

async fn started(world: &World, env: &[(&str, &str)]) -> Result<Service> {
    let mut service = world.service(&["repulse"])?.env("REPULSE_EXCHANGE", "again");
    service.start_with(env)?;
    service.wait_for_output("consuming", SOON).await?;
    Ok(service)
}

fn wanted() -> Value {
    json!({"plugins": ["repulse"]})
}

fn hops(message: &Delivery) -> Option<u32> {
    match message.properties.headers().as_ref()?.inner().get(HOPS)? {
        AMQPValue::LongUInt(hops) => Some(*hops),
        _ => None,
    }
}

#[tokio::test]
async fn an_event_is_published_again_as_it_came() -> Result<()> {
    let world = world().await?;
    listen(&world, "again").await?;
    let service = started(&world, &[]).await?;
    let (_, mut message) = world.failed_task(&wanted());
    message.cc = vec!["route.index.releases.v1.example".into()];
    world.publish(&message).await?;

    let again = received(&world.vhost).await?;
    assert_eq!(again.data, serde_json::to_vec(&message.body)?);
    assert_eq!(again.exchange.as_str(), own(&world, "again"));
    assert_eq!(again.routing_key.as_str(), message.routing_key);
    let store = store(&service);
    let id = store.rows("SELECT LOWER(HEX(id)) FROM effect")?.concat();
    let properties = &again.properties;
    assert_eq!(properties.content_type().as_ref().map(|text| text.as_str()), Some("application/json"));
    assert_eq!(*properties.delivery_mode(), Some(2));
    assert_eq!(properties.message_id().as_ref().map(|text| text.as_str()), Some(id.as_str()));
    let headers = properties.headers().clone().context("headers")?;
    assert_eq!(headers.inner().get(HOPS), Some(&AMQPValue::LongUInt(1)));
    let effect = Some(&AMQPValue::LongString(id.as_str().into()));
    assert_eq!(headers.inner().get("x-pulse-notifier-effect"), effect);
    assert_eq!(headers.inner().len(), 2, "no CC: {headers:?}");

    let told = "SELECT state || ' ' || CAST(reason AS TEXT) FROM effect";
    wait::until("it is on record", SOON, async || Ok(store.rows(told)? == ["delivered confirmed"])).await?;
    assert_eq!(world.vhost.ready(RECEIVED).await?, Some(0));
    Ok(())
}

#[tokio::test]
async fn the_operator_may_choose_the_routing_key() -> Result<()> {
    let world = world().await?;
    listen(&world, "again").await?;
    let _service = started(&world, &[("REPULSE_ROUTING_KEY", "builds.broken")]).await?;
    let (_, message) = world.failed_task(&wanted());
    world.publish(&message).await?;
    assert_eq!(received(&world.vhost).await?.routing_key.as_str(), "builds.broken");
    Ok(())
}

#[tokio::test]
async fn with_nobody_bound_there_it_is_delivered_and_the_exchange_is_there() -> Result<()> {
    let world = world().await?;
    let service = started(&world, &[]).await?;
    let (_, message) = world.failed_task(&wanted());
    world.publish(&message).await?;
    let store = store(&service);
    let told = "SELECT state || ' ' || COALESCE(CAST(reason AS TEXT), '') || ' ' || attempt FROM effect ORDER BY seq";
    wait::until("it is on record", SOON, async || Ok(store.rows(told)? == ["delivered unrouted 1"])).await?;
    listen(&world, "again").await?; // which would fail, were it not a durable topic
    let (_, message) = world.failed_task(&wanted());
    world.publish(&message).await?;
    assert_eq!(received(&world.vhost).await?.data, serde_json::to_vec(&message.body)?);
    Ok(())
}

#[tokio::test]
async fn an_exchange_that_is_there_and_is_different_is_used_as_it_is() -> Result<()> {
    let world = world().await?;
    let channel = world.vhost.channel(world.vhost.owner()).await?;
    let (options, none) = (ExchangeDeclareOptions::default(), FieldTable::default());
    channel.exchange_declare(own(&world, "again").into(), ExchangeKind::Fanout, options, none).await?;
    world.vhost.declare_queue(RECEIVED, Queue::Classic).await?;
    world.vhost.bind(RECEIVED, &own(&world, "again"), "").await?;
    let _service = started(&world, &[]).await?;
    let (_, message) = world.failed_task(&wanted());
    world.publish(&message).await?;
    assert_eq!(received(&world.vhost).await?.routing_key.as_str(), message.routing_key);
    Ok(())
}

#[tokio::test]
async fn two_hundred_at_once_are_each_confirmed_once() -> Result<()> {
    const ALL: u32 = 200;
    let world = world().await?;
    listen(&world, "again").await?;
    world.taskcluster.define_all(|_| definition(&wanted()));
    let service = started(&world, &[]).await?;
    world.vhost.publisher().await?.publish_many((0..ALL).map(|number| failure(number).1)).await?;
    let store = store(&service);
    let confirmed = "SELECT COUNT(*) FROM effect WHERE state = 'delivered' AND attempt = 1 AND in_doubt = 0 \
                     AND CAST(reason AS TEXT) = 'confirmed'";
    wait::until("all are confirmed", SOON, async || Ok(store.count(confirmed)? == i64::from(ALL))).await?;
    assert_eq!(world.vhost.ready(RECEIVED).await?, Some(ALL));
    let mut ids = BTreeSet::new();
    for _ in 0..ALL {
        let message = world.vhost.take(RECEIVED).await?.context("a message")?;
        ids.insert(message.properties.message_id().as_ref().map(ToString::to_string));
    }
    assert_eq!(ids.len(), usize::try_from(ALL)?);
    Ok(())
}

#[tokio::test]
async fn what_the_tenant_consumes_from_is_not_published_to() -> Result<()> {
    let world = world().await?;
    listen(&world, "again").await?;
    let exchanges = format!("task-failed:{}", own(&world, "again"));
    let service = started(&world, &[("PULSE_EXCHANGES", &exchanges)]).await?;
    let (_, message) = world.failed_task(&wanted());
    world.publish(&message).await?;
    let store = store(&service);
    let ended = "SELECT state || ' ' || CAST(reason AS TEXT) FROM invocation";
    wait::until("it has ended", SOON, async || Ok(!store.rows(ended)?.is_empty())).await?;
    let ended = store.rows(ended)?.concat();
    assert!(ended.starts_with("failed ") && ended.contains("which the tenant consumes from"), "{ended}");
    assert_eq!(store.count("SELECT COUNT(*) FROM effect WHERE state <> 'refused'")?, 0);
    world.queue_is_empty().await?;
    assert_eq!(world.vhost.ready(RECEIVED).await?, Some(0));
    Ok(())
}

/// Somebody else's relay: publishes what was received as an event once more, hop header and all.
async fn relay(world: &World, message: &Delivery, body: &Value) -> Result<()> {
    let mut headers = FieldTable::default();
    headers.insert(HOPS.into(), AMQPValue::LongUInt(hops(message).context("the hop header")?));
    let key = message.routing_key.as_str();
    let publisher = world.vhost.publisher().await?;
    publisher.publish_with(&exchange("task-failed"), key, headers, &serde_json::to_vec(body)?).await
}

#[tokio::test]
async fn relayed_in_a_circle_as_something_new_each_time_it_ends_at_the_third_hop() -> Result<()> {
    let world = world().await?;
    listen(&world, "again").await?;
    world.taskcluster.define_all(|_| definition(&wanted()));
    let service = started(&world, &[]).await?;
    world.publish(&failure(0).1).await?;
    for hop in 1..=3 {
        let message = received(&world.vhost).await?;
        assert_eq!(hops(&message), Some(hop));
        relay(&world, &message, &failure(hop).1.body).await?;
    }
    let store = store(&service);
    let ended = "SELECT state || ' ' || COALESCE(CAST(reason AS TEXT), '') FROM invocation ORDER BY id";
    wait::until("the fourth has ended", SOON, async || Ok(store.rows(ended)?.len() == 4)).await?;
    let ended = store.rows(ended)?;
    assert!(ended[..3].iter().all(|ended| ended == "done "), "{ended:?}");
    assert!(ended[3].starts_with("failed ") && ended[3].contains("relayed 3 times"), "{ended:?}");
    assert_eq!(store.count("SELECT COUNT(*) FROM effect WHERE state <> 'refused'")?, 3);
    assert_eq!(world.vhost.ready(RECEIVED).await?, Some(0));
    Ok(())
}

#[tokio::test]
async fn relayed_in_a_circle_as_the_same_it_ends_at_once() -> Result<()> {
    let world = world().await?;
    listen(&world, "again").await?;
    world.taskcluster.define_all(|_| definition(&wanted()));
    let service = started(&world, &[]).await?;
    let (first, last) = (failure(0).1, failure(1).1);
    world.publish(&first).await?;
    relay(&world, &received(&world.vhost).await?, &first.body).await?;
    world.publish(&last).await?;
    assert_eq!(received(&world.vhost).await?.data, serde_json::to_vec(&last.body)?);
    world.queue_is_empty().await?;
    assert_eq!(store(&service).count("SELECT COUNT(*) FROM effect")?, 2);
    assert_eq!(world.vhost.ready(RECEIVED).await?, Some(0));
    Ok(())
}

#[tokio::test]
async fn it_goes_on_when_connections_are_closed_and_when_the_broker_is_killed() -> Result<()> {
    let mut broker = Broker::private().await?;
    let world = World::new(&broker, &["smtp", "repulse"]).await?;
    listen(&world, "again").await?;
    world.taskcluster.define_all(|_| definition(&wanted()));
    let service = started(&world, &[]).await?;
    for number in 0..3 {
        let (_, message) = failure(number);
        world.publish(&message).await?;
        let body = serde_json::to_vec(&message.body)?;
        // What was taken just before the broker was killed, it may have forgotten was taken.
        let comes = async || Ok(world.vhost.take(RECEIVED).await?.is_some_and(|again| again.data == body));
        wait::until("it comes", SOON, comes).await?;
        match number {
            0 => world.vhost.close_all_connections().await?,
            1 => {
                broker.kill().await?;
                broker.start_again().await?;
            }
            _ => {}
        }
    }
    let store = store(&service);
    let delivered = "SELECT COUNT(*) FROM effect WHERE state = 'delivered'";
    wait::until("all are delivered", SOON, async || Ok(store.count(delivered)? == 3)).await
}

#[tokio::test]
async fn what_cannot_be_read_is_taken_out_and_all_else_arrives() -> Result<()> {
    for (what, kind) in [(Unreadable::RoutingKey, Queue::Classic), (Unreadable::HeaderName, Queue::Quorum)] {
        let world = world().await?;
        let failed = exchange("task-failed");
        world.vhost.declare_queue(&world.queue(), kind).await?;
        world.vhost.bind(&world.queue(), &failed, "#").await?;
        let mut service = world.service(&["smtp"])?;
        for round in [0, 1] {
            let address = |place: u32| format!("{}@example.com", 2 * round + place);
            let (_, before) = world.failed_task(&mail_to(&address(0)));
            let (_, after) = world.failed_task(&mail_to(&address(1)));
            world.publish(&before).await?;
            world.vhost.publish_unreadable(&failed, what).await?;
            world.publish(&after).await?;
            if round == 0 {
                // All three wait for it; the next three come while it consumes.
                service.start()?;
            }
            let mut mailed: Vec<_> = world.smtp.wait_for_mails(2 * (usize::try_from(round)? + 1), SOON).await?;
            let mailed: BTreeSet<_> = mailed.drain(..).map(|mail| mail.to.concat()).collect();
            let expected: BTreeSet<_> = (0..2 * (round + 1)).map(|number| format!("{number}@example.com")).collect();
            assert_eq!(mailed, expected, "{what:?}");
            let store = store(&service);
            let dead = "SELECT CAST(reason AS TEXT) FROM dead_delivery";
            let expected = usize::try_from(round)? + 1;
            // A quorum queue hands it out again after what followed it.
            let told = async || Ok(store.rows(dead)?.len() >= expected);
            wait::until("it is on record", SOON, told).await?;
            let dead = store.rows(dead)?;
            assert_eq!(dead.len(), expected, "{what:?}: {dead:?}");
            assert!(dead.iter().all(|reason| reason.starts_with("a header that is no UTF-8")), "{dead:?}");
        }
        world.queue_is_empty().await?;
        assert!(service.output().contains("taken off the queue unread"));
        assert_eq!(world.smtp.mails()?.len(), 4, "each once");
    }
    Ok(())
}

// ---- the sink alone

fn account(vhost: &Vhost, account: &Account) -> config::Broker {
    config::Broker {
        host: "localhost".into(),
        port: vhost.port(),
        tls: false,
        vhost: vhost.name().into(),
        login: account.login.clone(),
        password: Secret::new(account.password.clone()),
    }
}

fn sink(broker: config::Broker) -> Sink {
    Sink::Amqp(Box::new(Amqp::new(broker)))
}

fn claimed(number: u32, exchange: &str, unrouted: bool) -> Claimed {
    let id = Hash::of([number.to_le_bytes().as_slice()]);
    let effect = Effect::Amqp(effect::Amqp {
        account: "pulse".into(),
        exchange: exchange.into(),
        routing_key: "primary".into(),
        content_type: "application/json".into(),
        body: b"{}".to_vec(),
        hops: 1,
        unrouted,
    });
    let (tenant, plugin) = ("default".into(), "repulse".into());
    Claimed { seq: 1, id, call: id, tenant, plugin, attempt: 1, failures: 0, in_doubt: 0, created_ms: 0, effect }
}

/// What each kind of exchange is called here, and what becomes of a message there.
const FATES: [(&str, bool, &str); 4] = [
    ("bound", false, "Delivered(\"confirmed\")"),
    ("unbound", true, "Delivered(\"unrouted\")"),
    ("unbound", false, "Transient(\"unrouted: no queue is bound there\")"),
    ("missing", true, "Transient(\"publish: protocol error: AMQP soft error: NOT-FOUND: "),
];

#[tokio::test]
async fn each_of_many_at_once_has_its_own_answer_and_a_refusal_harms_no_other() -> Result<()> {
    let vhost = Broker::shared().await?.vhost().await?;
    vhost.declare_exchanges(&["bound", "unbound"]).await?;
    vhost.declare_queue(RECEIVED, Queue::Classic).await?;
    vhost.bind(RECEIVED, "bound", "#").await?;
    let sink = sink(account(&vhost, vhost.owner()));
    let mut bound = 0;
    for round in 0..20 {
        let fates: Vec<_> = (0..64).map(|number| FATES[(number + number / 7 + round) % FATES.len()]).collect();
        bound += u32::try_from(fates.iter().filter(|(exchange, ..)| *exchange == "bound").count())?;
        let claimed =
            fates.iter().zip(0..).map(|((exchange, unrouted, _), number)| claimed(number, exchange, *unrouted));
        let claimed: Vec<_> = claimed.collect();
        let receipts = join_all(claimed.iter().map(|claimed| sink.perform(claimed))).await;
        for ((exchange, _, expected), receipt) in fates.iter().zip(receipts) {
            let receipt = format!("{receipt:?}");
            assert!(receipt.starts_with(expected), "{exchange}: {receipt}");
        }
    }
    assert_eq!(vhost.ready(RECEIVED).await?, Some(bound));
    Ok(())
}

#[tokio::test]
async fn what_a_person_must_mend_suspends() -> Result<()> {
    let vhost = Broker::shared().await?.vhost().await?;
    vhost.declare_exchanges(&["exchange/other/builds"]).await?;
    let login = format!("user-of-{}", vhost.name());
    let user = vhost.pulse_user(&login).await?;
    let (us, own) = (account(&vhost, &user), format!("exchange/{login}/builds"));
    let someone_else = Account { password: "wrong-secret".into(), ..user.clone() };
    let tls = SmtpServer::start(Mode::Tls).await?;
    let sinks = [
        ("ACCESS_REFUSED", account(&vhost, &someone_else), own.as_str()),
        ("NOT_ALLOWED", config::Broker { vhost: "nowhere".into(), ..us.clone() }, own.as_str()),
        ("certificate", config::Broker { tls: true, port: tls.port(), ..us.clone() }, own.as_str()),
    ];
    for (word, broker, exchange) in sinks {
        let receipt = sink(broker).perform(&claimed(0, exchange, true)).await;
        let Receipt::Suspended(why) = &receipt else { panic!("{word}: {receipt:?}") };
        assert!(why.contains(word) && !why.contains("wrong-secret"), "{word}: {why}");
    }
    // An exchange that is not ours to write to was a plugin's choice: messages to others do not wait for it.
    let receipt = sink(us.clone()).perform(&claimed(0, "exchange/other/builds", true)).await;
    assert!(matches!(&receipt, Receipt::Transient(why) if why.contains("ACCESS_REFUSED")), "{receipt:?}");
    let nobody_there = config::Broker { port: 1, ..us };
    let receipt = sink(nobody_there).perform(&claimed(0, &own, true)).await;
    assert!(matches!(receipt, Receipt::Transient(_)), "{receipt:?}");
    Ok(())
}

#[tokio::test]
async fn a_broker_without_room_is_waited_for() -> Result<()> {
    let broker = Broker::private().await?;
    let vhost = broker.vhost().await?;
    vhost.declare_exchanges(&["builds"]).await?;
    let sink = sink(account(&vhost, vhost.owner()));
    let delivered = Receipt::Delivered("unrouted".into());
    assert_eq!(sink.perform(&claimed(0, "builds", true)).await, delivered);
    broker.block_publishers().await?;
    let first = claimed(1, "builds", true);
    let others = async {
        wait::until("others are told", SOON, async || {
            let receipt = sink.perform(&claimed(2, "builds", true)).await;
            Ok(matches!(receipt, Receipt::Transient(why) if why.contains("blocked")))
        })
        .await?;
        broker.unblock_publishers().await
    };
    let (first, others) = tokio::join!(sink.perform(&first), others);
    others?;
    assert_eq!(first, delivered, "it had been written, and is not in doubt");
    wait::until("others go on", SOON, async || Ok(sink.perform(&claimed(3, "builds", true)).await == delivered)).await
}

#[tokio::test]
async fn a_message_that_was_written_and_not_confirmed_is_in_doubt_and_one_that_was_not_written_is_not() -> Result<()> {
    let mut broker = Broker::private().await?;
    let vhost = broker.vhost().await?;
    vhost.declare_exchanges(&["builds"]).await?;
    let sink = sink(account(&vhost, vhost.owner()));
    let delivered = Receipt::Delivered("unrouted".into());
    assert_eq!(sink.perform(&claimed(0, "builds", true)).await, delivered);
    broker.freeze().await?;
    let written = claimed(1, "builds", true);
    let (written, killed) = tokio::join!(sink.perform(&written), broker.kill());
    killed?;
    assert!(matches!(&written, Receipt::InDoubt(why) if why.starts_with("published")), "{written:?}");
    let receipt = sink.perform(&claimed(2, "builds", true)).await;
    assert!(matches!(&receipt, Receipt::Transient(why) if why.starts_with("connect: ")), "{receipt:?}");
    broker.start_again().await?;
    wait::until("it goes on", SOON, async || Ok(sink.perform(&claimed(2, "builds", true)).await == delivered)).await
}
