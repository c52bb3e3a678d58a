//! Whether two models see the same: boxes of one matched with boxes of the other, no labels needed.
//!
//! The gate of the calibration compares INT8 with float this way, with both models' own score
//! thresholds, so a box that drops below its threshold counts as missed.

use std::collections::BTreeMap;

use nalgebra::Vector2;
use serde::{Deserialize, Serialize};

use super::{Bands, matching};
use crate::geometry::{Detection, wrap_angle};
use crate::text::shown;

/// How boxes of two models are paired.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AgreementOptions {
    /// Largest distance of two centres on the ground plane that still makes a pair, metres.
    pub distance: f32,
    /// Distances of single classes, by name in any case.
    pub class_distance: BTreeMap<String, f32>,
    /// Distance bands of the break-down.
    pub bands: Bands,
}

impl Default for AgreementOptions {
    /// Half a metre for people and bicycles, two for long vehicles, one for the rest: about half
    /// the narrow side of the smaller ones, so that neighbours are not mistaken for each other.
    fn default() -> Self {
        let class_distance = [
            ("PEDESTRIAN", 0.5),
            ("BICYCLE", 0.5),
            ("TRUCK", 2.0),
            ("BUS", 2.0),
        ]
        .map(|(name, metres)| (name.to_string(), metres))
        .into();
        Self {
            distance: 1.0,
            class_distance,
            bands: Bands::default(),
        }
    }
}

impl AgreementOptions {
    /// What is wrong with the values, if anything.
    pub fn problem(&self) -> Option<String> {
        /// Farther apart no two boxes are one object.
        const FAR: f32 = 1000.0;
        let classes = self.class_distance.iter();
        let named =
            classes.map(|(class, &metres)| (format!("class_distance of {}", shown(class)), metres));
        std::iter::once(("distance".to_owned(), self.distance))
            .chain(named)
            .find(|(_, metres)| !(*metres > 0.0 && *metres <= FAR))
            .map(|(key, metres)| format!("{key} is {metres}; above 0, at most {FAR} m"))
    }

    /// The distance that holds for a class.
    pub fn distance_of(&self, class: &str) -> f32 {
        self.class_distance
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(class))
            .map_or(self.distance, |(_, metres)| *metres)
    }
}

/// Mean, 95th percentile (nearest rank) and largest of some absolute errors.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    pub mean: f64,
    pub p95: f64,
    pub max: f64,
}

impl Spread {
    /// `None` without values. Values that are not finite are left out.
    pub fn of(values: &[f64]) -> Option<Self> {
        let mut sorted: Vec<f64> = values.iter().copied().filter(|v| v.is_finite()).collect();
        sorted.sort_by(f64::total_cmp);
        let max = *sorted.last()?;
        let rank = (0.95 * sorted.len() as f64).ceil() as usize;
        Some(Self {
            mean: sorted.iter().sum::<f64>() / sorted.len() as f64,
            p95: sorted[rank.clamp(1, sorted.len()) - 1],
            max,
        })
    }
}

/// Agreement over one set of boxes: a class, a band, or everything.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct AgreementCell {
    /// "all", or the name of a distance band.
    pub band: String,
    /// Pairs.
    pub matched: usize,
    /// Boxes of the reference without a partner.
    pub missed: usize,
    /// Boxes of the candidate without a partner.
    pub extra: usize,
    /// matched / (matched + extra); `None` when the candidate has no box here.
    pub precision: Option<f64>,
    /// matched / (matched + missed); `None` when the reference has no box here.
    pub recall: Option<f64>,
    /// 2 matched / (2 matched + missed + extra); `None` when neither has a box here.
    pub f1: Option<f64>,
    /// Distance of the centres on the ground plane, metres.
    pub centre: Option<Spread>,
    /// Difference of the centres' heights, metres.
    pub height: Option<Spread>,
    /// Largest difference among length, width and height, metres.
    pub size: Option<Spread>,
    /// Difference of the headings, radians, 0 to pi.
    pub yaw: Option<Spread>,
    /// Length of the difference of the velocities, m/s, over pairs where both have one.
    pub velocity: Option<Spread>,
    /// Difference of the scores.
    pub score: Option<Spread>,
    /// Mean of candidate score minus reference score over the pairs: the candidate's bias.
    pub score_shift: Option<f64>,
    /// Mean score of the missed boxes. Close to the threshold means that little was lost.
    pub missed_score: Option<f64>,
    /// Mean score of the extra boxes.
    pub extra_score: Option<f64>,
}

