//! Average precision after nuScenes, per class and distance band, with the errors of the boxes
//! that hit, and paired bootstrap intervals for the difference of two models.
//!
//! **Matching** (nuScenes detection task): the detections of a class in order of falling score;
//! each takes the nearest free truth of its class in its frame, if that is nearer than the
//! threshold on the ground plane.
//!
//! **Average precision**, two figures from one curve (precision interpolated linearly at the
//! recalls 0, 0.01, ... 1, zero beyond the highest recall reached):
//!
//! * `ap`: the plain mean of the 101 precisions. This project's headline is `ap` at 2 m.
//! * `ap_nuscenes`: as the nuScenes devkit has it, only recalls above 0.1, and 0.1 taken off each
//!   precision: mean of max(0, p - 0.1) / 0.9 over the recalls 0.11 ... 1.
//!
//! **Ignored truths** (too few LiDAR points, out of range or sector, mapped to `ignore`) are
//! neither hit nor miss: a detection that finds no counted truth but an ignored one nearby is left
//! out, one per ignored truth. nuScenes drops such truths instead, which turns a detection there
//! into a false one.
//!
//! **Bands**: matching knows no bands. A hit and a missed truth count in the truth's band, a false
//! detection in its own, so that the bands sum to the total and a box on the border is not
//! punished twice.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::matching::centre_distance;
use super::truth::Truth;
use super::{Bands, EvalError};
use crate::geometry::{Box3d, Detection, wrap_angle};

/// Detections and truth of one frame, in one coordinate frame.
#[derive(Debug, Clone, PartialEq)]
pub struct FrameResult {
    pub detections: Vec<Detection>,
    pub truths: Vec<Truth>,
}

/// What counts, and how it is broken down.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EvalOptions {
    /// Centre distances below which a detection hits, metres.
    pub thresholds: Vec<f32>,
    /// The threshold of the headline figures and of the box errors, metres; added to
    /// `thresholds` if it is not there.
    pub headline: f32,
    pub bands: Bands,
    /// Truths at or beyond this range are ignored, false detections there not counted; metres.
    pub max_range: Option<f32>,
    /// The same outside of this azimuth interval (from, to), counter-clockwise in degrees from +x,
    /// for labels that cover a camera's view only.
    pub sector: Option<(f32, f32)>,
    /// Truths with fewer LiDAR points are ignored; one whose points were not counted is not.
    pub min_points: u32,
}

impl Default for EvalOptions {
    fn default() -> Self {
        Self {
            thresholds: vec![0.5, 1.0, 2.0, 4.0],
            headline: 2.0,
            bands: Bands::default(),
            max_range: None,
            sector: None,
            min_points: 5,
        }
    }
}

impl EvalOptions {
    fn distances(&self) -> Vec<f32> {
        let mut distances = self.thresholds.clone();
        distances.push(self.headline);
        distances.sort_by(f32::total_cmp);
        distances.dedup();
        distances
    }

    fn in_scope(&self, bbox: &Box3d) -> bool {
        let near = self.max_range.is_none_or(|max| bbox.range() < max);
        let seen = self.sector.is_none_or(|(from, to)| {
            let azimuth = bbox.center.y.atan2(bbox.center.x).to_degrees();
            (azimuth - from).rem_euclid(360.0) <= (to - from).rem_euclid(360.0)
        });
        near && seen
    }

    /// Whether a truth of the class counts as hit or miss.
    fn counts(&self, truth: &Truth) -> bool {
        !truth.ignored
            && truth.points.is_none_or(|n| n >= self.min_points)
            && self.in_scope(&truth.bbox)
    }
}

/// What the names in [`Evaluation`] mean, written along with the figures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Definitions {
    pub matching: String,
    pub ap: String,
    pub ap_nuscenes: String,
    pub headline: String,
    pub errors: String,
}

