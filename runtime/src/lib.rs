//! Pulse-Notifier turns CI events into notifications. What is said, and to whom, is decided by plugins, each a
//! WebAssembly component that can compute and can ask; everything that touches the world is done here.
//!
//! The one path, and its rooms:
//!
//! ```text
//!          ┌──────────────────────────── intake ────────────────────────────┐        ┌────── courier ──────┐
//! queue ─▶ delivery ─▶ event ─▶ task ─▶ notifications ─▶ sandbox ─▶ effects ═▶ store ═▶ claim ─▶ sink ─▶ receipt
//!   ▲                                                                          │
//!   └──────────────────────────── ack, after the commit ◀──────────────────────┘
//! ```
//!
//! | room | takes → gives |
//! |---|---|
//! | [`intake::source`] | a queue → deliveries; acks |
//! | [`intake::event`] | delivery → event |
//! | [`intake::task`] | event → task definition |
//! | [`intake::notification`] | task, identities, plugins → notifications |
//! | [`sandbox`] | notification, plugin → plan or fault |
//! | [`grant`] | what is asked for, what is allowed → effects or refusal |
//! | [`store`] | plans → committed; due effects → claimed |
//! | [`courier`] | claimed effect → receipt, by its [`courier::sinks`] |
//! | [`registry`] | `.wasm` files → live versions |
//!
//! Beside the path, [`taskcluster`] is the one client of Taskcluster, for both halves; [`trial`] tells one plugin of one
//! event and looks at what it asks for: nothing is sent or kept.
//! `place` says where a request may go when others say where; [`fair`] shares what is scarce among tenants, [`pace`]
//! keeps each from using up what is left, and `threads` shares the processors among the parts.

pub mod admin;
mod amqp;
mod causes;
pub mod cli;
pub mod config;
pub mod courier;
pub mod effect;
pub mod fair;
mod files;
pub mod grant;
#[cfg(test)]
mod hostile;
pub mod intake;
pub mod metrics;
pub mod pace;
mod place;
pub mod registry;
pub mod retry;
pub mod sandbox;
pub mod service;
pub mod store;
pub mod task_id;
pub mod taskcluster;
pub mod tenant;
mod threads;
pub mod timing;
mod tls;
pub mod trial;
