use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use url::Url;

// The supported environment variables of the OpenTelemetry specification.
const SERVICE_NAME_VAR: &str = "OTEL_SERVICE_NAME";
const RESOURCE_ATTRIBUTES_VAR: &str = "OTEL_RESOURCE_ATTRIBUTES";
const HEADERS_VAR: &str = "OTEL_EXPORTER_OTLP_HEADERS";
const SPAN_DELAY_VAR: &str = "OTEL_BSP_SCHEDULE_DELAY";
const METRIC_INTERVAL_VAR: &str = "OTEL_METRIC_EXPORT_INTERVAL";

/// The collector's URLs and headers, the resource attributes, and the export intervals.
#[derive(Clone, Debug)]
pub struct OtlpOptions {
    pub(super) traces_url: Url,
    pub(super) metrics_url: Url,
    /// The headers of every request. The values are secret.
    pub(super) headers: HeaderMap,
    /// The resource attributes, without `service.instance.id`.
    pub(super) resource_attributes: Vec<(String, String)>,
    /// The time for which spans are collected before they are sent.
    pub(super) span_delay: Duration,
    /// The time between two exports of metrics.
    pub(super) metric_interval: Duration,
}

impl OtlpOptions {
    /// Parses the URL of a collector and the standard environment variables. The error message is for the person who
    /// set them and does not contain the values of headers.
    pub fn new(endpoint: &str, variable: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        let url = Url::parse(endpoint).map_err(|error| format!("not a valid URL: {error}"))?;
        if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
            return Err("the URL must start with http:// or https://, because OTLP is sent over HTTP".into());
        }
        if !url.username().is_empty() || url.password().is_some() || url.query().is_some() {
            return Err(format!(
                "the URL must not contain a user name, password or query; set credentials in {HEADERS_VAR}"
            ));
        }
        let url_with_path = |path: &str| {
            let mut url_with_path = url.clone();
            url_with_path.set_path(&format!("{}/{path}", url.path().trim_end_matches('/')));
            url_with_path.set_fragment(None);
            url_with_path
        };
        Ok(Self {
            traces_url: url_with_path("v1/traces"),
            metrics_url: url_with_path("v1/metrics"),
            headers: parse_headers(&variable(HEADERS_VAR).unwrap_or_default())?,
            resource_attributes: resource_attributes(
                variable(SERVICE_NAME_VAR),
                &variable(RESOURCE_ATTRIBUTES_VAR).unwrap_or_default(),
            )?,
            span_delay: parse_millis(SPAN_DELAY_VAR, variable(SPAN_DELAY_VAR), Duration::from_secs(5))?,
            metric_interval: parse_millis(
                METRIC_INTERVAL_VAR,
                variable(METRIC_INTERVAL_VAR),
                Duration::from_mins(1),
            )?,
        })
    }

    /// Returns the origin of the collector, for the log.
    pub fn origin(&self) -> String {
        self.traces_url.origin().ascii_serialization()
    }
}

fn parse_headers(text: &str) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    for (name, value) in parse_pairs(HEADERS_VAR, text)? {
        let header = HeaderName::try_from(&name).ok().zip(HeaderValue::try_from(&value).ok());
        let (header, mut value) = header
            .ok_or_else(|| format!("{HEADERS_VAR}: {name:?} with its value is not a valid HTTP header"))?;
        value.set_sensitive(true);
        headers.insert(header, value);
    }
    Ok(headers)
}

fn resource_attributes(name: Option<String>, attributes: &str) -> Result<Vec<(String, String)>, String> {
    const SERVICE_NAME_KEY: &str = "service.name";
    let mut resource = parse_pairs(RESOURCE_ATTRIBUTES_VAR, attributes)?;
    if let Some(name) = name.filter(|name| !name.is_empty()) {
        resource.retain(|(key, _)| key != SERVICE_NAME_KEY);
        resource.push((SERVICE_NAME_KEY.into(), name));
    }
    let defaults = [(SERVICE_NAME_KEY, "evenkeel"), ("service.version", env!("CARGO_PKG_VERSION"))];
    for (key, value) in defaults {
        if !resource.iter().any(|(existing, _)| existing == key) {
            resource.push((key.into(), value.into()));
        }
    }
    Ok(resource)
}

