//! Lines on an IRC server: one connection for each account, kept open, and used by one effect at a time.
//!
//! A server says nothing about a line that it took. So each effect ends with a `PING`: when the answer is there, the
//! lines before it have reached the server. The library parses messages; connecting, joining, pacing and this fence are
//! done here, since its client does none of them.

mod connection;
mod pace;

use std::time::Duration;

use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::Instant;

use crate::config::IrcAccount;
use crate::courier::Receipt;
use crate::effect::Irc;
use connection::Connection;
use pace::Pace;

/// One account on one server. Cheap until it is used: the connection is made for the first effect.
pub struct IrcSink {
    account: IrcAccount,
    talker: Mutex<Option<mpsc::Sender<Say>>>,
}

/// One effect to perform, and where its receipt goes.
struct Say {
    irc: Irc,
    receipt: oneshot::Sender<Receipt>,
}

impl IrcSink {
    /// A client of this account. Nothing is connected yet.
    #[must_use]
    pub fn new(account: IrcAccount) -> Self {
        Self { account, talker: Mutex::default() }
    }

    pub(super) async fn perform(&self, irc: &Irc) -> Receipt {
        let (receipt, answer) = oneshot::channel();
        let say = Say { irc: irc.clone(), receipt };
        if self.talker().await.send(say).await.is_err() {
            return Receipt::Transient("the connection's task ended".into());
        }
        // It ends only with the runtime; whether the lines went out before that is not known.
        answer.await.unwrap_or_else(|_| Receipt::InDoubt("shut down while talking".into()))
    }

    /// The task that owns the connection, started when first needed.
    async fn talker(&self) -> mpsc::Sender<Say> {
        let mut talker = self.talker.lock().await;
        match &*talker {
            Some(sender) if !sender.is_closed() => sender.clone(),
            Some(_) | None => {
                let (sender, says) = mpsc::channel(1);
                // Not on a tracker: it ends when this sink, its only sender, is dropped.
                tokio::runtime::Handle::current().spawn(talk(self.account.clone(), says));
                talker.insert(sender).clone()
            }
        }
    }
}

/// Performs effects one after the other, and keeps the connection alive in between.
async fn talk(account: IrcAccount, mut says: mpsc::Receiver<Say>) {
    let mut connection: Option<Connection> = None;
    let mut pace = Pace::new(account.burst, account.line_every);
    let mut failures = 0;
    let mut not_before = Instant::now();
    loop {
        let say = match &mut connection {
            Some(open) => tokio::select! {
                say = says.recv() => say,
                // Answers the server's pings; ends when the server does.
                trouble = open.idle() => {
                    tracing::warn!(host = %account.host, %trouble, "IRC connection lost");
                    connection = None;
                    continue;
                }
            },
            None => says.recv().await,
        };
        let Some(Say { irc, receipt }) = say else { break };
        let mut open = match connection.take() {
            Some(open) => open,
            None => {
                tokio::time::sleep_until(not_before).await;
                match Connection::open(&account).await {
                    Ok(open) => {
                        failures = 0;
                        open
                    }
                    Err(trouble) => {
                        failures += 1;
                        not_before = Instant::now() + SHORTEST_PAUSE * 2_u32.pow(failures.min(5));
                        drop(receipt.send(trouble.before_any_line()));
                        continue;
                    }
                }
            }
        };
        let said = open.say(&irc, &mut pace).await;
        if open.is_usable() {
            connection = Some(open);
        }
        drop(receipt.send(said));
    }
    if let Some(open) = connection {
        open.quit().await;
    }
}

const SHORTEST_PAUSE: Duration = Duration::from_millis(500);