/// Agreement of one class.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClassAgreement {
    pub class: String,
    /// Pairing distance, metres.
    pub distance: f32,
    pub all: AgreementCell,
    pub bands: Vec<AgreementCell>,
}

/// How far two models agree, see [`agreement()`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Agreement {
    pub frames: usize,
    /// Everything together.
    pub total: AgreementCell,
    /// Everything per distance band.
    pub bands: Vec<AgreementCell>,
    pub classes: Vec<ClassAgreement>,
    /// Missed boxes where the candidate has an unpaired box of another class within reach: the
    /// object was found but named otherwise. They are counted in `missed` and `extra` too.
    pub relabelled: usize,
}

#[derive(Default)]
struct Tally {
    matched: usize,
    missed: Vec<f64>,
    extra: Vec<f64>,
    centre: Vec<f64>,
    height: Vec<f64>,
    size: Vec<f64>,
    yaw: Vec<f64>,
    velocity: Vec<f64>,
    score: Vec<f64>,
}

impl Tally {
    fn pair(&mut self, reference: &Detection, candidate: &Detection) {
        let (a, b) = (&reference.bbox, &candidate.bbox);
        self.matched += 1;
        self.centre
            .push(f64::from((a.center - b.center).xy().norm()));
        self.height.push(f64::from((a.center.z - b.center.z).abs()));
        self.size.push(f64::from((a.size - b.size).amax()));
        self.yaw.push(f64::from(wrap_angle(a.yaw - b.yaw).abs()));
        if let (Some(va), Some(vb)) = (reference.velocity, candidate.velocity) {
            let difference: Vector2<f32> = va - vb;
            self.velocity.push(f64::from(difference.norm()));
        }
        self.score
            .push(f64::from(candidate.score) - f64::from(reference.score));
    }

    fn cell(&self, band: String) -> AgreementCell {
        let (matched, missed, extra) = (self.matched, self.missed.len(), self.extra.len());
        let ratio = |part: usize, whole: usize| (whole > 0).then(|| part as f64 / whole as f64);
        let magnitude: Vec<f64> = self.score.iter().map(|d| d.abs()).collect();
        AgreementCell {
            band,
            matched,
            missed,
            extra,
            precision: ratio(matched, matched + extra),
            recall: ratio(matched, matched + missed),
            f1: ratio(2 * matched, 2 * matched + missed + extra),
            centre: Spread::of(&self.centre),
            height: Spread::of(&self.height),
            size: Spread::of(&self.size),
            yaw: Spread::of(&self.yaw),
            velocity: Spread::of(&self.velocity),
            score: Spread::of(&magnitude),
            score_shift: mean(&self.score),
            missed_score: mean(&self.missed),
            extra_score: mean(&self.extra),
        }
    }
}

fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// Compares the detections of two models on the same frames, class by class and band by band.
///
/// Boxes of one class are paired one to one within the class's distance, the surest box first,
/// each with its nearest free partner; both lists are treated alike, so swapping them exchanges
/// missed and extra. A pair counts in the band of the reference's box, an unpaired box in its own,
/// so the bands sum to the totals.
///
/// A frame that only one of the two has counts as empty in the other. Detections whose class lies
/// beyond `classes` are reported under "other".
pub fn agreement(
    reference: &[Vec<Detection>],
    candidate: &[Vec<Detection>],
    classes: &[String],
    options: &AgreementOptions,
) -> Agreement {
    let frames = reference.len().max(candidate.len());
    let mut names = classes.to_vec();
    let known = classes.len();
    if reference
        .iter()
        .chain(candidate)
        .flatten()
        .any(|d| d.class >= known)
    {
        names.push("other".into());
    }
    let class_count = names.len();
    let row_of = |class: usize| class.min(known);
    let distances: Vec<f32> = names.iter().map(|n| options.distance_of(n)).collect();
    let bands = &options.bands;

    // One tally per class and band; `sums` collects the same boxes without regard to the class.
    let new_row = || (0..=bands.count()).map(|_| Tally::default()).collect();
    let mut cells: Vec<Vec<Tally>> = (0..class_count).map(|_| new_row()).collect();
    let mut sums: Vec<Tally> = new_row();
    let all = bands.count();
    let mut relabelled = 0;

    let empty = Vec::new();
    for i in 0..frames {
        let a = reference.get(i).unwrap_or(&empty);
        let b = candidate.get(i).unwrap_or(&empty);
        let mut free_a = vec![true; a.len()];
        let mut free_b = vec![true; b.len()];
        for (class, distance) in distances.iter().enumerate() {
            let of_class = |list: &[Detection]| -> Vec<usize> {
                (0..list.len())
                    .filter(|j| row_of(list[*j].class) == class)
                    .collect()
            };
            for (ia, ib) in
                matching::pair_both_ways(a, b, &of_class(a), &of_class(b), |_, _| *distance)
            {
                free_a[ia] = false;
                free_b[ib] = false;
                let band = bands.of(a[ia].bbox.range());
                for tally in both(&mut cells[class], &mut sums, band, all) {
                    tally.pair(&a[ia], &b[ib]);
                }
            }
        }
        let left = |free: &[bool]| -> Vec<usize> {
            (0..free.len()).filter(|j| free[*j]).collect::<Vec<_>>()
        };
        let (left_a, left_b) = (left(&free_a), left(&free_b));
        for j in &left_a {
            let band = bands.of(a[*j].bbox.range());
            for tally in both(&mut cells[row_of(a[*j].class)], &mut sums, band, all) {
                tally.missed.push(f64::from(a[*j].score));
            }
        }
        for j in &left_b {
            let band = bands.of(b[*j].bbox.range());
            for tally in both(&mut cells[row_of(b[*j].class)], &mut sums, band, all) {
                tally.extra.push(f64::from(b[*j].score));
            }
        }
        // Boxes of one class within reach are paired already, so what pairs here changed class.
        relabelled += matching::pair_both_ways(a, b, &left_a, &left_b, |x, y| {
            distances[row_of(x)].max(distances[row_of(y)])
        })
        .len();
    }

    let row = |tallies: &[Tally]| -> Vec<AgreementCell> {
        (0..all).map(|b| tallies[b].cell(bands.name(b))).collect()
    };
    Agreement {
        frames,
        total: sums[all].cell("all".into()),
        bands: row(&sums),
        classes: (0..class_count)
            .map(|c| ClassAgreement {
                class: names[c].clone(),
                distance: distances[c],
                all: cells[c][all].cell("all".into()),
                bands: row(&cells[c]),
            })
            .collect(),
        relabelled,
    }
}

/// The four tallies that a box counts in: of its class and of all classes, in its band and overall.
fn both<'a>(
    class: &'a mut [Tally],
    sums: &'a mut [Tally],
    band: usize,
    all: usize,
) -> impl Iterator<Item = &'a mut Tally> {
    class
        .iter_mut()
        .enumerate()
        .chain(sums.iter_mut().enumerate())
        .filter(move |(i, _)| *i == band || *i == all)
        .map(|(_, tally)| tally)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_95th_percentile_is_the_nearest_rank() {
        let values: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        let spread = Spread::of(&values).unwrap();
        assert_eq!((spread.mean, spread.p95, spread.max), (50.5, 95.0, 100.0));
        let one = Spread::of(&[3.0]).unwrap();
        assert_eq!((one.mean, one.p95, one.max), (3.0, 3.0, 3.0));
        assert_eq!(Spread::of(&[]), None);
        assert_eq!(Spread::of(&[f64::NAN]), None);
    }

    #[test]
    fn class_distances_are_found_in_any_case() {
        let options = AgreementOptions::default();
        assert_eq!(options.distance_of("pedestrian"), 0.5);
        assert_eq!(options.distance_of("Bus"), 2.0);
        assert_eq!(options.distance_of("CAR"), 1.0);
    }

    #[test]
    fn options_refuse_an_unknown_key() {
        assert!(serde_json::from_str::<AgreementOptions>(r#"{"distance": 2}"#).is_ok());
        assert!(serde_json::from_str::<AgreementOptions>(r#"{"distanze": 2}"#).is_err());
    }
}
