use rustix::process::Pid;

/// The fields of `/proc/PID/stat` that evenkeel uses (`proc_pid_stat(5)`).
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ProcStat {
    /// The process has exited (state `Z` or `X`) and only waits to be reaped.
    pub(super) has_exited: bool,
    /// The process is running, runnable or waits for a disk (state `R` or `D`).
    pub(super) is_busy: bool,
    /// The process group.
    pub(super) group: Option<Pid>,
    /// The CPU time used so far, in clock ticks.
    pub(super) cpu_ticks: u64,
}

impl ProcStat {
    /// Parses `/proc/PID/stat`. The program name may contain any bytes.
    pub(super) fn parse(stat: &[u8]) -> Option<Self> {
        let name_end = stat.windows(2).rposition(|bytes| bytes == b") ")?;
        let fields = std::str::from_utf8(stat.get(name_end + 2..)?).ok()?;
        let field = |number: usize| fields.split(' ').nth(number - 3);
        let time = |number| field(number)?.parse::<u64>().ok();
        let state = field(3)?;
        Some(Self {
            has_exited: matches!(state, "Z" | "X"),
            is_busy: matches!(state, "R" | "D"),
            group: Pid::from_raw(field(5)?.parse().ok()?),
            cpu_ticks: time(14)? + time(15)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_stat_is_parsed_whatever_the_program_name() {
        for (stat, has_exited, is_busy, cpu_ticks) in [
            (&b"7 (sleep) S 1 7 7 0 -1 4194304 95 0 0 0 3 4 0 0 20 0 1 0 5 6"[..], false, false, 7),
            (b"7 (a) R 1 (b) R 1 7 7 0 -1 4194304 95 0 0 0 0 0 5 5 20 0", false, true, 0),
            (b"7 (\xff) Z 1 7 7 0 -1 4194304 95 0 0 0 0 1 5 5 20 0", true, false, 1),
        ] {
            let expected = ProcStat { has_exited, is_busy, group: Pid::from_raw(7), cpu_ticks };
            assert_eq!(ProcStat::parse(stat), Some(expected), "{}", stat.escape_ascii());
        }
        for stat in [&b""[..], b"7 (sleep) S 1", b"7 (sleep S"] {
            assert_eq!(ProcStat::parse(stat), None, "{}", stat.escape_ascii());
        }
    }
}
