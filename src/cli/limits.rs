use crate::gateway::Limits;

/// The bounds of `--max-request-size`, in bytes.
const MIN_REQUEST_BYTES: usize = 64 << 10;
const MAX_REQUEST_BYTES: usize = 64 << 20;

/// The limits on agents that `evenkeel run` takes.
#[derive(Debug, clap::Args)]
pub(super) struct LimitArgs {
    /// Maximum size of a request of an agent, such as 512Ki or 16Mi
    #[arg(
        long = "max-request-size",
        env = "EVENKEEL_MAX_REQUEST_SIZE",
        value_name = "SIZE",
        default_value = "4Mi",
        value_parser = parse_request_size,
    )]
    request_size: usize,
    /// Maximum number of connections of agents; further ones wait
    #[arg(
        long = "max-connections",
        env = "EVENKEEL_MAX_CONNECTIONS",
        value_name = "N",
        default_value = "8192",
        value_parser = clap::value_parser!(u32).range(16..=1_000_000),
    )]
    connections: u32,
    /// Maximum number of requests of one session that are in flight at servers
    #[arg(
        long = "max-session-calls",
        env = "EVENKEEL_MAX_SESSION_CALLS",
        value_name = "N",
        default_value = "256",
        value_parser = clap::value_parser!(u32).range(1..=1_000_000),
    )]
    session_calls: u32,
    /// Maximum number of calls of one server that are in flight or wait for its connection
    #[arg(
        long = "max-server-calls",
        env = "EVENKEEL_MAX_SERVER_CALLS",
        value_name = "N",
        default_value = "4096",
        value_parser = clap::value_parser!(u32).range(1..=1_000_000),
    )]
    server_calls: u32,
}

impl LimitArgs {
    pub(super) fn limits(&self) -> Limits {
        let number = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
        Limits {
            max_body_bytes: self.request_size,
            max_connections: number(self.connections),
            max_session_calls: number(self.session_calls),
            max_server_calls: number(self.server_calls),
            ..Limits::default()
        }
    }
}

/// Parses a number of bytes, with the suffix `Ki` or `Mi` of Kubernetes quantities.
fn parse_request_size(text: &str) -> Result<usize, String> {
    let (number, unit) = match text.trim_end_matches('B') {
        number if number.ends_with("Ki") => (number.strip_suffix("Ki"), 1 << 10),
        number if number.ends_with("Mi") => (number.strip_suffix("Mi"), 1 << 20),
        number => (Some(number), 1),
    };
    let bytes = number.and_then(|number| number.parse::<usize>().ok()?.checked_mul(unit));
    let bytes =
        bytes.ok_or_else(|| format!("{text:?} is not a size; write a number with Ki or Mi, such as 16Mi"))?;
    if (MIN_REQUEST_BYTES..=MAX_REQUEST_BYTES).contains(&bytes) {
        return Ok(bytes);
    }
    Err(format!("{text:?} is out of range; must be from 64Ki to 64Mi"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct TestCli {
        #[command(flatten)]
        args: LimitArgs,
    }

    #[test]
    fn flags_default_to_the_limits_of_the_gateway() {
        let limits = TestCli::parse_from(["run"]).args.limits();
        assert_eq!(format!("{limits:?}"), format!("{:?}", Limits::default()));
    }

    #[test]
    fn request_size_is_written_as_a_quantity() {
        for (text, expected) in [
            ("4Mi", Some(4 << 20)),
            ("4MiB", Some(4 << 20)),
            ("64Ki", Some(64 << 10)),
            ("100000", Some(100_000)),
            ("64Mi", Some(64 << 20)),
            ("65Mi", None),
            ("1Ki", None),
            ("-1", None),
            ("4M", None),
            ("Mi", None),
            ("", None),
            ("99999999999999999999Mi", None),
        ] {
            assert_eq!(parse_request_size(text).ok(), expected, "{text}");
        }
    }
}
