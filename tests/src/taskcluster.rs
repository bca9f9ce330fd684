//! A server that plays Taskcluster's queue, on a thread of its own: definitions, artifacts, and every bad answer.

use std::collections::{HashMap, VecDeque};
use std::io::Write;
use std::net::TcpListener;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::{Context, Result};
use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::http::header::{CONTENT_ENCODING, CONTENT_TYPE, LOCATION};
use axum::response::{AppendHeaders, IntoResponse, Response};
use axum::routing::get;
use serde_json::{Value, json};
use tokio::sync::oneshot;

/// A running server. Dropping it ends it.
pub struct Taskcluster {
    queue: Arc<Queue>,
    _running: oneshot::Sender<()>,
}

/// How the server answers a request for a definition.
#[derive(Clone, Debug)]
pub enum Answer {
    /// 200 with a definition.
    Task(Value),
    /// 200 with these bytes, called JSON.
    Raw(Vec<u8>),
    /// A status code with Taskcluster's JSON error: no definition.
    Error(u16),
    /// A status code with an HTML page, as from a load balancer.
    Html(u16),
    /// Nothing, for ever.
    Hang,
    /// 200 with JSON of this many bytes, never ending properly.
    Big(usize),
    /// 200 with this many bytes, which gzip makes a thousand times smaller.
    GzipBomb(usize),
}

/// A file that a run has left.
#[derive(Clone, Debug)]
pub struct Artifact {
    /// Its name, like `public/logs/live_backing.log`.
    pub name: String,
    /// Its media type.
    pub content_type: String,
    /// What it holds, or what becomes of whoever asks.
    pub content: Content,
}

/// What an artifact holds.
#[derive(Clone, Debug)]
pub enum Content {
    /// These bytes.
    Bytes(Vec<u8>),
    /// These bytes, stored gzipped and called so.
    Gzipped(Vec<u8>),
    /// These bytes, in the object service: one more redirect away.
    Object(Vec<u8>),
    /// So many pieces of a log, each of [`PIECE_BYTES`], which gzip makes small.
    Lines(u32),
    /// So many pieces of noise, each of [`PIECE_BYTES`], which nothing makes small.
    Noise(u32),
    /// Elsewhere, at this address, in this way: `link`, `reference`.
    At(&'static str, String),
    /// A status code with Taskcluster's JSON error.
    Error(u16),
    /// A status code where the artifact is stored, with no body.
    StorageError(u16),
}

impl Content {
    /// The content, unpacked, piece by piece.
    pub fn pieces(&self) -> Box<dyn Iterator<Item = Vec<u8>> + Send> {
        match self {
            Self::Bytes(bytes) | Self::Gzipped(bytes) | Self::Object(bytes) => Box::new([bytes.clone()].into_iter()),
            Self::Lines(pieces) => Box::new(lines(*pieces)),
            Self::Noise(pieces) => Box::new((0..*pieces).map(noise)),
            Self::At(..) | Self::Error(_) | Self::StorageError(_) => Box::new(std::iter::empty()),
        }
    }

    fn storage_type(&self) -> &'static str {
        match self {
            Self::Object(_) => "object",
            Self::At(storage_type, _) => storage_type,
            Self::Error(424) => "error",
            _ => "s3",
        }
    }
}

fn lines(pieces: u32) -> impl Iterator<Item = Vec<u8>> + Send {
    let line = |line: usize| format!("[task 2026-11-02T09:40:00.{:03}Z] cc -O2 -o obj/{line}.o\n", line % 1000);
    let mut log: Vec<u8> = (0..).flat_map(|number| line(number).into_bytes()).take(PIECE_BYTES).collect();
    (0..pieces).map(move |piece| {
        log.splice(..8, format!("{piece:08}").into_bytes());
        log.clone()
    })
}

fn noise(piece: u32) -> Vec<u8> {
    let mut state = u64::from(piece) + 0x9e37_79b9_7f4a_7c15;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..PIECE_BYTES / 8).flat_map(|_| next()).collect()
}

/// How large a piece of a generated artifact is.
pub const PIECE_BYTES: usize = 64 << 10;

