//! What lies around a configuration and would only show later: the store's folder, certificates, the log's level.

use std::path::{Path, PathBuf};

use super::document::OUT_OF_SIGHT;
use super::{Environment, Role};

/// What was found.
#[derive(Default)]
pub(super) struct Found {
    /// Place and what was expected there.
    pub(super) problems: Vec<(&'static str, String)>,
    pub(super) notes: Vec<String>,
}

pub(super) fn look(environment: &Environment, role: Role, store: Option<&str>) -> Found {
    let mut found = Found::default();
    if role == Role::Intake {
        found.problems.extend(secrets_in_sight(environment).map(|place| (place, OUT_OF_SIGHT.to_owned())));
    }
    if let Some(level) = environment.text("LOG_LEVEL")
        && !LOG_LEVELS.iter().any(|known| known.eq_ignore_ascii_case(level))
    {
        let levels = LOG_LEVELS.join(", ");
        found.notes.push(format!("LOG_LEVEL is none of {levels}: INFO is meant"));
    }
    if let Some(path) = environment.text("SSL_CERT_FILE") {
        match std::fs::read(path) {
            Err(error) => found.problems.push(("SSL_CERT_FILE", format!("read {path}: {error}"))),
            Ok(bytes) if !bytes.windows(PEM.len()).any(|window| window == PEM) => {
                found
                    .problems
                    .push(("SSL_CERT_FILE", format!("expected certificates in PEM form in {path}, found none")));
            }
            Ok(_) => {}
        }
    }
    let path = store.and_then(|store| store.strip_prefix("sqlite:"));
    if let Some(path) = path.map(|path| path.strip_prefix("//").unwrap_or(path))
        && let Some(folder) = Path::new(path).parent()
        && !folder.as_os_str().is_empty()
        && !folder.is_dir()
    {
        let folder = folder.display();
        found.problems.push(("the store", format!("expected a folder that exists, found no {folder}")));
    }
    found
}

/// What holds a secret for a sink, and can be seen: variables, and files of the AWS tools.
fn secrets_in_sight(environment: &Environment) -> impl Iterator<Item = &'static str> {
    let is_set = |name: &&str| environment.text(name).is_some();
    let home = environment.text("HOME").map(Path::new);
    let file = move |variable: &str, usual: Option<&str>| {
        let named = environment.text(variable).map(PathBuf::from);
        let text = std::fs::read_to_string(named.or_else(|| Some(home?.join(usual?)))?).ok()?;
        (usual.is_none() || text.contains("aws_secret_access_key") || text.contains("aws_session_token")).then_some(())
    };
    let is_readable = move |(variable, usual): &(&str, Option<&str>)| file(variable, *usual).is_some();
    let files = FILES.into_iter().filter(is_readable).map(|(variable, _)| variable);
    VARIABLES.into_iter().filter(is_set).collect::<Vec<_>>().into_iter().chain(files.collect::<Vec<_>>())
}

/// Variables that hold a secret for a sink.
const VARIABLES: [&str; 5] =
    ["SMTP_PASSWD", "IRC_PASS", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_CONTAINER_AUTHORIZATION_TOKEN"];
/// Variables that name a file with one, and where else it is below the home.
const FILES: [(&str, Option<&str>); 4] = [
    ("AWS_SHARED_CREDENTIALS_FILE", Some(".aws/credentials")),
    ("AWS_CONFIG_FILE", Some(".aws/config")),
    ("AWS_WEB_IDENTITY_TOKEN_FILE", None),
    ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", None),
];
const LOG_LEVELS: [&str; 9] = ["TRACE", "DEBUG", "NOTSET", "INFO", "WARN", "WARNING", "ERROR", "CRITICAL", "FATAL"];
const PEM: &[u8] = b"-----BEGIN ";
