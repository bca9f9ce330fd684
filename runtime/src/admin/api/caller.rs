//! Who asks, by the token in the request, and for whom.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;

use super::{Error, Result, token};
use crate::admin::Admin;
use crate::tenant::Tenant;

/// Somebody with a token that is known.
pub(super) struct Caller {
    /// The token's id.
    pub(super) id: String,
    /// Whose it is; the operator's, when there is none.
    tenant: Option<String>,
}

impl FromRequestParts<Arc<Admin>> for Caller {
    type Rejection = Error;

    async fn from_request_parts(parts: &mut Parts, admin: &Arc<Admin>) -> Result<Self> {
        let header = parts.headers.get(AUTHORIZATION).and_then(|header| header.to_str().ok());
        let (scheme, text) = header.and_then(|header| header.split_once(' ')).ok_or_else(Error::unknown_caller)?;
        let presented = token::parts(text.trim()).filter(|_| scheme.eq_ignore_ascii_case("bearer"));
        let (id, secret) = presented.ok_or_else(Error::unknown_caller)?;
        let kept = admin.store.tokens(Some(id)).await?.into_iter().find(|kept| token::fits(kept, secret));
        let kept = kept.ok_or_else(Error::unknown_caller)?;
        Ok(Self { id: kept.id, tenant: kept.tenant })
    }
}

impl Caller {
    /// Whether it is the operator.
    pub(super) const fn is_operator(&self) -> bool {
        self.tenant.is_none()
    }

    /// Whether something of this tenant's may be shown.
    pub(super) fn may_see(&self, tenant: &str) -> bool {
        self.tenant.as_deref().is_none_or(|own| own == tenant)
    }

    /// The tenant that is asked about. Who may not ask does not learn whether there is such a tenant.
    pub(super) fn tenant(&self, admin: &Admin, name: &str) -> Result<Arc<Tenant>> {
        if !self.may_see(name) {
            return Err(Error::forbidden());
        }
        admin.live.tenants.named(name).ok_or_else(|| Error::not_found("tenant", "expected the name of a tenant"))
    }
}