impl Taskcluster {
    /// Starts a server that knows no task.
    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        listener.set_nonblocking(true)?;
        let root_url = format!("http://{}", listener.local_addr()?);
        let queue = Arc::new(Queue { root_url, known: Mutex::default() });
        let (running, ended) = oneshot::channel::<()>();
        let router = router(Arc::clone(&queue));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        thread::Builder::new().name("taskcluster".to_owned()).spawn(move || {
            runtime.block_on(async {
                let serving = async { axum::serve(tokio::net::TcpListener::from_std(listener)?, router).await };
                tokio::select! {
                    outcome = serving => outcome.context("the Taskcluster server failed"),
                    _ = ended => Ok(()),
                }
            })
        })?;
        Ok(Self { queue, _running: running })
    }

    /// What goes into `TASKCLUSTER_ROOT_URL`.
    pub fn root_url(&self) -> &str {
        &self.queue.root_url
    }

    /// Makes a task known.
    pub fn define(&self, task_id: &str, definition: Value) {
        self.answer(task_id, Answer::Task(definition));
    }

    /// Makes every task known that is not known otherwise.
    pub fn define_all(&self, definition: impl Fn(&str) -> Value + Send + 'static) {
        self.queue.known().fallback = Some(Box::new(definition));
    }

    /// Answers each request for a definition like this from now on.
    pub fn answer(&self, task_id: &str, answer: Answer) {
        self.queue.known().task(task_id).lasting = Some(answer);
    }

    /// Answers one request for a definition like this, before any lasting answer; later ones queue up.
    pub fn answer_once(&self, task_id: &str, answer: Answer) {
        self.queue.known().task(task_id).passing.push_back(answer);
    }

    /// Gives a run an artifact.
    pub fn add_artifact(&self, task_id: &str, run_id: u32, artifact: Artifact) {
        self.queue.known().task(task_id).artifacts.push((run_id, artifact));
    }

    /// Breaks the connection in the middle of the next artifact of a task that is fetched, after this many pieces.
    pub fn cut_once(&self, task_id: &str, after_pieces: usize) {
        self.queue.known().task(task_id).cuts.push_back(after_pieces);
    }

    /// How often an artifact of a task was asked for.
    pub fn artifact_requests(&self, task_id: &str) -> usize {
        self.queue.known().task(task_id).artifact_requests
    }

    /// How often the definition of a task was asked for.
    pub fn requests(&self, task_id: &str) -> usize {
        self.queue.known().task(task_id).requests
    }
}

/// Task id, run id, artifact name.
type Place = (String, u32, String);
type Definitions = Box<dyn Fn(&str) -> Value + Send>;

struct Queue {
    root_url: String,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    tasks: HashMap<String, Task>,
    fallback: Option<Definitions>,
}

#[derive(Default)]
struct Task {
    passing: VecDeque<Answer>,
    lasting: Option<Answer>,
    artifacts: Vec<(u32, Artifact)>,
    cuts: VecDeque<usize>,
    requests: usize,
    artifact_requests: usize,
}

impl Queue {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next_answer(&self, task_id: &str) -> Answer {
        let mut known = self.known();
        let task = known.task(task_id);
        task.requests += 1;
        if let Some(answer) = task.passing.pop_front().or_else(|| task.lasting.clone()) {
            return answer;
        }
        known.fallback.as_ref().map_or(Answer::Error(404), |definition| Answer::Task(definition(task_id)))
    }

    fn artifact(&self, task_id: &str, run_id: u32, name: &str) -> Option<Artifact> {
        self.artifacts(task_id, run_id).into_iter().find(|artifact| artifact.name == name)
    }

    fn artifacts(&self, task_id: &str, run_id: u32) -> Vec<Artifact> {
        let mut known = self.known();
        let of_run = known.task(task_id).artifacts.iter().filter(|(run, _)| *run == run_id);
        of_run.map(|(_, artifact)| artifact.clone()).collect()
    }

    fn location(&self, task_id: &str, run_id: u32, artifact: &Artifact) -> String {
        let place = match &artifact.content {
            Content::At(_, url) => return url.clone(),
            Content::Object(_) => "download",
            _ => "storage",
        };
        format!("{}/{place}/{task_id}/{run_id}/{}", self.root_url, artifact.name)
    }
}

impl Known {
    fn task(&mut self, task_id: &str) -> &mut Task {
        self.tasks.entry(task_id.to_owned()).or_default()
    }
}

fn router(queue: Arc<Queue>) -> Router {
    Router::new()
        .route("/api/queue/v1/task/{task_id}", get(definition))
        .route("/api/queue/v1/task/{task_id}/runs/{run_id}/artifacts", get(artifacts))
        .route("/api/queue/v1/task/{task_id}/runs/{run_id}/artifacts/{*name}", get(artifact))
        .route("/api/queue/v1/task/{task_id}/runs/{run_id}/artifact-content/{*name}", get(artifact_content))
        .route("/download/{task_id}/{run_id}/{*name}", get(download))
        .route("/storage/{task_id}/{run_id}/{*name}", get(storage))
        .with_state(queue)
}

async fn definition(State(queue): State<Arc<Queue>>, Path(task_id): Path<String>) -> Response {
    match queue.next_answer(&task_id) {
        Answer::Task(definition) => json_body(&definition),
        Answer::Raw(bytes) => ([(CONTENT_TYPE, "application/json")], bytes).into_response(),
        Answer::Error(status) => error(status, "task"),
        Answer::Html(status) => {
            let page = "<html><body><h1>The server is on its tea break</h1></body></html>";
            (code(status), [(CONTENT_TYPE, "text/html")], page).into_response()
        }
        Answer::Hang => std::future::pending().await,
        Answer::Big(bytes) => big(bytes),
        Answer::GzipBomb(bytes) => gzip_bomb(bytes).unwrap_or_else(|_| error(500, "task")),
    }
}

