use crate::resource::BoundedDuration;

/// How long a command waits for what it asked for.
#[derive(Debug, clap::Args)]
pub(super) struct WaitTimeout {
    /// Do not wait longer than this
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = BoundedDuration::<1, 3_600_000>::parse)]
    pub(super) timeout: BoundedDuration<1, 3_600_000>,
}
