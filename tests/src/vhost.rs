//! One test's virtual host: users, exchanges, queues, messages.
//! Each call opens a connection of its own, so no test can break the harness by breaking a channel.

use std::sync::Arc;

use anyhow::{Result, ensure};
use futures_util::stream::{self, Stream, StreamExt};
use lapin::message::Delivery;
use lapin::options::{
    BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions, QueueBindOptions,
    QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldArray, FieldTable};
use lapin::{BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, ErrorKind, ExchangeKind};

use crate::broker::Node;
use crate::corpus::Message;

/// A virtual host that nobody else uses.
pub struct Vhost {
    node: Arc<Node>,
    name: String,
    owner: Account,
}

/// A login of the broker.
#[derive(Clone, Debug)]
pub struct Account {
    /// The user name.
    pub login: String,
    /// The password.
    pub password: String,
}

/// The two kinds of durable queue.
#[derive(Clone, Copy, Debug)]
pub enum Queue {
    /// Declared without arguments.
    Classic,
    /// Declared with `x-queue-type: quorum`.
    Quorum,
}

/// What in a message is no UTF-8.
#[derive(Clone, Copy, Debug)]
pub enum Unreadable {
    /// Its routing key.
    RoutingKey,
    /// The name of a header.
    HeaderName,
}

/// What a queue holds at this moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Depth {
    /// Messages that wait for a consumer.
    pub ready: u64,
    /// Messages that a consumer holds.
    pub unacked: u64,
    /// Consumers of the queue.
    pub consumers: u64,
}

impl Vhost {
    pub(crate) async fn create(node: Arc<Node>, name: String) -> Result<Self> {
        let owner = Account { login: "guest".into(), password: "guest".into() };
        node.manage("PUT", &format!("/api/vhosts/{name}"), "").await?;
        let vhost = Self { node, name, owner };
        vhost.permit("guest", ".*", ".*").await?;
        Ok(vhost)
    }

    /// Its name, which needs no escaping in a URI.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The port of its broker.
    pub fn port(&self) -> u16 {
        self.node.amqp_port
    }

    /// The user who may do everything here.
    pub fn owner(&self) -> &Account {
        &self.owner
    }

    /// A user with the permissions Pulse gives: their own queues and exchanges, and reading from every exchange.
    pub async fn pulse_user(&self, login: &str) -> Result<Account> {
        let account = Account { login: login.to_owned(), password: format!("password-of-{login}") };
        let user = serde_json::json!({ "password": account.password, "tags": "" });
        self.node.manage("PUT", &format!("/api/users/{login}"), &user.to_string()).await?;
        let own = format!("^(queue/{login}/.*|exchange/{login}/.*)$");
        self.permit(login, &own, &format!("^(queue/{login}/.*|exchange/.*)$")).await?;
        Ok(account)
    }

    async fn permit(&self, login: &str, configure_and_write: &str, read: &str) -> Result<()> {
        let permissions =
            serde_json::json!({ "configure": configure_and_write, "write": configure_and_write, "read": read });
        self.node.manage("PUT", &format!("/api/permissions/{}/{login}", self.name), &permissions.to_string()).await?;
        Ok(())
    }

    /// The AMQP address of this virtual host for a user.
    pub fn uri(&self, account: &Account) -> String {
        format!("amqp://{}:{}@127.0.0.1:{}/{}", account.login, account.password, self.port(), self.name)
    }

    /// A channel on a connection of its own, which closes with it.
    pub async fn channel(&self, account: &Account) -> Result<Channel> {
        let connection = Connection::connect(&self.uri(account), ConnectionProperties::default()).await?;
        Ok(connection.create_channel().await?)
    }

    /// Declares durable topic exchanges.
    pub async fn declare_exchanges(&self, names: &[&str]) -> Result<()> {
        let channel = self.channel(&self.owner).await?;
        for name in names {
            let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
            channel.exchange_declare((*name).into(), ExchangeKind::Topic, options, FieldTable::default()).await?;
        }
        Ok(())
    }

    /// Declares a durable queue.
    pub async fn declare_queue(&self, name: &str, kind: Queue) -> Result<()> {
        let mut arguments = FieldTable::default();
        if let Queue::Quorum = kind {
            arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
        }
        let channel = self.channel(&self.owner).await?;
        channel.queue_declare(name.into(), QueueDeclareOptions::durable(), arguments).await?;
        Ok(())
    }

    /// Binds a queue to an exchange.
    pub async fn bind(&self, queue: &str, exchange: &str, routing_key: &str) -> Result<()> {
        let (options, arguments) = (QueueBindOptions::default(), FieldTable::default());
        let channel = self.channel(&self.owner).await?;
        channel.queue_bind(queue.into(), exchange.into(), routing_key.into(), options, arguments).await?;
        Ok(())
    }