async fn artifacts(State(queue): State<Arc<Queue>>, Path((task_id, run_id)): Path<(String, u32)>) -> Response {
    let describe = |artifact: Artifact| {
        let (storage_type, name, content_type) =
            (artifact.content.storage_type(), artifact.name, artifact.content_type);
        json!({ "storageType": storage_type, "name": name, "expires": "2100-01-01T00:00:00.000Z", "contentType": content_type })
    };
    let artifacts: Vec<Value> = queue.artifacts(&task_id, run_id).into_iter().map(describe).collect();
    json_body(&json!({ "artifacts": artifacts }))
}

async fn artifact(State(queue): State<Arc<Queue>>, Path((task_id, run_id, name)): Path<Place>) -> Response {
    queue.known().task(&task_id).artifact_requests += 1;
    let Some(artifact) = queue.artifact(&task_id, run_id, &name) else { return error(404, "artifact") };
    if let Content::Error(status) = artifact.content {
        return error(status, "artifact");
    }
    let storage_type = artifact.content.storage_type();
    let url = queue.location(&task_id, run_id, &artifact);
    let headers = [("location", &*url), ("x-taskcluster-artifact-storage-type", storage_type)];
    (StatusCode::SEE_OTHER, headers, at(storage_type, &url)).into_response()
}

async fn artifact_content(State(queue): State<Arc<Queue>>, Path((task_id, run_id, name)): Path<Place>) -> Response {
    match queue.artifact(&task_id, run_id, &name) {
        Some(artifact) => at(artifact.content.storage_type(), &queue.location(&task_id, run_id, &artifact)),
        None => error(404, "artifactContent"),
    }
}

fn at(storage_type: &str, url: &str) -> Response {
    json_body(&json!({ "storageType": storage_type, "url": url }))
}

async fn download(Path((task_id, run_id, name)): Path<Place>) -> Response {
    (StatusCode::SEE_OTHER, [(LOCATION, format!("/storage/{task_id}/{run_id}/{name}"))]).into_response()
}

async fn storage(State(queue): State<Arc<Queue>>, Path((task_id, run_id, name)): Path<Place>) -> Response {
    let Some(artifact) = queue.artifact(&task_id, run_id, &name) else { return error(404, "storage") };
    let mut headers = vec![(CONTENT_TYPE, artifact.content_type)];
    let mut pieces = artifact.content.pieces();
    match artifact.content {
        Content::StorageError(status) => return code(status).into_response(),
        Content::Gzipped(bytes) => {
            let Ok(packed) = gzipped(&bytes) else { return error(500, "storage") };
            headers.push((CONTENT_ENCODING, "gzip".to_owned()));
            pieces = Box::new([packed].into_iter());
        }
        _ => {}
    }
    let cut = queue.known().task(&task_id).cuts.pop_front();
    let broken = cut.map(|_| Err(std::io::Error::other("cut off, as asked")));
    let sent = pieces.take(cut.unwrap_or(usize::MAX)).map(Ok).chain(broken);
    (AppendHeaders(headers), Body::from_stream(futures_util::stream::iter(sent))).into_response()
}

fn error(status: u16, method: &str) -> Response {
    let name = match status {
        401 => "AuthenticationFailed",
        403 => "InsufficientScopes",
        404 => "ResourceNotFound",
        410 => "ResourceExpired",
        429 => "TooManyRequests",
        400..500 => "InputError",
        _ => "InternalServerError",
    };
    let request = json!({ "method": method, "params": {}, "payload": {}, "time": "2026-01-01T00:00:00.000Z" });
    let message = format!("the tests asked for it\n----\nerrorCode:  {name}\nstatusCode: {status}");
    let body = json_body(&json!({ "code": name, "message": message, "requestInfo": request }));
    (code(status), body).into_response()
}

fn json_body(value: &Value) -> Response {
    ([(CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}

fn code(status: u16) -> StatusCode {
    StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

fn big(bytes: usize) -> Response {
    let body = Body::from([b"{\"payload\":\"".to_vec(), vec![b'x'; bytes]].concat());
    ([(CONTENT_TYPE, "application/json")], body).into_response()
}

fn gzipped(bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(bytes)?;
    gzip.finish()
}

fn gzip_bomb(bytes: usize) -> std::io::Result<Response> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    let spaces = vec![b' '; 1 << 20];
    for written in (0..bytes).step_by(spaces.len()) {
        gzip.write_all(spaces.get(..bytes - written).unwrap_or(&spaces))?;
    }
    let body = gzip.finish()?;
    Ok(([(CONTENT_TYPE, "application/json"), (CONTENT_ENCODING, "gzip")], body).into_response())
}
