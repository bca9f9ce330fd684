//! The WASI a guest sees: nothing. No environment, no arguments, no files, no sockets; a clock that stands still at the
//! event's time; random numbers that repeat; output that becomes log lines.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::io::AsyncWrite;
use wasmtime_wasi::cli::{IsTerminal, StdoutStream};
use wasmtime_wasi::p2::{OutputStream, Pollable, StreamResult};
use wasmtime_wasi::{HostMonotonicClock, HostWallClock, WasiCtx, WasiCtxBuilder};

use super::budget::Limits;
use super::guest::Record;
use crate::effect::Origin;

pub(super) fn nothing(origin: &Origin, time: Timestamp, limits: Limits, record: &Arc<Record>) -> WasiCtx {
    let seed = *origin.call(u32::MAX).as_bytes();
    let low = seed.first_chunk().copied().map_or(0, u128::from_le_bytes);
    WasiCtxBuilder::new()
        .secure_random(StdRng::from_seed(seed))
        .insecure_random(StdRng::from_seed(seed))
        .insecure_random_seed(low)
        .max_random_size(limits.random_bytes_max)
        .wall_clock(StandingClock(time))
        .monotonic_clock(StandingClock(time))
        .stdout(LogStream { record: Arc::clone(record), level: "stdout" })
        .stderr(LogStream { record: Arc::clone(record), level: "stderr" })
        .allow_tcp(false)
        .allow_udp(false)
        .build()
}

struct StandingClock(Timestamp);

impl HostWallClock for StandingClock {
    fn resolution(&self) -> Duration {
        Duration::from_millis(1)
    }

    fn now(&self) -> Duration {
        Duration::try_from(self.0.duration_since(Timestamp::UNIX_EPOCH)).unwrap_or_default()
    }
}

impl HostMonotonicClock for StandingClock {
    fn resolution(&self) -> u64 {
        1_000_000
    }

    fn now(&self) -> u64 {
        0
    }
}

/// Output that becomes log lines. It takes what it is given at once, so nothing piles up in the host.
#[derive(Clone)]
struct LogStream {
    record: Arc<Record>,
    level: &'static str,
}

impl IsTerminal for LogStream {
    fn is_terminal(&self) -> bool {
        false
    }
}

impl StdoutStream for LogStream {
    fn p2_stream(&self) -> Box<dyn OutputStream> {
        Box::new(self.clone())
    }

    fn async_stream(&self) -> Box<dyn AsyncWrite + Send + Sync> {
        Box::new(tokio::io::sink())
    }
}

impl OutputStream for LogStream {
    fn write(&mut self, bytes: bytes::Bytes) -> StreamResult<()> {
        self.record.log(self.level, &String::from_utf8_lossy(&bytes));
        Ok(())
    }

    fn flush(&mut self) -> StreamResult<()> {
        Ok(())
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        Ok(WRITE_BYTES_MAX)
    }
}

#[wasmtime_wasi::async_trait]
impl Pollable for LogStream {
    async fn ready(&mut self) {}
}

const WRITE_BYTES_MAX: usize = 4 << 10;
