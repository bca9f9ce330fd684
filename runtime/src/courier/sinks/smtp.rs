//! Mail by an SMTP server: one mail, one recipient, one envelope.
//!
//! The protocol is driven step by step rather than by the library's transport, because what a failure means depends on
//! the step: before the final dot nothing was sent, after it nobody knows until the server answers.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use lettre::Address;
use lettre::transport::smtp::authentication::{Credentials, DEFAULT_MECHANISMS};
use lettre::transport::smtp::client::{AsyncSmtpConnection, TlsParameters};
use lettre::transport::smtp::commands::{Data, Ehlo, Mail, Rcpt, Rset};
use lettre::transport::smtp::extension::{ClientId, Extension, MailParameter};
use lettre::transport::smtp::response::Response;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::mail;
use crate::causes::causes;
use crate::config::{SmtpAccount, SmtpSecurity};
use crate::courier::Receipt;
use crate::effect::Email;
use crate::store::Claimed;
use crate::tls;

/// Connections to one server at the same time.
pub(super) const CONNECTIONS_MAX: usize = 16;

/// One account at one server, with the connections that wait for the next mail.
pub struct Smtp {
    account: SmtpAccount,
    tls: Option<TlsParameters>,
    hello: ClientId,
    idle: Mutex<Vec<Idle>>,
}

struct Idle {
    connection: Connection,
    since: Instant,
}

struct Connection {
    smtp: AsyncSmtpConnection,
    /// Whether the server takes several commands before it answers the first (PIPELINING, RFC 2920).
    pipelines: bool,
    /// An answer is still to come that nobody waits for.
    is_out_of_step: bool,
}

/// How far an attempt had come when it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Connect,
    StartTls,
    Login,
    Sender,
    Recipient,
    Data,
    Body,
}

/// Why an attempt failed.
struct Failure {
    step: Step,
    cause: Cause,
    what: String,
}

/// Who or what made an attempt fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    /// The server said so.
    Answer(u16),
    /// What the configuration asks for is not to be had there: TLS, a certificate that proves who it is, a login.
    Configuration,
    /// No answer: the network, or a server that went away.
    Silence,
}

impl Smtp {
    /// A client of this account. Nothing is connected yet.
    ///
    /// # Errors
    /// When the platform's certificates cannot be read or the host is no name.
    pub fn new(account: SmtpAccount) -> Result<Self, lettre::transport::smtp::Error> {
        let tls = match account.security {
            SmtpSecurity::None => None,
            SmtpSecurity::StartTls | SmtpSecurity::Tls => Some(TlsParameters::new(account.host.clone())?),
        };
        Ok(Self { account, tls, hello: ClientId::default(), idle: Mutex::default() })
    }

    pub(super) async fn perform(&self, claimed: &Claimed, email: &Email) -> Receipt {
        let recipient = match email.recipient.parse() {
            Ok(recipient) => recipient,
            Err(error) => return Receipt::Refused(format!("recipient: {error}")),
        };
        let body = match mail::built(&self.account.sender, claimed, email).await {
            Ok(body) => body,
            Err(error) => return error.receipt(),
        };
        match self.send(&recipient, &body).await {
            Ok(response) => Receipt::Delivered(first_line(&response)),
            Err(failure) => failure.receipt(self.account.login.is_some()),
        }
    }

    async fn send(&self, recipient: &Address, body: &[u8]) -> Result<Response, Failure> {
        if let Some(mut connection) = self.take_idle() {
            match self.send_on(&mut connection, recipient, body).await {
                // The server closed it while it was idle; nothing was sent, and a new connection may do.
                Err(Failure { step: Step::Sender, cause: Cause::Silence | Cause::Answer(421), .. }) => {}
                sent => return self.done_with(connection, sent).await,
            }
        }
        let mut connection = self.connect().await?;
        let sent = self.send_on(&mut connection, recipient, body).await;
        self.done_with(connection, sent).await
    }

    /// Puts a connection back unless it is broken; after a rejection the server is told to forget the mail.
    async fn done_with(
        &self,
        mut connection: Connection,
        sent: Result<Response, Failure>,
    ) -> Result<Response, Failure> {
        let usable = match &sent {
            _ if connection.is_out_of_step => false,
            Ok(_) => true,
            Err(Failure { step: Step::Recipient | Step::Data | Step::Body, cause: Cause::Answer(_), .. }) => {
                matches!(timeout(SHORT, connection.smtp.command(Rset)).await, Ok(Ok(_)))
            }
            Err(_) => false,
        };
        if usable {
            self.idle().push(Idle { connection, since: Instant::now() });
        }
        sent
    }

