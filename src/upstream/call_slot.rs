use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Counts the calls of one server, from their arrival to their end, whether they wait for a connection or are in flight.
/// Takes no lock.
#[derive(Clone, Debug, Default)]
pub(super) struct CallCounter(Arc<AtomicUsize>);

/// A call that is counted until this is dropped.
#[derive(Debug)]
pub struct CallSlot(CallCounter);

impl CallCounter {
    /// Counts a call; `None` if there are `max` already.
    pub(super) fn try_begin(&self, max: usize) -> Option<CallSlot> {
        let before = self.0.fetch_add(1, Ordering::AcqRel);
        // Created first, so that dropping it counts down if there are too many.
        let slot = CallSlot(self.clone());
        (before < max).then_some(slot)
    }
}

impl Drop for CallSlot {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_beyond_the_maximum_are_refused_until_others_end() {
        let counter = CallCounter::default();
        let (first, second) = (counter.try_begin(2).unwrap(), counter.try_begin(2).unwrap());
        assert!(counter.try_begin(2).is_none() && counter.try_begin(2).is_none());
        drop(first);
        let third = counter.try_begin(2).unwrap();
        assert!(counter.try_begin(2).is_none());
        drop((second, third));
        assert_eq!(counter.0.load(Ordering::Acquire), 0);
    }
}
