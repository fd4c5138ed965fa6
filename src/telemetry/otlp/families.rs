//! Converts the registry's metrics from the Prometheus protobuf format to OTLP. Pure functions.

use jiff::Timestamp;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value;
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint, Sum,
};
use prometheus::{MetricFamily, MetricType};
use prometheus_client::encoding::prometheus_protobuf::prometheus_data_model as prometheus;

use super::encode::{text_attribute, unix_nanos};

/// The start of counting and the time of reading.
#[derive(Clone, Copy, Debug)]
pub(super) struct MetricTimes {
    pub start: Timestamp,
    pub now: Timestamp,
}

/// Converts the metrics of a registry, in groups of at most `max_points` data points.
pub(super) fn to_otlp_metrics(
    families: &[MetricFamily],
    times: MetricTimes,
    max_points: usize,
) -> Vec<Vec<Metric>> {
    let mut groups = Vec::new();
    let (mut group, mut room) = (Vec::new(), max_points);
    for family in families {
        let mut remaining = family.metric.as_slice();
        while !remaining.is_empty() {
            let (points, unsent) = remaining.split_at(remaining.len().min(room));
            room -= points.len();
            group.push(to_otlp_metric(family, points, times));
            remaining = unsent;
            if room == 0 {
                groups.push(std::mem::take(&mut group));
                room = max_points;
            }
        }
    }
    if !group.is_empty() {
        groups.push(group);
    }
    groups
}

/// Converts some data points of a family to one metric.
fn to_otlp_metric(
    family: &MetricFamily,
    points: &[prometheus::Metric],
    MetricTimes { start, now }: MetricTimes,
) -> Metric {
    let (start, now) = (unix_nanos(start), unix_nanos(now));
    let aggregation_temporality = AggregationTemporality::Cumulative.into();
    let number = |point: &prometheus::Metric, start_time_unix_nano, value| NumberDataPoint {
        attributes: attributes(point),
        start_time_unix_nano,
        time_unix_nano: now,
        value: Some(Value::AsDouble(value)),
        ..NumberDataPoint::default()
    };
    let data = match family.r#type() {
        MetricType::Counter => {
            let convert =
                |point: &prometheus::Metric| Some(number(point, start, point.counter.as_ref()?.value));
            Data::Sum(Sum {
                data_points: points.iter().filter_map(convert).collect(),
                aggregation_temporality,
                is_monotonic: true,
            })
        }
        MetricType::Histogram => {
            let convert = |point: &prometheus::Metric| {
                Some(histogram_point(point.histogram.as_ref()?, attributes(point), start, now))
            };
            Data::Histogram(Histogram {
                data_points: points.iter().filter_map(convert).collect(),
                aggregation_temporality,
            })
        }
        _ => {
            let convert = |point: &prometheus::Metric| Some(number(point, 0, point.gauge?.value));
            Data::Gauge(Gauge { data_points: points.iter().filter_map(convert).collect() })
        }
    };
    // The suffix is a Prometheus convention.
    let name = family.name.strip_suffix("_total").unwrap_or(&family.name);
    let unit = if name.ends_with("_seconds") { "s" } else { "" };
    Metric {
        name: name.to_owned(),
        description: family.help.clone(),
        unit: unit.to_owned(),
        data: Some(data),
        ..Metric::default()
    }
}

fn attributes(point: &prometheus::Metric) -> Vec<KeyValue> {
    point.label.iter().map(|label| text_attribute(&label.name, &label.value)).collect()
}

