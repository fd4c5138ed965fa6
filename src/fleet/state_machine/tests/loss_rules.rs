//! Rules for the loss of a connection.

use super::fixture::TestEvent::*;
use super::fixture::{HTTP, MOVED, Rule, STDIO};
use crate::resource::Reason;
use crate::wire::FailureSource;

pub(super) const LOSS_RULES: &[Rule] = &[
    Rule {
        text: "after a loss the tools stay listed, and calls fail until the next attempt",
        spec: HTTP,
        given: &[Succeed(1)],
        when: Lose(1, Reason::Exited),
        then: &["calls fail, Exited; drain 1 0 s", "calls fail, Exited", "report Exited then 2 at 1"],
    },
    Rule {
        text: "a call in the grace period waits for the attempt in progress",
        spec: HTTP,
        given: &[Succeed(1), Lose(1, Reason::Exited)],
        when: Pass(1),
        then: &["calls wait 30 s, Exited", "attempt 2", "report Connecting 2"],
    },
    Rule {
        text: "a call waits no longer than the grace period lasts",
        spec: r#""http": {"url": "http://a"}, "gracePeriod": "3s""#,
        given: &[Succeed(1), Lose(1, Reason::Exited)],
        when: Pass(1),
        then: &["calls wait 2 s, Exited", "attempt 2", "report Connecting 2"],
    },
    Rule {
        text: "after the grace period the tools are withdrawn",
        spec: HTTP,
        given: &[Succeed(1), Lose(1, Reason::Exited), Pass(1)],
        when: Pass(59),
        then: &["withdraw, Exited"],
    },
    Rule {
        text: "repeated failures do not extend the grace period",
        spec: HTTP,
        given: &[Succeed(1), Lose(1, Reason::Exited), Pass(40), Fail(2, Reason::Timeout)],
        when: Pass(20),
        then: &["calls wait 18 s, Timeout", "attempt 3", "report Connecting 3", "withdraw, Timeout"],
    },
    Rule {
        text: "a stable connection that is lost is replaced without delay, and calls wait",
        spec: HTTP,
        given: &[Succeed(1), Pass(60)],
        when: Lose(1, Reason::Exited),
        then: &[
            "calls wait 30 s, Exited; drain 1 0 s",
            "calls wait 30 s, Exited",
            "attempt 2",
            "report Connecting 1",
        ],
    },
    Rule {
        text: "a lost session is replaced without delay",
        spec: HTTP,
        given: &[Succeed(1)],
        when: LoseWith(1, FailureSource::Session),
        then: &[
            "calls wait 30 s, Exited; drain 1 0 s",
            "calls wait 30 s, Exited",
            "attempt 2",
            "report Connecting 2",
        ],
    },
    Rule {
        text: "a session that is lost again at once backs off",
        spec: HTTP,
        given: &[Succeed(1), LoseWith(1, FailureSource::Session), Succeed(2)],
        when: LoseWith(2, FailureSource::Session),
        then: &["calls fail, Exited; drain 2 0 s", "calls fail, Exited", "report Exited then 3 at 2"],
    },
    Rule {
        text: "the next attempt at a process waits until the lost one has exited",
        spec: STDIO,
        given: &[Succeed(1), Pass(60)],
        when: Lose(1, Reason::Exited),
        then: &["calls wait 30 s, Exited; drain 1 0 s", "calls wait 30 s, Exited", "report Connecting 1"],
    },
    Rule {
        text: "a connection that is lost while it is replaced makes calls wait for the replacement",
        spec: HTTP,
        given: &[Succeed(1), Apply(MOVED)],
        when: Lose(1, Reason::Exited),
        then: &["calls wait 30 s, Exited; drain 1 0 s", "report Connecting 1"],
    },
    Rule {
        text: "a connection that is refused after it had worked is made again at once",
        spec: HTTP,
        given: &[Succeed(1), Pass(60)],
        when: Lose(1, Reason::AuthRequired),
        then: &[
            "calls wait 30 s, AuthRequired; drain 1 0 s",
            "calls wait 30 s, AuthRequired",
            "attempt 2",
            "report Connecting 1",
        ],
    },
    Rule {
        text: "a connection that is refused soon after the start is retried slowly",
        spec: HTTP,
        given: &[Succeed(1), Pass(10)],
        when: Lose(1, Reason::AuthRequired),
        then: &[
            "calls fail, AuthRequired; drain 1 0 s",
            "calls fail, AuthRequired",
            "report AuthRequired then 2 at 310",
        ],
    },
    Rule {
        text: "a server that is refused as a loop is withdrawn without a grace period",
        spec: HTTP,
        given: &[Succeed(1), Pass(60)],
        when: Lose(1, Reason::PolicyDenied),
        then: &[
            "calls fail, PolicyDenied; drain 1 0 s",
            "withdraw, PolicyDenied",
            "calls fail, PolicyDenied",
            "report PolicyDenied then 2 at never",
        ],
    },
];
