//! The metrics as text, in the format of OpenMetrics, which Prometheus reads: names, help texts, units.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, MetricEncoder, text},
    metrics::MetricType,
    registry::{Registry, Unit},
};

use super::{Metrics, Process, Route, Snapshot, Stage};
use crate::backend::Status;

/// The content type of what [`Metrics::text`] gives.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

impl Metrics {
    /// Everything as text, with what `status` adds of the model called `model`.
    #[must_use]
    pub fn text(self: &Arc<Self>, model: &str, status: Status) -> String {
        let mut registry = Registry::default();
        let scrape = Scrape { metrics: Arc::clone(self), model: model.to_owned(), status, process: Process::now() };
        registry.register_collector(Box::new(scrape));
        let mut out = String::with_capacity(16 << 10);
        // Writing to a String does not fail.
        let _ = text::encode(&mut out, &registry);
        out
    }
}

#[derive(Debug)]
struct Scrape {
    metrics: Arc<Metrics>,
    model: String,
    status: Status,
    process: Process,
}

type Done = Result<(), std::fmt::Error>;

fn gauge(to: &mut DescriptorEncoder<'_>, name: &str, unit: Option<&Unit>, help: &str, value: f64) -> Done {
    to.encode_descriptor(name, help, unit, MetricType::Gauge)?.encode_gauge(&value)
}

fn counter(to: &mut DescriptorEncoder<'_>, name: &str, unit: Option<&Unit>, help: &str, value: f64) -> Done {
    to.encode_descriptor(name, help, unit, MetricType::Counter)?
        .encode_counter::<[(&str, &str); 0], f64, f64>(&value, None)
}

fn histogram(to: &mut MetricEncoder<'_>, labels: &impl EncodeLabelSet, snapshot: &Snapshot) -> Done {
    let Snapshot { buckets, sum, count } = snapshot;
    to.encode_family(labels)?.encode_histogram::<[(&str, &str); 0]>(*sum, *count, buckets, None)
}

/// A histogram without labels.
fn alone(to: &mut MetricEncoder<'_>, Snapshot { buckets, sum, count }: &Snapshot) -> Done {
    to.encode_histogram::<[(&str, &str); 0]>(*sum, *count, buckets, None)
}

fn one_count(to: &mut MetricEncoder<'_>, labels: &impl EncodeLabelSet, count: u64) -> Done {
    to.encode_family(labels)?.encode_counter::<[(&str, &str); 0], u64, f64>(&count, None)
}

impl Collector for Scrape {
    fn encode(&self, mut to: DescriptorEncoder<'_>) -> Done {
        self.requests(&mut to)?;
        self.batches(&mut to)?;
        self.workers(&mut to)?;
        self.process(&mut to)
    }
}

impl Scrape {
    fn requests(&self, to: &mut DescriptorEncoder<'_>) -> Done {
        let metrics = &*self.metrics;
        let help = "Requests that were answered, by route and status code; 499: the client left";
        let mut family = to.encode_descriptor("forebay_requests", help, None, MetricType::Counter)?;
        for (route, code, count) in metrics.request_counts() {
            one_count(&mut family, &[("route", route.name()), ("code", code.to_string().as_str())], count)?;
        }
        let help = "Time from a request's headers to its response, by route";
        let mut family = to.encode_descriptor("forebay_request", help, Some(&Unit::Seconds), MetricType::Histogram)?;
        for route in Route::ALL {
            let snapshot = metrics.request_snapshot(route);
            if snapshot.count > 0 {
                histogram(&mut family, &[("route", route.name())], &snapshot)?;
            }
        }
        let help = "Time by stage: parse, ingest, queue, batch_wait, hand_over, forward, respond";
        let mut family = to.encode_descriptor("forebay_stage", help, Some(&Unit::Seconds), MetricType::Histogram)?;
        for stage in Stage::ALL {
            histogram(&mut family, &[("stage", stage.name())], &metrics.stage_snapshot(stage))?;
        }
        let help = "Requests that were refused and streams that failed, by reason";
        let mut family = to.encode_descriptor("forebay_rejections", help, None, MetricType::Counter)?;
        for (reason, count) in metrics.rejections() {
            one_count(&mut family, &[("reason", reason)], count)?;
        }
        let in_flight = metrics.in_flight.load(Relaxed) as f64;
        gauge(to, "forebay_in_flight_requests", None, "Requests under way", in_flight)?;
        let connections = metrics.connections.load(Relaxed) as f64;
        gauge(to, "forebay_connections", None, "Open connections of clients", connections)?;
        let sent = metrics.spans_sent.load(Relaxed) as f64;
        counter(to, "forebay_trace_spans_sent", None, "Spans that the collector took", sent)?;
        let dropped = metrics.spans_dropped.load(Relaxed) as f64;
        counter(
            to,
            "forebay_trace_spans_dropped",
            None,
            "Spans that were not sent: queue full, or no collector",
            dropped,
        )
    }