impl Definitions {
    fn new(options: &EvalOptions) -> Self {
        Self {
            matching: "greedy by score, nearest free truth of the class nearer than the distance \
                       between centres on the ground plane; ignored truths are neither hit nor miss"
                .into(),
            ap: "mean of the precision at 101 recalls 0..1, linearly interpolated, not clipped"
                .into(),
            ap_nuscenes: "nuScenes devkit: recalls above 0.1, max(0, precision - 0.1) / 0.9".into(),
            headline: format!("ap at {} m", options.headline),
            errors: format!("means over the hits at {} m", options.headline),
        }
    }
}

/// Average precision at one centre distance.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ApAt {
    /// Centre distance, metres.
    pub distance: f32,
    /// Plain 101-point interpolated AP; `None` without truths.
    pub ap: Option<f64>,
    /// The same curve clipped as in the nuScenes devkit.
    pub ap_nuscenes: Option<f64>,
    pub hits: usize,
    pub false_positives: usize,
    /// Share of the truths found at any score.
    pub recall: Option<f64>,
}

/// Mean errors of the boxes that hit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct BoxErrors {
    /// ATE: distance of the centres on the ground plane, metres.
    pub translation: Option<f64>,
    /// ASE: 1 - intersection over union of the sizes, centres and headings aligned.
    pub scale: Option<f64>,
    /// AOE: difference of the headings, radians, 0 to pi.
    pub orientation: Option<f64>,
    /// AVE: length of the difference of the velocities, m/s, over hits where both have one.
    pub velocity: Option<f64>,
}

/// Scores of a class over all ranges or in one band.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// "all", or the name of a distance band.
    pub band: String,
    /// Truths that count.
    pub truths: usize,
    /// Truths left out as neither hit nor miss.
    pub ignored: usize,
    /// Headline: plain 101-point interpolated AP at the headline distance; `None` without truths.
    pub ap: Option<f64>,
    /// Mean of `ap_nuscenes` over the distances: the class's share of nuScenes's mAP.
    pub ap_nuscenes: Option<f64>,
    pub at: Vec<ApAt>,
    pub errors: BoxErrors,
}

/// Scores of one class.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClassEvaluation {
    pub class: String,
    pub all: Scores,
    pub bands: Vec<Scores>,
}

/// How good the detections are, see [`evaluate`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    pub definitions: Definitions,
    pub options: EvalOptions,
    pub frames: usize,
    /// Mean of the classes' headline `ap`, over classes with truths.
    pub mean_ap: Option<f64>,
    /// Mean of the classes' `ap_nuscenes`, over classes with truths.
    pub mean_ap_nuscenes: Option<f64>,
    pub classes: Vec<ClassEvaluation>,
}

/// A detection that counts.
#[derive(Debug, Clone, Copy)]
struct Outcome {
    score: f32,
    frame: usize,
    band: usize,
    /// The truth it hits, an index in its frame; `None` for a false detection.
    hit: Option<usize>,
    detection: usize,
}

/// Matches one class of one frame at one distance; in order of falling score.
fn match_frame(
    frame_index: usize,
    frame: &FrameResult,
    class: usize,
    distance: f32,
    options: &EvalOptions,
    outcomes: &mut Vec<Outcome>,
) {
    let mut counted = Vec::new();
    let mut ignored = Vec::new();
    for (i, truth) in frame.truths.iter().enumerate() {
        if truth.ignored || (truth.class == Some(class) && !options.counts(truth)) {
            ignored.push(i);
        } else if truth.class == Some(class) {
            counted.push(i);
        }
    }
    let take_nearest = |free: &mut Vec<usize>, bbox: &Box3d| -> Option<usize> {
        let (position, nearest) = free
            .iter()
            .map(|t| centre_distance(&frame.truths[*t].bbox, bbox))
            .enumerate()
            .min_by(|a, b| a.1.total_cmp(&b.1))?;
        // `remove` keeps the order, so ties of the distance go to the first in the file.
        (nearest < distance).then(|| free.remove(position))
    };

    let mut order: Vec<usize> = (0..frame.detections.len())
        .filter(|d| frame.detections[*d].class == class)
        .collect();
    order.sort_by(|a, b| {
        frame.detections[*b]
            .score
            .total_cmp(&frame.detections[*a].score)
    });
    for detection in order {
        let Detection { bbox, score, .. } = &frame.detections[detection];
        let hit = take_nearest(&mut counted, bbox);
        let band = match hit {
            Some(truth) => options.bands.of(frame.truths[truth].bbox.range()),
            None => {
                if take_nearest(&mut ignored, bbox).is_some() || !options.in_scope(bbox) {
                    continue;
                }
                options.bands.of(bbox.range())
            }
        };
        outcomes.push(Outcome {
            score: *score,
            frame: frame_index,
            band,
            hit,
            detection,
        });
    }
}

