use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use rustix::process::Signal;

/// The signals that end a process, by name.
const SIGNALS: [(Signal, &str); 12] = [
    (Signal::HUP, "SIGHUP"),
    (Signal::INT, "SIGINT"),
    (Signal::QUIT, "SIGQUIT"),
    (Signal::ILL, "SIGILL"),
    (Signal::TRAP, "SIGTRAP"),
    (Signal::ABORT, "SIGABRT"),
    (Signal::BUS, "SIGBUS"),
    (Signal::FPE, "SIGFPE"),
    (Signal::KILL, "SIGKILL"),
    (Signal::SEGV, "SIGSEGV"),
    (Signal::PIPE, "SIGPIPE"),
    (Signal::TERM, "SIGTERM"),
];

/// Describes how a process ended, such as `exited with code 1`. A shell reports a signal that ended its program as 128
/// plus its number.
pub(in crate::wire) fn describe_exit(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => match signal_name(code - 128) {
            Some(name) => format!("exited with code {code} ({name}{})", memory_hint(name)),
            None => format!("exited with code {code}"),
        },
        (None, Some(signal)) => match signal_name(signal) {
            Some(name) => format!("was killed by signal {signal} ({name}{})", memory_hint(name)),
            None => format!("was killed by signal {signal}"),
        },
        (None, None) => "ended".to_owned(),
    }
}

fn signal_name(number: i32) -> Option<&'static str> {
    SIGNALS.iter().find(|(signal, _)| signal.as_raw() == number).map(|(_, name)| *name)
}

/// Names the usual cause of a SIGKILL that evenkeel did not send.
fn memory_hint(signal: &str) -> &'static str {
    if signal == "SIGKILL" { ", which the system sends when memory runs out" } else { "" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_is_described_with_code_or_signal() {
        let memory = "SIGKILL, which the system sends when memory runs out";
        for (raw, expected) in [
            (0, "exited with code 0".to_owned()),
            (7 << 8, "exited with code 7".to_owned()),
            (127 << 8, "exited with code 127".to_owned()),
            (137 << 8, format!("exited with code 137 ({memory})")),
            (143 << 8, "exited with code 143 (SIGTERM)".to_owned()),
            (255 << 8, "exited with code 255".to_owned()),
            (9, format!("was killed by signal 9 ({memory})")),
            (11, "was killed by signal 11 (SIGSEGV)".to_owned()),
            (34, "was killed by signal 34".to_owned()),
        ] {
            assert_eq!(describe_exit(ExitStatus::from_raw(raw)), expected);
        }
    }
}
