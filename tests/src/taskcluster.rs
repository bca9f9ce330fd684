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
use axum::response::{IntoResponse, Response};
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
    /// What it holds.
    pub bytes: Vec<u8>,
}

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
    requests: usize,
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

    fn location(&self, task_id: &str, run_id: u32, name: &str) -> Option<String> {
        self.artifact(task_id, run_id, name).map(|_| format!("{}/storage/{task_id}/{run_id}/{name}", self.root_url))
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
        let (name, content_type) = (artifact.name, artifact.content_type);
        json!({ "storageType": "s3", "name": name, "expires": "2100-01-01T00:00:00.000Z", "contentType": content_type })
    };
    let artifacts: Vec<Value> = queue.artifacts(&task_id, run_id).into_iter().map(describe).collect();
    json_body(&json!({ "artifacts": artifacts }))
}

async fn artifact(State(queue): State<Arc<Queue>>, Path((task_id, run_id, name)): Path<Place>) -> Response {
    match queue.location(&task_id, run_id, &name) {
        Some(url) => (StatusCode::SEE_OTHER, [(LOCATION, url.clone())], at(&url)).into_response(),
        None => error(404, "artifact"),
    }
}

async fn artifact_content(State(queue): State<Arc<Queue>>, Path((task_id, run_id, name)): Path<Place>) -> Response {
    match queue.location(&task_id, run_id, &name) {
        Some(url) => at(&url),
        None => error(404, "artifactContent"),
    }
}

fn at(url: &str) -> Response {
    json_body(&json!({ "storageType": "s3", "url": url }))
}

async fn storage(State(queue): State<Arc<Queue>>, Path((task_id, run_id, name)): Path<Place>) -> Response {
    match queue.artifact(&task_id, run_id, &name) {
        Some(artifact) => ([(CONTENT_TYPE, artifact.content_type)], artifact.bytes).into_response(),
        None => error(404, "storage"),
    }
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

fn gzip_bomb(bytes: usize) -> std::io::Result<Response> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    let spaces = vec![b' '; 1 << 20];
    for written in (0..bytes).step_by(spaces.len()) {
        gzip.write_all(spaces.get(..bytes - written).unwrap_or(&spaces))?;
    }
    let body = gzip.finish()?;
    Ok(([(CONTENT_TYPE, "application/json"), (CONTENT_ENCODING, "gzip")], body).into_response())
}
