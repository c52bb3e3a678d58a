//! What makes the result of a cloud worse than it could be, without keeping it from being used.
//!
//! A [`Condition`] belongs to one [`Frame`](super::frames::Frame); [`Conditions`] sums them up over a
//! run: for the terminal, a report, or a node's diagnostics.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What kind of trouble it is. The order is the one in which they are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ConditionKind {
    /// The bytes make sense in the other byte order only.
    ByteOrder,
    /// There is no tf: the cloud is taken as being in the model's frame.
    AssumedPlace,
    /// The clouds bear no stamp; another time serves.
    NoStamp,
    /// Several clouds bear the same stamp; another time serves.
    RepeatedStamp,
    /// Clouds of several sensors come on one topic.
    SeveralSensors,
    /// Transforms that are none were left out.
    InvalidTransform,
    /// The vehicle's pose is not known, so older sweeps cannot be joined.
    NoEgoMotion,
    /// Fewer sweeps were joined than the model was trained with.
    FewSweeps,
    /// The sweeps are of other ages than those that the model was trained with.
    SweepAge,
    /// Nearly all points lie outside the model's grid.
    OutsideGrid,
    /// The ground lies elsewhere than the model knows it.
    GroundHeight,
    /// The model reads intensity, and the cloud has none.
    NoIntensity,
    /// The intensities are of another scale than those that the model was trained with.
    IntensityScale,
    /// Most of the points lie in one pillar.
    OnePillar,
    /// The cloud has many times the points of those before it.
    Denser,
    /// The cloud holds no point at all.
    Empty,
    /// Points that are not finite were left out, many of them.
    NotFinite,
    /// Pillars were left out, because the model takes no more.
    DroppedPillars,
    /// The heatmap seems to hold probabilities where the description says logits.
    HeatmapScale,
    /// Boxes have sizes that nothing has, as of a scale that is taken for another.
    BoxSize,
    /// The headings come from vectors that are no sine and cosine.
    HeadingVector,
    /// The centres of boxes lie outside the cells that they belong to.
    CentreOffset,
}

impl ConditionKind {
    /// All kinds, in their order.
    pub const ALL: [ConditionKind; 22] = [
        ConditionKind::ByteOrder,
        ConditionKind::AssumedPlace,
        ConditionKind::NoStamp,
        ConditionKind::RepeatedStamp,
        ConditionKind::SeveralSensors,
        ConditionKind::InvalidTransform,
        ConditionKind::NoEgoMotion,
        ConditionKind::FewSweeps,
        ConditionKind::SweepAge,
        ConditionKind::OutsideGrid,
        ConditionKind::GroundHeight,
        ConditionKind::NoIntensity,
        ConditionKind::IntensityScale,
        ConditionKind::OnePillar,
        ConditionKind::Denser,
        ConditionKind::Empty,
        ConditionKind::NotFinite,
        ConditionKind::DroppedPillars,
        ConditionKind::HeatmapScale,
        ConditionKind::BoxSize,
        ConditionKind::HeadingVector,
        ConditionKind::CentreOffset,
    ];

    /// The name in JSON and in diagnostics.
    pub fn name(self) -> &'static str {
        match self {
            ConditionKind::ByteOrder => "byte_order",
            ConditionKind::AssumedPlace => "assumed_place",
            ConditionKind::NoStamp => "no_stamp",
            ConditionKind::RepeatedStamp => "repeated_stamp",
            ConditionKind::SeveralSensors => "several_sensors",
            ConditionKind::InvalidTransform => "invalid_transform",
            ConditionKind::NoEgoMotion => "no_ego_motion",
            ConditionKind::FewSweeps => "few_sweeps",
            ConditionKind::SweepAge => "sweep_age",
            ConditionKind::OutsideGrid => "outside_grid",
            ConditionKind::GroundHeight => "ground_height",
            ConditionKind::NoIntensity => "no_intensity",
            ConditionKind::IntensityScale => "intensity_scale",
            ConditionKind::OnePillar => "one_pillar",
            ConditionKind::Denser => "denser",
            ConditionKind::Empty => "empty",
            ConditionKind::NotFinite => "not_finite",
            ConditionKind::DroppedPillars => "dropped_pillars",
            ConditionKind::HeatmapScale => "heatmap_scale",
            ConditionKind::BoxSize => "box_size",
            ConditionKind::HeadingVector => "heading_vector",
            ConditionKind::CentreOffset => "centre_offset",
        }
    }
}

