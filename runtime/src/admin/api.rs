//! What can be asked and done with a token: plugins and their versions, and what happened. JSON in and out; an error says
//! where it is and what was expected there.

mod caller;
mod input;
mod plugins;
mod records;
pub mod token;

use std::sync::Arc;

use axum::Router;
use axum::http::header::{CONTENT_TYPE, WWW_AUTHENTICATE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::Serialize;

use super::Admin;

pub(super) fn router() -> Router<Arc<Admin>> {
    let plugin = "/tenants/{tenant}/plugins/{plugin}";
    Router::new()
        .route("/plugins", get(plugins::all))
        .route("/tenants/{tenant}/plugins", get(plugins::of_tenant))
        .route(plugin, get(plugins::inspect))
        .route(&format!("{plugin}/versions"), post(plugins::deploy))
        .route(&format!("{plugin}/rollback"), post(plugins::roll_back))
        .route(&format!("{plugin}/quarantine"), post(plugins::quarantine))
        .route(&format!("{plugin}/release"), post(plugins::release))
        .route("/tenants/{tenant}/invocations", get(records::invocations))
        .route("/tenants/{tenant}/effects", get(records::effects))
        .route("/tenants/{tenant}/dead_deliveries", get(records::dead_deliveries))
        .fallback(async || Error::not_found("path", "expected a path of the API"))
        .method_not_allowed_fallback(async || Error::method_not_allowed())
}

/// Why a request is not followed.
struct Error {
    status: StatusCode,
    /// What it is about: a parameter, a header, the body.
    place: &'static str,
    what: String,
}

type Result<T> = std::result::Result<T, Error>;

impl Error {
    fn new(status: StatusCode, place: &'static str, what: impl Into<String>) -> Self {
        Self { status, place, what: what.into() }
    }

    fn invalid(place: &'static str, what: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, place, what)
    }

    fn not_found(place: &'static str, what: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, place, what)
    }

    fn method_not_allowed() -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method", "expected another method for this path")
    }

    fn unknown_caller() -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            "authorization",
            "expected a header `authorization: Bearer TOKEN` with a token that is known",
        )
    }

    fn forbidden() -> Self {
        Self::new(StatusCode::FORBIDDEN, "authorization", "this token is not for that")
    }

    /// The database's own words are for the log.
    fn unavailable(error: &dyn std::error::Error) -> Self {
        tracing::warn!(%error, "a request to the admin API could not be followed");
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "database", "not available: try again")
    }
}

impl From<crate::store::StoreError> for Error {
    fn from(error: crate::store::StoreError) -> Self {
        Self::unavailable(&error)
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let Self { status, place, what } = self;
        let mut headers = HeaderMap::new();
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        (status, headers, Json(serde_json::json!({"place": place, "error": what}))).into_response()
    }
}

/// An answer.
struct Json<T>(T);

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        let text = serde_json::to_string_pretty(&self.0).unwrap_or_default();
        ([(CONTENT_TYPE, "application/json")], text + "\n").into_response()
    }
}
