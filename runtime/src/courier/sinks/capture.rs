//! Performs nothing and keeps what would have been sent: for the demo, for staging and for tests.

use crate::courier::Receipt;

/// The effect stays in the store, where it can be looked at.
pub(super) fn perform() -> Receipt {
    Receipt::Delivered("captured, not sent".into())
}