/// One trouble of one frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    pub kind: ConditionKind,
    /// What was seen, with figures, the likely cause and what to do about it: one sentence without
    /// a full stop.
    pub text: String,
}

impl Condition {
    pub fn new(kind: ConditionKind, text: impl Into<String>) -> Self {
        Condition {
            kind,
            text: text.into(),
        }
    }
}

/// How often a condition was met.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConditionCount {
    pub kind: ConditionKind,
    /// Frames that had it.
    pub frames: u64,
    /// What was said of the first of them.
    pub text: String,
}

/// The conditions of a run of frames.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Conditions {
    frames: u64,
    counts: BTreeMap<ConditionKind, (u64, String)>,
}

impl Conditions {
    /// Counts a frame with its conditions; gives out those that are met for the first time.
    pub fn add<'a>(&mut self, conditions: &'a [Condition]) -> Vec<&'a Condition> {
        self.frames += 1;
        let mut new = Vec::new();
        for condition in conditions {
            let (count, _) = self.counts.entry(condition.kind).or_insert_with(|| {
                new.push(condition);
                (0, condition.text.clone())
            });
            *count += 1;
        }
        new
    }

    /// Frames counted, with and without conditions.
    pub fn frames(&self) -> u64 {
        self.frames
    }

    pub fn is_empty(&self) -> bool {
        self.counts.is_empty()
    }

    /// Frames that had a condition of this kind.
    pub fn count(&self, kind: ConditionKind) -> u64 {
        self.counts.get(&kind).map_or(0, |(count, _)| *count)
    }

    /// What was met, in the order of [`ConditionKind`].
    pub fn counts(&self) -> Vec<ConditionCount> {
        self.counts
            .iter()
            .map(|(kind, (frames, text))| ConditionCount {
                kind: *kind,
                frames: *frames,
                text: text.clone(),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_are_given_out_once_and_counted_always() {
        let mut sum = Conditions::default();
        let few = Condition::new(ConditionKind::FewSweeps, "1 of 2 sweeps");
        let again = Condition::new(ConditionKind::FewSweeps, "1 of 2 sweeps, again");
        assert_eq!(sum.add(std::slice::from_ref(&few)), [&few]);
        assert_eq!(sum.add(&[]), [] as [&Condition; 0]);
        assert!(sum.add(std::slice::from_ref(&again)).is_empty());
        assert_eq!((sum.frames(), sum.count(ConditionKind::FewSweeps)), (3, 2));
        assert_eq!(sum.counts()[0].text, "1 of 2 sweeps");
    }

    #[test]
    fn names_are_those_of_json_and_every_one_is_explained() {
        let page = include_str!("../../docs/input.md");
        for (i, kind) in ConditionKind::ALL.into_iter().enumerate() {
            let json = serde_json::to_string(&kind).unwrap();
            assert_eq!(json, format!("\"{}\"", kind.name()));
            assert_eq!(kind as usize, i);
            let row = format!("| `{}` |", kind.name());
            assert!(page.contains(&row), "docs/input.md says nothing of {row}");
        }
        assert_eq!(
            page.lines().filter(|line| line.starts_with("| `")).count(),
            ConditionKind::ALL.len() + LAYOUT_ROWS
        );
    }

    /// Rows of the page's table of what is read although it contradicts itself.
    const LAYOUT_ROWS: usize = 3;
}
