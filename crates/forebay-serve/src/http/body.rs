//! The bytes of a body, in time and not too many.

use std::time::Instant;

use axum::{
    body::Body,
    http::{HeaderMap, StatusCode, header},
};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use tokio::time;

use super::{App, admission, context::Context, problem::Problem};

/// Bytes of a body without a length that are made room for at once.
const FIRST: usize = 16 << 10;

/// Reads all of `body`. A body in one piece is not copied.
pub(super) async fn read(app: &App, context: &Context, headers: &HeaderMap, mut body: Body) -> Result<Bytes, Problem> {
    let limit = app.limits.body_bytes;
    let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    let all = async {
        let mut first: Option<Bytes> = None;
        let mut whole: Option<BytesMut> = None;
        let mut total = 0;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| {
                Problem::malformed(format!("the body ended before it was whole: {error}")).closing()
            })?;
            let Ok(data) = frame.into_data() else { continue };
            total += data.len() as u64;
            if total > limit {
                return Err(admission::too_long(None, limit));
            }
            match (&mut whole, first.take()) {
                (Some(whole), _) => whole.extend_from_slice(&data),
                (None, None) => first = Some(data),
                (None, Some(first)) => {
                    // The length was held against the limit before.
                    let room = length.and_then(|length| usize::try_from(length).ok()).unwrap_or(FIRST);
                    let mut both = BytesMut::with_capacity(room.max(first.len() + data.len()));
                    both.extend_from_slice(&first);
                    both.extend_from_slice(&data);
                    whole = Some(both);
                }
            }
        }
        Ok(whole.map(BytesMut::freeze).or(first).unwrap_or_default())
    };
    let until = Instant::now() + app.body_timeout;
    time::timeout_at(until.min(context.deadline).into(), all).await.unwrap_or_else(|_| {
        if context.hurried && context.deadline < until {
            return Err(Problem::deadline().closing());
        }
        Err(too_slow(app))
    })
}

/// 408: it did not arrive in time, which is the smaller of two limits of the server.
pub(super) fn too_slow(app: &App) -> Problem {
    let (limit, key) = if app.request_timeout <= app.body_timeout {
        (app.request_timeout, "limits.request_timeout_s")
    } else {
        (app.body_timeout, "server.body_timeout_s")
    };
    let text = format!("the body did not arrive within {:.1} s ({key})", limit.as_secs_f64());
    Problem::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", text).closing()
}
