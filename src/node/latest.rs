//! A slot of one value between two threads: the writer never waits, the reader gets the newest.

use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// Holds at most one value. Putting a second one before the first was taken displaces the first,
/// so a slow reader always works on fresh data and memory stays bounded.
#[derive(Debug)]
pub struct Latest<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
}

#[derive(Debug)]
struct State<T> {
    value: Option<T>,
    closed: bool,
    nudged: bool,
}

/// What [`Latest::take`] came back with.
#[derive(Debug, PartialEq)]
pub enum Taken<T> {
    Value(T),
    /// Nothing arrived in time, or [`Latest::nudge`] was called.
    Nothing,
    /// The slot was closed; no value will come any more.
    Closed,
}

impl<T> Default for Latest<T> {
    fn default() -> Self {
        Self {
            state: Mutex::new(State {
                value: None,
                closed: false,
                nudged: false,
            }),
            changed: Condvar::new(),
        }
    }
}

impl<T> Latest<T> {
    /// Stores a value and returns the one it displaced, if that was never taken.
    pub fn put(&self, value: T) -> Option<T> {
        let displaced = self.lock().value.replace(value);
        self.changed.notify_one();
        displaced
    }

    /// Waits for a value for at most `timeout`.
    pub fn take(&self, timeout: Duration) -> Taken<T> {
        let deadline = Instant::now() + timeout;
        let mut state = self.lock();
        loop {
            if state.closed {
                return Taken::Closed;
            }
            if let Some(value) = state.value.take() {
                return Taken::Value(value);
            }
            if std::mem::take(&mut state.nudged) {
                return Taken::Nothing;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Taken::Nothing;
            }
            state = match self.changed.wait_timeout(state, left) {
                Ok((state, _)) => state,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
    }

    /// Makes a waiting reader come back at once without a value, to look at its other business.
    pub fn nudge(&self) {
        self.lock().nudged = true;
        self.changed.notify_one();
    }

    /// Ends the slot: readers return [`Taken::Closed`] from now on.
    pub fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    // A panic while the lock is held cannot leave the three plain fields half written.
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(|p| p.into_inner())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    const SHORT: Duration = Duration::from_millis(5);
    const LONG: Duration = Duration::from_secs(120);

    #[test]
    fn the_reader_gets_the_newest_value_and_the_writer_the_displaced_one() {
        let slot = Latest::default();
        assert_eq!(slot.put(1), None);
        assert_eq!(slot.put(2), Some(1));
        assert_eq!(slot.take(SHORT), Taken::Value(2));
        assert_eq!(slot.take(SHORT), Taken::Nothing);
    }

    #[test]
    fn a_waiting_reader_wakes_for_a_value_a_nudge_and_the_end() {
        let slot = Arc::new(Latest::default());
        let (sender, taken) = std::sync::mpsc::channel();
        let reader = std::thread::spawn({
            let slot = slot.clone();
            move || {
                for _ in 0..3 {
                    sender.send(slot.take(LONG)).unwrap();
                }
            }
        });
        slot.put(7);
        assert_eq!(taken.recv_timeout(LONG).unwrap(), Taken::Value(7));
        slot.nudge();
        assert_eq!(taken.recv_timeout(LONG).unwrap(), Taken::Nothing);
        slot.close();
        assert_eq!(taken.recv_timeout(LONG).unwrap(), Taken::Closed);
        reader.join().unwrap();
    }

    #[test]
    fn a_closed_slot_gives_out_nothing_even_when_it_still_holds_a_value() {
        let slot = Latest::default();
        slot.put(1);
        slot.close();
        assert_eq!(slot.take(SHORT), Taken::Closed);
    }
}
