//! What it shows of itself: the stages of a batch, in metrics and in spans.

use std::sync::Arc;

use forebay_serve::{
    backend::{Backend, Call, Health, TraceContext},
    metrics::Metrics,
    trace::Tracer,
};

use crate::{
    place::{ask, asking, call, firsts, until},
    worker::UNTIL_FILE,
};

engine_test! {
    async fn each_stage_of_a_batch_is_measured(place: Place) {
        let metrics = Metrics::new();
        let engine = place.start_with(place.config("normal", "", ""), Arc::clone(&metrics), Tracer::off());
        until("the engine is ready", || engine.health() == Health::Ready).await;
        assert_eq!(firsts(&ask(&engine, &[1.0, 2.0]).await.unwrap()), [Ok(2.0), Ok(4.0)]);
        for line in [
            "forebay_stage_seconds_count{stage=\"ingest\"} 1",
            "forebay_stage_seconds_count{stage=\"queue\"} 1",
            "forebay_stage_seconds_count{stage=\"batch_wait\"} 1",
            "forebay_stage_seconds_count{stage=\"hand_over\"} 1",
            "forebay_stage_seconds_count{stage=\"forward\"} 1",
            "forebay_batch_items_bucket{le=\"2.0\"} 1",
        ] {
            // The answer may be there before all is counted of how the batch left.
            until(line, || metrics.text("double", engine.status()).lines().any(|found| found == line)).await;
        }
    }
}

/// Answers requests with 200 and sends their JSON on.
async fn collector(listener: tokio::net::TcpListener, bodies: tokio::sync::mpsc::UnboundedSender<serde_json::Value>) {
    use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
    while let Ok((stream, _)) = listener.accept().await {
        let mut stream = BufReader::new(stream);
        let mut length = 0;
        let mut line = String::new();
        while stream.read_line(&mut line).await.unwrap_or(0) > 0 {
            if let Some(text) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = text.trim().parse().unwrap();
            }
            if line.trim().is_empty() {
                let mut body = vec![0; length];
                stream.read_exact(&mut body).await.unwrap();
                let _ = bodies.send(serde_json::from_slice(&body).unwrap());
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await.unwrap();
            }
            line.clear();
        }
    }
}

engine_test! {
    async fn a_batch_is_traced_into_the_worker_and_linked_to_its_requests(place: Place) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (send, mut bodies) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(collector(listener, send));
        let config = place.config("normal", "", &format!("[trace]\notlp = \"http://{address}\""));
        let metrics = Metrics::new();
        let tracer = Tracer::new(&config, &metrics);
        let engine = place.start_with(config, metrics, tracer);
        until("the engine is ready", || engine.health() == Health::Ready).await;
        let held = asking(&engine, &[UNTIL_FILE]);
        place.until_marked("waiting").await;
        let traced = |number: u8| {
            let trace = TraceContext { trace_id: [number; 16], span_id: [number; 8], sampled: true };
            let (engine, call) = (Arc::clone(&engine), Call { trace: Some(trace), ..call(&[f32::from(number)]) });
            tokio::spawn(async move { engine.infer(call).await })
        };
        let (one, other) = (traced(1), traced(2));
        until("both wait", || engine.status().queued_items == 2).await;
        place.mark("go");
        assert!(held.await.unwrap().is_ok() && one.await.unwrap().is_ok() && other.await.unwrap().is_ok());
        let mut spans = Vec::new();
        while spans.len() < 2 {
            let body = bodies.recv().await.unwrap();
            spans.extend(body["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array().unwrap().clone());
        }
        let named = |name: &str| spans.iter().find(|span| span["name"] == name).unwrap();
        let (batch, forward) = (named("batch"), named("forward"));
        // Part of the first request's trace, linked to the second's; the order in which they came is theirs.
        let ids = ["01".repeat(16), "02".repeat(16)];
        let own = ids.iter().position(|id| batch["traceId"] == **id).unwrap();
        assert_eq!(batch["parentSpanId"], ["01".repeat(8), "02".repeat(8)][own]);
        assert_eq!(batch["links"][0]["traceId"], ids[1 - own]);
        assert_eq!((&forward["traceId"], &forward["parentSpanId"]), (&batch["traceId"], &batch["spanId"]));
        let [trace, span] = ["traceId", "spanId"].map(|key| batch[key].as_str().unwrap());
        assert!(place.path(&format!("trace-{trace}-{span}-1")).exists(), "the worker was told the batch's span");
        let time = |span: &serde_json::Value, key: &str| span[key].as_str().unwrap().parse::<u64>().unwrap();
        assert!(time(batch, "startTimeUnixNano") <= time(forward, "startTimeUnixNano"));
        assert!(time(forward, "endTimeUnixNano") <= time(batch, "endTimeUnixNano"));
    }
}
