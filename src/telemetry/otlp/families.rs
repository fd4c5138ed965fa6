//! From the registry's metrics, as Prometheus has them in protobuf, to those of OTLP. Pure.

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

/// When what is counted began, and when it was read.
#[derive(Clone, Copy, Debug)]
pub(super) struct MetricTimes {
    pub start: Timestamp,
    pub now: Timestamp,
}

/// The metrics of a registry, in groups of `most` points at most.
pub(super) fn to_otlp_metrics(
    families: &[MetricFamily],
    times: MetricTimes,
    most: usize,
) -> Vec<Vec<Metric>> {
    let mut groups = Vec::new();
    let (mut group, mut room) = (Vec::new(), most);
    for family in families {
        let mut rest = family.metric.as_slice();
        while !rest.is_empty() {
            let (points, after) = rest.split_at(rest.len().min(room));
            room -= points.len();
            group.push(to_otlp_metric(family, points, times));
            rest = after;
            if room == 0 {
                groups.push(std::mem::take(&mut group));
                room = most;
            }
        }
    }
    if !group.is_empty() {
        groups.push(group);
    }
    groups
}

/// Some points of a family as one metric.
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
            let told = |point: &prometheus::Metric| Some(number(point, start, point.counter.as_ref()?.value));
            Data::Sum(Sum {
                data_points: points.iter().filter_map(told).collect(),
                aggregation_temporality,
                is_monotonic: true,
            })
        }
        MetricType::Histogram => {
            let told = |point: &prometheus::Metric| {
                Some(histogram_point(point.histogram.as_ref()?, attributes(point), start, now))
            };
            Data::Histogram(Histogram {
                data_points: points.iter().filter_map(told).collect(),
                aggregation_temporality,
            })
        }
        _ => {
            let told = |point: &prometheus::Metric| Some(number(point, 0, point.gauge?.value));
            Data::Gauge(Gauge { data_points: points.iter().filter_map(told).collect() })
        }
    };
    // The ending is Prometheus'.
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

/// In Prometheus a bucket holds all that is below its bound; in OTLP each holds its own. The last has no bound: the
/// registry writes the greatest number there is.
fn histogram_point(
    told: &prometheus::Histogram,
    attributes: Vec<KeyValue>,
    start_time_unix_nano: u64,
    time_unix_nano: u64,
) -> HistogramDataPoint {
    let mut below = 0;
    let own = told.bucket.iter().map(|bucket| {
        let before = std::mem::replace(&mut below, bucket.cumulative_count);
        bucket.cumulative_count.saturating_sub(before)
    });
    let bounds = told.bucket.iter().map(|bucket| bucket.upper_bound);
    HistogramDataPoint {
        attributes,
        start_time_unix_nano,
        time_unix_nano,
        count: told.sample_count,
        sum: Some(told.sample_sum),
        bucket_counts: own.collect(),
        explicit_bounds: bounds.filter(|bound| *bound < f64::MAX).collect(),
        ..HistogramDataPoint::default()
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::prometheus_protobuf::encode;
    use prometheus_client::metrics::counter::Counter;
    use prometheus_client::metrics::family::Family as Many;
    use prometheus_client::metrics::gauge::Gauge as Level;
    use prometheus_client::metrics::histogram::Histogram as Durations;
    use prometheus_client::registry::Registry;

    use super::*;

    const TIMES: MetricTimes = MetricTimes { start: Timestamp::UNIX_EPOCH, now: Timestamp::UNIX_EPOCH };

    fn convert_registry(registry: &Registry, most: usize) -> Vec<Vec<Metric>> {
        to_otlp_metrics(&encode(registry).unwrap(), TIMES, most)
    }

    #[test]
    fn registry_metrics_are_converted() {
        let mut registry = Registry::with_prefix("e");
        let calls = Many::<[(&'static str, String); 2], Counter>::default();
        let odd = "a \"b\" \\ {c}=,\nd";
        calls.get_or_create(&[("server", odd.into()), ("outcome", "ok".into())]).inc_by(3);
        registry.register("calls", "Calls, by \"server\"", calls);
        let level = Level::<f64, std::sync::atomic::AtomicU64>::default();
        level.set(-1.5);
        registry.register("level", "A level", level);
        let times = Durations::new([0.5, 1.0]);
        for time in [0.1, 0.2, 0.7, 9.0] {
            times.observe(time);
        }
        registry.register("took_seconds", "How long", times);
        registry.register("none", "Nothing", Many::<[(&'static str, String); 1], Counter>::default());

        let told = convert_registry(&registry, 100).concat();
        let [calls, level, took] = &told[..] else { panic!("{told:?}") };
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
        let calls = Many::<[(&'static str, String); 1], Counter>::default();
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
