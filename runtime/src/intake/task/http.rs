//! A small typed client of Taskcluster's queue service: pooled connections, a cap on every body, a timeout on every wait.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use moka::future::Cache;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{Client, Response, StatusCode, redirect};
use serde::Deserialize;
use tokio::sync::Semaphore;
use url::{Host, Url};

use super::breaker::Breaker;
use super::{Artifact, Definition, ReadError, TaskError, below};
use crate::intake::event::TaskId;

/// Taskcluster's queue service.
pub struct HttpTasks {
    root: Url,
    /// Calls Taskcluster itself, wherever the operator says it is.
    queue: Client,
    /// Follows where an artifact is, which must be out in the world.
    world: Client,
    calls: Semaphore,
    breaker: Breaker,
    definitions: Cache<TaskId, Arc<Definition>>,
}

impl HttpTasks {
    /// A client of the Taskcluster at this root.
    ///
    /// # Errors
    /// When the platform's certificates cannot be read.
    pub fn new(root: Url) -> Result<Self, reqwest::Error> {
        let builder = || {
            Client::builder()
                .user_agent(concat!("pulse-notifier/", env!("CARGO_PKG_VERSION")))
                .redirect(redirect::Policy::none())
                // A proxy would resolve names for us, and then nobody checks where they lead.
                .no_proxy()
                .connect_timeout(CONNECT_TIMEOUT)
                .read_timeout(READ_TIMEOUT)
                .timeout(TIMEOUT)
        };
        let definitions = Cache::builder()
            .max_capacity(CACHE_BYTES_MAX)
            // Parsed, a definition takes a few times its text.
            .weigher(|_, definition: &Arc<Definition>| u32::try_from(definition.json.len() * 4).unwrap_or(u32::MAX))
            .time_to_idle(CACHE_IDLE)
            .build();
        Ok(Self {
            root,
            queue: builder().build()?,
            world: builder().dns_resolver(Arc::new(GlobalOnly)).build()?,
            calls: Semaphore::new(CALLS_MAX),
            breaker: Breaker::default(),
            definitions,
        })
    }

    pub(super) fn root(&self) -> &Url {
        &self.root
    }

    /// A definition, from the cache if it is there. Whoever wants the same one at the same time shares one call.
    pub(super) async fn definition(&self, task_id: &TaskId) -> Result<Arc<Definition>, TaskError> {
        let fetched = self.definitions.try_get_with_by_ref(task_id, self.fetch(task_id)).await;
        fetched.map_err(|error: Arc<TaskError>| (*error).clone())
    }

    async fn fetch(&self, task_id: &TaskId) -> Result<Arc<Definition>, TaskError> {
        if !self.breaker.admits(Instant::now()) {
            return Err(TaskError::Unavailable("it failed five times in a row and is left alone for a while".into()));
        }
        let fetched = self.fetch_now(task_id).await;
        match &fetched {
            Err(TaskError::Unavailable(why)) => {
                if self.breaker.failed(Instant::now()) {
                    tracing::error!(%why, "Taskcluster failed five times in a row: events are deferred without a call");
                }
            }
            Ok(_) | Err(_) => self.breaker.succeeded(),
        }
        fetched
    }

