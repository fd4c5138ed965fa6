//! What comes to a collector, and what it cannot do to evenkeel.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use serde_json::value::RawValue;

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

/// A number of `/metrics`.
async fn metric_value(evenkeel: &Evenkeel, name: &str) -> u64 {
    let text = http::get(&evenkeel.admin("/metrics")).await.unwrap();
    let found = text.lines().find_map(|line| line.strip_prefix(&format!("{name} ")));
    found.map_or(0, |number| number.parse().unwrap())
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
    let told = attribute_texts(&attach.attributes);
    assert_eq!(attribute(&told, "network.transport"), "pipe");
    assert!(attribute(&told, "mcp.protocol.version").starts_with("202"), "{told:?}");
    assert!(attach.status.is_none() && attach.end_time_unix_nano > attach.start_time_unix_nano);
    let failed = collector.wait_for_span("the failed attach", spans_of("attach", "b")).await;
    assert_eq!(attribute(&attribute_texts(&failed.attributes), "error.type"), "CommandNotFound");
    assert_eq!(failed.status.unwrap().code, 2);
    let reconcile = collector.wait_for_span("a reconcile with orders", |span| {
        span.name == "reconcile" && attribute(&attribute_texts(&span.attributes), "evenkeel.changes") == "2"
    });
    assert!(reconcile.await.parent_span_id.is_empty());

    for era in Era::ALL {
        let agent = Agent::connect(era, &evenkeel.url()).await;
        let traceparent = format!("00-{TRACE}-{PARENT_SPAN}-01");
        let params = format!(
            r#"{{"name":"a_echo","arguments":{{"text":"hunter2"}},"_meta":{{"traceparent":"{traceparent}"}}}}"#
        );
        let answer = agent.request("tools/call", &params).await.unwrap();
        assert!(answer.contains("hunter2"), "{answer}");
        let version = if era == Era::Legacy { "2025-11-25" } else { "2026-07-28" };
        let call = collector.wait_for_span("the call", |span| {
            span.name == "tools/call a_echo"
                && attribute(&attribute_texts(&span.attributes), "mcp.protocol.version") == version
        });
        let call = call.await;
        assert_eq!((hex(&call.trace_id), hex(&call.parent_span_id)), (TRACE.into(), PARENT_SPAN.into()));
        assert_eq!(call.kind, 2, "a server's span");
        let told = attribute_texts(&call.attributes);
        for (key, value) in [
            ("mcp.method.name", "tools/call"),
            ("gen_ai.operation.name", "execute_tool"),
            ("gen_ai.tool.name", "a_echo"),
            ("evenkeel.server.namespace", "default"),
            ("evenkeel.server.name", "a"),
        ] {
            assert_eq!(attribute(&told, key), value, "{told:?}");
        }
        assert!(call.status.is_none() && !told.contains_key("error.type"), "{told:?}");
    }

    // Nobody records that trace, so nothing of it is sent; the next call, which is, comes after it.
    let agent = Agent::connect(Era::Modern, &evenkeel.url()).await;
    let unrecorded = format!(r#"{{"traceparent":"00-{TRACE}-{PARENT_SPAN}-00"}}"#);
    for meta in [&unrecorded, r#"{"traceparent":"nonsense"}"#] {
        let params = format!(r#"{{"name":"a_echo","arguments":{{}},"_meta":{meta}}}"#);
        agent.request("tools/call", &params).await.unwrap();
    }
    let alone = |span: &Span| span.name == "tools/call a_echo" && span.parent_span_id.is_empty();
    collector.wait_for_span("a call without parent", alone).await;
    let calls = collector.spans().into_iter().filter(|span| span.name.starts_with("tools/call"));
    assert_eq!(calls.count(), 3);

    assert_eq!(collector.headers()["authorization"], "Bearer hunter2");
    let resource = collector.resource();
    assert_eq!((attribute(&resource, "service.name"), attribute(&resource, "team")), ("fleet", "a"));
    assert!(!collector.received_text("hunter2"), "no argument, no result, no header");
    assert!(!evenkeel.stderr().contains("hunter2"));
}

#[tokio::test]
async fn log_lines_carry_trace_and_span_ids() {
    let collector = TestCollector::start().await;
    let declared = TestDirectory::new();
    let nonsense = Action::Http {
        status: 200,
        headers: [("content-type".to_owned(), "text/event-stream".to_owned())].into(),
        body: "data: nonsense\n\n".into(),
    };
    let mut script = Script::default().on("tools/call", Rule::always(nonsense));
    script.tools.push(RawValue::from_string("{}".into()).unwrap());
    let server = FakeHttpServer::start(script).await;
    declared.write_server("a", &server.spec());
    for (format, [trace, span]) in
        [("json", [r#""trace_id":""#, r#""span_id":""#]), ("text", ["trace_id=", "span_id="])]
    {
        let flags = ["--otlp-endpoint", &collector.url(), "--log=evenkeel=debug", "--log-format", format];
        let evenkeel = Evenkeel::run_with_env(declared.path(), &flags, &SHORT_INTERVALS).await;
        evenkeel.wait_until_attached("a").await;
        let line = async |words: &str| {
            eventually(words, async || {
                evenkeel.stderr().lines().find(|line| line.contains(words)).map(str::to_owned)
            })
            .await
        };
        let id = |line: &str, key: &str, digits: usize| {
            let (_, rest) = line.split_once(key).unwrap_or_else(|| panic!("{key}: {line}"));
            rest[..digits].to_owned()
        };
        let attach = line("a tool was ignored").await;
        let (of, own) = (id(&attach, trace, 32), id(&attach, span, 16));
        let told = |told: &Span| (hex(&told.trace_id), hex(&told.span_id)) == (of.clone(), own.clone());
        assert_eq!(collector.wait_for_span("the attach that was logged", told).await.name, "attach");

        let agent = Agent::connect(Era::Modern, &evenkeel.url()).await;
        let params =
            format!(r#"{{"name":"a_echo","_meta":{{"traceparent":"00-{TRACE}-{PARENT_SPAN}-01"}}}}"#);
        let _ = agent.request("tools/call", &params).await;
        let call = line("is not MCP").await;
        assert_eq!(id(&call, trace, 32), TRACE, "{call}");
        let own = id(&call, span, 16);
        let told =
            collector.wait_for_span("the call that was logged", |told| hex(&told.span_id) == own).await;
        assert_eq!(told.name, "tools/call a_echo");
        // What belongs to no span says nothing of one.
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
    // What is scraped changes with each report, so all is compared but the counters of the export itself.
    let text = eventually("a quiet moment", async || {
        let scrape = async || http::get(&evenkeel.admin("/metrics")).await.unwrap();
        let quiet = |text: &str| -> Vec<String> {
            let lines = text.lines().filter(|line| !line.contains("otlp"));
            lines.map(str::to_owned).collect()
        };
        let before = quiet(&scrape().await);
        let metrics = collector.next_metrics().await;
        (before == quiet(&scrape().await)).then_some((before, metrics))
    });
    let (lines, metrics) = text.await;
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
    let well = sum
        .data_points
        .iter()
        .find(|point| attribute(&attribute_texts(&point.attributes), "outcome") == "ok");
    assert_eq!(well.unwrap().value, Some(Value::AsDouble(1.0)));
    let took = metrics.iter().find(|metric| metric.name == "evenkeel_call_duration_seconds").unwrap();
    let Some(Data::Histogram(histogram)) = &took.data else { panic!("{took:?}") };
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
    eventually("it is asked", async || (collector.request_count() > 0).then_some(())).await;
    let agent = Agent::connect(Era::Modern, &evenkeel.url()).await;
    // More than may wait: 2,048, and as many as are taken up with each request that runs out of time meanwhile.
    let mut calls = 0;
    while metric_value(&evenkeel, "evenkeel_otlp_spans_dropped_total").await == 0 {
        assert!(calls < 4_000, "{calls} spans wait, and none is dropped");
        for _ in 0..100 {
            agent.call("a_echo", "{}").await.unwrap();
        }
        calls += 100;
    }
    assert_eq!(metric_value(&evenkeel, "evenkeel_otlp_spans_total").await, 0);
    let before = Instant::now();
    assert!(evenkeel.terminate().await.success());
    assert!(before.elapsed() < Duration::from_secs(12), "{:?}", before.elapsed());
    let said = evenkeel.stderr();
    assert_eq!(said.matches("did not take the last spans").count(), 1, "{said}");
}

#[tokio::test]
async fn late_collector_receives_queued_spans() {
    let mut collector = TestCollector::not_listening();
    let declared = TestDirectory::new();
    let server = FakeStdioServer::new(Script::default());
    declared.write_server("a", &server.spec(""));
    let evenkeel = run_with_collector(&declared, &collector, &[]).await;
    evenkeel.wait_until_attached("a").await;
    eventually("it is said", async || evenkeel.stderr().contains("does not take spans").then_some(())).await;
    collector.listen().await;
    collector.wait_for_span("the attach from before", |span| span.name == "attach").await;
    eventually("the end is said", async || evenkeel.stderr().contains("takes spans again").then_some(()))
        .await;
    assert_eq!(metric_value(&evenkeel, "evenkeel_otlp_spans_dropped_total").await, 0);

    // A refusal for good, with an answer that nobody reads to its end.
    collector.set_behavior(CollectorBehavior::Flood(400));
    let agent = Agent::connect(Era::Modern, &evenkeel.url()).await;
    agent.call("a_echo", "{}").await.unwrap();
    eventually("what is refused is dropped", async || {
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
