use crate::resource::BoundedDuration;

/// The maximum time that a command waits for its effect.
#[derive(Debug, clap::Args)]
pub(super) struct WaitTimeout {
    /// Maximum time to wait
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = BoundedDuration::<1, 3_600_000>::parse)]
    pub(super) timeout: BoundedDuration<1, 3_600_000>,
}