/// All outcomes of a class, the highest score first; ties in order of the frames.
fn match_class(
    frames: &[FrameResult],
    class: usize,
    distance: f32,
    options: &EvalOptions,
) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    for (i, frame) in frames.iter().enumerate() {
        match_frame(i, frame, class, distance, options, &mut outcomes);
    }
    outcomes.sort_by(|a, b| b.score.total_cmp(&a.score));
    outcomes
}

/// Average precision of hits (`true`) and false detections, given in order of falling score, over
/// so many truths: the plain and the nuScenes figure (see the module's head), or `None` without
/// truths.
pub fn average_precision(
    hits: impl IntoIterator<Item = bool>,
    truths: usize,
) -> Option<(f64, f64)> {
    if truths == 0 {
        return None;
    }
    let (mut recall, mut precision) = (Vec::new(), Vec::new());
    let mut found = 0usize;
    for (i, hit) in hits.into_iter().enumerate() {
        found += usize::from(hit);
        recall.push(found as f64 / truths as f64);
        precision.push(found as f64 / (i + 1) as f64);
    }
    // The curve jumps at the recalls that false detections share, so the last bit of a recall
    // level matters: the devkit's `numpy.linspace` multiplies by the step.
    let level = |i: i32| if i == 100 { 1.0 } else { f64::from(i) * 0.01 };
    let curve: Vec<f64> = (0..=100)
        .map(|i| interpolate(level(i), &recall, &precision))
        .collect();
    let plain = curve.iter().sum::<f64>() / curve.len() as f64;
    let tail = &curve[11..];
    let clipped = tail.iter().map(|p| (p - 0.1).max(0.0)).sum::<f64>() / tail.len() as f64 / 0.9;
    // Rounding may carry a perfect curve just past one.
    Some((plain.min(1.0), clipped.min(1.0)))
}

/// Linear interpolation in a curve whose `xs` never fall; constant before the first point, zero
/// after the last. Of points with the same x, the last counts (as `numpy.interp` has it).
fn interpolate(x: f64, xs: &[f64], ys: &[f64]) -> f64 {
    let above = xs.partition_point(|v| *v <= x);
    let Some(last) = xs.last() else { return 0.0 };
    if x > *last {
        0.0
    } else if above == 0 {
        ys[0]
    } else if above == xs.len() || xs[above - 1] == x {
        ys[above - 1]
    } else {
        let slope = (ys[above] - ys[above - 1]) / (xs[above] - xs[above - 1]);
        ys[above - 1] + slope * (x - xs[above - 1])
    }
}

/// Scores detections against truth.
///
/// Feed detections with a low score threshold (0.05 or so): average precision needs the tail of
/// the curve, which the threshold of a deployed model would cut off.
pub fn evaluate(frames: &[FrameResult], classes: &[String], options: &EvalOptions) -> Evaluation {
    let per_class: Vec<ClassEvaluation> = classes
        .par_iter()
        .enumerate()
        .map(|(class, name)| evaluate_class(frames, class, name, options))
        .collect();
    Evaluation {
        definitions: Definitions::new(options),
        options: options.clone(),
        frames: frames.len(),
        mean_ap: mean(per_class.iter().filter_map(|c| c.all.ap)),
        mean_ap_nuscenes: mean(per_class.iter().filter_map(|c| c.all.ap_nuscenes)),
        classes: per_class,
    }
}

