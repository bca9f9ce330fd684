//! `s3`: under which keys objects may be put.

use super::{About, Grant, Pattern, Refusal, is_content_type, not_granted, shown};
use crate::effect::{ArtifactOf, Effect, Origin, Planned, S3, S3Body};

/// Under which keys objects may be put, and through which account, which has one bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct S3Grant {
    /// The account.
    pub account: String,
    /// Patterns, of which a key must match one.
    pub keys: Vec<Pattern>,
}

/// An object as a guest asks for it.
#[derive(Clone, Debug)]
pub struct S3Request {
    /// Its key.
    pub key: String,
    /// Its content type.
    pub content_type: String,
    /// What is in it.
    pub body: S3RequestBody,
}

/// What is in an object, as a guest asks for it.
#[derive(Clone, Debug)]
pub enum S3RequestBody {
    /// These bytes.
    Bytes(Vec<u8>),
    /// An artifact of the event's task, gzipped.
    GzippedArtifact {
        /// The run that left it.
        run_id: u32,
        /// Its name, or an address of the operator's log table.
        name: String,
    },
}

/// Makes an object an effect.
///
/// # Errors
/// A [`Refusal`] when the key is none or not granted, or a part is not well-formed.
pub fn plan(
    grant: &Grant,
    origin: &Origin,
    about: &About,
    index: u32,
    request: S3Request,
) -> Result<Vec<Planned>, Refusal> {
    let grant = grant.s3.as_ref().ok_or_else(|| not_granted("s3"))?;
    let S3Request { key, content_type, body } = request;
    grant.key(&key)?;
    if !is_content_type(&content_type) {
        return Err(Refusal::Invalid(format!(
            "expected a content type such as text/plain, found {}",
            shown(&content_type)
        )));
    }
    let body = match body {
        S3RequestBody::Bytes(bytes) => S3Body::Bytes(bytes),
        S3RequestBody::GzippedArtifact { name, .. } if about.log_addresses.contains(&name) => S3Body::Address(name),
        S3RequestBody::GzippedArtifact { run_id, name } if is_path(&name) => {
            S3Body::Artifact(ArtifactOf { task_id: about.task_id.clone(), run_id, name })
        }
        S3RequestBody::GzippedArtifact { name, .. } => {
            return Err(Refusal::Invalid(format!("expected the name of an artifact, found {}", shown(&name))));
        }
    };
    Ok(vec![Planned {
        id: origin.effect(index, &key),
        call: origin.call(index),
        effect: Effect::S3(S3 { account: grant.account.clone(), key, content_type, body }),
        refused: None,
    }])
}

impl S3Grant {
    pub(super) fn key(&self, key: &str) -> Result<(), Refusal> {
        if !is_path(key) {
            return Err(Refusal::Invalid(format!("expected a key such as logs/a.txt, found {}", shown(key))));
        }
        if self.keys.iter().any(|pattern| pattern.matches(key)) {
            Ok(())
        } else {
            Err(Refusal::NotGranted(format!("an object at {key}")))
        }
    }
}

/// Parts between slashes, none of them empty or a step, no control characters.
#[must_use]
pub fn is_path(text: &str) -> bool {
    text.len() <= PATH_BYTES_MAX
        && !text.contains(char::is_control)
        && text.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

const PATH_BYTES_MAX: usize = 1_024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grant::tests::{about, origin};

    fn put(key: &str, content_type: &str, body: S3RequestBody) -> Result<Vec<Planned>, Refusal> {
        let grant = S3Grant { account: "s3".into(), keys: vec![Pattern::to_the_letter("logs/*")] };
        let grant = Grant { s3: Some(grant), ..Grant::default() };
        plan(&grant, &origin(), &about(), 0, S3Request { key: key.into(), content_type: content_type.into(), body })
    }

    fn artifact(name: &str) -> S3RequestBody {
        S3RequestBody::GzippedArtifact { run_id: 0, name: name.into() }
    }

    #[test]
    fn objects_are_put_under_granted_keys_only() {
        let bytes = || S3RequestBody::Bytes(b"x".to_vec());
        assert!(put("logs/a b", "text/plain", bytes()).is_ok());
        assert!(matches!(put("Logs/a", "text/plain", bytes()), Err(Refusal::NotGranted(_))));
        for key in [
            "",
            "/logs/a",
            "logs/",
            "logs//a",
            "logs/../a",
            "logs/.",
            "logs/a\nb",
            "logs/\0",
            &format!("logs/{}", "x".repeat(1_020)),
        ] {
            assert!(matches!(put(key, "text/plain", bytes()), Err(Refusal::Invalid(_))), "{key:?}");
        }
        for content_type in ["", "text", "text/plain\r\nx: y", "text/plain ü", &"x/".repeat(100)] {
            assert!(matches!(put("logs/a", content_type, bytes()), Err(Refusal::Invalid(_))), "{content_type:?}");
        }
    }

    #[test]
    fn an_artifact_is_one_of_the_events_own_task() {
        let planned = put("logs/a", "text/plain", artifact("public/logs/live.log")).unwrap();
        let Effect::S3(S3 { body: S3Body::Artifact(of), .. }) = &planned[0].effect else { panic!() };
        assert_eq!(of.task_id, about().task_id);
        for name in ["", "../../secrets", "a/../b", "a\u{0}", "https://evil.example.com/"] {
            assert!(matches!(put("logs/a", "text/plain", artifact(name)), Err(Refusal::Invalid(_))), "{name:?}");
        }
    }

    #[test]
    fn an_address_is_fetched_only_when_the_operators_table_names_it() {
        let planned = put("logs/a", "text/plain", artifact("https://logs.example.com/0")).unwrap();
        assert!(matches!(&planned[0].effect, Effect::S3(S3 { body: S3Body::Address(_), .. })));
        let other = put("logs/a", "text/plain", artifact("https://logs.example.com/1//"));
        assert!(matches!(other, Err(Refusal::Invalid(_))));
    }
}
