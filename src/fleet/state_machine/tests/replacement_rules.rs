//! Rules for the replacement of a connection by one for a new target.

use super::fixture::TestEvent::*;
use super::fixture::{OTHER_STDIO, RECREATED, RECREATED_OTHER, Rule, STDIO};
use crate::resource::Reason;

pub(super) const REPLACEMENT_RULES: &[Rule] = &[
    Rule {
        text: "MakeBeforeBreak connects beside the connection that serves",
        spec: STDIO,
        given: &[Succeed(1)],
        when: Apply(OTHER_STDIO),
        then: &["reset Retry-After", "attempt 2", "report Connecting 1, live 1"],
    },
    Rule {
        text: "a verified replacement takes over, and calls in flight end on the old connection",
        spec: STDIO,
        given: &[Succeed(1), Apply(OTHER_STDIO)],
        when: Succeed(2),
        then: &["set lists", "calls to 2; drain 1 600 s", "store", "report Attached, live 2"],
    },
    Rule {
        text: "a failed replacement leaves the old connection serving",
        spec: STDIO,
        given: &[Succeed(1), Apply(OTHER_STDIO)],
        when: Fail(2, Reason::ConnectFailed),
        then: &["end attempt 2", "report ConnectFailed then 2 at 1, live 1"],
    },
    Rule {
        text: "a replacement that fails beside the live connection is made after its end once Recreate is declared",
        spec: STDIO,
        given: &[Succeed(1), Apply(OTHER_STDIO), Fail(2, Reason::ConnectFailed), Closed(2)],
        when: Apply(RECREATED_OTHER),
        then: &[
            "withdraw, Connecting",
            "drains end within 30 s",
            "calls fail, Connecting; drain 1 30 s",
            "report Connecting 1",
        ],
    },
    Rule {
        text: "Recreate that is declared during such an attempt ends the attempt as well",
        spec: STDIO,
        given: &[Succeed(1), Apply(OTHER_STDIO)],
        when: Apply(RECREATED_OTHER),
        then: &[
            "withdraw, Connecting",
            "end attempt 2",
            "drains end within 30 s",
            "calls fail, Connecting; drain 1 30 s",
            "report Connecting 1",
        ],
    },
    Rule {
        text: "Recreate stops the old connection first",
        spec: RECREATED,
        given: &[Succeed(1)],
        when: Apply(RECREATED_OTHER),
        then: &[
            "reset Retry-After",
            "withdraw, Connecting",
            "drains end within 30 s",
            "calls fail, Connecting; drain 1 30 s",
            "report Connecting 1",
        ],
    },
    Rule {
        text: "Recreate connects when the old connection has closed",
        spec: RECREATED,
        given: &[Succeed(1), Apply(RECREATED_OTHER)],
        when: Closed(1),
        then: &["attempt 2"],
    },
    Rule {
        text: "an object that was deleted and created again is not replaced beside the old one",
        spec: STDIO,
        given: &[Succeed(1)],
        when: Recreate,
        then: &[
            "withdraw, Connecting",
            "drains end within 30 s",
            "calls fail, Connecting; drain 1 30 s",
            "report Connecting 1",
        ],
    },
];