    /// Deletes a queue, with consumers and all.
    pub async fn delete_queue(&self, name: &str) -> Result<()> {
        self.channel(&self.owner).await?.queue_delete(name.into(), QueueDeleteOptions::default()).await?;
        Ok(())
    }

    /// How many messages wait in a queue for a consumer, or nothing if there is no such queue. Exact and quick.
    pub async fn ready(&self, queue: &str) -> Result<Option<u32>> {
        let options = QueueDeclareOptions { passive: true, ..Default::default() };
        let channel = self.channel(&self.owner).await?;
        match channel.queue_declare(queue.into(), options, FieldTable::default()).await {
            Ok(state) => Ok(Some(state.message_count())),
            Err(error) => match error.kind() {
                ErrorKind::ProtocolError(reply) if reply.get_id() == NOT_FOUND => Ok(None),
                _ => Err(error.into()),
            },
        }
    }

    /// All that a queue holds, or nothing if there is no such queue. Exact, and takes a second.
    pub async fn depth(&self, queue: &str) -> Result<Option<Depth>> {
        let ask = DEPTH_OF_A_QUEUE.replace("VHOST", &self.name).replace("QUEUE", queue);
        let answer: Vec<u64> = serde_json::from_str(&self.node.control(&["eval", &ask]).await?)?;
        match answer.as_slice() {
            [ready, unacked, consumers] => Ok(Some(Depth { ready: *ready, unacked: *unacked, consumers: *consumers })),
            _ => Ok(None),
        }
    }

    /// Takes the first message off a queue, if there is one.
    pub async fn take(&self, queue: &str) -> Result<Option<Delivery>> {
        let options = BasicGetOptions { no_ack: true };
        let got = self.channel(&self.owner).await?.basic_get(queue.into(), options).await?;
        Ok(got.map(|message| message.delivery))
    }

    /// Publishes a message that no client can read which takes names for UTF-8. Takes a second.
    pub async fn publish_unreadable(&self, exchange: &str, what: Unreadable) -> Result<()> {
        let (routing_key, headers) = match what {
            Unreadable::RoutingKey => ("<<\"primary.\", 255>>", "[]"),
            Unreadable::HeaderName => ("<<\"primary\">>", "[{headers, [{<<\"x-\", 255>>, longstr, <<\"x\">>}]}]"),
        };
        let name = format!("rabbit_misc:r(<<\"{}\">>, exchange, <<\"{exchange}\">>)", self.name);
        let publish = format!("rabbit_basic:publish({name}, {routing_key}, {headers}, <<\"{{}}\">>).");
        let answer = self.node.control(&["eval", &publish]).await?;
        ensure!(answer.trim_end().ends_with("ok"), "{publish} was answered {answer}");
        Ok(())
    }

    /// Makes the broker itself publish messages to an exchange, so many a second, which costs less than to send them there.
    /// Returns once all are published: in how many seconds. Only routing keys and bodies matter.
    pub async fn flood(&self, exchange: &str, messages: impl Iterator<Item = Message>, per_second: u32) -> Result<f64> {
        let mut lines = String::new();
        for message in messages {
            lines.push_str(&format!("{} {}\n", message.routing_key, message.body));
        }
        let file = tempfile::NamedTempFile::new()?;
        tokio::fs::write(file.path(), &lines).await?;
        let ask = FLOOD.replace("VHOST", &self.name).replace("EXCHANGE", exchange);
        let ask = ask.replace("FILE", &file.path().display().to_string());
        let ask = ask.replace("PER_SECOND", &per_second.to_string());
        Ok(self.node.control(&["eval", &ask]).await?.trim().parse::<f64>()? / 1_000.0)
    }

    /// Makes the broker close every connection to this virtual host. Takes a second.
    pub async fn close_all_connections(&self) -> Result<()> {
        self.node.control(&["close_all_connections", "--vhost", &self.name, "asked by a test"]).await?;
        Ok(())
    }

    /// Publishes one message and waits for its confirmation.
    pub async fn publish(&self, exchange: &str, routing_key: &str, cc: &[&str], body: &[u8]) -> Result<()> {
        self.publisher().await?.publish(exchange, routing_key, cc, body).await
    }

    /// A channel in confirm mode, for publishing many messages.
    pub async fn publisher(&self) -> Result<Publisher> {
        let channel = self.channel(&self.owner).await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok(Publisher { channel })
    }
}

/// Publishes persistent JSON messages and insists on their confirmation.
pub struct Publisher {
    channel: Channel,
}

impl Publisher {
    /// Publishes one message and waits for its confirmation.
    pub async fn publish(&self, exchange: &str, routing_key: &str, cc: &[&str], body: &[u8]) -> Result<()> {
        self.publish_with(exchange, routing_key, cc_header(cc), body).await
    }

