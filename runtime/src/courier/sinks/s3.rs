//! Objects in a bucket.

use crate::config::S3Account;
use crate::courier::Receipt;
use crate::effect;

/// One bucket.
pub struct S3 {
    account: S3Account,
}

impl S3 {
    /// A client of this account.
    pub async fn new(account: S3Account) -> Self {
        Self { account }
    }

    pub(super) async fn perform(&self, _: &effect::S3) -> Receipt {
        Receipt::Transient(format!("not built: {}", self.account.bucket))
    }
}
