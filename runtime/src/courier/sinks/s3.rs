//! Objects in a bucket. A log may be of any size: it goes from where it is to the bucket piece by piece, gzipped on the
//! way, and is there whole or not at all.

mod gzip;

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::Builder;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart, ObjectCannedAcl};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use bytes::Bytes;

use super::aws::{self, Meaning, Repeated};
use crate::config::S3Account;
use crate::courier::Receipt;
use crate::effect::{self, S3Body};
use crate::store::{Claimed, now_ms};
use crate::taskcluster::{Body, ReadError, Taskcluster};
use gzip::{Gzipped, Part, Rooms};

/// Objects at the same time: each holds a part in memory.
pub(super) const OBJECTS_MAX: usize = 4;

/// One bucket.
pub struct S3 {
    account: S3Account,
    client: Client,
    taskcluster: Arc<Taskcluster>,
    rooms: Arc<Rooms>,
}

impl S3 {
    /// A client of this account, which copies what this Taskcluster has. Nothing is connected yet.
    pub async fn new(account: S3Account, taskcluster: Arc<Taskcluster>) -> Self {
        let settings = aws::settings(&account.aws).await;
        // Other services than AWS have no host name for each bucket.
        let by_path = settings.endpoint_url().is_some();
        let client = Client::from_conf(Builder::from(&settings).force_path_style(by_path).build());
        Self { account, client, taskcluster, rooms: Arc::default() }
    }

    pub(super) async fn perform(&self, claimed: &Claimed, object: &effect::S3) -> Receipt {
        let source = match &object.body {
            S3Body::Bytes(bytes) => {
                let put = self.put(object, Bytes::copy_from_slice(bytes), None).await;
                return put.unwrap_or_else(|failed| failed);
            }
            S3Body::Artifact(of) => self.taskcluster.stream_artifact(&of.task_id, of.run_id, &of.name).await,
            S3Body::Address(address) => self.taskcluster.stream_address(address).await,
        };
        let copied = match source {
            Ok(source) => self.copy(object, source).await,
            Err(error) => Err(Failure::Read(error)),
        };
        match copied {
            Ok(receipt) | Err(Failure::Put(receipt)) => receipt,
            Err(Failure::Read(error)) => not_read(&error, Duration::from_millis(age_ms(claimed))),
        }
    }

    async fn copy(&self, object: &effect::S3, source: Body) -> Result<Receipt, Failure> {
        let mut gzipped = Gzipped::new(source, &self.rooms);
        match gzipped.part().await? {
            Part::Last(bytes) => Ok(self.put(object, bytes, Some(GZIP)).await?),
            Part::OneOfMany(first) => self.put_by_parts(object, first, gzipped).await,
        }
    }

    async fn put(&self, object: &effect::S3, bytes: Bytes, encoding: Option<&str>) -> Result<Receipt, Receipt> {
        let said = format!("{} bytes", bytes.len());
        let call = self.client.put_object().bucket(&self.account.bucket).key(&object.key);
        let call = call.content_type(&object.content_type).set_content_encoding(encoding.map(str::to_owned));
        let call = call.set_acl(self.acl()).body(ByteStream::from(bytes));
        call.send().await.map_err(|error| self.not_put(&error))?;
        Ok(Receipt::Delivered(said))
    }

    /// Parts are invisible until all are there. Those of an upload that fails are thrown away.
    async fn put_by_parts(&self, object: &effect::S3, first: Bytes, rest: Gzipped) -> Result<Receipt, Failure> {
        let call = self.client.create_multipart_upload().bucket(&self.account.bucket).key(&object.key);
        let call = call.content_type(&object.content_type).content_encoding(GZIP).set_acl(self.acl());
        let begun = call.send().await.map_err(|error| self.not_put(&error))?;
        let upload = Upload { key: &object.key, id: begun.upload_id().unwrap_or_default() };
        let done = self.put_parts(&upload, first, rest).await;
        if done.is_err() {
            self.abort(&upload).await;
        }
        done
    }

    async fn put_parts(&self, upload: &Upload<'_>, first: Bytes, mut rest: Gzipped) -> Result<Receipt, Failure> {
        let mut bytes_sent = first.len();
        let mut parts = vec![self.put_part(upload, 1, first).await?];
        let mut is_whole = false;
        while !is_whole {
            let bytes = match rest.part().await? {
                Part::OneOfMany(bytes) => bytes,
                Part::Last(bytes) => {
                    is_whole = true;
                    bytes
                }
            };
            bytes_sent += bytes.len();
            let number = i32::try_from(parts.len() + 1).unwrap_or(i32::MAX);
            parts.push(self.put_part(upload, number, bytes).await?);
        }
        let said = format!("{bytes_sent} bytes in {} parts", parts.len());
        let parts = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
        let call = self.client.complete_multipart_upload().bucket(&self.account.bucket);
        let call = call.key(upload.key).upload_id(upload.id).multipart_upload(parts);
        call.send().await.map_err(|error| self.not_put(&error))?;
        Ok(Receipt::Delivered(said))
    }

