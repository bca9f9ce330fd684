//! The only place that waits by asking again and again.

use std::time::Duration;

use anyhow::{Context, Result};

/// Waits until the condition holds. An error of the condition ends the wait, and so does the timeout, which says `what`
/// was awaited.
pub async fn until(what: &str, timeout: Duration, mut condition: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    until_some(what, timeout, async || Ok(condition().await?.then_some(()))).await
}

/// Waits until the condition yields a value, and returns it.
pub async fn until_some<T>(
    what: &str,
    timeout: Duration,
    mut condition: impl AsyncFnMut() -> Result<Option<T>>,
) -> Result<T> {
    let asking = async {
        loop {
            if let Some(value) = condition().await? {
                return Ok(value);
            }
            tokio::time::sleep(BETWEEN_TWO_QUESTIONS).await;
        }
    };
    tokio::time::timeout(timeout, asking).await.with_context(|| format!("waited {timeout:?} in vain until {what}"))?
}

const BETWEEN_TWO_QUESTIONS: Duration = Duration::from_millis(5);
