//! Lines on an IRC server, over one connection that is kept.
//!
//! One task owns the connection, answers the server and takes one effect after the other; nothing waits here that could
//! wait in the store. A connection is made when there is something to say and none is open.

mod protocol;
#[cfg(test)]
mod script;
mod session;
mod throttle;

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::IrcAccount;
use crate::courier::Receipt;
use crate::effect;
use crate::retry;
use session::{Lost, Session};
use throttle::Throttle;

/// One account at one server. Dropping it ends its connection, and then its task.
pub struct Irc {
    orders: mpsc::Sender<Order>,
}

/// Something to say, and whom to tell how it went.
struct Order {
    irc: effect::Irc,
    receipt: oneshot::Sender<Receipt>,
}

/// What the task owns.
struct Connection {
    account: IrcAccount,
    session: Option<Session>,
    throttle: Throttle,
    /// Attempts to connect since a connection was last of use.
    attempts: u32,
    /// No attempt to connect before this time.
    rest_until: Instant,
}

impl Irc {
    /// A client of this account. Nothing is connected yet. Its task runs on `tracker` and ends, once this is dropped, when
    /// the server has been told; should it end before, it cancels `ended`.
    #[must_use]
    pub fn start(account: IrcAccount, tracker: &TaskTracker, ended: &CancellationToken) -> Self {
        let (orders, received) = mpsc::channel(1);
        let (connection, ended) = (Connection::new(account), ended.clone().drop_guard());
        tracker.spawn(async move {
            connection.run(received).await;
            ended.disarm();
        });
        Self { orders }
    }

    pub(super) async fn perform(&self, irc: &effect::Irc) -> Receipt {
        let (receipt, answer) = oneshot::channel();
        let order = Order { irc: irc.clone(), receipt };
        match self.orders.send(order).await {
            Ok(()) => answer.await.unwrap_or_else(|_| Receipt::InDoubt("the connection's task ended".into())),
            Err(_) => Receipt::Transient("the connection's task has ended".into()),
        }
    }
}

impl Connection {
    fn new(account: IrcAccount) -> Self {
        let throttle = Throttle::new(account.burst, account.line_every);
        Self { account, session: None, throttle, attempts: 0, rest_until: Instant::now() }
    }

    async fn run(mut self, mut orders: mpsc::Receiver<Order>) {
        loop {
            tokio::select! {
                order = orders.recv() => match order {
                    Some(Order { irc, receipt }) => drop(receipt.send(self.perform(&irc).await)),
                    None => break,
                },
                lost = listen(&mut self.session) => {
                    tracing::warn!(host = self.account.host, %lost, "the IRC connection is lost");
                    if let Some(session) = self.session.take() {
                        drop(self.part_with(session));
                    }
                }
            }
        }
        if let Some(session) = self.session {
            session.quit().await;
        }
    }

    async fn perform(&mut self, irc: &effect::Irc) -> Receipt {
        let mut session = match self.session.take() {
            Some(session) => session,
            None => match self.connect().await {
                Ok(session) => session,
                Err(receipt) => return receipt,
            },
        };
        match session.say(&mut self.throttle, irc).await {
            Ok(receipt) => {
                if matches!(receipt, Receipt::Delivered(_)) {
                    self.attempts = 0;
                }
                self.session = Some(session);
                receipt
            }
            Err(receipt) => {
                self.part_with(session).quit().await;
                receipt
            }
        }
    }

    /// Connects, after the rest that the attempts before it have earned.
    async fn connect(&mut self) -> Result<Session, Receipt> {
        sleep_until(self.rest_until).await;
        let connected = Session::connect(&self.account).await;
        // Being let in shows little: a server may let everybody in and throw them out.
        self.attempts = self.attempts.saturating_add(1);
        self.rest_until = Instant::now() + retry::jittered(rest(self.attempts));
        connected
    }

    fn part_with(&mut self, session: Session) -> Session {
        if session.age() >= OF_USE_AFTER {
            self.attempts = 0;
        }
        session
    }
}

/// Answers the server while there is nothing to say, until the connection is lost.
async fn listen(session: &mut Option<Session>) -> Lost {
    match session {
        Some(session) => session.listen_on().await,
        None => std::future::pending().await,
    }
}

/// How long not to connect after this many attempts: a second, doubled each time, at most a quarter of a minute.
fn rest(attempts: u32) -> Duration {
    REST_MAX.min(Duration::from_secs(1 << attempts.saturating_sub(1).min(4)))
}

