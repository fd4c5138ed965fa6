use std::collections::BTreeMap;

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use proptest_state_machine::{ReferenceStateMachine, StateMachineTest, prop_state_machine};

use super::end::Outcome;
use super::engine::Engine;
use super::operations::{Operation, Reference, operation};

/// Returns the number of cases: those of a normal run, or `EVENKEEL_MODEL_CASES`.
fn config(cases: u32) -> ProptestConfig {
    let cases =
        std::env::var("EVENKEEL_MODEL_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(cases);
    ProptestConfig { cases, failure_persistence: None, max_shrink_iters: 20_000, ..ProptestConfig::default() }
}

struct EngineTest;

impl StateMachineTest for EngineTest {
    type SystemUnderTest = Engine;
    type Reference = Reference;

    fn init_test(_reference: &Reference) -> Engine {
        Engine::new(None)
    }

    fn apply(mut engine: Engine, _reference: &Reference, operation: Operation) -> Engine {
        engine.apply(&operation);
        engine
    }

    fn check_invariants(engine: &Engine, reference: &Reference) {
        engine.check(reference);
    }

    fn teardown(mut engine: Engine, mut reference: Reference) {
        engine.run_to_end(&mut reference);
    }
}

prop_state_machine! {
    #![proptest_config(config(1_000))]

    #[test]
    fn engine_keeps_its_promises(sequential 1..60 => EngineTest);
}

/// Runs operations to the end, with a crash after this number of effects. Returns the outcome and the number of effects.
fn run(operations: &[Operation], crash_after: Option<usize>) -> (Outcome, usize) {
    let (mut engine, mut reference) = (Engine::new(crash_after), Reference::default());
    for operation in operations {
        reference = <Reference as ReferenceStateMachine>::apply(reference, operation);
        engine.apply(operation);
        if crash_after.is_none() {
            engine.check(&reference);
        }
    }
    let effects = engine.effects;
    (engine.run_to_end(&mut reference), effects)
}

proptest! {
    #![proptest_config(config(80))]

    #[test]
    fn crash_after_any_effect_leads_to_the_same_end(operations in prop::collection::vec(operation(), 1..25)) {
        let (expected, effects) = run(&operations, None);
        for effect in 1..=effects {
            let (found, _) = run(&operations, Some(effect));
            prop_assert_eq!(&found, &expected, "after a crash after effect {} of {}", effect, effects);
        }
    }
}

#[test]
fn operations_reach_every_effect_and_phase() {
    let mut runner = TestRunner::deterministic();
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for _ in 0..150 {
        let operations = prop::collection::vec(operation(), 60).new_tree(&mut runner).unwrap().current();
        let (mut engine, mut reference) = (Engine::new(None), Reference::default());
        for operation in &operations {
            reference.apply(operation);
            engine.apply(operation);
        }
        engine.run_to_end(&mut reference);
        for (name, count) in engine.seen {
            *seen.entry(name).or_default() += count;
        }
    }
    let effects = "StartAttempt EndAttempt RouteCalls CloseIfUnused LimitDrains EndConnection RestartHealthChecks ReadList \
                   CancelRead SetLists Publish Withdraw StoreCatalog ResetRetryAfter EndStartup Report";
    let phases = "Connecting Attached Idle Failed Draining Detached";
    let missing: Vec<_> = effects
        .split_whitespace()
        .chain(phases.split_whitespace())
        .filter(|name| !seen.contains_key(*name))
        .collect();
    assert!(missing.is_empty(), "{missing:?} of {seen:?}");
}