/// Converts a histogram. Prometheus buckets are cumulative, OTLP buckets are not. The last bucket has no bound in OTLP;
/// the registry encodes its bound as the greatest number.
fn histogram_point(
    histogram: &prometheus::Histogram,
    attributes: Vec<KeyValue>,
    start_time_unix_nano: u64,
    time_unix_nano: u64,
) -> HistogramDataPoint {
    let mut cumulative = 0;
    let bucket_counts = histogram.bucket.iter().map(|bucket| {
        let previous = std::mem::replace(&mut cumulative, bucket.cumulative_count);
        bucket.cumulative_count.saturating_sub(previous)
    });
    let bounds = histogram.bucket.iter().map(|bucket| bucket.upper_bound);
    HistogramDataPoint {
        attributes,
        start_time_unix_nano,
        time_unix_nano,
        count: histogram.sample_count,
        sum: Some(histogram.sample_sum),
        bucket_counts: bucket_counts.collect(),
        explicit_bounds: bounds.filter(|bound| *bound < f64::MAX).collect(),
        ..HistogramDataPoint::default()
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::prometheus_protobuf::encode;
    use prometheus_client::metrics::counter::Counter;
    use prometheus_client::metrics::family::Family as PromFamily;
    use prometheus_client::metrics::gauge::Gauge as PromGauge;
    use prometheus_client::metrics::histogram::Histogram as PromHistogram;
    use prometheus_client::registry::Registry;

    use super::*;

    const TIMES: MetricTimes = MetricTimes { start: Timestamp::UNIX_EPOCH, now: Timestamp::UNIX_EPOCH };

    fn convert_registry(registry: &Registry, max_points: usize) -> Vec<Vec<Metric>> {
        to_otlp_metrics(&encode(registry).unwrap(), TIMES, max_points)
    }

    #[test]
    fn registry_metrics_are_converted() {
        let mut registry = Registry::with_prefix("e");
        let calls = PromFamily::<[(&'static str, String); 2], Counter>::default();
        let odd = "a \"b\" \\ {c}=,\nd";
        calls.get_or_create(&[("server", odd.into()), ("outcome", "ok".into())]).inc_by(3);
        registry.register("calls", "Calls, by \"server\"", calls);
        let level = PromGauge::<f64, std::sync::atomic::AtomicU64>::default();
        level.set(-1.5);
        registry.register("level", "A level", level);
        let times = PromHistogram::new([0.5, 1.0]);
        for time in [0.1, 0.2, 0.7, 9.0] {
            times.observe(time);
        }
        registry.register("took_seconds", "How long", times);
        registry.register("none", "Nothing", PromFamily::<[(&'static str, String); 1], Counter>::default());

        let metrics = convert_registry(&registry, 100).concat();
        let [calls, level, took] = &metrics[..] else { panic!("{metrics:?}") };
        assert_eq!((&*calls.name, &*calls.description), ("e_calls", "Calls, by \"server\"."));
        let Some(Data::Sum(sum)) = &calls.data else { panic!("{calls:?}") };
        assert!(sum.is_monotonic);
        assert_eq!(
            sum.data_points[0].attributes,
            [text_attribute("server", odd), text_attribute("outcome", "ok")]
        );
        assert_eq!(sum.data_points[0].value, Some(Value::AsDouble(3.0)));
        let Some(Data::Gauge(gauge)) = &level.data else { panic!("{level:?}") };
        assert_eq!(gauge.data_points[0].value, Some(Value::AsDouble(-1.5)));
        let Some(Data::Histogram(histogram)) = &took.data else { panic!("{took:?}") };
        let point = &histogram.data_points[0];
        assert_eq!((&*took.unit, point.count, point.sum), ("s", 4, Some(10.0)));
        assert_eq!((&point.explicit_bounds[..], &point.bucket_counts[..]), (&[0.5, 1.0][..], &[2, 1, 1][..]));
    }

    #[test]
    fn groups_do_not_exceed_the_point_limit() {
        let mut registry = Registry::default();
        let calls = PromFamily::<[(&'static str, String); 1], Counter>::default();
        for number in 0..25 {
            calls.get_or_create(&[("server", number.to_string())]).inc();
        }
        registry.register("calls", "Calls", calls.clone());
        registry.register("again", "Calls", calls);
        let sizes: Vec<usize> = convert_registry(&registry, 10)
            .iter()
            .map(|group| {
                let points = group.iter().map(|metric| match &metric.data {
                    Some(Data::Sum(sum)) => sum.data_points.len(),
                    _ => 0,
                });
                points.sum()
            })
            .collect();
        assert_eq!(sizes, [10; 5]);
    }
}
