//! Keeps a warning that comes with every frame from flooding the log.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Lets one message per key and period through and counts the rest.
#[derive(Debug)]
pub struct Throttle {
    period: Duration,
    seen: HashMap<&'static str, (Instant, u64)>,
}

impl Throttle {
    pub fn new(period: Duration) -> Self {
        Self {
            period,
            seen: HashMap::new(),
        }
    }

    /// `Some(n)` when the message may be said now, where `n` were held back since the last one.
    pub fn allow(&mut self, key: &'static str, now: Instant) -> Option<u64> {
        match self.seen.get_mut(key) {
            Some((last, held)) if now.duration_since(*last) < self.period => {
                *held += 1;
                None
            }
            Some((last, held)) => {
                *last = now;
                Some(std::mem::take(held))
            }
            None => {
                self.seen.insert(key, (now, 0));
                Some(0)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_message_per_period_and_key_passes_and_the_rest_is_counted() {
        let start = Instant::now();
        let after = |ms| start + Duration::from_millis(ms);
        let mut throttle = Throttle::new(Duration::from_millis(100));
        assert_eq!(throttle.allow("a", after(0)), Some(0));
        assert_eq!(throttle.allow("a", after(10)), None);
        assert_eq!(throttle.allow("b", after(20)), Some(0));
        assert_eq!(throttle.allow("a", after(99)), None);
        assert_eq!(throttle.allow("a", after(101)), Some(2));
        assert_eq!(throttle.allow("a", after(300)), Some(0));
    }
}