    fn take_idle(&self) -> Option<Connection> {
        let mut idle = self.idle();
        idle.retain(|idle| idle.since.elapsed() < IDLE_MAX);
        idle.pop().map(|idle| idle.connection)
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Idle>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn connect(&self) -> Result<Connection, Failure> {
        let account = &self.account;
        let mut smtp = if account.security == SmtpSecurity::Tls {
            let (address, tls) = ((account.host.as_str(), account.port), self.tls.clone());
            let connecting = AsyncSmtpConnection::connect_tokio1(address, Some(SHORT), &self.hello, tls, None);
            step(Step::Connect, SHORT, connecting).await?
        } else {
            let stream = Box::new(self.dial().await?);
            step(Step::Connect, SHORT, AsyncSmtpConnection::connect_with_transport(stream, &self.hello)).await?
        };
        if let (Some(tls), SmtpSecurity::StartTls) = (&self.tls, account.security) {
            step(Step::StartTls, SHORT, smtp.starttls(tls.clone(), &self.hello)).await?;
        }
        let pipelines = self.pipelines(&mut smtp).await?;
        if let Some((user, password)) = &account.login {
            let credentials = Credentials::new(user.clone(), password.expose().to_owned());
            step(Step::Login, SHORT, smtp.auth(DEFAULT_MECHANISMS, &credentials)).await?;
        }
        Ok(Connection { smtp, pipelines, is_out_of_step: false })
    }

    /// Asks the server once more what it can do: of what it says the first time the library keeps only what it uses itself.
    async fn pipelines(&self, smtp: &mut AsyncSmtpConnection) -> Result<bool, Failure> {
        match step(Step::Connect, SHORT, smtp.command(Ehlo::new(self.hello.clone()))).await {
            Ok(extensions) => Ok(extensions.message().any(|extension| extension.eq_ignore_ascii_case("PIPELINING"))),
            Err(Failure { cause: Cause::Answer(_), .. }) => Ok(false),
            Err(failure) => Err(failure),
        }
    }

    async fn dial(&self) -> Result<TcpStream, Failure> {
        let failure = |what: String| Failure { step: Step::Connect, cause: Cause::Silence, what };
        let dialling = TcpStream::connect((self.account.host.as_str(), self.account.port));
        let dialled = timeout(SHORT, dialling).await.map_err(|_| failure("no answer in time".into()))?;
        let stream = dialled.map_err(|error| failure(error.to_string()))?;
        // A mail is a few small writes and then a wait: held back for company, they would take 40 ms.
        stream.set_nodelay(true).map_err(|error| failure(error.to_string()))?;
        Ok(stream)
    }

    async fn send_on(
        &self,
        connection: &mut Connection,
        recipient: &Address,
        body: &[u8],
    ) -> Result<Response, Failure> {
        let from: Option<Address> = self.account.sender.from.parse().ok();
        let mut options = Vec::new();
        let international = |address: &Address| !address.to_string().is_ascii();
        if from.as_ref().is_some_and(international) || international(recipient) {
            if !connection.smtp.server_info().supports_feature(Extension::SmtpUtfEight) {
                let what = "the server takes no addresses outside ASCII (SMTPUTF8)".to_owned();
                return Err(Failure { step: Step::Recipient, cause: Cause::Answer(NOT_ALLOWED), what });
            }
            options.push(MailParameter::SmtpUtfEight);
        }
        let (mail, rcpt) = (Mail::new(from, options), Rcpt::new(recipient.clone(), Vec::new()));
        if connection.pipelines {
            connection.envelope_at_once(&mail, &rcpt).await?;
        } else {
            step(Step::Sender, LONG, connection.smtp.command(mail)).await?;
            step(Step::Recipient, LONG, connection.smtp.command(rcpt)).await?;
            step(Step::Data, LONG, connection.smtp.command(Data)).await?;
        }
        step(Step::Body, LONGEST, connection.smtp.message(body)).await
    }
}

impl Connection {
    /// Says everything up to the mail itself and then reads the answers: one round trip instead of three. Nothing of the
    /// mail is sent unless all three are good.
    async fn envelope_at_once(&mut self, mail: &Mail, rcpt: &Rcpt) -> Result<(), Failure> {
        step(Step::Sender, LONG, self.smtp.command(format!("{mail}{rcpt}{Data}"))).await?;
        let recipient = step(Step::Recipient, LONG, self.smtp.read_response()).await;
        if let Err(Failure { cause: Cause::Answer(_), .. }) = recipient {
            // The answer to DATA is still to come. A server that would take a mail to nobody is given an empty one, which
            // it cannot deliver, as RFC 2920 has it.
            let mut last = step(Step::Data, SHORT, self.smtp.read_response()).await;
            if last.is_ok() {
                last = step(Step::Body, SHORT, self.smtp.message(&[])).await;
            }
            self.is_out_of_step = matches!(last, Err(Failure { cause: Cause::Silence, .. }));
            return recipient.map(drop);
        }
        recipient?;
        step(Step::Data, LONG, self.smtp.read_response()).await.map(drop)
    }
}

async fn step<T>(
    step: Step,
    limit: Duration,
    answer: impl Future<Output = Result<T, lettre::transport::smtp::Error>>,
) -> Result<T, Failure> {
    match timeout(limit, answer).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => {
            let cause = match error.status() {
                Some(code) => Cause::Answer(u16::from(code)),
                None if error.is_client() || error.is_tls() || tls::is_about_tls(&error) => Cause::Configuration,
                None => Cause::Silence,
            };
            let what = match (step, cause) {
                // What a server says here may repeat what it was told.
                (Step::Login, Cause::Answer(code)) => format!("the server refuses the login ({code})"),
                _ => causes(&error),
            };
            Err(Failure { step, cause, what })
        }
        Err(_) => {
            let what = format!("no answer within {} s", limit.as_secs());
            Err(Failure { step, cause: Cause::Silence, what })
        }
    }
}