fn evaluate_class(
    frames: &[FrameResult],
    class: usize,
    name: &str,
    options: &EvalOptions,
) -> ClassEvaluation {
    let distances = options.distances();
    let matched: Vec<Vec<Outcome>> = distances
        .iter()
        .map(|d| match_class(frames, class, *d, options))
        .collect();
    let truths = || {
        frames
            .iter()
            .flat_map(|f| &f.truths)
            .filter(|t| t.class == Some(class))
    };
    let scores = |band: Option<usize>| {
        let here = |b: usize| band.is_none_or(|band| band == b);
        let (counted, ignored): (Vec<&Truth>, Vec<&Truth>) = truths()
            .filter(|t| here(options.bands.of(t.bbox.range())))
            .partition(|t| options.counts(t));
        let at: Vec<ApAt> = distances
            .iter()
            .zip(&matched)
            .map(|(distance, outcomes)| {
                let hits: Vec<bool> = outcomes
                    .iter()
                    .filter(|o| here(o.band))
                    .map(|o| o.hit.is_some())
                    .collect();
                let found = hits.iter().filter(|hit| **hit).count();
                let false_positives = hits.len() - found;
                let ap = average_precision(hits, counted.len());
                ApAt {
                    distance: *distance,
                    ap: ap.map(|(plain, _)| plain),
                    ap_nuscenes: ap.map(|(_, clipped)| clipped),
                    hits: found,
                    false_positives,
                    recall: (!counted.is_empty()).then(|| found as f64 / counted.len() as f64),
                }
            })
            .collect();
        let headline = distances.iter().position(|d| *d == options.headline);
        let (ap, errors) = match headline {
            Some(i) => (
                at[i].ap,
                box_errors(frames, matched[i].iter().filter(|o| here(o.band))),
            ),
            None => (None, BoxErrors::default()),
        };
        // The nuScenes figure takes the given distances only, not an added headline.
        let nuscenes = at
            .iter()
            .filter(|a| options.thresholds.contains(&a.distance))
            .filter_map(|a| a.ap_nuscenes);
        Scores {
            band: band.map_or_else(|| "all".into(), |b| options.bands.name(b)),
            truths: counted.len(),
            ignored: ignored.len(),
            ap,
            ap_nuscenes: mean(nuscenes),
            at,
            errors,
        }
    };
    ClassEvaluation {
        class: name.into(),
        all: scores(None),
        bands: (0..options.bands.count())
            .map(|b| scores(Some(b)))
            .collect(),
    }
}

fn box_errors<'a>(
    frames: &[FrameResult],
    outcomes: impl Iterator<Item = &'a Outcome>,
) -> BoxErrors {
    let (mut translation, mut scale, mut orientation) = (vec![], vec![], vec![]);
    let mut velocity = vec![];
    for outcome in outcomes {
        let Some(hit) = outcome.hit else { continue };
        let truth = &frames[outcome.frame].truths[hit];
        let detection = &frames[outcome.frame].detections[outcome.detection];
        let (t, d) = (&truth.bbox, &detection.bbox);
        translation.push(f64::from(centre_distance(t, d)));
        let shared = f64::from(t.size.inf(&d.size).product());
        let union = f64::from(t.size.product()) + f64::from(d.size.product()) - shared;
        scale.push(if union > 0.0 {
            1.0 - shared / union
        } else {
            1.0
        });
        orientation.push(f64::from(wrap_angle(d.yaw - t.yaw).abs()));
        if let (Some(vt), Some(vd)) = (truth.velocity, detection.velocity) {
            velocity.push(f64::from((vd - vt).norm()));
        }
    }
    BoxErrors {
        translation: mean(translation),
        scale: mean(scale),
        orientation: mean(orientation),
        velocity: mean(velocity),
    }
}

fn mean(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let (mut sum, mut count) = (0.0, 0usize);
    for value in values {
        sum += value;
        count += 1;
    }
    (count > 0).then(|| sum / count as f64)
}

/// How the bootstrap draws.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DifferenceOptions {
    pub resamples: usize,
    pub seed: u64,
    /// Share of the resamples inside the interval.
    pub confidence: f64,
    /// Frames drawn as one run. Consecutive sweeps show nearly the same scene, so 1 makes the
    /// interval too narrow for a drive; take the sweeps of a few seconds there.
    pub block: usize,
}