    async fn fetch_now(&self, task_id: &TaskId) -> Result<Arc<Definition>, TaskError> {
        // Held until the definition is read, so that few large ones are in memory at once.
        let _call = self.calls.acquire().await.map_err(|error| TaskError::Unavailable(error.to_string()))?;
        let answer = self.call(&["task", task_id.as_str()]).await.map_err(TaskError::Unavailable)?;
        match answer.status() {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Err(TaskError::NotFound),
            StatusCode::GONE => return Err(TaskError::Gone),
            status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) => {
                return Err(TaskError::Denied(status.as_u16()));
            }
            // A redirect says that the root is another one, not that the task is gone.
            status if is_trouble(status) || status.is_redirection() => {
                return Err(TaskError::Unavailable(status.to_string()));
            }
            status => return Err(TaskError::Unusable(status.to_string())),
        }
        let is_json =
            answer.headers().get("content-type").is_some_and(|kind| kind.as_bytes().starts_with(b"application/json"));
        let body = match body(answer, DEFINITION_BYTES_MAX).await {
            Ok(body) => body,
            Err(BodyError::TooLarge) => return Err(TaskError::TooLarge(DEFINITION_BYTES_MAX)),
            Err(BodyError::Cut(why)) => return Err(TaskError::Unavailable(why)),
        };
        let parsed = String::from_utf8(body).map_err(|_| "not UTF-8".into()).and_then(Definition::parse);
        // A load balancer's page says 200 too. That is its trouble; a definition nobody can read is the task's own.
        parsed.map(Arc::new).map_err(if is_json { TaskError::Unusable } else { TaskError::Unavailable })
    }

    /// The artifacts of a run.
    pub(super) async fn artifacts(&self, task_id: &TaskId, run_id: u32) -> Result<Vec<Artifact>, ReadError> {
        #[derive(Deserialize)]
        struct Listing {
            #[serde(default)]
            artifacts: Vec<Artifact>,
        }
        let run = run_id.to_string();
        let answer = self.read(&["task", task_id.as_str(), "runs", &run, "artifacts"]).await?;
        let body = whole(answer, LISTING_BYTES_MAX).await?;
        let listing: Listing =
            serde_json::from_slice(&body).map_err(|error| ReadError::Unavailable(error.to_string()))?;
        Ok(listing.artifacts)
    }

    /// The content of an artifact, which Taskcluster answers with a redirect to where it is.
    pub(super) async fn read_artifact(&self, task_id: &TaskId, run_id: u32, name: &str) -> Result<Vec<u8>, ReadError> {
        let run = run_id.to_string();
        let mut path = vec!["task", task_id.as_str(), "runs", &run, "artifacts"];
        if name.len() > NAME_BYTES_MAX || name.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err(ReadError::Missing("not the name of an artifact".into()));
        }
        path.extend(name.split('/'));
        let answer = self.read(&path).await?;
        if answer.status() != StatusCode::SEE_OTHER {
            return whole(answer, ARTIFACT_BYTES_MAX).await;
        }
        let storage = answer.headers().get("x-taskcluster-artifact-storage-type").and_then(|value| value.to_str().ok());
        match storage {
            Some("s3" | "object" | "link") => {}
            Some(other) => return Err(ReadError::Refused(format!("stored as {}", other.escape_debug()))),
            None => return Err(ReadError::Refused("stored nobody says how".into())),
        }
        let location = answer.headers().get("location").and_then(|value| value.to_str().ok());
        let place = location.and_then(|location| answer.url().join(location).ok());
        let place = place.ok_or_else(|| ReadError::Unavailable("a redirect to nowhere".into()))?;
        let answer =
            self.client_for(&place)?.get(place).send().await.map_err(|error| ReadError::Unavailable(why(error)))?;
        whole(readable(answer)?, ARTIFACT_BYTES_MAX).await
    }

    /// Which client may go to a place that Taskcluster names: its own host is the operator's choice, any other must be
    /// out in the world.
    fn client_for(&self, place: &Url) -> Result<&Client, ReadError> {
        if place.origin() == self.root.origin() {
            return Ok(&self.queue);
        }
        let address = match place.host() {
            Some(Host::Ipv4(address)) => Some(IpAddr::V4(address)),
            Some(Host::Ipv6(address)) => Some(IpAddr::V6(address)),
            Some(Host::Domain(_)) => None,
            None => return Err(ReadError::Refused("a place without a host".into())),
        };
        if address.is_some_and(|address| !is_global(address)) {
            return Err(ReadError::Refused("a place that is not out in the world".into()));
        }
        Ok(&self.world)
    }

    async fn read(&self, path: &[&str]) -> Result<Response, ReadError> {
        readable(self.call(path).await.map_err(ReadError::Unavailable)?)
    }

    async fn call(&self, path: &[&str]) -> Result<Response, String> {
        let url = below(&below(&self.root, &["api", "queue", "v1"]), path);
        self.queue.get(url).send().await.map_err(why)
    }
}

