//! `taskcluster`: reads about the event's own task.

use crate::sandbox::guest::Guest;
use crate::sandbox::guest::taskcluster::{Artifact, Host, ReadFailure};
use crate::taskcluster::ReadError;

impl Host for Guest {
    async fn artifacts(&mut self, run_id: u32) -> wasmtime::Result<Result<Vec<Artifact>, ReadFailure>> {
        self.record.call()?;
        let artifacts = self.reads.artifacts(run_id).await;
        Ok(artifacts.map_err(Into::into).map(|artifacts| {
            artifacts
                .into_iter()
                .map(|artifact| Artifact {
                    name: artifact.name,
                    storage_type: artifact.storage_type,
                    content_type: artifact.content_type,
                })
                .collect()
        }))
    }

    async fn read_artifact(&mut self, run_id: u32, name: String) -> wasmtime::Result<Result<Vec<u8>, ReadFailure>> {
        self.record.call()?;
        Ok(self.reads.read_artifact(run_id, &name).await.map_err(Into::into))
    }
}

impl From<ReadError> for ReadFailure {
    fn from(error: ReadError) -> Self {
        let why = error.to_string();
        match error {
            ReadError::NotFound(_) | ReadError::Gone(_) => Self::Missing(why),
            ReadError::Refused(_) => Self::Refused(why),
            ReadError::TooLarge(_) => Self::TooLarge(why),
            ReadError::Unavailable(_) => Self::Unavailable(why),
        }
    }
}
