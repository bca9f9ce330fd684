//! A small typed client of Taskcluster's queue service: pooled connections, a cap on every body, a timeout on every wait.
//!
//! Enters: a task id, a run, the name of an artifact. Leaves: what Taskcluster has, or which of the ways it could not be
//! had. Nothing is retried and nothing remembered here: whoever asks decides what an absence means.

mod body;

use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{ACCEPT_ENCODING, CONTENT_ENCODING, HeaderMap, HeaderValue, LOCATION};
use reqwest::{Client, Response, StatusCode, redirect};
use serde::Deserialize;
use url::Url;

use crate::grant::s3::is_path;
use crate::place::Reach;
use crate::task_id::TaskId;
pub use body::Body;

/// Taskcluster's queue service.
pub struct Taskcluster {
    root: Url,
    /// Calls what the operator named, wherever that is.
    own: Client,
    /// Follows where others say something is, which must be out in the world.
    world: Client,
}

/// Why there is no definition.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TaskError {
    /// Taskcluster knows no such task, or not yet.
    #[error("no such task (404)")]
    NotFound,
    /// It has expired.
    #[error("the task is gone (410)")]
    Gone,
    /// We may not read it.
    #[error("access denied ({0})")]
    Denied(u16),
    /// It is larger than any task may be.
    #[error("a definition of more than {0} bytes")]
    TooLarge(u64),
    /// Another answer that trying again would not change.
    #[error("unexpected answer: {0}")]
    Unusable(String),
    /// Taskcluster or the way to it is in trouble.
    #[error("Taskcluster unavailable: {0}")]
    Unavailable(String),
}

/// Why something could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// There is no such thing, or not yet.
    #[error("no such run or artifact: {0}")]
    NotFound(String),
    /// There is no such thing, and there never will be.
    #[error("no such run or artifact: {0}")]
    Gone(String),
    /// It may not be read.
    #[error("may not be read: {0}")]
    Refused(String),
    /// It is too large.
    #[error("larger than {0} bytes")]
    TooLarge(u64),
    /// Taskcluster is in trouble.
    #[error("unavailable: {0}")]
    Unavailable(String),
}

/// One artifact of a run.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Artifact {
    /// Its name.
    pub name: String,
    /// Where it is stored.
    pub storage_type: String,
    /// Its content type.
    pub content_type: String,
}

impl Taskcluster {
    /// A client of the Taskcluster at this root.
    ///
    /// # Errors
    /// When the platform's certificates cannot be read.
    pub fn new(root: Url) -> Result<Self, reqwest::Error> {
        let builder = || {
            Client::builder()
                .user_agent(concat!("pulse-notifier/", env!("CARGO_PKG_VERSION")))
                .redirect(redirect::Policy::none())
                .no_gzip()
                .default_headers(HeaderMap::from_iter([(ACCEPT_ENCODING, HeaderValue::from_static("gzip"))]))
                // A proxy would resolve names for us, and then nobody checks where they lead.
                .no_proxy()
                .connect_timeout(CONNECT_TIMEOUT)
        };
        Ok(Self { root, own: builder().build()?, world: builder().dns_resolver(Arc::new(Reach::World)).build()? })
    }

    /// Where it is.
    #[must_use]
    pub const fn root(&self) -> &Url {
        &self.root
    }

    /// A task's definition, read by `parse`, which says what it is instead of one.
    ///
    /// # Errors
    /// [`TaskError`].
    pub async fn definition<T>(
        &self,
        task_id: &TaskId,
        parse: impl FnOnce(String) -> Result<T, String>,
    ) -> Result<T, TaskError> {
        let answer = self.call(&["task", task_id.as_str()], CALL).await.map_err(TaskError::Unavailable)?;
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
        let body = match Body::new(answer, DEFINITION_BYTES_MAX, CALL.silence).whole().await {
            Ok(body) => body,
            Err(ReadError::TooLarge(bytes)) => return Err(TaskError::TooLarge(bytes)),
            Err(error) => return Err(TaskError::Unavailable(error.to_string())),
        };
        let parsed = String::from_utf8(body).map_err(|_| "not UTF-8".into()).and_then(parse);
        // A load balancer's page says 200 too. That is its trouble; a definition nobody can read is the task's own.
        parsed.map_err(if is_json { TaskError::Unusable } else { TaskError::Unavailable })
    }