    /// Publishes one message with these headers, none if there are none, and waits for its confirmation.
    pub async fn publish_with(
        &self,
        exchange: &str,
        routing_key: &str,
        headers: FieldTable,
        body: &[u8],
    ) -> Result<()> {
        confirmed(self.send(exchange, routing_key, headers, body).await?.await?)
    }

    /// Publishes messages without waiting for each; returns once all are confirmed.
    pub async fn publish_many(&self, messages: impl IntoIterator<Item = Message>) -> Result<()> {
        self.publish_as_they_come(stream::iter(messages)).await
    }

    /// Publishes each message when it comes, whether those before it are confirmed or not; returns once all are.
    pub async fn publish_as_they_come(&self, messages: impl Stream<Item = Message>) -> Result<()> {
        let mut messages = std::pin::pin!(messages);
        let mut unconfirmed = std::collections::VecDeque::new();
        while let Some(message) = messages.next().await {
            let cc: Vec<&str> = message.cc.iter().map(String::as_str).collect();
            let body = serde_json::to_vec(&message.body)?;
            unconfirmed.push_back(self.send(&message.exchange, &message.routing_key, cc_header(&cc), &body).await?);
            if unconfirmed.len() > UNCONFIRMED_MAX
                && let Some(oldest) = unconfirmed.pop_front()
            {
                confirmed(oldest.await?)?;
            }
        }
        for confirmation in unconfirmed {
            confirmed(confirmation.await?)?;
        }
        Ok(())
    }

    async fn send(
        &self,
        exchange: &str,
        routing_key: &str,
        headers: FieldTable,
        body: &[u8],
    ) -> lapin::Result<impl Future<Output = lapin::Result<Confirmation>> + use<>> {
        let options = BasicPublishOptions::default();
        self.channel.basic_publish(exchange.into(), routing_key.into(), options, body, properties(headers)).await
    }
}

fn properties(headers: FieldTable) -> BasicProperties {
    let properties =
        BasicProperties::default().with_content_type("application/json".into()).with_delivery_mode(PERSISTENT);
    if headers.inner().is_empty() { properties } else { properties.with_headers(headers) }
}

fn cc_header(cc: &[&str]) -> FieldTable {
    let mut headers = FieldTable::default();
    if !cc.is_empty() {
        let routes: Vec<AMQPValue> = cc.iter().map(|route| AMQPValue::LongString((*route).into())).collect();
        headers.insert("CC".into(), AMQPValue::FieldArray(FieldArray::from(routes)));
    }
    headers
}

fn confirmed(confirmation: Confirmation) -> Result<()> {
    ensure!(matches!(confirmation, Confirmation::Ack(None)), "the broker answered {confirmation:?} to a message");
    Ok(())
}

const NOT_FOUND: u16 = 404;
const PERSISTENT: u8 = 2;
const UNCONFIRMED_MAX: usize = 1_000;

/// Answers with milliseconds.
const FLOOD: &str = r#"
    {ok, Text} = file:read_file("FILE"),
    Lines = binary:split(Text, <<"\n">>, [global, trim]),
    Exchange = rabbit_misc:r(<<"VHOST">>, exchange, <<"EXCHANGE">>),
    Publish = fun(Line) ->
        [Key, Body] = binary:split(Line, <<" ">>),
        ok = rabbit_basic:publish(Exchange, Key, [{delivery_mode, 2}], Body)
    end,
    Began = erlang:monotonic_time(millisecond),
    Since = fun() -> erlang:monotonic_time(millisecond) - Began end,
    Count = length(Lines),
    Flood = fun
        Flood([], _) -> Since();
        Flood(Rest, Done) ->
            Due = min(Since() * PER_SECOND div 1000, Count) - Done,
            {Now, Later} = lists:split(Due, Rest),
            lists:foreach(Publish, Now),
            timer:sleep(5),
            Flood(Later, Done + Due)
    end,
    Flood(Lines, 0)."#;

/// The broker's tables lag five seconds behind a quorum queue, so it is asked itself.
const DEPTH_OF_A_QUEUE: &str = r#"
    case rabbit_amqqueue:lookup(rabbit_misc:r(<<"VHOST">>, queue, <<"QUEUE">>)) of
        {error, not_found} -> [];
        {ok, Queue} ->
            Consumers = length(rabbit_amqqueue:consumers(Queue)),
            Counts = case amqqueue:get_type(Queue) of
                rabbit_quorum_queue ->
                    Ready = fun rabbit_fifo:query_messages_ready/1,
                    Unacked = fun rabbit_fifo:query_messages_checked_out/1,
                    Ask = fun(State) -> [Ready(State), Unacked(State)] end,
                    {ok, {_, Answer}, _} = ra:leader_query(amqqueue:get_pid(Queue), Ask),
                    Answer;
                _ ->
                    Answer = rabbit_amqqueue:info(Queue, [messages_ready, messages_unacknowledged]),
                    [Count || {_, Count} <- Answer]
            end,
            Counts ++ [Consumers]
    end."#;