fn readable(answer: Response) -> Result<Response, ReadError> {
    match answer.status() {
        StatusCode::OK | StatusCode::SEE_OTHER => Ok(answer),
        status @ (StatusCode::NOT_FOUND | StatusCode::GONE | StatusCode::FAILED_DEPENDENCY) => {
            Err(ReadError::Missing(status.to_string()))
        }
        status if is_trouble(status) => Err(ReadError::Unavailable(status.to_string())),
        status => Err(ReadError::Refused(status.to_string())),
    }
}

fn is_trouble(status: StatusCode) -> bool {
    status.is_server_error() || matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS)
}

enum BodyError {
    TooLarge,
    Cut(String),
}

/// A body, unpacked, of at most so many bytes however small it was packed.
async fn body(mut answer: Response, bytes_max: usize) -> Result<Vec<u8>, BodyError> {
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(|error| BodyError::Cut(why(error)))? {
        if body.len() + chunk.len() > bytes_max {
            return Err(BodyError::TooLarge);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

async fn whole(answer: Response, bytes_max: usize) -> Result<Vec<u8>, ReadError> {
    body(answer, bytes_max).await.map_err(|error| match error {
        BodyError::TooLarge => ReadError::TooLarge(bytes_max),
        BodyError::Cut(why) => ReadError::Unavailable(why),
    })
}

/// What went wrong, without the address, which may be signed.
fn why(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// Resolves names to addresses out in the world only.
struct GlobalOnly;

impl Resolve for GlobalOnly {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let global: Vec<SocketAddr> = found.filter(|address| is_global(address.ip())).collect();
            if global.is_empty() {
                return Err("it has no address out in the world".into());
            }
            Ok(Box::new(global.into_iter()) as Addrs)
        })
    }
}

/// Whether an address is out in the world: not this machine, not a private network, not reserved.
fn is_global(address: IpAddr) -> bool {
    match address.to_canonical() {
        IpAddr::V4(v4) => {
            let [a, b, c, _] = v4.octets();
            !(v4.is_private()
                || v4.is_loopback()
                || v4.is_link_local()
                || v4.is_documentation()
                || v4.is_multicast()
                || matches!(a, 0 | 240..=255)
                || (a == 100 && (64..128).contains(&b))
                || (a == 192 && b == 0 && c == 0)
                || (a == 198 && matches!(b, 18 | 19)))
        }
        IpAddr::V6(v6) => {
            // Global unicast is 2000::/3; within it, documentation, Teredo and 6to4 lead elsewhere.
            let [first, second, ..] = v6.segments();
            first & 0xe000 == 0x2000 && first != 0x2002 && !(first == 0x2001 && (second == 0 || second == 0x0db8))
        }
    }
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const READ_TIMEOUT: Duration = Duration::from_secs(10);
const TIMEOUT: Duration = Duration::from_secs(60);
const CALLS_MAX: usize = 32;
/// What a task may have (10 MB), and room for the fields that Taskcluster adds.
const DEFINITION_BYTES_MAX: usize = 11_000_000;
const LISTING_BYTES_MAX: usize = 2 << 20;
const ARTIFACT_BYTES_MAX: usize = 256 << 10;
const NAME_BYTES_MAX: usize = 1_024;
const CACHE_BYTES_MAX: u64 = 128 << 20;
const CACHE_IDLE: Duration = Duration::from_secs(10 * 60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_out_in_the_world_are_global() {
        for (address, global) in [
            ("8.8.8.8", true),
            ("127.0.0.1", false),
            ("10.1.2.3", false),
            ("169.254.169.254", false),
            ("100.64.0.1", false),
            ("0.0.0.0", false),
            ("255.255.255.255", false),
            ("::1", false),
            ("::ffff:127.0.0.1", false),
            ("fe80::1", false),
            ("fd00::1", false),
            ("64:ff9b::7f00:1", false),
            ("2002:7f00:1::", false),
            ("2606:4700::1111", true),
        ] {
            assert_eq!(is_global(address.parse().unwrap()), global, "{address}");
        }
    }
}