impl Default for DifferenceOptions {
    fn default() -> Self {
        Self {
            resamples: 1000,
            seed: 1,
            confidence: 0.95,
            block: 1,
        }
    }
}

/// Headline AP of model B minus that of model A, with its percentile bootstrap interval.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    /// A class, or "mean" over the classes with truths.
    pub class: String,
    pub ap_a: f64,
    pub ap_b: f64,
    /// `ap_b - ap_a`.
    pub difference: f64,
    pub lower: f64,
    pub upper: f64,
    /// Resamples in which the class had truths.
    pub resamples: usize,
}

/// Paired bootstrap over frames (Efron's percentile interval) for the difference in headline AP of
/// two models on the same frames: each resample draws frames with replacement, the same ones for
/// both models. Same seed, same interval.
pub fn bootstrap_difference(
    a: &[FrameResult],
    b: &[FrameResult],
    classes: &[String],
    options: &EvalOptions,
    how: &DifferenceOptions,
) -> Result<Vec<Difference>, EvalError> {
    if a.len() != b.len() {
        return Err(EvalError::FrameCount {
            a: a.len(),
            b: b.len(),
        });
    }
    let models = [a, b].map(|frames| {
        (0..classes.len())
            .into_par_iter()
            .map(|class| Prepared::new(frames, class, options))
            .collect::<Vec<_>>()
    });
    let frames = a.len();
    // AP of both models per class, then their means over the classes.
    let score = |weights: &[u32]| -> Vec<Option<[f64; 2]>> {
        let mut rows: Vec<Option<[f64; 2]>> = (0..classes.len())
            .map(|c| Some([models[0][c].ap(weights)?, models[1][c].ap(weights)?]))
            .collect();
        let column = |i: usize| mean(rows.iter().flatten().map(|ap| ap[i]));
        let means = column(0).zip(column(1)).map(|(a, b)| [a, b]);
        rows.push(means);
        rows
    };
    let point = score(&vec![1; frames]);
    let block = how.block.clamp(1, frames.max(1));
    let draws: Vec<Vec<Option<[f64; 2]>>> = (0..how.resamples as u64)
        .into_par_iter()
        .map(|resample| {
            let mut rng = ChaCha8Rng::seed_from_u64(how.seed);
            rng.set_stream(resample);
            let mut weights = vec![0u32; frames];
            let mut drawn = 0;
            while drawn < frames {
                let start = rng.random_range(0..=frames - block);
                for weight in weights.iter_mut().skip(start).take(block) {
                    if drawn < frames {
                        *weight += 1;
                        drawn += 1;
                    }
                }
            }
            score(&weights)
        })
        .collect();

    let names = classes.iter().map(String::as_str).chain(["mean"]);
    Ok(names
        .enumerate()
        .filter_map(|(row, name)| {
            let [ap_a, ap_b] = point[row]?;
            let mut differences: Vec<f64> = draws
                .iter()
                .filter_map(|draw| draw[row].map(|[a, b]| b - a))
                .collect();
            differences.sort_by(f64::total_cmp);
            let quantile = |share: f64| {
                let last = differences.len().saturating_sub(1);
                let index = (share.clamp(0.0, 1.0) * last as f64).round() as usize;
                differences.get(index).copied().unwrap_or(ap_b - ap_a)
            };
            let tail = (1.0 - how.confidence) / 2.0;
            Some(Difference {
                class: name.into(),
                ap_a,
                ap_b,
                difference: ap_b - ap_a,
                lower: quantile(tail),
                upper: quantile(1.0 - tail),
                resamples: differences.len(),
            })
        })
        .collect())
}

/// A class's outcomes at the headline distance, ready to be weighted by frame: matching never
/// crosses frames, so a resample needs no new matching.
struct Prepared {
    /// Frame and whether it hits, the highest score first.
    outcomes: Vec<(usize, bool)>,
    truths: Vec<usize>,
}

