//! Documents with their embeddings, and the nearest of them to a query.

use std::{
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use forebay_ingest::{
    Work,
    numeric::{Metric, NumericError, top_k},
};
use forebay_serve::{
    backend::{Backend as _, Call, Health, Input, Priority, Refusal, TextItem},
    engine::Engine,
};
use serde_json::{Map, Value};

/// Texts in one call while the index is built: a batch, so that none of them waits for a worker.
const AT_ONCE: usize = 32;
const PATIENCE: Duration = Duration::from_secs(60);

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SearchError {
    /// The engine has no room, or no worker.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// The model cannot use this text.
    #[error("{0}")]
    Item(String),
    /// The model gives something else than before.
    #[error("an embedding has {found} bytes, expected {expected}: was the model changed?")]
    Width { found: usize, expected: usize },
    #[error(transparent)]
    Numeric(#[from] NumericError),
}

/// Documents and the matrix of their embeddings, all of length 1.
pub(crate) struct Index {
    engine: Arc<Engine>,
    documents: Vec<Map<String, Value>>,
    matrix: Vec<f32>,
    dim: usize,
}

impl Index {
    /// Embeds every document of a file with one JSON object a line. Waits until the model is ready.
    pub(crate) async fn build(engine: Arc<Engine>, path: &Path) -> Result<Self, crate::Failure> {
        let text = fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        let lines = text.lines().filter(|line| !line.trim().is_empty());
        let documents = lines.map(serde_json::from_str).collect::<Result<Vec<Map<String, Value>>, _>>()?;
        let begin = Instant::now();
        while engine.health() != Health::Ready {
            if begin.elapsed() > PATIENCE {
                return Err(format!("no worker is ready after {PATIENCE:?}: {:?}", engine.health()).into());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let mut matrix = Vec::new();
        for some in documents.chunks(AT_ONCE) {
            let texts = some.iter().map(|document| document.get("text").and_then(Value::as_str).unwrap_or_default());
            embed(&engine, texts.map(str::to_owned).collect(), &mut matrix).await?;
        }
        let dim = matrix.len() / documents.len().max(1);
        Ok(Self { engine, documents, matrix, dim })
    }

    pub(crate) fn len(&self) -> usize {
        self.documents.len()
    }

    pub(crate) fn dim(&self) -> usize {
        self.dim
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.engine.health() == Health::Ready
    }

    /// Score and document of the `k` nearest, nearest first. Queries that come together are embedded together.
    pub(crate) async fn search(&self, query: String, k: usize) -> Result<Vec<(f32, &Map<String, Value>)>, SearchError> {
        let mut row = Vec::with_capacity(self.dim);
        embed(&self.engine, vec![query], &mut row).await?;
        if row.len() != self.dim {
            return Err(SearchError::Width { found: 4 * row.len(), expected: 4 * self.dim });
        }
        // Some 10 µs for a thousand documents: not worth another thread.
        let near = top_k(&self.matrix, &row, self.dim, k, Metric::Dot, &Work::here())?;
        let document = |&index: &i64| &self.documents[index as usize];
        Ok(near.scores.iter().copied().zip(near.indices.iter().map(document)).collect())
    }
}

/// Appends the embeddings of `texts` to `out`, straight from the slots that the worker wrote them into.
async fn embed(engine: &Engine, texts: Vec<String>, out: &mut Vec<f32>) -> Result<(), SearchError> {
    let items = texts.into_iter().map(|text| TextItem { text, pair: None });
    let answer = engine
        .infer(Call {
            input: Input::Texts(items.collect()),
            parameters: Map::new(),
            priority: Priority::Normal,
            deadline: Instant::now() + PATIENCE,
            request_id: "hybrid".into(),
            trace: None,
        })
        .await?;
    for item in answer.items {
        let row = item.map_err(|error| SearchError::Item(error.message))?;
        let Some((_, _, _, bytes)) = row.tensors().next() else {
            return Err(SearchError::Width { found: 0, expected: 4 });
        };
        out.extend(bytes.chunks_exact(4).map(|bytes| f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])));
    }
    Ok(())
}
