//! From the text of `/metrics` to the metrics of OTLP. Pure.

use std::collections::BTreeMap;

use jiff::Timestamp;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value;
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint, Sum,
};

use super::encode::{nanoseconds, text};

type Labels = BTreeMap<String, String>;

/// One family of the text: its samples in order, each with what its name adds to that of the family.
#[derive(Debug, Default, PartialEq)]
struct Family<'a> {
    name: &'a str,
    help: &'a str,
    kind: &'a str,
    samples: Vec<(&'a str, Labels, &'a str)>,
}

/// When what is counted began, and when it was read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Times {
    pub start: Timestamp,
    pub now: Timestamp,
}

/// The metrics of the text that our registry writes for `/metrics`, in groups of `most` points at most.
pub(super) fn metrics(exposition: &str, times: Times, most: usize) -> Vec<Vec<Metric>> {
    let mut groups = Vec::new();
    let (mut group, mut room) = (Vec::new(), most);
    for family in parse(exposition) {
        let mut points = points(&family, times);
        while !points.is_empty() {
            let rest = points.split_off(points.len().min(room));
            room -= points.len();
            group.push(metric(&family, points));
            points = rest;
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

/// A point of a metric of any kind.
enum Point {
    Number(NumberDataPoint),
    Histogram(HistogramDataPoint),
}

fn metric(family: &Family<'_>, points: Vec<Point>) -> Metric {
    let (mut numbers, mut histograms) = (Vec::new(), Vec::new());
    for point in points {
        match point {
            Point::Number(point) => numbers.push(point),
            Point::Histogram(point) => histograms.push(point),
        }
    }
    let aggregation_temporality = AggregationTemporality::Cumulative.into();
    let data = match family.kind {
        "histogram" => Data::Histogram(Histogram { data_points: histograms, aggregation_temporality }),
        "counter" => Data::Sum(Sum { data_points: numbers, aggregation_temporality, is_monotonic: true }),
        _ => Data::Gauge(Gauge { data_points: numbers }),
    };
    let unit = if family.name.ends_with("_seconds") { "s" } else { "" };
    Metric {
        name: family.name.to_owned(),
        description: family.help.to_owned(),
        unit: unit.to_owned(),
        data: Some(data),
        ..Metric::default()
    }
}

fn points(family: &Family<'_>, Times { start, now }: Times) -> Vec<Point> {
    let (start, now) = (nanoseconds(start), nanoseconds(now));
    if family.kind == "histogram" {
        return histograms(family, start, now).into_iter().map(Point::Histogram).collect();
    }
    let start = if family.kind == "counter" { start } else { 0 };
    let number = |(_, labels, value): &(&str, Labels, &str)| {
        let value = value.parse().map(Value::AsInt).or_else(|_| value.parse().map(Value::AsDouble)).ok()?;
        Some(Point::Number(NumberDataPoint {
            attributes: labels.iter().map(|(key, value)| text(key, value)).collect(),
            start_time_unix_nano: start,
            time_unix_nano: now,
            value: Some(value),
            ..NumberDataPoint::default()
        }))
    };
    family.samples.iter().filter_map(number).collect()
}

/// The samples of equal labels, `le` aside, are one histogram. There the buckets hold what is below their bound; in
/// OTLP each holds its own.
fn histograms(family: &Family<'_>, start: u64, now: u64) -> Vec<HistogramDataPoint> {
    let mut found: BTreeMap<Labels, (HistogramDataPoint, u64)> = BTreeMap::new();
    for (suffix, labels, value) in &family.samples {
        let mut labels = labels.clone();
        let bound = labels.remove("le");
        let (point, below) = found.entry(labels).or_default();
        match (*suffix, bound) {
            ("_sum", _) => point.sum = value.parse().ok(),
            ("_count", _) => point.count = value.parse().unwrap_or_default(),
            (_, Some(bound)) => {
                let total: u64 = value.parse().unwrap_or_default();
                point.bucket_counts.push(total.saturating_sub(*below));
                point.explicit_bounds.extend(bound.parse::<f64>().ok().filter(|bound| bound.is_finite()));
                *below = total;
            }
            _ => {}
        }
    }
    let whole = |(labels, (point, _)): (Labels, (HistogramDataPoint, u64))| HistogramDataPoint {
        attributes: labels.iter().map(|(key, value)| text(key, value)).collect(),
        start_time_unix_nano: start,
        time_unix_nano: now,
        ..point
    };
    found.into_iter().map(whole).collect()
}

fn parse(exposition: &str) -> Vec<Family<'_>> {
    let mut families: Vec<Family<'_>> = Vec::new();
    for line in exposition.lines() {
        if let Some(described) = line.strip_prefix("# HELP ") {
            let (name, help) = described.split_once(' ').unwrap_or((described, ""));
            families.push(Family { name, help, ..Family::default() });
        } else if let Some(family) = families.last_mut() {
            if let Some(typed) = line.strip_prefix("# TYPE ") {
                family.kind = typed.split_once(' ').map_or("", |(_, kind)| kind);
            } else if let Some(rest) = line.strip_prefix(family.name) {
                family.samples.extend(sample(rest));
            }
        }
    }
    families
}

/// What follows the name of the family: `_total{key="value"} 7`.
fn sample(rest: &str) -> Option<(&str, Labels, &str)> {
    let (suffix, mut rest) = rest.split_at(rest.find(['{', ' '])?);
    let mut labels = Labels::new();
    if let Some(inner) = rest.strip_prefix('{') {
        rest = inner;
        while !rest.starts_with('}') {
            let (key, quoted) = rest.trim_start_matches(',').split_once("=\"")?;
            let (value, after) = unquoted(quoted)?;
            labels.insert(key.to_owned(), value);
            rest = after;
        }
        rest = rest.strip_prefix('}')?;
    }
    Some((suffix, labels, rest.split_ascii_whitespace().next()?))
}

/// A label's value up to its closing quote, and what comes after.
fn unquoted(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut rest = text.chars();
    loop {
        match rest.next()? {
            '"' => return Some((value, rest.as_str())),
            '\\' => value.push(match rest.next()? {
                'n' => '\n',
                other => other,
            }),
            other => value.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;
    use prometheus_client::metrics::counter::Counter;
    use prometheus_client::metrics::family::Family as Many;
    use prometheus_client::metrics::gauge::Gauge as Level;
    use prometheus_client::metrics::histogram::Histogram as Durations;
    use prometheus_client::registry::Registry;

    use super::*;

    const TIMES: Times = Times { start: Timestamp::UNIX_EPOCH, now: Timestamp::UNIX_EPOCH };

    fn told(registry: &Registry, most: usize) -> Vec<Vec<Metric>> {
        let mut exposition = String::new();
        encode(&mut exposition, registry).unwrap();
        metrics(&exposition, TIMES, most)
    }

    #[test]
    fn what_the_registry_writes_is_read_back() {
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

        let told = told(&registry, 100).concat();
        let [calls, level, took] = &told[..] else { panic!("{told:?}") };
        assert_eq!((&*calls.name, &*calls.description), ("e_calls", "Calls, by \"server\"."));
        let Some(Data::Sum(sum)) = &calls.data else { panic!("{calls:?}") };
        assert!(sum.is_monotonic);
        assert_eq!(sum.data_points[0].attributes, [text("outcome", "ok"), text("server", odd)]);
        assert_eq!(sum.data_points[0].value, Some(Value::AsInt(3)));
        let Some(Data::Gauge(gauge)) = &level.data else { panic!("{level:?}") };
        assert_eq!(gauge.data_points[0].value, Some(Value::AsDouble(-1.5)));
        let Some(Data::Histogram(histogram)) = &took.data else { panic!("{took:?}") };
        let point = &histogram.data_points[0];
        assert_eq!((&*took.unit, point.count, point.sum), ("s", 4, Some(10.0)));
        assert_eq!((&point.explicit_bounds[..], &point.bucket_counts[..]), (&[0.5, 1.0][..], &[2, 1, 1][..]));
    }

    #[test]
    fn no_group_is_larger_than_it_may_be() {
        let mut registry = Registry::default();
        let calls = Many::<[(&'static str, String); 1], Counter>::default();
        for number in 0..25 {
            calls.get_or_create(&[("server", number.to_string())]).inc();
        }
        registry.register("calls", "Calls", calls.clone());
        registry.register("again", "Calls", calls);
        let sizes: Vec<usize> = told(&registry, 10)
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
