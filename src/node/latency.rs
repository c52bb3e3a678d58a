//! Latency figures over a sliding window.

use serde::Serialize;
use std::collections::VecDeque;

/// The last samples of one latency, in milliseconds.
#[derive(Debug, Clone)]
pub struct Latency {
    window: VecDeque<f32>,
    capacity: usize,
}

/// What a window of samples says, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Summary {
    pub samples: usize,
    pub last_ms: f32,
    pub mean_ms: f32,
    pub p50_ms: f32,
    pub p95_ms: f32,
    pub p99_ms: f32,
    pub max_ms: f32,
}

impl Latency {
    /// Keeps the newest `capacity` samples (at least one).
    pub fn new(capacity: usize) -> Self {
        Self {
            window: VecDeque::new(),
            capacity: capacity.max(1),
        }
    }

    pub fn add(&mut self, ms: f32) {
        if self.window.len() == self.capacity {
            self.window.pop_front();
        }
        self.window.push_back(ms);
    }

    /// `None` before the first sample. Percentiles are nearest-rank.
    pub fn summary(&self) -> Option<Summary> {
        let last_ms = *self.window.back()?;
        let mut sorted: Vec<f32> = self.window.iter().copied().collect();
        sorted.sort_by(f32::total_cmp);
        let rank = |share: f32| {
            let index = (share * sorted.len() as f32).ceil() as usize;
            sorted[index.clamp(1, sorted.len()) - 1]
        };
        Some(Summary {
            samples: sorted.len(),
            last_ms,
            mean_ms: sorted.iter().sum::<f32>() / sorted.len() as f32,
            p50_ms: rank(0.5),
            p95_ms: rank(0.95),
            p99_ms: rank(0.99),
            max_ms: rank(1.0),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_samples_give_no_figures() {
        assert_eq!(Latency::new(4).summary(), None);
    }

    #[test]
    fn percentiles_are_nearest_rank() {
        let mut latency = Latency::new(100);
        for ms in (1..=100).rev() {
            latency.add(ms as f32);
        }
        let summary = latency.summary().unwrap();
        assert_eq!(
            (
                summary.p50_ms,
                summary.p95_ms,
                summary.p99_ms,
                summary.max_ms,
                summary.last_ms
            ),
            (50.0, 95.0, 99.0, 100.0, 1.0)
        );
        assert_eq!(summary.mean_ms, 50.5);
    }

    #[test]
    fn old_samples_leave_the_window() {
        let mut latency = Latency::new(2);
        for ms in [1000.0, 1.0, 3.0] {
            latency.add(ms);
        }
        let summary = latency.summary().unwrap();
        assert_eq!((summary.samples, summary.max_ms), (2, 3.0));
    }
}
