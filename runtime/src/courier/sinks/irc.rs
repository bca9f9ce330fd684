//! Lines on an IRC server, over one connection that is kept.
//!
//! One task owns the connection, answers the server and takes one effect after the other; nothing waits here that could
//! wait in the store. A connection is made when there is something to say and none is open.

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
    /// A client of this account. Nothing is connected yet. Its task runs on `tracker` and cancels `ended` at its end,
    /// which comes, once this is dropped, when the server has been told.
    #[must_use]
    pub fn start(account: IrcAccount, tracker: &TaskTracker, ended: &CancellationToken) -> Self {
        let (orders, received) = mpsc::channel(1);
        let (connection, ended) = (Connection::new(account), ended.clone().drop_guard());
        tracker.spawn(async move {
            connection.run(received).await;
            drop(ended);
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
                        self.part_with(session);
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
                self.part_with(session);
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

    fn part_with(&mut self, session: Session) {
        if session.age() >= OF_USE_AFTER {
            self.attempts = 0;
        }
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
