//! Threads for one part alone, so that the system shares the processors between the parts, however much each has to do.

use std::io;

use tokio::runtime::{Builder, Handle, Runtime};

/// A runtime that ends with its owner, wherever that is dropped.
pub struct Threads {
    handle: Handle,
    runtime: Option<Runtime>,
}

impl Threads {
    /// So many threads.
    ///
    /// # Errors
    /// When there are no more.
    pub fn start(name: &str, count: usize, builder: &mut Builder) -> io::Result<Self> {
        let runtime = builder.worker_threads(count).thread_name(name).build()?;
        Ok(Self { handle: runtime.handle().clone(), runtime: Some(runtime) })
    }

    /// Where to spawn.
    #[must_use]
    pub const fn handle(&self) -> &Handle {
        &self.handle
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
