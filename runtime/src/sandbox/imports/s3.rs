//! `s3`: an object becomes one effect.

use crate::grant::{self, S3Request, S3RequestBody};
use crate::sandbox::guest::s3::{ArtifactOf, Body, Host, Object};
use crate::sandbox::guest::{Guest, types};

impl Host for Guest {
    fn put(&mut self, object: Object) -> wasmtime::Result<Result<types::EffectId, types::Refusal>> {
        self.record.call()?;
        let Object { key, content_type, body } = object;
        let body = match body {
            Body::Bytes(bytes) => S3RequestBody::Bytes(bytes),
            Body::GzippedArtifact(ArtifactOf { run_id, name }) => S3RequestBody::GzippedArtifact { run_id, name },
        };
        let request = S3Request { key, content_type, body };
        let (grant, about) = (&self.grant, &self.about);
        let asked = self.record.ask(&self.origin, |index| grant::s3::plan(grant, &self.origin, about, index, request));
        Ok(asked.map_err(Into::into))
    }
}
