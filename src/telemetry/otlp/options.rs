use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use url::Url;

/// The variables of the OpenTelemetry specification that are read.
const SERVICE_NAME: &str = "OTEL_SERVICE_NAME";
const RESOURCE_ATTRIBUTES: &str = "OTEL_RESOURCE_ATTRIBUTES";
const HEADERS: &str = "OTEL_EXPORTER_OTLP_HEADERS";
const SPAN_DELAY: &str = "OTEL_BSP_SCHEDULE_DELAY";
const METRIC_INTERVAL: &str = "OTEL_METRIC_EXPORT_INTERVAL";

/// Where telemetry goes, and under whose name.
#[derive(Clone, Debug)]
pub struct OtlpOptions {
    pub(super) traces: Url,
    pub(super) metrics: Url,
    /// Of every request; the values are secret.
    pub(super) headers: HeaderMap,
    /// Who reports: keys and values, without the instance.
    pub(super) resource: Vec<(String, String)>,
    /// How long spans are collected before they are sent.
    pub(super) span_delay: Duration,
    /// The time between two reports of metrics.
    pub(super) metric_interval: Duration,
}

impl OtlpOptions {
    /// What the URL of a collector and the standard variables say. An error is a sentence for the person who set
    /// them, without the values of headers.
    pub fn new(endpoint: &str, variable: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        let url = Url::parse(endpoint).map_err(|error| format!("it is not a URL: {error}"))?;
        if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
            return Err("OTLP is sent over HTTP: it must begin with http:// or https://".into());
        }
        if !url.username().is_empty() || url.password().is_some() || url.query().is_some() {
            return Err(format!("it may hold no user, password or query; say them in {HEADERS}"));
        }
        let at = |path: &str| {
            let mut at = url.clone();
            at.set_path(&format!("{}/{path}", url.path().trim_end_matches('/')));
            at.set_fragment(None);
            at
        };
        Ok(Self {
            traces: at("v1/traces"),
            metrics: at("v1/metrics"),
            headers: headers(&variable(HEADERS).unwrap_or_default())?,
            resource: resource(variable(SERVICE_NAME), &variable(RESOURCE_ATTRIBUTES).unwrap_or_default())?,
            span_delay: milliseconds(SPAN_DELAY, variable(SPAN_DELAY), Duration::from_secs(5))?,
            metric_interval: milliseconds(
                METRIC_INTERVAL,
                variable(METRIC_INTERVAL),
                Duration::from_mins(1),
            )?,
        })
    }

    /// The collector, for the log.
    pub fn origin(&self) -> String {
        self.traces.origin().ascii_serialization()
    }
}

fn headers(text: &str) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    for (name, value) in pairs(HEADERS, text)? {
        let header = HeaderName::try_from(&name).ok().zip(HeaderValue::try_from(&value).ok());
        let (header, mut value) =
            header.ok_or_else(|| format!("{HEADERS}: {name:?} makes no HTTP header"))?;
        value.set_sensitive(true);
        headers.insert(header, value);
    }
    Ok(headers)
}

fn resource(name: Option<String>, attributes: &str) -> Result<Vec<(String, String)>, String> {
    const NAME: &str = "service.name";
    let mut resource = pairs(RESOURCE_ATTRIBUTES, attributes)?;
    if let Some(name) = name.filter(|name| !name.is_empty()) {
        resource.retain(|(key, _)| key != NAME);
        resource.push((NAME.into(), name));
    }
    let defaults = [(NAME, "evenkeel"), ("service.version", env!("CARGO_PKG_VERSION"))];
    for (key, value) in defaults {
        if !resource.iter().any(|(known, _)| known == key) {
            resource.push((key.into(), value.into()));
        }
    }
    Ok(resource)
}