    /// The artifacts of a run.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn artifacts(&self, task_id: &TaskId, run_id: u32) -> Result<Vec<Artifact>, ReadError> {
        #[derive(Deserialize)]
        struct Listing {
            #[serde(default)]
            artifacts: Vec<Artifact>,
        }
        let run = run_id.to_string();
        let path = ["task", task_id.as_str(), "runs", &run, "artifacts"];
        let answer = readable(self.call(&path, CALL).await.map_err(ReadError::Unavailable)?)?;
        let body = Body::new(answer, LISTING_BYTES_MAX, CALL.silence).whole().await?;
        let listing: Listing =
            serde_json::from_slice(&body).map_err(|error| ReadError::Unavailable(error.to_string()))?;
        Ok(listing.artifacts)
    }

    /// The content of a small artifact, unpacked.
    ///
    /// # Errors
    /// [`ReadError`].
    pub async fn read_artifact(&self, task_id: &TaskId, run_id: u32, name: &str) -> Result<Vec<u8>, ReadError> {
        let answer = self.find_artifact(task_id, run_id, name, CALL).await?;
        Body::new(answer, ARTIFACT_BYTES_MAX, CALL.silence).whole().await
    }

    /// The content of an artifact of any size, unpacked on the way. It has no end as long as bytes keep coming.
    ///
    /// # Errors
    /// [`ReadError`], which the stream can end in as well.
    pub async fn stream_artifact(&self, task_id: &TaskId, run_id: u32, name: &str) -> Result<Body, ReadError> {
        let answer = self.find_artifact(task_id, run_id, name, STREAM).await?;
        Ok(Body::new(answer, STREAM_BYTES_MAX, STREAM.silence))
    }

    /// What is at an address that the operator named, unpacked on the way.
    ///
    /// # Errors
    /// [`ReadError`], which the stream can end in as well.
    pub async fn stream_address(&self, address: &str) -> Result<Body, ReadError> {
        let address = Url::parse(address).map_err(|error| ReadError::Refused(format!("no address: {error}")))?;
        let answer = body::answer(self.own.get(address.clone()), STREAM).await.map_err(ReadError::Unavailable)?;
        let answer = self.follow(answer, &address, STREAM).await?;
        Ok(Body::new(unpacked(readable(answer)?)?, STREAM_BYTES_MAX, STREAM.silence))
    }

    /// The answer that holds an artifact. Taskcluster itself only says where that is.
    async fn find_artifact(
        &self,
        task_id: &TaskId,
        run_id: u32,
        name: &str,
        patience: Patience,
    ) -> Result<Response, ReadError> {
        if !is_path(name) {
            return Err(ReadError::Gone("not the name of an artifact".into()));
        }
        let run = run_id.to_string();
        let mut path = vec!["task", task_id.as_str(), "runs", &run, "artifacts"];
        path.extend(name.split('/'));
        let answer = readable(self.call(&path, patience).await.map_err(ReadError::Unavailable)?)?;
        let storage = answer.headers().get("x-taskcluster-artifact-storage-type").and_then(|value| value.to_str().ok());
        match storage {
            Some("s3" | "object" | "link") => {}
            Some(other) => return Err(ReadError::Refused(format!("stored as {}", other.escape_debug()))),
            None => return Err(ReadError::Refused("stored nobody says how".into())),
        }
        if answer.status() != StatusCode::SEE_OTHER {
            return Err(ReadError::Refused("Taskcluster does not say where it is".into()));
        }
        let answer = self.follow(answer, &self.root, patience).await?;
        match answer.status() {
            // Where nobody may list, S3 says so instead of saying that there is nothing.
            status @ StatusCode::FORBIDDEN => Err(ReadError::NotFound(format!("{status} where it is stored"))),
            _ => unpacked(readable(answer)?),
        }
    }

    /// The first answer that is no redirect: stored as an object, an artifact is two of them away.
    async fn follow(&self, mut answer: Response, home: &Url, patience: Patience) -> Result<Response, ReadError> {
        for _ in 0..REDIRECTS_MAX {
            if !answer.status().is_redirection() {
                return Ok(answer);
            }
            let location = answer.headers().get(LOCATION).and_then(|value| value.to_str().ok());
            let place = location.and_then(|location| answer.url().join(location).ok());
            let place = place.ok_or_else(|| ReadError::Unavailable("a redirect to nowhere".into()))?;
            let client = self.client_for(&place, home)?;
            answer = body::answer(client.get(place), patience).await.map_err(ReadError::Unavailable)?;
        }
        if answer.status().is_redirection() {
            return Err(ReadError::Unavailable("redirected too often".into()));
        }
        Ok(answer)
    }

    /// Which client may go to a place that an answer names: the host it comes from is the operator's choice, any other
    /// must be out in the world.
    fn client_for(&self, place: &Url, home: &Url) -> Result<&Client, ReadError> {
        if place.origin() == home.origin() {
            return Ok(&self.own);
        }
        if Reach::World.covers_place(place) {
            Ok(&self.world)
        } else {
            Err(ReadError::Refused("a place that is not out in the world".into()))
        }
    }

    async fn call(&self, path: &[&str], patience: Patience) -> Result<Response, String> {
        let url = below(&below(&self.root, &["api", "queue", "v1"]), path);
        body::answer(self.own.get(url), patience).await
    }
}

/// The address of a path below a root, each part encoded.
pub(crate) fn below(root: &Url, path: &[&str]) -> Url {
    let mut url = root.clone();
    if let Ok(mut segments) = url.path_segments_mut() {
        segments.pop_if_empty().extend(path);
    }
    url
}

fn readable(answer: Response) -> Result<Response, ReadError> {
    match answer.status() {
        StatusCode::OK | StatusCode::SEE_OTHER => Ok(answer),
        status @ StatusCode::NOT_FOUND => Err(ReadError::NotFound(status.to_string())),
        // 424 stands for an artifact that is the reason why there is none.
        status @ (StatusCode::GONE | StatusCode::FAILED_DEPENDENCY) => Err(ReadError::Gone(status.to_string())),
        status if is_trouble(status) => Err(ReadError::Unavailable(status.to_string())),
        status => Err(ReadError::Refused(status.to_string())),
    }
}

