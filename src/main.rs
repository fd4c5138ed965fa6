//! The `evenkeel` command.

use std::process::ExitCode;

use tikv_jemallocator::Jemalloc;

/// Gives freed memory back to the system: after many changes a process is as small as before. The allocator of the C
/// library keeps most of it, because each of its arenas holds a few long-lived objects.
#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

fn main() -> ExitCode {
    evenkeel::cli::main()
}