impl Prepared {
    fn new(frames: &[FrameResult], class: usize, options: &EvalOptions) -> Self {
        Self {
            outcomes: match_class(frames, class, options.headline, options)
                .into_iter()
                .map(|o| (o.frame, o.hit.is_some()))
                .collect(),
            truths: frames
                .iter()
                .map(|f| {
                    f.truths
                        .iter()
                        .filter(|t| t.class == Some(class) && options.counts(t))
                        .count()
                })
                .collect(),
        }
    }

    fn ap(&self, weights: &[u32]) -> Option<f64> {
        let truths = self
            .truths
            .iter()
            .zip(weights)
            .map(|(n, weight)| n * *weight as usize)
            .sum();
        let hits = self
            .outcomes
            .iter()
            .flat_map(|(frame, hit)| std::iter::repeat_n(*hit, weights[*frame] as usize));
        average_precision(hits, truths).map(|(plain, _)| plain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_relative_eq;

    #[test]
    fn average_precision_of_three_detections_as_computed_by_hand() {
        // Hit, false, hit over 4 truths: recalls 1/4, 1/4, 1/2, precisions 1, 1/2, 2/3.
        // Recalls 0 .. 0.24 (25 of them) see 1, the first point's precision. At 0.25 the last of
        // the points counts: 1/2. From there it rises linearly to 2/3 at 0.5: 26 recalls with
        // the mean of 1/2 and 2/3. Beyond 0.5 there is nothing.
        let (plain, clipped) = average_precision([true, false, true], 4).unwrap();
        let middle = (0.5 + 2.0 / 3.0) / 2.0;
        assert_relative_eq!(plain, (25.0 + 26.0 * middle) / 101.0, epsilon = 1e-12);
        // Recalls 0.11 .. 0.24 (14) at 1 - 0.1, then the same 26 less 0.1 each, of 90.
        let expected = (14.0 * 0.9 + 26.0 * (middle - 0.1)) / 90.0 / 0.9;
        assert_relative_eq!(clipped, expected, epsilon = 1e-12);
    }

    #[test]
    fn all_found_without_a_false_one_is_one_and_nothing_found_is_zero() {
        assert_eq!(average_precision([true; 7], 7), Some((1.0, 1.0)));
        assert_eq!(average_precision([], 7), Some((0.0, 0.0)));
        assert_eq!(average_precision([false; 3], 7), Some((0.0, 0.0)));
        assert_eq!(average_precision([], 0), None);
        assert_eq!(average_precision([false], 0), None);
    }

    #[test]
    fn precision_below_a_tenth_is_worth_nothing_to_nuscenes_only() {
        // One truth, found by the last of 20 detections: precision 0.05.
        let hits = (0..20).map(|i| i == 19);
        let (plain, clipped) = average_precision(hits, 1).unwrap();
        assert!(plain > 0.0);
        assert_eq!(clipped, 0.0);
    }

    #[test]
    fn interpolation_takes_the_last_of_equal_abscissae_and_zero_beyond_the_end() {
        let (xs, ys) = ([0.2, 0.2, 0.4], [1.0, 0.5, 0.7]);
        assert_eq!(interpolate(0.0, &xs, &ys), 1.0);
        assert_eq!(interpolate(0.2, &xs, &ys), 0.5);
        assert_relative_eq!(interpolate(0.3, &xs, &ys), 0.6, epsilon = 1e-12);
        assert_eq!(interpolate(0.4, &xs, &ys), 0.7);
        assert_eq!(interpolate(0.41, &xs, &ys), 0.0);
        assert_eq!(interpolate(0.0, &[], &[]), 0.0);
    }

    #[test]
    fn a_sector_may_cross_the_rear() {
        let options = EvalOptions {
            sector: Some((150.0, -150.0)),
            ..EvalOptions::default()
        };
        let at = |x: f32, y: f32| Box3d {
            center: [x, y, 0.0].into(),
            size: [1.0, 1.0, 1.0].into(),
            yaw: 0.0,
        };
        assert!(options.in_scope(&at(-10.0, 1.0)));
        assert!(options.in_scope(&at(-10.0, -1.0)));
        assert!(!options.in_scope(&at(10.0, 0.0)));
        assert!(!options.in_scope(&at(0.0, 10.0)));
    }
}
