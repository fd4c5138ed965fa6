//! Tests of the export to a collector, and of the robustness against misbehaving collectors.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value;
use opentelemetry_proto::tonic::trace::v1::Span;

use crate::collector::{CollectorBehavior, TestCollector, attribute_texts};
use crate::rig::{Action, FakeHttpServer, FakeStdioServer, Rule, Script};
use crate::support::{Agent, Era, Evenkeel, TestDirectory, eventually, http};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT_SPAN: &str = "b7ad6b7169203331";
const SHORT_INTERVALS: [(&str, &str); 2] =
    [("OTEL_BSP_SCHEDULE_DELAY", "100"), ("OTEL_METRIC_EXPORT_INTERVAL", "100")];

async fn run_with_collector(
    declared: &TestDirectory,
    collector: &TestCollector,
    variables: &[(&str, &str)],
) -> Evenkeel {
    let variables = [&SHORT_INTERVALS[..], variables].concat();
    Evenkeel::run_with_env(declared.path(), &["--otlp-endpoint", &collector.url()], &variables).await
}

fn hex(bytes: &[u8]) -> String {
    let digits: Vec<_> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    digits.concat()
}

fn attribute<'a>(attributes: &'a BTreeMap<String, String>, key: &str) -> &'a str {
    attributes.get(key).map_or("", String::as_str)
}

/// Returns the value of a counter from `/metrics`.
async fn metric_value(evenkeel: &Evenkeel, name: &str) -> u64 {
    let text = http::get(&evenkeel.admin("/metrics")).await.unwrap();
    let value = text.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
    value.map_or(0, |number| number.parse().unwrap())
}

