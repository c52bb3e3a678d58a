//! How good detections are: against ground truth, and one model against another.
//!
//! In: detections and [`truth::Truth`] of the same frames, in the same coordinate frame (the
//! model's). Out: serialisable figures.
//!
//! | question | answer |
//! | --- | --- |
//! | how good is a model | [`evaluate`]: average precision and box errors per class and distance band |
//! | is one model better than another | [`bootstrap_difference`]: paired intervals over frames |
//! | does the INT8 model do what the float one does | [`agreement()`]: no labels needed |
//!
//! Distances between boxes are those of their centres on the ground plane, in metres, as nuScenes
//! has it; ranges are the distance of a box's centre from the origin on the ground plane.

mod agreement;
mod ap;
pub mod boxes;
mod json;
mod matching;
pub mod stamps;
pub mod truth;

pub use agreement::{
    Agreement, AgreementCell, AgreementOptions, ClassAgreement, Spread, agreement,
};
pub use ap::{
    ApAt, BoxErrors, ClassEvaluation, Definitions, Difference, DifferenceOptions, EvalOptions,
    Evaluation, FrameResult, Scores, average_precision, bootstrap_difference, evaluate,
};

use serde::{Deserialize, Serialize};

/// Why two sets of results cannot be compared.
#[derive(Debug, thiserror::Error)]
pub enum EvalError {
    #[error("the models were run on different frames: {a} and {b} of them")]
    FrameCount { a: usize, b: usize },
}

/// Rings around the origin that scores are broken down by.
///
/// Band `i` reaches from edge `i - 1` (0 for the first) up to, but without, edge `i`; the last
/// band is open.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Vec<f32>", into = "Vec<f32>")]
pub struct Bands {
    edges: Vec<f32>,
}

impl TryFrom<Vec<f32>> for Bands {
    type Error = String;

    /// Refuses what [`Bands::new`] would have to mend.
    fn try_from(edges: Vec<f32>) -> Result<Self, String> {
        let bands = Self::new(&edges);
        match bands.edges == edges {
            true => Ok(bands),
            false => Err(format!(
                "bands are {edges:?}; give their inner edges in metres, above 0 and rising"
            )),
        }
    }
}

impl From<Bands> for Vec<f32> {
    fn from(bands: Bands) -> Self {
        bands.edges
    }
}

impl Default for Bands {
    fn default() -> Self {
        Self {
            edges: vec![30.0, 50.0],
        }
    }
}

impl Bands {
    /// Bands with these inner edges in metres. Edges that are not finite and positive are dropped,
    /// the rest is sorted.
    pub fn new(edges: &[f32]) -> Self {
        let mut edges: Vec<f32> = edges
            .iter()
            .copied()
            .filter(|e| e.is_finite() && *e > 0.0)
            .collect();
        edges.sort_by(f32::total_cmp);
        edges.dedup();
        Self { edges }
    }

    /// How many bands there are, at least one.
    pub fn count(&self) -> usize {
        self.edges.len() + 1
    }

    /// The band that a range in metres falls into.
    pub fn of(&self, range: f32) -> usize {
        self.edges.iter().filter(|e| range >= **e).count()
    }

    /// "0-30", "30-50", "50+".
    pub fn name(&self, band: usize) -> String {
        let from = if band == 0 { 0.0 } else { self.edges[band - 1] };
        match self.edges.get(band) {
            Some(to) => format!("{from}-{to}"),
            None => format!("{from}+"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bands_are_half_open_and_named_by_their_edges() {
        let bands = Bands::default();
        assert_eq!(
            (0..bands.count())
                .map(|b| bands.name(b))
                .collect::<Vec<_>>(),
            ["0-30", "30-50", "50+"]
        );
        assert_eq!(bands.of(0.0), 0);
        assert_eq!(bands.of(29.99), 0);
        assert_eq!(bands.of(30.0), 1);
        assert_eq!(bands.of(50.0), 2);
        assert_eq!(bands.of(1e6), 2);
    }

    #[test]
    fn a_single_band_covers_everything() {
        let bands = Bands::new(&[f32::NAN, -3.0]);
        assert_eq!(bands.count(), 1);
        assert_eq!(bands.name(bands.of(80.0)), "0+");
    }
}
