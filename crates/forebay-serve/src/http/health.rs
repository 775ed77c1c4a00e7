//! `/livez`, `/readyz`, `/v2/health/live`, `/v2/health/ready`: for whoever starts and stops the daemon. No key is asked
//! for, and no place is taken.

use std::sync::Arc;

use axum::{extract::State, http::StatusCode};

use super::{App, problem::Problem};
use crate::backend::Health;

/// The process answers. True while it drains as well: whoever kills what is not alive must not.
pub(super) async fn live() -> &'static str {
    "live\n"
}

/// Requests can be answered: a worker is warmed up, and nobody asked to stop.
pub(super) async fn ready(State(app): State<Arc<App>>) -> Result<&'static str, Problem> {
    match app.health() {
        Health::Ready => Ok("ready\n"),
        other => Err(not_ready(&other)),
    }
}

pub(super) fn not_ready(health: &Health) -> Problem {
    let (kind, text) = match health {
        Health::Draining => ("draining", "the server is shutting down".to_owned()),
        Health::NotReady(why) => ("not_ready", why.clone()),
        Health::Ready => ("ready", "ready".to_owned()),
    };
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, kind, text).retry_after(1)
}
