//! From spans that have ended to the collector.
//!
//! 1. A span that ends is put into a queue of [`QUEUE`] spans. When that is full, the span is dropped and counted.
//! 2. One task takes up to [`BATCH`] spans at a time and sends them, each time for at most [`SEND`]. What the collector
//!    does not take is dropped and counted: nothing is sent twice.
//! 3. At the end the queue is closed, and what is in it has [`FLUSH`] to be sent.

use std::time::Duration;

use opentelemetry::trace::TracerProvider as _;
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider, Span, SpanData, SpanExporter as _, SpanProcessor};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tracing::Subscriber;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::registry::LookupSpan;

use crate::{Endpoint, TARGET, Telemetry};

/// The most spans that wait.
const QUEUE: usize = 2048;
/// The most spans that are sent at a time.
const BATCH: usize = 512;
/// How long spans are gathered before they are sent.
const GATHER: Duration = Duration::from_millis(500);
/// How long the collector may take for one batch.
const SEND: Duration = Duration::from_secs(5);
/// How long the end may take.
const FLUSH: Duration = Duration::from_secs(2);

/// The way to a collector, before anything is sent: it needs no runtime and starts no thread.
#[derive(Debug)]
pub struct Export {
    provider: SdkTracerProvider,
    resource: Resource,
    endpoint: Endpoint,
    queued: mpsc::Receiver<SpanData>,
}

impl Export {
    /// For a service of this name, such as `snapshot-api`, on this host.
    #[must_use]
    pub fn new(telemetry: &Telemetry, service: &'static str) -> Self {
        let (queue, queued) = mpsc::channel(QUEUE);
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let resource = Resource::builder_empty()
            .with_service_name(service)
            .with_attribute(KeyValue::new("host.name", host.trim().to_owned()))
            .build();
        let provider = SdkTracerProvider::builder()
            .with_sampler(Sampler::ParentBased(Box::new(Sampler::AlwaysOn)))
            .with_resource(resource.clone())
            .with_span_processor(Queue(queue))
            .build();
        Self { provider, resource, endpoint: telemetry.endpoint, queued }
    }

    pub(crate) fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: Subscriber + for<'span> LookupSpan<'span>,
    {
        // Where in the code and on which thread a span was made is nobody's business outside.
        let layer = tracing_opentelemetry::layer()
            .with_tracer(self.provider.tracer("ravada-snapshots"))
            .with_location(false)
            .with_threads(false)
            .with_target(false)
            .with_level(false)
            .with_tracked_inactivity(false);
        layer.with_filter(filter_fn(|metadata| metadata.target() == TARGET))
    }

    /// Begins to send. Must be called inside a tokio runtime. The connection is made when there is something to send.
    ///
    /// # Errors
    /// When the exporter cannot be made.
    pub fn begin(self) -> Result<Exporting, opentelemetry_otlp::ExporterBuildError> {
        let Self { provider, resource, endpoint, queued } = self;
        let builder = SpanExporter::builder().with_tonic().with_timeout(SEND);
        let mut exporter = builder.with_endpoint(format!("http://{}", endpoint.0)).build()?;
        exporter.set_resource(&resource);
        metrics::describe_counter!("snapshot_traces_dropped_total", "Spans that the collector did not get, by reason.");
        let (stop, stopped) = oneshot::channel();
        Ok(Exporting { _provider: provider, stop, task: tokio::spawn(send(exporter, queued, stopped)) })
    }
}

/// Spans are being sent.
#[derive(Debug)]
pub struct Exporting {
    /// With the last of it spans would be no spans any more.
    _provider: SdkTracerProvider,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Exporting {
    /// Sends what waits, within [`FLUSH`].
    pub async fn end(mut self) {
        // Where the task is gone already there is nothing to stop.
        let _ = self.stop.send(());
        if timeout(FLUSH, &mut self.task).await.is_err() {
            self.task.abort();
            tracing::warn!("the collector did not take the last spans in time");
        }
    }
}

async fn send(exporter: SpanExporter, mut queued: mpsc::Receiver<SpanData>, mut stop: oneshot::Receiver<()>) {
    let (mut batch, mut stopping, mut away) = (Vec::with_capacity(BATCH), false, false);
    loop {
        let gathered = async {
            if !stopping {
                tokio::time::sleep(GATHER).await;
            }
            queued.recv_many(&mut batch, BATCH).await
        };
        let taken = tokio::select! {
            _ = &mut stop, if !stopping => {
                stopping = true;
                queued.close();
                continue;
            }
            taken = gathered => taken,
        };
        if taken == 0 {
            return;
        }
        let sent = timeout(SEND, exporter.export(std::mem::take(&mut batch))).await;
        let failed = match sent {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some(format!("no answer for {} s", SEND.as_secs())),
        };
        if let Some(why) = &failed {
            dropped("not_taken", taken);
            // Once, and again when it has been there meanwhile.
            if !away {
                tracing::warn!(why, "the collector takes no spans; they are dropped");
            }
        }
        away = failed.is_some();
    }
}

fn dropped(reason: &'static str, spans: usize) {
    metrics::counter!("snapshot_traces_dropped_total", "reason" => reason).increment(spans as u64);
}

/// Where spans wait.
#[derive(Debug)]
struct Queue(mpsc::Sender<SpanData>);

impl SpanProcessor for Queue {
    fn on_start(&self, _span: &mut Span, _parent: &Context) {}

    fn on_end(&self, span: SpanData) {
        if span.span_context.is_sampled() && self.0.try_send(span).is_err() {
            dropped("queue_full", 1);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _limit: Duration) -> OTelSdkResult {
        Ok(())
    }
}