/// `key=value,key=value`, where values are percent-encoded.
fn pairs(variable: &str, text: &str) -> Result<Vec<(String, String)>, String> {
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    parts
        .map(|part| {
            let wrong = || format!("{variable} must be a list such as key=value,key2=value2");
            let (key, value) = part.split_once('=').ok_or_else(wrong)?;
            let decoded = percent_decoded(value.trim()).ok_or_else(wrong)?;
            let key = key.trim();
            if key.is_empty() { Err(wrong()) } else { Ok((key.to_owned(), decoded)) }
        })
        .collect()
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, others @ ..] = rest {
        rest = others;
        if *first == b'%' {
            let (digits, others) = others.split_at_checked(2)?;
            bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
            rest = others;
        } else {
            bytes.push(*first);
        }
    }
    String::from_utf8(bytes).ok()
}

fn milliseconds(variable: &str, text: Option<String>, default: Duration) -> Result<Duration, String> {
    let Some(text) = text.filter(|text| !text.is_empty()) else {
        return Ok(default);
    };
    let number = text.parse().ok().filter(|number| (100..=3_600_000).contains(number));
    let wrong = || format!("{variable} must be a number of milliseconds from 100 to 3600000");
    number.map(Duration::from_millis).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(endpoint: &str, variables: &[(&str, &str)]) -> Result<OtlpOptions, String> {
        let found = |name: &str| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        };
        OtlpOptions::new(endpoint, found)
    }

    #[test]
    fn the_paths_are_below_the_endpoint() {
        for (endpoint, traces) in [
            ("http://localhost:4318", "http://localhost:4318/v1/traces"),
            ("http://localhost:4318/", "http://localhost:4318/v1/traces"),
            ("https://otel.example.com/team/a", "https://otel.example.com/team/a/v1/traces"),
        ] {
            let options = options(endpoint, &[]).unwrap();
            assert_eq!(options.traces.as_str(), traces);
            assert!(options.metrics.path().ends_with("/v1/metrics"));
        }
        for (endpoint, said) in [
            ("localhost:4318", "http://"),
            ("collector", "not a URL"),
            ("grpc://localhost:4317", "http://"),
            ("http://me:hunter2@localhost", "OTEL_EXPORTER_OTLP_HEADERS"),
            ("http://localhost?key=hunter2", "OTEL_EXPORTER_OTLP_HEADERS"),
        ] {
            let error = options(endpoint, &[]).unwrap_err();
            assert!(error.contains(said) && !error.contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn the_standard_variables_are_read() {
        let given = options(
            "http://localhost",
            &[
                (HEADERS, "authorization=Basic%20aHVudGVyMg==, x-team = a"),
                (RESOURCE_ATTRIBUTES, "service.name=other,deployment.environment.name=a%2Cb"),
                (SERVICE_NAME, "mine"),
                (SPAN_DELAY, "250"),
            ],
        )
        .unwrap();
        assert_eq!(given.headers["authorization"], "Basic aHVudGVyMg==");
        assert_eq!(given.headers["x-team"], "a");
        assert!(!format!("{given:?}").contains("aHVudGVyMg"));
        let resource: Vec<_> = given.resource.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let version = concat!("service.version=", env!("CARGO_PKG_VERSION"));
        assert_eq!(resource, ["deployment.environment.name=a,b", "service.name=mine", version]);
        assert_eq!((given.span_delay.as_millis(), given.metric_interval.as_secs()), (250, 60));
    }

    #[test]
    fn what_is_wrong_in_a_variable_is_said_without_its_value() {
        for (name, value) in [
            (HEADERS, "hunter2"),
            (HEADERS, "=hunter2"),
            (HEADERS, "a b=hunter2"),
            (HEADERS, "a=hunter2%0a"),
            (HEADERS, "a=hunter2%f"),
            (RESOURCE_ATTRIBUTES, "hunter2"),
            (SPAN_DELAY, "hunter2"),
            (METRIC_INTERVAL, "0"),
        ] {
            let error = options("http://localhost", &[(name, value)]).unwrap_err();
            assert!(error.contains(name) && !error.contains("hunter2"), "{error}");
        }
    }
}
