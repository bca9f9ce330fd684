//! How long things took, for InfluxDB: measurement `notify_timing`, tags `host` and `service`, field `elapsed_time` in
//! seconds. Points are collected and sent in batches, beside the path: when the database is away or slow they are
//! dropped and counted, and no delivery waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use reqwest::Client;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use crate::config::InfluxAccount;

/// Takes points; cheap to clone. Its sender ends once all clones are gone.
#[derive(Clone, Default)]
pub struct Timing {
    points: Option<mpsc::Sender<Point>>,
    dropped: Arc<AtomicU64>,
}

struct Point {
    service: String,
    elapsed: Duration,
    at_ns: i128,
}

impl Timing {
    /// Sends points to this database from a task on `tracker`.
    ///
    /// # Errors
    /// When the platform's certificates cannot be read.
    pub fn start(account: InfluxAccount, tracker: &TaskTracker) -> Result<Self, reqwest::Error> {
        let client = Client::builder().timeout(TIMEOUT).redirect(reqwest::redirect::Policy::none()).build()?;
        let (points, received) = mpsc::channel(WAITING_MAX);
        let dropped = Arc::<AtomicU64>::default();
        tracker.spawn(send(client, account, received, Arc::clone(&dropped)));
        Ok(Self { points: Some(points), dropped })
    }

    /// Notes how long a service took: a plugin's name, or [`CONSUMER`] for a whole event.
    pub fn took(&self, service: &str, elapsed: Duration) {
        let Some(points) = &self.points else { return };
        let at_ns = jiff::Timestamp::now().as_nanosecond();
        if points.try_send(Point { service: service.to_owned(), elapsed, at_ns }).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The service that a whole event, from delivery to ack, is.
pub const CONSUMER: &str = "consumer";

async fn send(client: Client, account: InfluxAccount, mut points: mpsc::Receiver<Point>, dropped: Arc<AtomicU64>) {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_else(|_| "unknown".into());
    let host = tag(host.trim());
    let (mut batch, mut is_away) = (Vec::with_capacity(BATCH_MAX), false);
    while points.recv_many(&mut batch, 1).await > 0 {
        // Once there is one, a moment for company.
        let until = Instant::now() + BATCH_EVERY;
        while batch.len() < BATCH_MAX {
            match tokio::time::timeout_at(until, points.recv()).await {
                Ok(Some(point)) => batch.push(point),
                Ok(None) | Err(_) => break,
            }
        }
        let lines: String = batch.iter().map(|point| line(&host, point)).collect();
        let count = batch.len() as u64;
        batch.clear();
        match write(&client, &account, lines).await {
            Ok(()) => {
                if std::mem::take(&mut is_away) {
                    let lost = dropped.swap(0, Ordering::Relaxed);
                    tracing::info!(lost, "InfluxDB takes points again");
                }
            }
            Err(why) => {
                dropped.fetch_add(count, Ordering::Relaxed);
                if !std::mem::replace(&mut is_away, true) {
                    tracing::warn!(%why, "InfluxDB takes no points: they are dropped");
                }
            }
        }
    }
}

async fn write(client: &Client, account: &InfluxAccount, lines: String) -> Result<(), String> {
    let mut url = account.url.clone();
    if let Ok(mut path) = url.path_segments_mut() {
        path.pop_if_empty().push("write");
    }
    url.query_pairs_mut().append_pair("db", &account.database).append_pair("precision", "ns");
    let mut request = client.post(url).body(lines);
    if let Some((user, password)) = &account.login {
        request = request.basic_auth(user, Some(password.expose()));
    }
    let answer = request.send().await.map_err(|error| error.without_url().to_string())?;
    if answer.status().is_success() { Ok(()) } else { Err(answer.status().to_string()) }
}

/// A point in InfluxDB's line protocol.
fn line(host: &str, point: &Point) -> String {
    let (service, elapsed) = (tag(&point.service), point.elapsed.as_secs_f64());
    format!("notify_timing,host={host},service={service} elapsed_time={elapsed} {}\n", point.at_ns)
}

/// A tag's value: what separates parts of a line is escaped; a tag may not be empty.
fn tag(text: &str) -> String {
    let mut tag = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            ',' | '=' | ' ' => tag.extend(['\\', c]),
            '\\' => tag.push('/'),
            c if c.is_control() => {}
            c => tag.push(c),
        }
    }
    if tag.is_empty() { "unknown".into() } else { tag }
}

const WAITING_MAX: usize = 4_096;
const BATCH_MAX: usize = 1_000;
const BATCH_EVERY: Duration = Duration::from_secs(2);
const TIMEOUT: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_point_is_one_line_whatever_its_service_is_called() {
        let point = |service: &str| Point { service: service.into(), elapsed: Duration::from_millis(1_500), at_ns: 7 };
        assert_eq!(line("h", &point("smtp")), "notify_timing,host=h,service=smtp elapsed_time=1.5 7\n");
        assert_eq!(
            line("h", &point("a b,c=d\\\ne")),
            "notify_timing,host=h,service=a\\ b\\,c\\=d/e elapsed_time=1.5 7\n"
        );
        assert_eq!(line("h", &point("")), "notify_timing,host=h,service=unknown elapsed_time=1.5 7\n");
    }
}
