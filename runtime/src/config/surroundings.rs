//! What lies around a configuration and would only show later: the store's folder, certificates, the log's level.

use std::path::Path;

use super::Environment;

/// What was found.
#[derive(Default)]
pub(super) struct Found {
    /// Place and what was expected there.
    pub(super) problems: Vec<(&'static str, String)>,
    pub(super) notes: Vec<String>,
}

pub(super) fn look(environment: &Environment, store: Option<&str>) -> Found {
    let mut found = Found::default();
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

const LOG_LEVELS: [&str; 9] = ["TRACE", "DEBUG", "NOTSET", "INFO", "WARN", "WARNING", "ERROR", "CRITICAL", "FATAL"];
const PEM: &[u8] = b"-----BEGIN ";
