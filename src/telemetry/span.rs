use jiff::{SignedDuration, Timestamp};
use prometheus_client::metrics::counter::Counter;
use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::TraceParent;

/// A sender for spans. The default value discards them. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct SpanSender(Option<SpanChannel>);

#[derive(Clone, Debug)]
struct SpanChannel {
    spans: mpsc::Sender<Span>,
    dropped: Counter,
}

/// A completed operation.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// The id of the trace.
    pub trace_id: [u8; 16],
    /// The id of the span.
    pub span_id: [u8; 8],
    /// The id of the parent span.
    pub parent_id: Option<[u8; 8]>,
    /// The name, kind and attributes.
    pub data: SpanData,
    /// The start time.
    pub start: Timestamp,
    /// The end time.
    pub end: Timestamp,
    /// The type of the error if the operation failed (`error.type`), from a small set of values.
    pub error_type: Option<String>,
}

/// The name, kind and attributes of a span, without secrets.
#[derive(Clone, Debug, PartialEq)]
pub struct SpanData {
    /// The name, from a small set of values.
    pub name: String,
    /// The kind.
    pub kind: SpanKind,
    /// The attributes. Keys follow the OpenTelemetry semantic conventions where those define one.
    pub attributes: Vec<(&'static str, AttributeValue)>,
}

/// The kind of a span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpanKind {
    /// A request from an agent.
    Server,
    /// A request to a server.
    Client,
    /// An internal operation.
    Internal,
}

/// The value of an attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AttributeValue {
    /// A text value.
    Text(String),
    /// An integer value.
    Number(i64),
}

/// A span that has not ended. If it is dropped, it ends with the error type `cancelled`. The content is boxed to keep
/// `Option<OpenSpan>` small, because it is usually `None`.
#[derive(Debug)]
pub struct OpenSpan(Box<SpanInProgress>);

#[derive(Debug)]
struct SpanInProgress {
    channel: SpanChannel,
    started_at: Instant,
    trace_id: [u8; 16],
    span_id: [u8; 8],
    /// `None` once the span has ended.
    data: Option<SpanData>,
    parent_id: Option<[u8; 8]>,
    /// The `tracing` span for the log lines of the operation.
    log_span: tracing::Span,
}

impl SpanSender {
    /// Creates a sender and its receiver. If `capacity` spans are queued, further spans are dropped and counted.
    pub fn channel(capacity: usize, dropped: Counter) -> (Self, mpsc::Receiver<Span>) {
        let (spans, receiver) = mpsc::channel(capacity);
        (Self(Some(SpanChannel { spans, dropped })), receiver)
    }

    /// Begins a span. Returns `None` without calling `data` if spans are discarded.
    pub fn begin(&self, data: impl FnOnce() -> SpanData) -> Option<OpenSpan> {
        self.begin_child(|| None, data)
    }

    /// Begins a span as a child of `parent`, if there is one. Returns `None` if the parent is not sampled, or if spans
    /// are discarded.
    pub fn begin_child(
        &self,
        parent: impl FnOnce() -> Option<TraceParent>,
        data: impl FnOnce() -> SpanData,
    ) -> Option<OpenSpan> {
        let channel = self.0.clone()?;
        let parent = parent();
        if parent.is_some_and(|parent| !parent.sampled) {
            return None;
        }
        let mut ids = [0; 24];
        // Without random ids the span could not be distinguished from others.
        if SystemRandom::new().fill(&mut ids).is_err() {
            channel.dropped.inc();
            return None;
        }
        let (new_trace_id, span_id) = split_ids(ids);
        let trace_id = parent.map_or(new_trace_id, |parent| parent.trace_id);
        Some(OpenSpan(Box::new(SpanInProgress {
            channel,
            started_at: Instant::now(),
            trace_id,
            span_id,
            data: Some(data()),
            parent_id: parent.map(|parent| parent.span_id),
            log_span: log_span(trace_id, span_id),
        })))
    }
}

impl OpenSpan {
    /// Adds an attribute.
    pub fn add_attribute(&mut self, key: &'static str, value: impl Into<AttributeValue>) {
        if let Some(data) = &mut self.0.data {
            data.attributes.push((key, value.into()));
        }
    }

