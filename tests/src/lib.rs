//! What the end-to-end tests stand on: real servers and the built binary, each started by the test that needs it.
//! Everything listens on loopback, lives in a private directory and ends with the test process, however that ends.
//! Nothing here depends on the code under test.

pub mod bombs;
mod broker;
mod certificate;
mod corpus;
mod database;
mod guests;
mod http;
mod influx;
mod irc;
mod keeper;
mod moto;
mod proxy;
mod receiver;
mod service;
mod smtp;
pub mod stamped;
mod taskcluster;
pub mod tenants;
mod vhost;
pub mod wait;
pub mod world;

use std::path::{Path, PathBuf};

pub use broker::Broker;
pub use corpus::{Corpus, Message, Streamed, corpus};
pub use database::Database;
pub use guests::{example, guest, plugins};
pub use http::{Raw, Response};
pub use influx::InfluxServer;
pub use irc::{IrcServer, Reader, Said};
pub use moto::{Moto, SesMail, SnsMessage};
pub use proxy::{Fault, Request};
pub use receiver::{Reply, WebhookReceiver};
pub use service::{Service, binary};
pub use smtp::{Behaviour, Mail, Mode, Phase, SmtpServer};
pub use taskcluster::{Answer, Artifact, Content, PIECE_BYTES, Taskcluster};
pub use vhost::{Account, Depth, Publisher, Queue, Unreadable, Vhost};
pub use world::World;

/// One HTTP request to a port on loopback, for instance of the service under test; with a body of any kind, or JSON.
pub use http::{raw_request, request};

/// The root of the workspace.
fn workspace() -> &'static Path {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests)
}

/// The interpreter that has the packages of `tests/requirements.txt`.
fn python() -> PathBuf {
    workspace().join(".venv/bin/python")
}

/// A Python program of this crate.
fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(name)
}

/// Says something to whoever reads the outcome of a test; the test runner shows it when the test fails.
fn say(text: &str) {
    #[expect(clippy::disallowed_macros, reason = "only this macro is captured by the test runner")]
    {
        eprintln!("{text}");
    }
}
