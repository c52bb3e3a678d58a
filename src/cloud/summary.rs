//! What came of the clouds of a recording: how many frames, what made them worse, what was lost.
//!
//! A tool that reads clouds keeps an [`InputTally`] and puts its [`InputSummary`] into the result, so
//! that a figure never stands without what it rests on.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::condition::{Condition, ConditionCount, Conditions};
use super::frames::Loss;

/// Clouds, or parts of a recording, that gave nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LossCount {
    pub kind: Loss,
    pub count: u64,
    /// What was said of the first of them.
    pub text: String,
}

impl LossCount {
    /// How much of what was lost, without the reason.
    fn told(&self) -> String {
        let (n, s) = (self.count, if self.count == 1 { "" } else { "s" });
        match self.kind {
            Loss::BadCloud => format!("{n} message{s} could not be read"),
            Loss::NotPlaced => format!("{n} cloud{s} could not be placed in the model's frame"),
            Loss::DamagedBag => format!("the recording is damaged in {n} place{s}"),
        }
    }
}

/// The input that a result was made from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct InputSummary {
    /// Frames that were used.
    pub frames: u64,
    /// What made the results of some of them worse than they could be.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<ConditionCount>,
    /// What gave no frame.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub losses: Vec<LossCount>,
    /// Clouds at the start to which tf does not reach back. Recordings often begin that way, so they
    /// are no loss.
    #[serde(skip_serializing_if = "is_zero")]
    pub skipped_at_start: u64,
}

// serde hands over a reference.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

impl InputSummary {
    /// Whether there is nothing to tell.
    pub fn is_clean(&self) -> bool {
        self.conditions.is_empty() && self.losses.is_empty() && self.skipped_at_start == 0
    }

    /// Whether something gave no frame that should have.
    pub fn has_losses(&self) -> bool {
        !self.losses.is_empty()
    }

    /// One line for each condition and each kind of loss, with their reasons.
    pub fn lines(&self) -> Vec<String> {
        self.told(true)
    }

    /// As [`lines`](Self::lines), for a reader who was told the reasons before.
    pub fn short_lines(&self) -> Vec<String> {
        self.told(false)
    }

    fn told(&self, reasons: bool) -> Vec<String> {
        let mut lines: Vec<String> = Vec::new();
        for ConditionCount { kind, frames, text } in &self.conditions {
            let name = kind.name().replace('_', " ");
            let all = self.frames;
            lines.push(match reasons {
                true => format!("{name} in {frames} of {all} frames: {text}"),
                false => format!("{name} in {frames} of {all} frames"),
            });
        }
        for loss in &self.losses {
            lines.push(match (reasons, loss.count) {
                (true, 1) => format!("{}: {}", loss.told(), loss.text),
                (true, _) => format!("{}, the first: {}", loss.told(), loss.text),
                (false, _) => loss.told(),
            });
        }
        match self.skipped_at_start {
            0 => {}
            1 => {
                lines.push("1 cloud at the start was skipped: tf does not reach back to it".into())
            }
            n => lines.push(format!(
                "{n} clouds at the start were skipped: tf does not reach back to them"
            )),
        }
        lines
    }
}

/// Counts what comes of clouds while they are read.
#[derive(Debug, Clone, Default)]
pub struct InputTally {
    conditions: Conditions,
    losses: BTreeMap<Loss, (u64, String)>,
    skipped: u64,
}

impl InputTally {
    /// Counts a frame that was used; gives out the conditions that are met for the first time.
    pub fn frame<'a>(&mut self, conditions: &'a [Condition]) -> Vec<&'a Condition> {
        self.conditions.add(conditions)
    }

    /// Counts a loss; says whether it is the first of its kind.
    pub fn loss(&mut self, kind: Loss, text: impl Into<String>) -> bool {
        let (count, _) = self.losses.entry(kind).or_insert_with(|| (0, text.into()));
        *count += 1;
        *count == 1
    }

    /// Counts clouds at the start to which tf does not reach back.
    pub fn skip(&mut self, clouds: u64) {
        self.skipped += clouds;
    }

    pub fn summary(&self) -> InputSummary {
        InputSummary {
            frames: self.conditions.frames(),
            conditions: self.conditions.counts(),
            losses: self
                .losses
                .iter()
                .map(|(kind, (count, text))| LossCount {
                    kind: *kind,
                    count: *count,
                    text: text.clone(),
                })
                .collect(),
            skipped_at_start: self.skipped,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cloud::condition::ConditionKind;

    fn tally() -> InputTally {
        let mut tally = InputTally::default();
        let dark = Condition::new(ConditionKind::NoIntensity, "no field is an intensity");
        assert_eq!(tally.frame(std::slice::from_ref(&dark)), [&dark]);
        assert!(tally.frame(std::slice::from_ref(&dark)).is_empty());
        tally.frame(&[]);
        assert!(tally.loss(Loss::BadCloud, "no x"));
        assert!(!tally.loss(Loss::BadCloud, "no y"));
        tally.skip(1);
        tally
    }

    #[test]
    fn a_clean_input_has_nothing_to_tell() {
        let mut tally = InputTally::default();
        tally.frame(&[]);
        let summary = tally.summary();
        assert!(summary.is_clean() && !summary.has_losses());
        assert!(summary.lines().is_empty());
        assert_eq!(serde_json::to_string(&summary).unwrap(), r#"{"frames":1}"#);
    }

    #[test]
    fn every_kind_is_told_with_its_count_and_its_first_reason() {
        let summary = tally().summary();
        assert!(!summary.is_clean() && summary.has_losses());
        assert_eq!(
            summary.lines(),
            [
                "no intensity in 2 of 3 frames: no field is an intensity",
                "2 messages could not be read, the first: no x",
                "1 cloud at the start was skipped: tf does not reach back to it",
            ]
        );
        assert_eq!(summary.short_lines()[1], "2 messages could not be read");
    }

    #[test]
    fn the_json_comes_back_and_may_lack_what_is_not_there() {
        let summary = tally().summary();
        let json = serde_json::to_value(&summary).unwrap();
        assert_eq!(json["conditions"][0]["kind"], "no_intensity");
        assert_eq!(json["losses"][0]["kind"], "bad_cloud");
        assert_eq!(json["losses"][0]["count"], 2);
        assert_eq!(json["skipped_at_start"], 1);
        assert_eq!(
            serde_json::from_value::<InputSummary>(json).unwrap(),
            summary
        );
        let empty: InputSummary = serde_json::from_str("{}").unwrap();
        assert!(empty.is_clean());
    }

    #[test]
    fn what_is_skipped_at_the_start_is_no_loss() {
        let mut tally = InputTally::default();
        tally.skip(3);
        let summary = tally.summary();
        assert!(!summary.has_losses() && !summary.is_clean());
        assert!(summary.lines()[0].starts_with("3 clouds"));
    }
}
