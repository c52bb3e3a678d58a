//! What a frame shows of a description that contradicts its network: conventions that no file states, held against what
//! the head maps hold where there are boxes.
//!
//! Only what no trained network does is told, and of boxes only what many of a frame share: single odd boxes are
//! the network's, not the description's.

use ndarray::ArrayView4;

use super::description::{DimScale, HeatmapScale, ModelDescription};
use crate::cloud::condition::{Condition, ConditionKind};

/// Longer is no road user, metres. What is taken for a logarithm and is none gives 100 m for a car.
const LONGEST: f32 = 50.0;
/// Cells that an offset may lead out of its own. Networks that learn boxes at the cells around a centre, too, lead there
/// from those.
const FARTHEST: f32 = 0.5;
/// Lengths between which the vector of sine and cosine, which is 1 long in training, may lie.
const VECTOR: [f32; 2] = [0.2, 5.0];
/// Fewer boxes show nothing.
const LEAST_BOXES: usize = 3;
/// Frames whose whole heatmap is between 0 and 1 before logits are doubted.
const BOUNDED_FRAMES: usize = 3;
/// What a probability may be off, as rounding in a quantized graph makes it.
pub(super) const SLACK: f32 = 0.02;

/// Least and largest value of a map.
pub(super) fn extremes(map: &ArrayView4<'_, f32>) -> [f32; 2] {
    map.iter()
        .fold([f32::INFINITY, f32::NEG_INFINITY], |[least, most], &v| {
            [least.min(v), most.max(v)]
        })
}

/// Whether a map with these extremes can hold probabilities.
pub(super) fn is_bounded([least, most]: [f32; 2]) -> bool {
    least >= -SLACK && most <= 1.0 + SLACK
}

/// What the maps hold at the cells that pass the score threshold.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Figures {
    pub cells: usize,
    /// Of them, those without extent, which give no box.
    pub no_extent: usize,
    long: usize,
    longest: f32,
    far: usize,
    odd_vectors: usize,
    /// The last odd one.
    vector: f32,
}

impl Figures {
    /// Counts a cell.
    pub fn add(&mut self, size: [f32; 3], offset: [f32; 2], vector: f32) {
        self.cells += 1;
        let longest = size.into_iter().fold(f32::NEG_INFINITY, f32::max);
        if size.iter().any(|s| *s <= 0.0) {
            self.no_extent += 1;
        } else if longest > LONGEST {
            self.long += 1;
            self.longest = self.longest.max(longest);
        }
        let inside = -FARTHEST..=1.0 + FARTHEST;
        if offset.iter().any(|o| !inside.contains(o)) {
            self.far += 1;
        }
        if !(VECTOR[0]..=VECTOR[1]).contains(&vector) {
            self.odd_vectors += 1;
            self.vector = vector;
        }
    }

    /// Whether these are most of the boxes.
    fn most(&self, count: usize) -> bool {
        self.cells >= LEAST_BOXES && count * 2 > self.cells
    }

    /// What is to be told of a frame with these figures.
    pub fn conditions(&self, model: &ModelDescription) -> Vec<Condition> {
        let mut found = Vec::new();
        let cells = self.cells;
        if self.no_extent > 0 {
            let count = self.no_extent;
            found.push(Condition::new(
                ConditionKind::BoxSize,
                format!(
                    "{count} of {cells} boxes have a size of 0 or less and were left out; `head.dim_scale: linear` \
                     takes sizes as they come: if the network gives logarithms, it is `log`"
                ),
            ));
        } else if self.most(self.long) {
            let (count, longest) = (self.long, self.longest);
            let cause = match model.head.dim_scale {
                DimScale::Log => {
                    "`head.dim_scale: log` takes the network's sizes for logarithms: if they are metres, it is `linear`"
                }
                DimScale::Linear => "check that `backbone.outputs.dim` names the right tensor",
            };
            found.push(Condition::new(
                ConditionKind::BoxSize,
                format!(
                    "{count} of {cells} boxes are longer than {LONGEST:.0} m, the longest {longest:.0} m; {cause}"
                ),
            ));
        }
        if self.most(self.odd_vectors) {
            let (count, vector) = (self.odd_vectors, self.vector);
            found.push(Condition::new(
                ConditionKind::HeadingVector,
                format!(
                    "the vectors of sine and cosine of {count} of {cells} boxes are far from 1 long, one {vector:.2}; \
                     their headings say nothing: check that `backbone.outputs.rot` names the right tensor"
                ),
            ));
        }
        // What another head gives is inside for some headings and speeds, so this need not be most of them.
        if self.cells >= LEAST_BOXES && self.far > 1 && self.far * 5 > 2 * self.cells {
            let count = self.far;
            found.push(Condition::new(
                ConditionKind::CentreOffset,
                format!(
                    "the centres of {count} of {cells} boxes lie outside their own cells; check that \
                     `backbone.outputs.reg` names the right tensor"
                ),
            ));
        }
        found
    }
}