    async fn put_part(&self, upload: &Upload<'_>, number: i32, bytes: Bytes) -> Result<CompletedPart, Receipt> {
        let call = self.client.upload_part().bucket(&self.account.bucket).key(upload.key).upload_id(upload.id);
        let call = call.part_number(number).body(ByteStream::from(bytes));
        let sent = call.send().await.map_err(|error| self.not_put(&error))?;
        let part = CompletedPart::builder().part_number(number).set_e_tag(sent.e_tag().map(str::to_owned));
        Ok(part.set_checksum_crc32(sent.checksum_crc32().map(str::to_owned)).build())
    }

    async fn abort(&self, upload: &Upload<'_>) {
        let call = self.client.abort_multipart_upload().bucket(&self.account.bucket);
        if let Err(error) = call.key(upload.key).upload_id(upload.id).send().await {
            let code = error.code().unwrap_or("no answer");
            tracing::warn!(key = upload.key, code, "the parts of a failed upload stay in the bucket");
        }
    }

    fn acl(&self) -> Option<ObjectCannedAcl> {
        self.account.acl.as_deref().map(ObjectCannedAcl::from)
    }

    fn not_put<E>(&self, error: &SdkError<E, HttpResponse>) -> Receipt
    where
        E: ProvideErrorMetadata + Error + 'static,
    {
        match (aws::receipt(error, Repeated::IsHarmless, |code, _| meaning(code)), &self.account.acl) {
            (Receipt::Suspended(why), Some(acl)) => match error.code() {
                Some("AccessControlListNotSupported") => {
                    Receipt::Suspended(format!("the bucket takes no ACLs: set S3_ACL=none ({why})"))
                }
                Some("AccessDenied") => Receipt::Suspended(format!(
                    "{why}: objects may not be put there, or not with the ACL {acl}, which S3_ACL=none leaves out"
                )),
                Some(_) | None => Receipt::Suspended(why),
            },
            (receipt, _) => receipt,
        }
    }
}

/// A multipart upload that has begun.
struct Upload<'a> {
    key: &'a str,
    id: &'a str,
}

/// Why an object was not copied.
enum Failure {
    /// It could not be read where it is.
    Read(ReadError),
    /// It could not be put where it belongs.
    Put(Receipt),
}

impl From<ReadError> for Failure {
    fn from(error: ReadError) -> Self {
        Self::Read(error)
    }
}

impl From<Receipt> for Failure {
    fn from(receipt: Receipt) -> Self {
        Self::Put(receipt)
    }
}

fn meaning(code: &str) -> Meaning {
    match code {
        "NoSuchBucket"
        | "InvalidBucketName"
        | "PermanentRedirect"
        | "AuthorizationHeaderMalformed"
        | "AccessControlListNotSupported" => Meaning::Suspended,
        "EntityTooLarge" | "KeyTooLongError" | "InvalidArgument" => Meaning::Permanent,
        _ => Meaning::Transient,
    }
}

/// What it means that an artifact could not be read. A run may leave its artifacts up to 25 minutes after its end.
fn not_read(error: &ReadError, age: Duration) -> Receipt {
    let why = error.to_string();
    match error {
        ReadError::NotFound(_) if age < LATE_MAX => Receipt::Transient(why),
        ReadError::Unavailable(_) => Receipt::Transient(why),
        ReadError::NotFound(_) | ReadError::Gone(_) | ReadError::Refused(_) | ReadError::TooLarge(_) => {
            Receipt::Permanent(why)
        }
    }
}

fn age_ms(claimed: &Claimed) -> u64 {
    u64::try_from(now_ms() - claimed.created_ms).unwrap_or_default()
}

const GZIP: &str = "gzip";
const LATE_MAX: Duration = Duration::from_secs(30 * 60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_is_waited_for_half_an_hour_and_what_is_gone_is_not() {
        let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
        let not_found = ReadError::NotFound("404".into());
        assert!(matches!(not_read(&not_found, minutes(29)), Receipt::Transient(_)));
        assert!(matches!(not_read(&not_found, minutes(30)), Receipt::Permanent(_)));
        assert!(matches!(not_read(&ReadError::Unavailable("503".into()), minutes(99)), Receipt::Transient(_)));
        for never in [ReadError::Gone("410".into()), ReadError::Refused("a reference".into()), ReadError::TooLarge(1)] {
            assert!(matches!(not_read(&never, minutes(0)), Receipt::Permanent(_)), "{never}");
        }
    }

    #[test]
    fn a_wrong_bucket_suspends_and_a_wrong_object_kills_itself() {
        assert_eq!(meaning("NoSuchBucket"), Meaning::Suspended);
        assert_eq!(meaning("PermanentRedirect"), Meaning::Suspended);
        assert_eq!(meaning("KeyTooLongError"), Meaning::Permanent);
        assert_eq!(meaning("NoSuchUpload"), Meaning::Transient);
    }
}