/// Short enough for what waits here to be finished when the service shuts down.
const REST_MAX: Duration = Duration::from_secs(15);
/// A connection that lived for so long was of use, whether or not anything was said.
const OF_USE_AFTER: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::script::Server;
    use super::*;

    /// An account on a server that listens.
    async fn account() -> (IrcAccount, TcpListener) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let account = IrcAccount {
            host: "127.0.0.1".into(),
            port: listener.local_addr().unwrap().port(),
            tls: false,
            nick: "pulse".into(),
            real_name: "pulse".into(),
            password: None,
            burst: 4,
            line_every: Duration::from_secs(2),
        };
        (account, listener)
    }

    fn hello() -> effect::Irc {
        effect::Irc { account: "irc".into(), channel: "#ci".into(), lines: vec!["hello".into()] }
    }

    async fn hear_hello(server: &mut Server) {
        server.let_in("pulse", "#ci").await;
        server.expect("PRIVMSG #ci :hello").await;
        server.answer_ping().await;
    }

    #[test]
    fn the_rest_grows_to_a_quarter_of_a_minute() {
        let rests: Vec<_> = [1, 2, 3, 4, 5, 6, u32::MAX].map(|attempts| rest(attempts).as_secs()).into();
        assert_eq!(rests, [1, 2, 4, 8, 15, 15, 15]);
    }

    #[tokio::test]
    async fn a_server_that_lets_us_in_and_throws_us_out_is_given_more_and_more_rest() {
        let (account, listener) = account().await;
        let mut connection = Connection::new(account);
        for attempts in 1..=3 {
            let throw_out = async { Server::accept(&listener).await.welcome("pulse").await };
            let effect = hello();
            let (receipt, ()) = tokio::join!(connection.perform(&effect), throw_out);
            assert!(
                matches!(&receipt, Receipt::Transient(why) if why.starts_with("before the first line")),
                "{receipt:?}"
            );
            assert_eq!(connection.attempts, attempts);
            let rest_left = connection.rest_until.saturating_duration_since(Instant::now());
            assert!(rest_left > rest(attempts).mul_f64(0.5), "{rest_left:?} before attempt {}", attempts + 1);
            connection.rest_until = Instant::now(); // which spares the test that rest
        }
        let (effect, listen) = (hello(), async {
            let mut server = Server::accept(&listener).await;
            server.welcome("pulse").await;
            hear_hello(&mut server).await;
            server
        });
        let (receipt, _server) = tokio::join!(connection.perform(&effect), listen);
        assert_eq!(receipt, Receipt::Delivered("said as pulse".into()));
        assert_eq!(connection.attempts, 0, "only what was delivered shows that it works");
        assert!(connection.rest_until > Instant::now(), "and still there is a rest before the next attempt");
    }

    #[tokio::test]
    async fn a_channel_that_is_closed_to_us_is_no_sign_that_it_works() {
        let (account, listener) = account().await;
        let mut connection = Connection::new(account);
        let listen = async {
            let mut server = Server::accept(&listener).await;
            server.welcome("pulse").await;
            server.expect("JOIN #ci").await;
            server.say(&[":irc.test 473 pulse #ci :Invited users only"]).await;
            server.answer_ping().await;
            server
        };
        let effect = hello();
        let (receipt, _server) = tokio::join!(connection.perform(&effect), listen);
        assert_eq!(receipt, Receipt::Permanent("JOIN: Invited users only (473)".into()));
        assert!(connection.session.is_some(), "other channels may be open");
        assert_eq!(connection.attempts, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_lived_for_a_minute_was_of_use() {
        let (account, _listener) = account().await;
        let mut connection = Connection::new(account);
        for (age_s, attempts) in [(59, 5), (60, 0)] {
            connection.attempts = 5;
            let (_server, stream) = Server::pair(64);
            let session = Session::over(stream);
            tokio::time::advance(Duration::from_secs(age_s)).await;
            drop(connection.part_with(session));
            assert_eq!(connection.attempts, attempts, "{age_s} s");
        }
    }

    #[tokio::test]
    async fn between_two_attempts_it_rests() {
        let (account, listener) = account().await;
        drop(listener);
        let mut connection = Connection::new(account);
        let (began, effect) = (Instant::now(), hello());
        for _ in 0..2 {
            assert!(matches!(connection.perform(&effect).await, Receipt::Transient(_)));
        }
        assert!(began.elapsed() >= rest(1).mul_f64(0.8), "{:?}", began.elapsed());
    }

    #[tokio::test]
    async fn who_is_not_needed_any_more_takes_leave_and_its_task_is_waited_for() {
        let (account, listener) = account().await;
        let (tracker, ended) = (TaskTracker::new(), CancellationToken::new());
        let irc = Irc::start(account, &tracker, &ended);
        let server = async {
            let mut server = Server::accept(&listener).await;
            server.welcome("pulse").await;
            hear_hello(&mut server).await;
            server
        };
        let effect = hello();
        let (receipt, mut server) = tokio::join!(irc.perform(&effect), server);
        assert_eq!(receipt, Receipt::Delivered("said as pulse".into()));
        assert!(!ended.is_cancelled());
        drop(irc);
        tracker.close();
        let hang_up = async {
            server.expect("QUIT").await;
            server.say(&["ERROR :Closing link"]).await;
            drop(server);
        };
        tokio::join!(tracker.wait(), hang_up);
        assert!(!ended.is_cancelled(), "this end was wished for");
    }
}