#[tokio::test]
async fn calls_attaches_and_reconciles_are_exported_as_spans() {
    let collector = TestCollector::start().await;
    let declared = TestDirectory::new();
    let server = FakeStdioServer::new(Script::default());
    declared.write_server("a", &server.spec(""));
    declared.write_server("b", "stdio: { command: no-such-program-anywhere }");
    let variables = [
        ("OTEL_SERVICE_NAME", "fleet"),
        ("OTEL_RESOURCE_ATTRIBUTES", "team=a"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20hunter2"),
    ];
    let evenkeel = run_with_collector(&declared, &collector, &variables).await;
    evenkeel.wait_until_attached("a").await;
    let spans_of = |name: &'static str, server: &'static str| {
        move |span: &Span| {
            span.name == name
                && attribute(&attribute_texts(&span.attributes), "evenkeel.server.name") == server
        }
    };

    let attach = collector.wait_for_span("the attach", spans_of("attach", "a")).await;
    let attributes = attribute_texts(&attach.attributes);
    assert_eq!(attribute(&attributes, "network.transport"), "pipe");
    assert!(attribute(&attributes, "mcp.protocol.version").starts_with("202"), "{attributes:?}");
    assert!(attach.status.is_none() && attach.end_time_unix_nano > attach.start_time_unix_nano);
    let failed = collector.wait_for_span("the failed attach", spans_of("attach", "b")).await;
    assert_eq!(attribute(&attribute_texts(&failed.attributes), "error.type"), "CommandNotFound");
    assert_eq!(failed.status.unwrap().code, 2);
    let reconcile = collector.wait_for_span("a reconcile with changes", |span| {
        span.name == "reconcile" && attribute(&attribute_texts(&span.attributes), "evenkeel.changes") == "2"
    });
    assert!(reconcile.await.parent_span_id.is_empty());

    for era in Era::ALL {
        let agent = Agent::connect(era, &evenkeel.url()).await;
        let traceparent = format!("00-{TRACE}-{PARENT_SPAN}-01");
        let params = format!(
            r#"{{"name":"a_echo","arguments":{{"text":"hunter2"}},"_meta":{{"traceparent":"{traceparent}"}}}}"#
        );
        let response = agent.request("tools/call", &params).await.unwrap();
        assert!(response.contains("hunter2"), "{response}");
        let version = if era == Era::Legacy { "2025-11-25" } else { "2026-07-28" };
        let call = collector.wait_for_span("the call", |span| {
            span.name == "tools/call a_echo"
                && attribute(&attribute_texts(&span.attributes), "mcp.protocol.version") == version
        });
        let call = call.await;
        assert_eq!((hex(&call.trace_id), hex(&call.parent_span_id)), (TRACE.into(), PARENT_SPAN.into()));
        assert_eq!(call.kind, 2, "the span kind is SERVER");
        let attributes = attribute_texts(&call.attributes);
        for (key, value) in [
            ("mcp.method.name", "tools/call"),
            ("gen_ai.operation.name", "execute_tool"),
            ("gen_ai.tool.name", "a_echo"),
            ("evenkeel.server.namespace", "default"),
            ("evenkeel.server.name", "a"),
        ] {
            assert_eq!(attribute(&attributes, key), value, "{attributes:?}");
        }
        assert!(call.status.is_none() && !attributes.contains_key("error.type"), "{attributes:?}");
    }

    // The first trace is not sampled, so its span is not exported. The second traceparent is invalid, so its call
    // starts a new trace, whose span is exported.
    let agent = Agent::connect(Era::Modern, &evenkeel.url()).await;
    let unsampled = format!(r#"{{"traceparent":"00-{TRACE}-{PARENT_SPAN}-00"}}"#);
    for meta in [&unsampled, r#"{"traceparent":"invalid_response"}"#] {
        let params = format!(r#"{{"name":"a_echo","arguments":{{}},"_meta":{meta}}}"#);
        agent.request("tools/call", &params).await.unwrap();
    }
    let is_root_call = |span: &Span| span.name == "tools/call a_echo" && span.parent_span_id.is_empty();
    collector.wait_for_span("a call without parent", is_root_call).await;
    let calls = collector.spans().into_iter().filter(|span| span.name.starts_with("tools/call"));
    assert_eq!(calls.count(), 3);

    assert_eq!(collector.headers()["authorization"], "Bearer hunter2");
    let resource = collector.resource();
    assert_eq!((attribute(&resource, "service.name"), attribute(&resource, "team")), ("fleet", "a"));
    assert!(!collector.received_text("hunter2"), "no argument, result or header is exported");
    assert!(!evenkeel.stderr().contains("hunter2"));
}

#[tokio::test]
async fn log_lines_carry_trace_and_span_ids() {
    let collector = TestCollector::start().await;
    let declared = TestDirectory::new();
    let invalid_response = Action::Http {
        status: 200,
        headers: [("content-type".to_owned(), "text/event-stream".to_owned())].into(),
        body: "data: nonsense\n\n".into(),
    };
    let script = Script::default().on("tools/call", Rule::always(invalid_response));
    let server = FakeHttpServer::start(script).await;
    declared.write_server("a", &server.spec());
    for (format, [trace, span]) in
        [("json", [r#""trace_id":""#, r#""span_id":""#]), ("text", ["trace_id=", "span_id="])]
    {
        let flags = ["--otlp-endpoint", &collector.url(), "--log=evenkeel=debug", "--log-format", format];
        let evenkeel = Evenkeel::run_with_env(declared.path(), &flags, &SHORT_INTERVALS).await;
        evenkeel.wait_until_attached("a").await;
        let line = async |text: &str| evenkeel.wait_for_log(&[text]).await;
        let id = |line: &str, key: &str, digits: usize| {
            let (_, after_key) = line.split_once(key).unwrap_or_else(|| panic!("{key}: {line}"));
            after_key[..digits].to_owned()
        };
        let attach = line("the lists were read").await;
        let (trace_id, span_id) = (id(&attach, trace, 32), id(&attach, span, 16));
        let has_ids =
            |span: &Span| (hex(&span.trace_id), hex(&span.span_id)) == (trace_id.clone(), span_id.clone());
        assert_eq!(collector.wait_for_span("the attach that was logged", has_ids).await.name, "attach");

        let agent = Agent::connect(Era::Modern, &evenkeel.url()).await;
        let params =
            format!(r#"{{"name":"a_echo","_meta":{{"traceparent":"00-{TRACE}-{PARENT_SPAN}-01"}}}}"#);
        let _ = agent.request("tools/call", &params).await;
        let call = line("invalid MCP message").await;
        assert_eq!(id(&call, trace, 32), TRACE, "{call}");
        let span_id = id(&call, span, 16);
        let span =
            collector.wait_for_span("the call that was logged", |span| hex(&span.span_id) == span_id).await;
        assert_eq!(span.name, "tools/call a_echo");
        // Log lines outside of a span have no ids.
        assert!(!line("is running").await.contains("trace_id"));
    }
}

#[tokio::test]
async fn exported_metrics_match_the_status_api() {
    let collector = TestCollector::start().await;
    let declared = TestDirectory::new();
    let server = FakeStdioServer::new(Script::default());
    declared.write_server("a", &server.spec(""));
    let evenkeel = run_with_collector(&declared, &collector, &[]).await;
    evenkeel.wait_until_attached("a").await;
    let agent = Agent::connect(Era::Modern, &evenkeel.url()).await;
    agent.call("a_echo", "{}").await.unwrap();
    // Each export changes its own counters, so these are excluded from the comparison.
    let scraped = eventually("two equal scrapes around an export", async || {
        let scrape = async || http::get(&evenkeel.admin("/metrics")).await.unwrap();
        let without_otlp = |scraped: &str| -> Vec<String> {
            let lines = scraped.lines().filter(|line| !line.contains("otlp"));
            lines.map(str::to_owned).collect()
        };
        let before = without_otlp(&scrape().await);
        let metrics = collector.next_metrics().await;
        (before == without_otlp(&scrape().await)).then_some((before, metrics))
    });
    let (lines, metrics) = scraped.await;
    let names = lines.iter().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    let has_samples = |name: &str| lines.iter().any(|line| line.starts_with(name));
    for (name, kind) in names.filter(|(name, _)| has_samples(name)) {
        let metric = metrics.iter().find(|metric| metric.name == name);
        let metric = metric.unwrap_or_else(|| panic!("{name} is missing: {metrics:?}"));
        match (kind, metric.data.as_ref().unwrap()) {
            ("counter", Data::Sum(sum)) => assert!(sum.is_monotonic, "{name}"),
            ("gauge", Data::Gauge(_)) | ("histogram", Data::Histogram(_)) => {}
            other => panic!("{name}: {other:?}"),
        }
    }
    let calls = metrics.iter().find(|metric| metric.name == "evenkeel_calls").unwrap();
    let Some(Data::Sum(sum)) = &calls.data else { panic!("{calls:?}") };
    let successful = sum
        .data_points
        .iter()
        .find(|point| attribute(&attribute_texts(&point.attributes), "outcome") == "ok");
    assert_eq!(successful.unwrap().value, Some(Value::AsDouble(1.0)));
    let duration = metrics.iter().find(|metric| metric.name == "evenkeel_call_duration_seconds").unwrap();
    let Some(Data::Histogram(histogram)) = &duration.data else { panic!("{duration:?}") };
    let point = &histogram.data_points[0];
    assert_eq!((point.count, point.bucket_counts.iter().sum::<u64>()), (1, 1));
    assert_eq!(point.bucket_counts.len(), point.explicit_bounds.len() + 1);
}

#[tokio::test]
async fn hanging_collector_delays_nothing() {
    let collector = TestCollector::start().await;
    collector.set_behavior(CollectorBehavior::Hang);
    let declared = TestDirectory::new();
    let server = FakeStdioServer::new(Script::default());
    declared.write_server("a", &server.spec(""));
    let mut evenkeel = run_with_collector(&declared, &collector, &[]).await;
    evenkeel.wait_until_attached("a").await;
    eventually("the first request", async || (collector.request_count() > 0).then_some(())).await;
    let agent = Agent::connect(Era::Modern, &evenkeel.url()).await;
    // The queue holds 2,048 spans, plus one batch for each request that times out meanwhile.
    let mut calls = 0;
    while metric_value(&evenkeel, "evenkeel_otlp_spans_dropped_total").await == 0 {
        assert!(calls < 4_000, "{calls} spans are queued, but none is dropped");
        for _ in 0..100 {
            agent.call("a_echo", "{}").await.unwrap();
        }
        calls += 100;
    }
    assert_eq!(metric_value(&evenkeel, "evenkeel_otlp_spans_total").await, 0);
    let started_at = Instant::now();
    assert!(evenkeel.terminate().await.success());
    assert!(started_at.elapsed() < Duration::from_secs(12), "{:?}", started_at.elapsed());
    evenkeel.wait_for_log(&["did not accept the last spans"]).await;
    let log = evenkeel.stderr();
    assert_eq!(log.matches("did not accept the last spans").count(), 1, "{log}");
}

#[tokio::test]
async fn late_collector_receives_queued_spans() {
    let mut collector = TestCollector::not_listening();
    let declared = TestDirectory::new();
    let server = FakeStdioServer::new(Script::default());
    declared.write_server("a", &server.spec(""));
    let evenkeel = run_with_collector(&declared, &collector, &[]).await;
    evenkeel.wait_until_attached("a").await;
    evenkeel.wait_for_log(&["does not accept spans"]).await;
    collector.listen().await;
    collector.wait_for_span("the queued attach span", |span| span.name == "attach").await;
    evenkeel.wait_for_log(&["accepts spans again"]).await;
    assert_eq!(metric_value(&evenkeel, "evenkeel_otlp_spans_dropped_total").await, 0);

    // A permanent failure, with a response body that is too large to be read completely.
    collector.set_behavior(CollectorBehavior::Flood(400));
    let agent = Agent::connect(Era::Modern, &evenkeel.url()).await;
    agent.call("a_echo", "{}").await.unwrap();
    eventually("the rejected span is dropped", async || {
        (metric_value(&evenkeel, "evenkeel_otlp_spans_dropped_total").await == 1).then_some(())
    })
    .await;
    collector.set_behavior(CollectorBehavior::Accept);
}

#[tokio::test]
async fn last_spans_are_sent_before_exit() {
    let collector = TestCollector::start().await;
    let declared = TestDirectory::new();
    let server = FakeStdioServer::new(Script::default());
    declared.write_server("a", &server.spec(""));
    let flags = ["--otlp-endpoint", &collector.url()];
    let mut evenkeel = Evenkeel::run_with(declared.path(), &flags).await;
    evenkeel.wait_until_attached("a").await;
    let agent = Agent::connect(Era::Legacy, &evenkeel.url()).await;
    agent.call("a_echo", "{}").await.unwrap();
    assert!(evenkeel.terminate().await.success());
    assert!(collector.spans().iter().any(|span| span.name == "tools/call a_echo"));
    assert!(!collector.received_metrics().is_empty());
}
