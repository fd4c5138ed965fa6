use jiff::{SignedDuration, Timestamp};
use prometheus_client::metrics::counter::Counter;
use ring::rand::{SecureRandom, SystemRandom};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::TraceParent;

/// Where spans go; nowhere by default. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct SpanSender(Option<SpanChannel>);

#[derive(Clone, Debug)]
struct SpanChannel {
    spans: mpsc::Sender<Span>,
    dropped: Counter,
}

/// Something that was done, from its start to its end.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// The trace that it belongs to.
    pub trace_id: [u8; 16],
    /// Its own id.
    pub span_id: [u8; 8],
    /// What it is part of.
    pub parent_id: Option<[u8; 8]>,
    /// What is known of it at its start, and was added since.
    pub data: SpanData,
    /// When it began.
    pub start: Timestamp,
    /// When it ended.
    pub end: Timestamp,
    /// In what way it failed: one of few words (`error.type`).
    pub error_type: Option<String>,
}

/// What a span says beside its times. No secrets.
#[derive(Clone, Debug, PartialEq)]
pub struct SpanData {
    /// One of few names.
    pub name: String,
    /// For whom it was done.
    pub kind: SpanKind,
    /// Keys and values, by the semantic conventions of OpenTelemetry where they have a key.
    pub attributes: Vec<(&'static str, AttributeValue)>,
}

/// For whom something is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpanKind {
    /// For an agent that asked.
    Server,
    /// To reach a server.
    Client,
    /// For ourselves.
    Internal,
}

/// The value of an attribute.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AttributeValue {
    /// A text.
    Text(String),
    /// A number.
    Number(i64),
}

/// A span that has not ended. Dropped, it ends as `cancelled`. Small, for there is none most of the time.
#[derive(Debug)]
pub struct OpenSpan(Box<SpanInProgress>);

#[derive(Debug)]
struct SpanInProgress {
    channel: SpanChannel,
    started_at: Instant,
    trace_id: [u8; 16],
    span_id: [u8; 8],
    /// Taken at the end.
    data: Option<SpanData>,
    parent_id: Option<[u8; 8]>,
    /// What log lines of the work are in.
    log_span: tracing::Span,
}

impl SpanSender {
    /// Spans that somebody reads, and the reader. What finds `capacity` of them waiting is dropped and counted.
    pub fn channel(capacity: usize, dropped: Counter) -> (Self, mpsc::Receiver<Span>) {
        let (spans, reader) = mpsc::channel(capacity);
        (Self(Some(SpanChannel { spans, dropped })), reader)
    }

    /// Begins a span; nothing is asked, and nothing begins, while nobody reads.
    pub fn begin(&self, draft: impl FnOnce() -> SpanData) -> Option<OpenSpan> {
        self.begin_child(|| None, draft)
    }

    /// Begins a span that is part of another, if there is one. A trace that is not recorded where it began is
    /// not recorded here.
    pub fn begin_child(
        &self,
        parent: impl FnOnce() -> Option<TraceParent>,
        draft: impl FnOnce() -> SpanData,
    ) -> Option<OpenSpan> {
        let sink = self.0.clone()?;
        let parent = parent();
        if parent.is_some_and(|parent| !parent.sampled) {
            return None;
        }
        let mut ids = [0; 24];
        // Without randomness nothing would tell this span from others.
        if SystemRandom::new().fill(&mut ids).is_err() {
            sink.dropped.inc();
            return None;
        }
        let (own, id) = split_ids(ids);
        let trace = parent.map_or(own, |parent| parent.trace_id);
        Some(OpenSpan(Box::new(SpanInProgress {
            channel: sink,
            started_at: Instant::now(),
            trace_id: trace,
            span_id: id,
            data: Some(draft()),
            parent_id: parent.map(|parent| parent.span_id),
            log_span: log_span(trace, id),
        })))
    }
}

impl OpenSpan {
    /// Adds what has become known.
    pub fn add_attribute(&mut self, key: &'static str, value: impl Into<AttributeValue>) {
        if let Some(draft) = &mut self.0.data {
            draft.attributes.push((key, value.into()));
        }
    }

    /// Gives the `tracing` span in which log lines of the work are written, so that they carry `trace_id` and `span_id`;
    /// an empty one for work whose span nobody wants.
    pub fn log_span(open: Option<&Self>) -> tracing::Span {
        open.map_or_else(tracing::Span::none, |open| open.0.log_span.clone())
    }

    /// Ends the span, with the word for the failure if it failed.
    pub fn end(mut self, error: Option<String>) {
        self.0.finish(error);
    }
}

impl SpanInProgress {
    fn finish(&mut self, error: Option<String>) {
        let Some(draft) = self.data.take() else { return };
        let end = Timestamp::now();
        let took = SignedDuration::try_from(self.started_at.elapsed()).unwrap_or_default();
        let span = Span {
            trace_id: self.trace_id,
            span_id: self.span_id,
            parent_id: self.parent_id,
            data: draft,
            start: end.saturating_sub(took).unwrap_or(end),
            end,
            error_type: error,
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

/// Of the highest level, so that it is there for lines of every level that is written.
fn log_span(trace: [u8; 16], id: [u8; 8]) -> tracing::Span {
    let (trace, id) = (u128::from_be_bytes(trace), u64::from_be_bytes(id));
    tracing::error_span!(
        parent: None,
        "span",
        trace_id = format_args!("{trace:032x}"),
        span_id = format_args!("{id:016x}"),
    )
}

fn split_ids(bytes: [u8; 24]) -> ([u8; 16], [u8; 8]) {
    let (mut trace, mut id) = ([0; 16], [0; 8]);
    trace.iter_mut().chain(&mut id).zip(bytes).for_each(|(to, from)| *to = from);
    (trace, id)
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
        let (spans, mut reader) = SpanSender::channel(8, Counter::default());
        let parent = TraceParent { trace_id: [1; 16], span_id: [2; 8], sampled: true };
        let mut open = spans.begin_child(|| Some(parent), span_data).unwrap();
        tokio::time::advance(std::time::Duration::from_secs(3)).await;
        open.add_attribute("k", 7);
        open.end(None);
        drop(spans.begin(span_data));
        let part = reader.recv().await.unwrap();
        assert_eq!((part.trace_id, part.parent_id, part.error_type), ([1; 16], Some([2; 8]), None));
        assert_eq!(part.end.duration_since(part.start), SignedDuration::from_secs(3));
        assert_eq!(part.data.attributes, [("k", AttributeValue::Number(7))]);
        let alone = reader.recv().await.unwrap();
        assert_eq!((alone.parent_id, alone.error_type.as_deref()), (None, Some("cancelled")));
        assert_ne!(alone.trace_id, part.trace_id);
    }

    #[test]
    fn full_queue_drops_spans_and_disabled_sender_makes_none() {
        let dropped = Counter::default();
        let (spans, mut reader) = SpanSender::channel(2, dropped.clone());
        for _ in 0..5 {
            spans.begin(span_data).unwrap().end(None);
        }
        assert_eq!((reader.len(), dropped.get()), (2, 3));
        let unrecorded = TraceParent { trace_id: [1; 16], span_id: [2; 8], sampled: false };
        assert!(spans.begin_child(|| Some(unrecorded), span_data).is_none());
        assert!(SpanSender::default().begin(|| panic!("nobody wants it")).is_none());
        assert!(reader.try_recv().is_ok());
    }
}
