//! The task that sends spans to the collector: in groups, one request at a time, with a deadline; what it cannot send it
//! drops and counts.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use axum::http::{Method, Request, Uri, header::CONTENT_TYPE};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use tokio::{sync::mpsc, time};

use super::{Message, Span, otlp};
use crate::metrics::Metrics;

/// Spans of one request.
const GROUP: usize = 512;
/// How long the first span of a group waits for others.
const PAUSE: Duration = Duration::from_millis(500);
/// How long the collector may take.
const DEADLINE: Duration = Duration::from_secs(5);
/// Bytes of a collector's answer that are read.
const ANSWER: usize = 64 << 10;

pub(super) struct Exporter {
    uri: String,
    service: String,
    metrics: Arc<Metrics>,
    client: Client<HttpConnector, Full<Bytes>>,
}

impl Exporter {
    pub(super) fn new(endpoint: &str, service: &str, metrics: Arc<Metrics>) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(DEADLINE));
        let uri = match endpoint.trim_end_matches('/') {
            whole if whole.ends_with("/v1/traces") => whole.to_owned(),
            base => format!("{base}/v1/traces"),
        };
        let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(1).build(connector);
        Self { uri, service: service.to_owned(), metrics, client }
    }

    /// Sends what comes out of `queue` until nobody can put anything in, then the rest.
    pub(super) async fn run(self, mut queue: mpsc::Receiver<Message>) {
        let (mut group, mut come) = (Vec::with_capacity(GROUP), Vec::with_capacity(GROUP));
        let mut failing = false;
        let mut ended = false;
        while !ended {
            let mut told = None;
            let mut pause = Box::pin(time::sleep(PAUSE));
            while group.len() < GROUP && told.is_none() && !ended {
                tokio::select! {
                    got = queue.recv_many(&mut come, GROUP) => ended = got == 0,
                    () = &mut pause, if !group.is_empty() => break,
                }
                if group.is_empty() {
                    pause.as_mut().reset(time::Instant::now() + PAUSE);
                }
                for message in come.drain(..) {
                    match message {
                        Message::Span(span) => group.push(*span),
                        Message::Flush(tell) => told = Some(tell),
                    }
                }
            }
            if !group.is_empty() {
                self.send_or_drop(&group, &mut failing).await;
                group.clear();
            }
            if let Some(tell) = told {
                // Whoever asked may have stopped waiting.
                let _ = tell.send(());
            }
        }
    }

    async fn send_or_drop(&self, group: &[Span], failing: &mut bool) {
        let counted = group.len() as u64;
        match self.send(group).await {
            // ORDER none, Relaxed: statistics.
            Ok(()) => {
                self.metrics.spans_sent.fetch_add(counted, Relaxed);
                *failing = false;
            }
            Err(why) => {
                self.metrics.spans_dropped.fetch_add(counted, Relaxed);
                // Said when it begins, not with every group.
                if !std::mem::replace(failing, true) {
                    tracing::warn!(endpoint = self.uri, why, "traces cannot be sent; they are dropped and counted");
                }
            }
        }
    }

    async fn send(&self, spans: &[Span]) -> Result<(), String> {
        let uri: Uri = self.uri.parse().map_err(|error| format!("{error}"))?;
        let request = Request::builder()
            .method(Method::POST)
            .uri(uri)
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(otlp::body(&self.service, spans))))
            .map_err(|error| error.to_string())?;
        let exchange = async {
            let answer = self.client.request(request).await.map_err(|error| error.to_string())?;
            let status = answer.status();
            // Read to its end, so that the connection can be used again.
            let _ = http_body_util::Limited::new(answer.into_body(), ANSWER).collect().await;
            if status.is_success() { Ok(()) } else { Err(format!("the collector answered {status}")) }
        };
        time::timeout(DEADLINE, exchange).await.unwrap_or_else(|_| Err(format!("no answer within {DEADLINE:?}")))
    }
}
