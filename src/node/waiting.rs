//! Transforms that wait for the assembly thread, in bounded memory.

use std::collections::VecDeque;

use crate::bag::msg::TfMessage;

/// Messages that wait, and transforms in all of them.
const MAX_MESSAGES: usize = 1_000;
const MAX_TRANSFORMS: usize = 20_000;

/// Messages of `/tf` and `/tf_static`, in the order they came.
#[derive(Debug, Default)]
pub struct Transforms {
    messages: VecDeque<(TfMessage, bool)>,
    /// In all messages.
    transforms: usize,
}

impl Transforms {
    /// Takes a message; where too much waits, others go for it. A static transform comes once; of the moving ones the
    /// oldest matters least.
    pub fn push(&mut self, mut message: TfMessage, is_static: bool) {
        // More than all frames that are kept, so nothing is lost that would be used.
        message.transforms.truncate(MAX_TRANSFORMS);
        while self.messages.len() >= MAX_MESSAGES
            || self.transforms + message.transforms.len() > MAX_TRANSFORMS
        {
            let moving = self.messages.iter().position(|(_, is_static)| !is_static);
            let Some((gone, _)) = self.messages.remove(moving.unwrap_or(0)) else {
                break;
            };
            self.transforms -= gone.transforms.len();
        }
        self.transforms += message.transforms.len();
        self.messages.push_back((message, is_static));
    }

    /// All that wait, each with whether it is static.
    pub fn take(&mut self) -> VecDeque<(TfMessage, bool)> {
        self.transforms = 0;
        std::mem::take(&mut self.messages)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bag::msg::TransformStamped;

    fn message(transforms: usize) -> TfMessage {
        TfMessage {
            transforms: vec![TransformStamped::default(); transforms],
        }
    }

    #[test]
    fn a_static_transform_outlasts_any_flood_of_moving_ones() {
        let mut waiting = Transforms::default();
        waiting.push(message(1), true);
        for _ in 0..10 * MAX_MESSAGES {
            waiting.push(message(1), false);
        }
        let taken = waiting.take();
        assert_eq!(taken.len(), MAX_MESSAGES);
        assert!(taken[0].1 && taken.iter().skip(1).all(|(_, is_static)| !is_static));
        assert!(waiting.take().is_empty());
    }

    #[test]
    fn large_messages_are_bounded_in_sum() {
        let mut waiting = Transforms::default();
        for is_static in [true, false, true] {
            for _ in 0..20 {
                waiting.push(message(MAX_TRANSFORMS / 3), is_static);
                let sum: usize = waiting.messages.iter().map(|m| m.0.transforms.len()).sum();
                assert!(sum == waiting.transforms && sum <= MAX_TRANSFORMS);
            }
        }
        waiting.push(message(10 * MAX_TRANSFORMS), false);
        assert_eq!(waiting.take()[0].0.transforms.len(), MAX_TRANSFORMS);
    }
}
