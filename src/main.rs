//! The `evenkeel` command.

use std::process::ExitCode;

/// Gives freed memory back to the system: after many changes a process is as small as before. The allocator of the C
/// library keeps most of it, because each of its arenas holds a few long-lived objects.
#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    evenkeel::cli::main()
}