/// Parses `key=value,key=value` with percent-encoded values.
fn parse_pairs(variable: &str, text: &str) -> Result<Vec<(String, String)>, String> {
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    parts
        .map(|part| {
            let invalid = || format!("{variable} must be a list such as key=value,key2=value2");
            let (key, value) = part.split_once('=').ok_or_else(invalid)?;
            let decoded = percent_decode(value.trim()).ok_or_else(invalid)?;
            let key = key.trim();
            if key.is_empty() { Err(invalid()) } else { Ok((key.to_owned(), decoded)) }
        })
        .collect()
}

fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut remaining = text.as_bytes();
    while let [first, tail @ ..] = remaining {
        remaining = tail;
        if *first == b'%' {
            let (digits, tail) = tail.split_at_checked(2)?;
            bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
            remaining = tail;
        } else {
            bytes.push(*first);
        }
    }
    String::from_utf8(bytes).ok()
}

fn parse_millis(variable: &str, text: Option<String>, default: Duration) -> Result<Duration, String> {
    let Some(text) = text.filter(|text| !text.is_empty()) else {
        return Ok(default);
    };
    let number = text.parse().ok().filter(|number| (100..=3_600_000).contains(number));
    let invalid = || format!("{variable} must be a number of milliseconds from 100 to 3600000");
    number.map(Duration::from_millis).ok_or_else(invalid)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_options(endpoint: &str, variables: &[(&str, &str)]) -> Result<OtlpOptions, String> {
        let variable =
            |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
        OtlpOptions::new(endpoint, variable)
    }

    #[test]
    fn signal_paths_are_appended_to_the_endpoint() {
        for (endpoint, traces) in [
            ("http://localhost:4318", "http://localhost:4318/v1/traces"),
            ("http://localhost:4318/", "http://localhost:4318/v1/traces"),
            ("https://otel.example.com/team/a", "https://otel.example.com/team/a/v1/traces"),
        ] {
            let options = parse_options(endpoint, &[]).unwrap();
            assert_eq!(options.traces_url.as_str(), traces);
            assert!(options.metrics_url.path().ends_with("/v1/metrics"));
        }
        for (endpoint, expected) in [
            ("localhost:4318", "http://"),
            ("collector", "not a valid URL"),
            ("grpc://localhost:4317", "http://"),
            ("http://me:hunter2@localhost", "OTEL_EXPORTER_OTLP_HEADERS"),
            ("http://localhost?key=hunter2", "OTEL_EXPORTER_OTLP_HEADERS"),
        ] {
            let error = parse_options(endpoint, &[]).unwrap_err();
            assert!(error.contains(expected) && !error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn standard_variables_are_parsed() {
        let options = parse_options(
            "http://localhost",
            &[
                (HEADERS_VAR, "authorization=Basic%20aHVudGVyMg==, x-team = a"),
                (RESOURCE_ATTRIBUTES_VAR, "service.name=other,deployment.environment.name=a%2Cb"),
                (SERVICE_NAME_VAR, "mine"),
                (SPAN_DELAY_VAR, "250"),
            ],
        )
        .unwrap();
        assert_eq!(options.headers["authorization"], "Basic aHVudGVyMg==");
        assert_eq!(options.headers["x-team"], "a");
        assert!(!format!("{options:?}").contains("aHVudGVyMg"));
        let attributes: Vec<_> =
            options.resource_attributes.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let version = concat!("service.version=", env!("CARGO_PKG_VERSION"));
        assert_eq!(attributes, ["deployment.environment.name=a,b", "service.name=mine", version]);
        assert_eq!((options.span_delay.as_millis(), options.metric_interval.as_secs()), (250, 60));
    }

    #[test]
    fn invalid_variable_error_omits_its_value() {
        for (name, value) in [
            (HEADERS_VAR, "hunter2"),
            (HEADERS_VAR, "=hunter2"),
            (HEADERS_VAR, "a b=hunter2"),
            (HEADERS_VAR, "a=hunter2%0a"),
            (HEADERS_VAR, "a=hunter2%f"),
            (RESOURCE_ATTRIBUTES_VAR, "hunter2"),
            (SPAN_DELAY_VAR, "hunter2"),
            (METRIC_INTERVAL_VAR, "0"),
        ] {
            let error = parse_options("http://localhost", &[(name, value)]).unwrap_err();
            assert!(error.contains(name) && !error.contains("hunter2"), "{error}");
        }
    }
}