    /// Returns the `tracing` span in which log lines of the operation are written, so that they have the fields
    /// `trace_id` and `span_id`; a disabled span for `None`.
    pub fn log_span(span: Option<&Self>) -> tracing::Span {
        span.map_or_else(tracing::Span::none, |span| span.0.log_span.clone())
    }

    /// Ends the span, with the error type if the operation failed.
    pub fn end(mut self, error_type: Option<String>) {
        self.0.finish(error_type);
    }
}

impl SpanInProgress {
    fn finish(&mut self, error_type: Option<String>) {
        let Some(data) = self.data.take() else { return };
        let end = Timestamp::now();
        let elapsed = SignedDuration::try_from(self.started_at.elapsed()).unwrap_or_default();
        let span = Span {
            trace_id: self.trace_id,
            span_id: self.span_id,
            parent_id: self.parent_id,
            data,
            start: end.saturating_sub(elapsed).unwrap_or(end),
            end,
            error_type,
        };
        if self.channel.spans.try_send(span).is_err() {
            self.channel.dropped.inc();
        }
    }
}

impl Drop for OpenSpan {
    fn drop(&mut self) {
        self.0.finish(Some("cancelled".into()));
    }
}

/// Creates the `tracing` span. It has the level `ERROR`, so that it is enabled for log lines of every level.
fn log_span(trace_id: [u8; 16], span_id: [u8; 8]) -> tracing::Span {
    let (trace_id, span_id) = (u128::from_be_bytes(trace_id), u64::from_be_bytes(span_id));
    tracing::error_span!(
        parent: None,
        "span",
        trace_id = format_args!("{trace_id:032x}"),
        span_id = format_args!("{span_id:016x}"),
    )
}

fn split_ids(bytes: [u8; 24]) -> ([u8; 16], [u8; 8]) {
    let (mut trace_id, mut span_id) = ([0; 16], [0; 8]);
    trace_id.iter_mut().chain(&mut span_id).zip(bytes).for_each(|(to, from)| *to = from);
    (trace_id, span_id)
}

impl From<String> for AttributeValue {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<&str> for AttributeValue {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<usize> for AttributeValue {
    fn from(number: usize) -> Self {
        Self::Number(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span_data() -> SpanData {
        SpanData { name: "n".into(), kind: SpanKind::Internal, attributes: Vec::new() }
    }

    #[tokio::test(start_paused = true)]
    async fn span_records_parent_duration_and_outcome() {
        let (spans, mut receiver) = SpanSender::channel(8, Counter::default());
        let parent = TraceParent { trace_id: [1; 16], span_id: [2; 8], sampled: true };
        let mut span = spans.begin_child(|| Some(parent), span_data).unwrap();
        tokio::time::advance(std::time::Duration::from_secs(3)).await;
        span.add_attribute("k", 7);
        span.end(None);
        drop(spans.begin(span_data));
        let child = receiver.recv().await.unwrap();
        assert_eq!((child.trace_id, child.parent_id, child.error_type), ([1; 16], Some([2; 8]), None));
        assert_eq!(child.end.duration_since(child.start), SignedDuration::from_secs(3));
        assert_eq!(child.data.attributes, [("k", AttributeValue::Number(7))]);
        let root = receiver.recv().await.unwrap();
        assert_eq!((root.parent_id, root.error_type.as_deref()), (None, Some("cancelled")));
        assert_ne!(root.trace_id, child.trace_id);
    }

    #[test]
    fn full_queue_drops_spans_and_disabled_sender_makes_none() {
        let dropped = Counter::default();
        let (spans, mut receiver) = SpanSender::channel(2, dropped.clone());
        for _ in 0..5 {
            spans.begin(span_data).unwrap().end(None);
        }
        assert_eq!((receiver.len(), dropped.get()), (2, 3));
        let unsampled = TraceParent { trace_id: [1; 16], span_id: [2; 8], sampled: false };
        assert!(spans.begin_child(|| Some(unsampled), span_data).is_none());
        assert!(SpanSender::default().begin(|| panic!("a disabled sender must not call this")).is_none());
        assert!(receiver.try_recv().is_ok());
    }
}