    fn batches(&self, to: &mut DescriptorEncoder<'_>) -> Done {
        let mut family =
            to.encode_descriptor("forebay_batch_items", "Items in a batch", None, MetricType::Histogram)?;
        alone(&mut family, &self.metrics.batches())?;
        let help = "Share of a batch's tokens that are padding";
        let mut family =
            to.encode_descriptor("forebay_batch_padding", help, Some(&Unit::Ratios), MetricType::Histogram)?;
        alone(&mut family, &self.metrics.padding.snapshot())?;
        let (tokens, padded) = self.metrics.tokens();
        counter(to, "forebay_batch_tokens", None, "Tokens in batches, padding included", tokens as f64)?;
        counter(to, "forebay_batch_padding_tokens", None, "Tokens in batches that are padding", padded as f64)?;
        gauge(to, "forebay_queued_items", None, "Items that wait for a worker", self.status.queued_items as f64)?;
        gauge(to, "forebay_running_items", None, "Items that workers have", self.status.running_items as f64)?;
        let help = "Since when the oldest item waits";
        gauge(to, "forebay_oldest_wait", Some(&Unit::Seconds), help, self.status.oldest_wait_s)
    }

    fn workers(&self, to: &mut DescriptorEncoder<'_>) -> Done {
        let workers: Vec<_> = self.status.workers.iter().map(|worker| (worker.index.to_string(), worker)).collect();
        let mut family = to.encode_descriptor(
            "forebay_worker_restarts",
            "How often a worker was started again",
            None,
            MetricType::Counter,
        )?;
        let mut restarts = self.metrics.restarts.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        for (_, worker) in &workers {
            let counted = restarts.entry(worker.index).or_default();
            *counted = (*counted).max(worker.restarts);
        }
        for (worker, count) in restarts {
            one_count(&mut family, &[("worker", worker.to_string().as_str())], count)?;
        }
        type Value = fn(&crate::backend::WorkerStatus) -> f64;
        let gauges: [(&str, Option<&Unit>, &str, Value); 7] = [
            ("forebay_worker_ready", None, "1 if the worker takes batches", |w| {
                f64::from(u8::from(w.state == "ready"))
            }),
            ("forebay_worker_batches", None, "Batches that the worker has", |w| w.batches as f64),
            ("forebay_worker_items", None, "Items that the worker has", |w| w.items as f64),
            ("forebay_ring_slots_used", None, "Slots of the request ring in use", |w| f64::from(w.slots.0)),
            ("forebay_ring_slots", None, "Slots of the request ring", |w| f64::from(w.slots.1)),
            (
                "forebay_oldest_lease",
                Some(&Unit::Seconds),
                "Age of the oldest answer slot that the daemon holds",
                |w| w.oldest_lease_s,
            ),
            ("forebay_worker_resident", Some(&Unit::Bytes), "Memory of the worker, all ranks", |w| w.rss_bytes as f64),
        ];
        for (name, unit, help, value) in gauges {
            let mut family = to.encode_descriptor(name, help, unit, MetricType::Gauge)?;
            for (index, worker) in &workers {
                family.encode_family(&[("worker", index.as_str())])?.encode_gauge(&value(worker))?;
            }
        }
        Ok(())
    }

    fn process(&self, to: &mut DescriptorEncoder<'_>) -> Done {
        let Process { resident_bytes, cpu_seconds, threads, open_fds } = self.process;
        gauge(to, "process_resident_memory", Some(&Unit::Bytes), "Memory of the daemon", resident_bytes as f64)?;
        counter(to, "process_cpu", Some(&Unit::Seconds), "Processor time of the daemon", cpu_seconds)?;
        gauge(to, "process_threads", None, "Threads of the daemon", threads as f64)?;
        gauge(to, "process_open_fds", None, "Open file descriptors of the daemon", open_fds as f64)?;
        gauge(to, "forebay_uptime", Some(&Unit::Seconds), "Since when the daemon runs", self.metrics.uptime_s())?;
        let labels = [("model", self.model.as_str()), ("version", env!("CARGO_PKG_VERSION"))];
        let help = "The model that is served, and the version of forebay";
        to.encode_descriptor("forebay", help, None, MetricType::Info)?.encode_info(&labels)
    }
}