/// Watches whether what is called logits is ever outside 0 and 1.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Logits {
    bounded: usize,
    settled: bool,
}

impl Logits {
    /// Takes the heatmap of a frame in which there is something.
    pub fn watch(
        &mut self,
        heatmap: &ArrayView4<'_, f32>,
        model: &ModelDescription,
    ) -> Option<Condition> {
        if self.settled || model.head.heatmap != HeatmapScale::Logit {
            return None;
        }
        let [least, most] = extremes(heatmap);
        if !is_bounded([least, most]) {
            // Probabilities never are, so this is settled for good.
            self.settled = true;
            return None;
        }
        self.bounded += 1;
        (self.bounded >= BOUNDED_FRAMES).then(|| {
            Condition::new(
                ConditionKind::HeatmapScale,
                format!(
                    "all values of the heatmap lie between 0 and 1 (here from {least:.3} to {most:.3}), as \
                     probabilities do, but `head.heatmap: logit` takes the sigmoid of them, which makes every score \
                     0.5 or more; if the graph has applied it already, it is `sigmoid`"
                ),
            )
        })
    }

    /// Forgets what was seen.
    pub fn restart(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::Array4;
    use std::path::Path;

    fn model() -> ModelDescription {
        let text = include_str!("../../tests/fixtures/tiny/model.yaml");
        ModelDescription::parse(text, Path::new("tiny/model.yaml")).unwrap()
    }

    const CAR: ([f32; 3], [f32; 2], f32) = ([4.5, 2.0, 1.5], [0.3, 0.9], 1.1);

    fn kinds(boxes: &[([f32; 3], [f32; 2], f32)]) -> Vec<ConditionKind> {
        let mut figures = Figures::default();
        for (size, offset, vector) in boxes {
            figures.add(*size, *offset, *vector);
        }
        let conditions = figures.conditions(&model());
        conditions.into_iter().map(|c| c.kind).collect()
    }

    #[test]
    fn boxes_as_networks_give_them_are_not_doubted() {
        assert!(kinds(&[]).is_empty());
        let train = ([45.0, 3.0, 4.0], [-0.1, 1.1], 0.5);
        assert!(kinds(&[CAR, train, CAR, train]).is_empty());
        // One odd box among others, or two alone, are no description's fault.
        let odd = ([99.0, 7.0, 5.0], [-1.0, 0.5], 0.01);
        assert!(kinds(&[CAR, odd, CAR, CAR]).is_empty());
        assert!(kinds(&[odd, odd]).is_empty());
    }

    #[test]
    fn what_most_boxes_share_is_told() {
        let long = (CAR.0.map(f32::exp), CAR.1, CAR.2);
        assert_eq!(kinds(&[long, long, CAR]), [ConditionKind::BoxSize]);
        let flat = ([0.6, 0.6, -0.4], CAR.1, CAR.2);
        assert_eq!(kinds(&[CAR, flat, CAR, CAR]), [ConditionKind::BoxSize]);
        let short = (CAR.0, CAR.1, 0.02);
        let degrees = (CAR.0, CAR.1, 127.0);
        assert_eq!(
            kinds(&[short, degrees, CAR]),
            [ConditionKind::HeadingVector]
        );
        let away = (CAR.0, [-0.9, 0.4], CAR.2);
        assert_eq!(
            kinds(&[away, away, away, CAR, CAR]),
            [ConditionKind::CentreOffset]
        );
        // Boxes of the cells around a centre, where those are learned, too.
        assert!(kinds(&[away, away, CAR, CAR, CAR]).is_empty());
    }

    #[test]
    fn logits_are_doubted_after_frames_of_nothing_but_probabilities() {
        let model = model();
        let probabilities = Array4::from_elem((1, 2, 4, 4), 0.3);
        let mut watch = Logits::default();
        assert!(watch.watch(&probabilities.view(), &model).is_none());
        assert!(watch.watch(&probabilities.view(), &model).is_none());
        for _ in 0..2 {
            let told = watch.watch(&probabilities.view(), &model).unwrap();
            assert_eq!(told.kind, ConditionKind::HeatmapScale);
        }
        let logits = Array4::from_elem((1, 2, 4, 4), -3.0);
        assert!(watch.watch(&logits.view(), &model).is_none());
        for _ in 0..5 {
            assert!(watch.watch(&probabilities.view(), &model).is_none());
        }
    }
}
