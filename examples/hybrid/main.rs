//! Search as one program: HTTP, tokenizing, batching, the index and what is done with it are Rust; the model is Python.
//!
//! ```text
//!   POST /search ──▶ embed the query ──▶ nearest documents ──▶ JSON
//!                    Engine ══ rings ══▶ worker.py (../embedder)
//! ```
//!
//! `hybrid [CONFIG [DOCUMENTS]]`: the embedder's configuration and a file with one JSON object a line, each with a `text`.

mod index;

use std::{path::PathBuf, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, State},
    http::StatusCode,
    routing::{get, post},
};
use forebay_serve::{
    Config,
    backend::Refusal,
    engine::{self, Engine},
    metrics::Metrics,
    trace::Tracer,
};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{net::TcpListener, signal::unix};

use crate::index::{Index, SearchError};

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// What a client asks.
#[derive(Debug, Deserialize)]
struct Search {
    query: String,
    #[serde(default = "five")]
    k: usize,
}

fn five() -> usize {
    5
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1).map(PathBuf::from);
    let config = arguments.next().unwrap_or_else(|| "examples/embedder/embedder.toml".into());
    let documents = arguments.next().unwrap_or_else(|| "examples/data/kjv.jsonl".into());
    let config = Config::load(Some(&config), std::env::vars(), &[])?;
    let listen = config.server.listen.clone();

    // The same engine that `forebay serve` runs: it starts the workers, batches, and starts them anew when they die.
    let engine = Arc::new(Engine::start(engine::check(config)?, None, Metrics::new(), Tracer::off())?);
    let index = Arc::new(Index::build(Arc::clone(&engine), &documents).await?);
    eprintln!("{} documents of {} numbers each; listening on http://{listen}", index.len(), index.dim());

    let app = Router::new()
        .route("/search", post(search))
        .route("/readyz", get(ready))
        .layer(DefaultBodyLimit::max(64 << 10))
        .with_state(index);
    axum::serve(TcpListener::bind(&listen).await?, app).with_graceful_shutdown(asked_to_end()).await?;
    engine.stop().await;
    Ok(())
}

/// `{"query": text, "k": n}` to `{"results": [{"score": …, …document…}]}`, nearest first.
async fn search(
    State(index): State<Arc<Index>>,
    Json(asked): Json<Search>,
) -> Result<Json<Value>, (StatusCode, Json<Value>)> {
    let found = index.search(asked.query, asked.k.clamp(1, 100)).await.map_err(|error| {
        let status = match &error {
            SearchError::Refused(Refusal::Full { .. }) => StatusCode::TOO_MANY_REQUESTS,
            SearchError::Refused(Refusal::Invalid { .. } | Refusal::TooLarge(_)) | SearchError::Item(_) => {
                StatusCode::UNPROCESSABLE_ENTITY
            }
            SearchError::Refused(Refusal::Deadline) => StatusCode::GATEWAY_TIMEOUT,
            SearchError::Refused(_) => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (status, Json(json!({ "error": error.to_string() })))
    })?;
    let results: Vec<Value> = found
        .into_iter()
        .map(|(score, document)| {
            let mut shown = document.clone();
            shown.insert("score".to_owned(), json!(score));
            Value::Object(shown)
        })
        .collect();
    Ok(Json(json!({ "results": results })))
}

async fn ready(State(index): State<Arc<Index>>) -> StatusCode {
    if index.is_ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

async fn asked_to_end() {
    let terminate = async {
        match unix::signal(unix::SignalKind::terminate()) {
            Ok(mut signal) => signal.recv().await,
            // Without it Ctrl-C is left.
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = terminate => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    // Streams that are open get a moment; nothing here takes longer.
    tokio::time::sleep(Duration::from_millis(10)).await;
}
