use crate::resource::Bounded;

/// How long a command waits for what it asked for.
#[derive(Debug, clap::Args)]
pub(super) struct Limit {
    /// Do not wait longer than this
    #[arg(long, value_name = "DURATION", default_value = "60s", value_parser = Bounded::<1, 3_600_000>::parse)]
    pub(super) timeout: Bounded<1, 3_600_000>,
}