impl Failure {
    /// What a failure at this step means for the effect.
    fn receipt(self, has_login: bool) -> Receipt {
        let answer = format!("{}: {}", self.step.name(), self.what);
        let code = match (self.cause, self.step) {
            (Cause::Answer(code), _) => code,
            // The mail is out; whether it was taken nobody knows.
            (_, Step::Body) => return Receipt::InDoubt(answer),
            (Cause::Configuration, _) => return Receipt::Suspended(answer),
            (Cause::Silence, _) => return Receipt::Transient(answer),
        };
        match (self.step, code) {
            // "Authenticate first" after we did, or where it depends on the recipient, is about that recipient: whoever
            // names one must not stop the mails to all others.
            (Step::Recipient | Step::Data | Step::Body, 530 | 534 | 535 | 538) if !has_login => {
                Receipt::Transient(answer)
            }
            (_, 400..=499) => Receipt::Transient(answer),
            // Too large: about this mail.
            (Step::Sender, 552) => Receipt::Permanent(answer),
            (Step::Connect | Step::StartTls | Step::Login | Step::Sender, _) => Receipt::Suspended(answer),
            (Step::Recipient | Step::Data | Step::Body, _) => Receipt::Permanent(answer),
        }
    }
}

impl Step {
    const fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::StartTls => "STARTTLS",
            Self::Login => "login",
            Self::Sender => "MAIL",
            Self::Recipient => "RCPT",
            Self::Data => "DATA",
            Self::Body => "after the final dot",
        }
    }
}

fn first_line(response: &Response) -> String {
    format!("{} {}", response.code(), response.first_line().unwrap_or_default())
}

const SHORT: Duration = Duration::from_secs(20);
const LONG: Duration = Duration::from_secs(60);
const LONGEST: Duration = Duration::from_secs(300);
const IDLE_MAX: Duration = Duration::from_secs(20);
const NOT_ALLOWED: u16 = 553;

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(step: Step, code: u16, has_login: bool) -> &'static str {
        let failure = Failure { step, cause: Cause::Answer(code), what: "answer".into() };
        match failure.receipt(has_login) {
            Receipt::Transient(_) => "transient",
            Receipt::Permanent(_) => "permanent",
            Receipt::Suspended(_) => "suspended",
            Receipt::Delivered(_) | Receipt::InDoubt(_) | Receipt::Refused(_) => "another",
        }
    }

    #[test]
    fn a_login_that_is_wanted_at_the_door_suspends_and_at_a_recipient_concerns_that_one_alone() {
        for code in [530, 534, 535, 538] {
            for step in [Step::Connect, Step::StartTls, Step::Login, Step::Sender] {
                assert_eq!(kind(step, code, true), "suspended", "{code}");
                assert_eq!(kind(step, code, false), "suspended", "{code}");
            }
            for step in [Step::Recipient, Step::Data, Step::Body] {
                assert_eq!(kind(step, code, true), "permanent", "{code}");
                assert_eq!(kind(step, code, false), "transient", "{code}");
            }
        }
        assert_eq!(kind(Step::Recipient, 451, true), "transient");
        assert_eq!(kind(Step::Recipient, 550, true), "permanent");
    }
}
