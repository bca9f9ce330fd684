//! Collects the logs of a task's runs in the operator's bucket, gzipped.

use pulse_notifier_sdk::{Event, Result, log, plugin, s3};

plugin!(notify);

fn notify(event: &Event) -> Result {
    if event.logs.is_empty() {
        log::info("nothing to collect: no run of the task has left a log");
    }
    for log in &event.logs {
        s3::put_gzipped_artifact(&log.s3_key, "text/plain", log.run_id, &log.artifact)?;
    }
    Ok(())
}