/// What is packed otherwise than by gzip nobody here can unpack.
fn unpacked(answer: Response) -> Result<Response, ReadError> {
    match answer.headers().get(CONTENT_ENCODING) {
        Some(encoding) if encoding != "gzip" && encoding != "identity" => {
            Err(ReadError::Refused(format!("packed as {encoding:?}, expected gzip")))
        }
        Some(_) | None => Ok(answer),
    }
}

fn is_trouble(status: StatusCode) -> bool {
    status.is_server_error() || matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS)
}

/// How long is waited for an answer.
#[derive(Clone, Copy, Debug)]
struct Patience {
    /// For the next byte.
    silence: Duration,
    /// For all of it.
    whole: Option<Duration>,
}

const CALL: Patience = Patience { silence: Duration::from_secs(10), whole: Some(Duration::from_secs(60)) };
const STREAM: Patience = Patience { silence: Duration::from_secs(60), whole: None };
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const REDIRECTS_MAX: usize = 3;
/// What a task may have (10 MB), and room for the fields that Taskcluster adds.
const DEFINITION_BYTES_MAX: u64 = 11_000_000;
const LISTING_BYTES_MAX: u64 = 2 << 20;
const ARTIFACT_BYTES_MAX: u64 = 256 << 10;
const STREAM_BYTES_MAX: u64 = 5 << 30;

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;

    /// What comes of an address where a server says this, whatever it is asked.
    async fn stream(head: &str, body: &[u8]) -> Result<Vec<u8>, ReadError> {
        drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = format!("http://{}/log", listener.local_addr().unwrap());
        let length = body.len();
        let head = format!("HTTP/1.1 {head}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
        let answer = [head.as_bytes(), body].concat();
        let server = std::thread::spawn(move || {
            let (mut connection, _) = listener.accept().unwrap();
            _ = connection.read(&mut [0; 4096]).unwrap();
            connection.write_all(&answer).unwrap();
        });
        let taskcluster = Taskcluster::new("https://tc.example.com".parse().unwrap()).unwrap();
        let read = match taskcluster.stream_address(&address).await {
            Ok(body) => body.whole().await,
            Err(error) => Err(error),
        };
        server.join().unwrap();
        read
    }

    fn gzipped(text: &str) -> Vec<u8> {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        gzip.write_all(text.as_bytes()).unwrap();
        gzip.finish().unwrap()
    }

    #[tokio::test]
    async fn an_address_of_the_operator_may_be_anywhere_and_leads_nowhere_but_out_into_the_world() {
        assert_eq!(stream("200 OK", b"a log").await.unwrap(), b"a log");
        for place in
            ["http://127.0.0.1:1/", "http://[::1]/", "http://169.254.169.254/latest/meta-data", "http://10.0.0.1"]
        {
            let refused = stream(&format!("302 Found\r\nlocation: {place}"), b"").await;
            assert!(matches!(refused, Err(ReadError::Refused(_))), "{place}: {refused:?}");
        }
        let by_name = stream("303 See Other\r\nlocation: http://localhost:1/", b"").await;
        assert!(
            matches!(&by_name, Err(ReadError::Unavailable(why)) if why.contains("out in the world")),
            "{by_name:?}"
        );
    }

    #[tokio::test]
    async fn what_comes_packed_is_unpacked_or_refused_and_never_cut_short() {
        let packed = gzipped("a log");
        let as_gzip = "200 OK\r\ncontent-encoding: gzip";
        assert_eq!(stream(as_gzip, &packed).await.unwrap(), b"a log");
        assert_eq!(stream(as_gzip, &[packed.clone(), gzipped(" of two")].concat()).await.unwrap(), b"a log of two");
        for bytes in [packed.len() / 2, packed.len() - 1] {
            let cut = stream(as_gzip, &packed[..bytes]).await;
            assert!(matches!(cut, Err(ReadError::Unavailable(_))), "{bytes}: {cut:?}");
        }
        let foreign = stream("200 OK\r\ncontent-encoding: br", b"?").await;
        assert!(matches!(foreign, Err(ReadError::Refused(_))), "{foreign:?}");
    }

    #[tokio::test]
    async fn an_answer_says_whether_there_is_anything_to_wait_for() {
        assert!(matches!(stream("404 Not Found", b"").await, Err(ReadError::NotFound(_))));
        assert!(matches!(stream("410 Gone", b"").await, Err(ReadError::Gone(_))));
        assert!(matches!(stream("424 Failed Dependency", b"").await, Err(ReadError::Gone(_))));
        assert!(matches!(stream("403 Forbidden", b"").await, Err(ReadError::Refused(_))));
        assert!(matches!(stream("429 Too Many Requests", b"").await, Err(ReadError::Unavailable(_))));
        assert!(matches!(stream("503 Service Unavailable", b"").await, Err(ReadError::Unavailable(_))));
    }
}
