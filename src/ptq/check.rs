//! The written model against the float one, on the engine that will run it and frames it was not calibrated on:
//! which kernels run, how long they take, and whether the boxes agree.

use std::path::Path;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::frames::{Role, Spool};
use super::progress::{Progress, Stage};
use super::recipe::{Bounds, CheckSettings, Gate};
use super::report::null_is_nan;
use super::{PtqError, go_on};
use crate::detector::kernels::{Convolution, Kernels};
use crate::detector::runtime::RuntimeOptions;
use crate::detector::{Detector, ModelDescription};
use crate::eval::{Agreement, AgreementCell, Spread, agreement};
use crate::geometry::Detection;

/// Milliseconds of the backbone over the timed runs.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    #[serde(deserialize_with = "null_is_nan")]
    pub median: f64,
    #[serde(deserialize_with = "null_is_nan")]
    pub p95: f64,
    #[serde(deserialize_with = "null_is_nan")]
    pub min: f64,
}

impl Latency {
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let rank = (share * values.len() as f64).ceil() as usize;
            values
                .get(rank.clamp(1, values.len().max(1)) - 1)
                .copied()
                .unwrap_or(f64::NAN)
        };
        Latency {
            median: at(0.5),
            p95: at(0.95),
            min: at(0.0),
        }
    }
}

/// Latencies of both models, measured by turns on the same frames.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Latencies {
    /// Timed runs of each model.
    pub runs: usize,
    /// Threads the runtime was given; 0 means one per core.
    pub threads: usize,
    /// Backbone, neck and head, milliseconds.
    pub float_backbone: Latency,
    pub int8_backbone: Latency,
    /// Median float time by median INT8 time: above 1 INT8 is faster.
    #[serde(deserialize_with = "null_is_nan")]
    pub backbone_speedup: f64,
    /// From points to boxes, milliseconds.
    pub float_total: Latency,
    pub int8_total: Latency,
}

/// Whether the INT8 model may replace the float one, and what that rests on.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    pub accepted: bool,
    /// Why not; empty if accepted.
    #[serde(default)]
    pub reasons: Vec<String>,
    /// What had boxes enough to be held against the bounds: each class, and behind it its distance bands.
    ///
    /// Verdicts of older reports have neither this nor the next: they do not say what they rest on.
    #[serde(default)]
    pub judged: Vec<Evidence>,
    /// What had too few: nothing is known of it, whatever its figures are.
    #[serde(default)]
    pub not_judged: Vec<Evidence>,
    /// What else a reader must know: figures far from the bounds that too few boxes give, frames that lack sweeps.
    #[serde(default)]
    pub remarks: Vec<String>,
}

/// The boxes that the gate had of a class, or of a class in one distance band, and how far they agree.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    pub class: String,
    /// Distance band in metres, as `30-50`; absent: the whole class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub band: Option<String>,
    /// Boxes that the float model found on the held-out frames.
    pub float_boxes: usize,
    /// Boxes that the INT8 model found on them.
    pub int8_boxes: usize,
    /// One of the two must have found so many to be judged.
    pub needed: usize,
    pub f1: Option<f64>,
    /// Share of float's boxes that INT8 missed.
    pub missed: Option<f64>,
    /// Share of INT8's boxes that float does not have.
    pub extra: Option<f64>,
    /// Mean distance of paired centres on the ground, metres; absent, as the next two, where nothing pairs.
    pub centre_error: Option<f64>,
    /// Mean difference of paired headings, radians.
    pub yaw_error: Option<f64>,
    /// Mean difference of paired sizes, metres.
    pub size_error: Option<f64>,
}

impl Evidence {
    fn of(class: &str, band: Option<&str>, cell: &AgreementCell, bounds: &Bounds) -> Self {
        let mean = |spread: Option<Spread>| spread.map(|s| s.mean);
        let share = |part: usize, of: usize| (of > 0).then(|| part as f64 / of as f64);
        let [float_boxes, int8_boxes] = boxes(cell);
        Evidence {
            class: class.to_owned(),
            band: band.map(str::to_owned),
            float_boxes,
            int8_boxes,
            needed: bounds.needed(),
            f1: cell.f1,
            missed: share(cell.missed, float_boxes),
            extra: share(cell.extra, int8_boxes),
            centre_error: mean(cell.centre),
            yaw_error: mean(cell.yaw),
            size_error: mean(cell.size),
        }
    }

    /// The number that is held against [`needed`](Self::needed).
    pub fn boxes(&self) -> usize {
        self.float_boxes.max(self.int8_boxes)
    }

    /// How far it is from being judged.
    fn lack(&self) -> String {
        format!("{} of {} needed", self.boxes(), self.needed)
    }
}

impl std::fmt::Display for Evidence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.class)?;
        match &self.band {
            Some(band) => write!(f, " at {band} m"),
            None => Ok(()),
        }
    }
}

impl Verdict {
    /// Takes some boxes to the evidence, and what speaks against them to the reasons; too few boxes that look bad are
    /// worth a remark, where wanted. Whether they were judged comes back.
    fn hold(
        &mut self,
        class: &str,
        band: Option<&str>,
        cell: &AgreementCell,
        bounds: &Bounds,
        remark: bool,
    ) -> bool {
        let evidence = Evidence::of(class, band, cell, bounds);
        let counts = format!(
            "{} matched, {} missed, {} extra",
            cell.matched, cell.missed, cell.extra
        );
        let judged = bounds.judges(cell);
        let broken = bounds.broken(cell);
        if judged {
            let told = broken.iter().map(|b| format!("{evidence}: {b} ({counts})"));
            self.reasons.extend(told);
            if broken.is_empty() && cell.matched == 0 {
                // Means over no pairs keep any bound.
                self.remarks.push(format!(
                    "{evidence}: no box of one model has a partner in the other, so its errors were not judged ({counts})"
                ));
            }
            self.judged.push(evidence);
        } else {
            let far = broken.iter().filter(|b| b.is_far());
            let far: Vec<String> = far.map(Breach::to_string).collect();
            if remark && evidence.boxes() > 0 && !far.is_empty() {
                self.remarks.push(format!(
                    "{evidence} was not judged, for lack of boxes ({}), but looks bad: {} ({counts})",
                    evidence.lack(),
                    far.join(", ")
                ));
            }
            self.not_judged.push(evidence);
        }
        judged
    }

    /// `ACCEPTED` or `REFUSED`.
    pub fn word(&self) -> &'static str {
        match self.accepted {
            true => "ACCEPTED",
            false => "REFUSED",
        }
    }

    /// Classes that were judged.
    pub fn judged_classes(&self) -> impl Iterator<Item = &Evidence> {
        self.judged.iter().filter(|e| e.band.is_none())
    }

    /// Classes that were not.
    pub fn unjudged_classes(&self) -> impl Iterator<Item = &Evidence> {
        self.not_judged.iter().filter(|e| e.band.is_none())
    }

    /// Distance bands that were not judged, of classes that were.
    pub fn unjudged_bands(&self) -> impl Iterator<Item = &Evidence> {
        self.not_judged.iter().filter(|e| {
            e.band.is_some() && self.judged_classes().any(|class| class.class == e.class)
        })
    }

    /// What was judged and what was not, in a line: `judged CAR (212 boxes), TRUCK (31); not judged for lack of boxes: BUS
    /// (2 of 20 needed)`. `None` where the verdict does not say.
    pub fn coverage(&self) -> Option<String> {
        if self.judged.is_empty() && self.not_judged.is_empty() {
            return None;
        }
        let judged: Vec<String> = self
            .judged
            .iter()
            .filter(|e| {
                // A band is only told where its class was not judged as a whole.
                e.band.is_none() || self.judged_classes().all(|class| class.class != e.class)
            })
            .enumerate()
            .map(|(i, e)| match i {
                0 => format!("{e} ({} boxes)", e.boxes()),
                _ => format!("{e} ({})", e.boxes()),
            })
            .collect();
        let mut text = match judged.is_empty() {
            true => "nothing was judged".to_owned(),
            false => format!("judged {}", judged.join(", ")),
        };
        let lacking = |evidence: &mut dyn Iterator<Item = &Evidence>| {
            let each = evidence.map(|e| format!("{e} ({})", e.lack()));
            each.collect::<Vec<_>>().join(", ")
        };
        let classes = lacking(&mut self.unjudged_classes());
        if !classes.is_empty() {
            text += &format!("; not judged for lack of boxes: {classes}");
        }
        let bands = lacking(&mut self.unjudged_bands());
        if !bands.is_empty() {
            text += &format!("; nor in these distance bands: {bands}");
        }
        Some(text)
    }

    /// The verdict in a line, with what it rests on.
    pub fn headline(&self) -> String {
        match self.coverage() {
            Some(coverage) => format!("{}; {coverage}", self.word()),
            None => self.word().to_owned(),
        }
    }

    /// What it rests on and what else there is to know, a line each; the reasons are not among them.
    pub fn notes(&self) -> Vec<String> {
        let coverage = self.coverage().into_iter();
        coverage.chain(self.remarks.iter().cloned()).collect()
    }

    /// Everything, a line each: for a terminal.
    pub fn text(&self) -> String {
        let mut lines = vec![self.headline()];
        lines.extend(self.reasons.iter().map(|reason| format!("  - {reason}")));
        lines.extend(self.remarks.iter().map(|remark| format!("  ! {remark}")));
        lines.join("\n") + "\n"
    }
}

/// What the check found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Checked {
    pub kernels: Kernels,
    pub latency: Latencies,
    pub agreement: Agreement,
    pub verdict: Verdict,
}

/// What to check, and how.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    pub float: &'a ModelDescription,
    pub int8: &'a ModelDescription,
    /// The convolutions of the written graph.
    pub layers: &'a [Convolution],
    pub settings: &'a CheckSettings,
    pub gate: &'a Gate,
    /// Threads for the runtime; 0 means one per core.
    pub threads: usize,
    /// A folder for the runtime's profile.
    pub scratch: &'a Path,
}

/// Runs both models over the held-out frames.
pub fn check(
    subject: Subject<'_>,
    spool: &mut Spool,
    progress: &mut dyn Progress,
) -> Result<Checked, PtqError> {
    let Subject {
        float,
        int8,
        layers,
        settings: check,
        gate,
        threads,
        scratch,
    } = subject;
    let options = RuntimeOptions {
        threads,
        ..Default::default()
    };
    let mut models = [
        Detector::load(float, &options)?,
        Detector::load(int8, &options)?,
    ];
    let held_out = spool.count(Role::HeldOut);
    let rounds = (check.warm_up + check.latency_runs)
        .div_ceil(held_out.max(1))
        .max(1);
    let mut found: [Vec<Vec<Detection>>; 2] = [Vec::new(), Vec::new()];
    let mut backbone: [Vec<f64>; 2] = [Vec::new(), Vec::new()];
    let mut total: [Vec<f64>; 2] = [Vec::new(), Vec::new()];
    let (mut run, start) = (0usize, Instant::now());
    for round in 0..rounds {
        spool.for_each(Role::HeldOut, |_, sample| {
            go_on(progress)?;
            if round > 0 && run >= check.warm_up + check.latency_runs {
                return Ok(());
            }
            // Each goes first every other time, so that neither always finds warm caches.
            for k in [run % 2, 1 - run % 2] {
                let inference = models[k].detect(&sample.points)?;
                if round == 0 {
                    found[k].push(inference.detections);
                }
                if run >= check.warm_up {
                    backbone[k].push(inference.timing.backbone_ms);
                    total[k].push(inference.timing.total_ms);
                }
            }
            run += 1;
            let part = run as f64 / (rounds * held_out) as f64;
            let detail = format!("held-out frame {} of {held_out}", run.min(held_out));
            progress.update(Stage::Check, Stage::Check.overall(part * 0.95), &detail);
            Ok::<_, PtqError>(())
        })?;
    }
    tracing::debug!("checked in {:.1} s", start.elapsed().as_secs_f64());
    drop(models);
    let kernels = profile(int8, spool, layers, threads, scratch)?;
    let [float_backbone, int8_backbone] = backbone;
    let [float_total, int8_total] = total;
    let runs = float_backbone.len();
    let (float_backbone, int8_backbone) = (Latency::of(float_backbone), Latency::of(int8_backbone));
    let [reference, candidate] = found;
    let agreement = agreement(&reference, &candidate, &float.classes, &gate.pairing);
    let verdict = judge(&agreement, gate);
    Ok(Checked {
        kernels,
        latency: Latencies {
            runs,
            threads,
            backbone_speedup: float_backbone.median / int8_backbone.median,
            float_backbone,
            int8_backbone,
            float_total: Latency::of(float_total),
            int8_total: Latency::of(int8_total),
        },
        agreement,
        verdict,
    })
}

/// Runs the written model with the runtime's profiler on.
fn profile(
    int8: &ModelDescription,
    spool: &mut Spool,
    layers: &[Convolution],
    threads: usize,
    scratch: &Path,
) -> Result<Kernels, PtqError> {
    let options = RuntimeOptions {
        threads,
        profile_to: Some(scratch.join("profile")),
        ..Default::default()
    };
    let mut detector = Detector::load(int8, &options)?;
    spool.for_each(Role::HeldOut, |index, sample| {
        if index < 3 {
            detector.detect(&sample.points)?;
        }
        Ok::<_, PtqError>(())
    })?;
    Ok(detector.kernels(layers)?)
}

/// What a bound is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measure {
    F1,
    Missed,
    Extra,
    Centre,
    Heading,
    Size,
}

/// A bound that is not kept.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Breach {
    pub measure: Measure,
    pub value: f64,
    pub bound: f64,
}

impl std::fmt::Display for Breach {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Breach {
            measure,
            value,
            bound,
        } = self;
        let (what, unit) = match measure {
            Measure::F1 => return write!(f, "F1 {value:.3} is below {bound}"),
            Measure::Missed => ("share of missed boxes", ""),
            Measure::Extra => ("share of extra boxes", ""),
            Measure::Centre => ("mean centre error", " m"),
            Measure::Heading => ("mean heading error", " rad"),
            Measure::Size => ("mean size error", " m"),
        };
        write!(f, "{what} {value:.3}{unit} is above {bound}{unit}")
    }
}

/// Boxes of the float model and of the INT8 model.
fn boxes(cell: &AgreementCell) -> [usize; 2] {
    [cell.matched + cell.missed, cell.matched + cell.extra]
}

impl Breach {
    /// Whether chance does not explain it, though there are few boxes: twice as bad as the bound allows, or worse.
    fn is_far(&self) -> bool {
        const TIMES: f64 = 2.0;
        match self.measure {
            Measure::F1 => 1.0 - self.value >= (TIMES * (1.0 - self.bound)).min(1.0),
            Measure::Missed | Measure::Extra => self.value >= (TIMES * self.bound).min(1.0),
            Measure::Centre | Measure::Heading | Measure::Size => self.value >= TIMES * self.bound,
        }
    }
}

impl Bounds {
    /// Boxes that it takes to judge: none at all say nothing.
    pub fn needed(&self) -> usize {
        self.min_boxes.max(1)
    }

    /// Whether there are enough boxes to judge. Boxes that only INT8 finds count as much as boxes it misses.
    pub fn judges(&self, cell: &AgreementCell) -> bool {
        boxes(cell).into_iter().any(|count| count >= self.needed())
    }

    /// The bounds that some boxes do not keep, all of them if there are enough to judge.
    pub fn breaches(&self, cell: &AgreementCell) -> Vec<Breach> {
        match self.judges(cell) {
            true => self.broken(cell),
            false => Vec::new(),
        }
    }

    /// The same, however few boxes there are.
    pub fn broken(&self, cell: &AgreementCell) -> Vec<Breach> {
        // Errors of pairs that are no numbers at all are as large as can be.
        let mean = |spread: Option<Spread>| match spread {
            Some(spread) => spread.mean,
            None if cell.matched > 0 => f64::INFINITY,
            None => 0.0,
        };
        let share = |part: usize| part as f64 / (cell.matched + part).max(1) as f64;
        let f1 = cell.f1.unwrap_or(0.0);
        let above = [
            (Measure::Missed, share(cell.missed), self.max_missed),
            (Measure::Extra, share(cell.extra), self.max_extra),
            (Measure::Centre, mean(cell.centre), self.max_centre_error),
            (Measure::Heading, mean(cell.yaw), self.max_yaw_error),
            (Measure::Size, mean(cell.size), self.max_size_error),
        ];
        let below = (f1 < self.min_f1).then_some(Breach {
            measure: Measure::F1,
            value: f1,
            bound: self.min_f1,
        });
        let above = above.into_iter().filter(|(_, value, bound)| value > bound);
        below
            .into_iter()
            .chain(above.map(|(measure, value, bound)| Breach {
                measure,
                value,
                bound,
            }))
            .collect()
    }
}

/// Holds the agreement against the gate's bounds: each class, and each class in each distance band. Says of each whether
/// there were boxes enough.
pub fn judge(agreement: &Agreement, gate: &Gate) -> Verdict {
    let frames = agreement.frames;
    let mut verdict = Verdict::default();
    let total = agreement.total.matched + agreement.total.missed;
    if total < gate.min_boxes_total {
        verdict.reasons.push(format!(
            "the float model found {total} boxes on the {frames} held-out frames; {} are needed to judge",
            gate.min_boxes_total
        ));
    }
    for class in &agreement.classes {
        let bounds = gate.class();
        let judged = verdict.hold(&class.class, None, &class.all, &bounds, true);
        if !judged && gate.must_judge.wants(&class.class) {
            let [float, int8] = boxes(&class.all);
            verdict.reasons.push(format!(
                "{}: the recipe wants it judged (gate.must_judge), and {} of the {} boxes are there that it takes, on \
                 {frames} held-out frames; give more frames, of places where there are more of them: a longer recording, \
                 a larger frames.max, or a node's buffer that was filled there",
                class.class,
                float.max(int8),
                bounds.needed()
            ));
        }
        if let Some(bounds) = &gate.bands {
            for band in &class.bands {
                // What is odd in a class that is not judged is said of the class already.
                verdict.hold(&class.class, Some(&band.band), band, bounds, judged);
            }
        }
    }
    if verdict.judged.is_empty() && verdict.reasons.is_empty() {
        let lack = verdict
            .unjudged_classes()
            .map(|e| format!("{e} ({})", e.lack()));
        let lack = lack.collect::<Vec<_>>().join(", ");
        verdict.reasons.push(format!(
            "no class has boxes enough on the {frames} held-out frames to be judged: {lack}"
        ));
    }
    verdict.accepted = verdict.reasons.is_empty();
    verdict
}

#[cfg(test)]
mod tests {
    use super::super::recipe::MustJudge;
    use super::super::recipe::tests::quick;
    use super::*;
    use crate::geometry::Box3d;
    use nalgebra::Vector3;

    fn boxes(count: usize, shift: f32) -> Vec<Vec<Detection>> {
        vec![
            (0..count)
                .map(|i| Detection {
                    bbox: Box3d {
                        center: Vector3::new(i as f32 * 8.0 + shift, 0.0, 0.0),
                        size: Vector3::new(4.0, 2.0, 1.5),
                        yaw: 0.0,
                    },
                    class: 0,
                    score: 0.9,
                    velocity: None,
                })
                .collect(),
        ]
    }

    fn verdict(reference: &[Vec<Detection>], candidate: &[Vec<Detection>]) -> Verdict {
        let gate = quick().gate;
        judge(
            &agreement(reference, candidate, &["CAR".to_string()], &gate.pairing),
            &gate,
        )
    }

    #[test]
    fn the_gate_accepts_agreement_and_names_what_broke_it() {
        assert!(verdict(&boxes(30, 0.0), &boxes(30, 0.05)).accepted);
        let missed = verdict(&boxes(30, 0.0), &boxes(20, 0.0));
        assert!(missed.reasons[0].contains("CAR: F1"), "{missed:?}");
        let moved = verdict(&boxes(30, 0.0), &boxes(30, 0.4));
        assert!(moved.reasons[0].contains("centre error"), "{moved:?}");
        let extra = verdict(&boxes(30, 0.0), &boxes(45, 0.0));
        assert!(!extra.accepted, "{extra:?}");
    }

    #[test]
    fn a_band_is_judged_by_its_own_bounds() {
        // A hundred cars near, and some far away that INT8 sees elsewhere.
        let at = |far: f32| {
            let mut found = boxes(30, 0.0);
            let near: Vec<Detection> = (0..100)
                .map(|i| {
                    let mut d = found[0][0].clone();
                    d.bbox.center = Vector3::new(5.0, i as f32 * 0.4 - 20.0, 0.0);
                    d
                })
                .collect();
            let far = (0..35).map(|i| {
                let mut d = near[0].clone();
                d.bbox.center = Vector3::new(60.0 + far, i as f32 * 3.0 - 51.0, 0.0);
                d
            });
            found[0] = near.iter().cloned().chain(far).collect();
            found
        };
        let found = verdict(&at(0.0), &at(0.3));
        assert_eq!(found.reasons.len(), 1, "{found:?}");
        assert!(
            found.reasons[0].starts_with("CAR at 50+ m: mean centre error 0.300 m is above"),
            "{found:?}"
        );
        let mut gate = quick().gate;
        gate.bands = None;
        let agreed = agreement(&at(0.0), &at(0.3), &["CAR".to_string()], &gate.pairing);
        assert!(judge(&agreed, &gate).accepted);
    }

    #[test]
    fn missed_and_extra_boxes_have_bounds_of_their_own() {
        let mut gate = quick().gate;
        (gate.min_f1, gate.bands) = (0.0, None);
        (gate.max_missed, gate.max_extra) = (0.1, 0.2);
        let judged = |a: usize, b: usize| {
            let (a, b) = (boxes(a, 0.0), boxes(b, 0.0));
            judge(
                &agreement(&a, &b, &["CAR".to_string()], &gate.pairing),
                &gate,
            )
        };
        assert!(judged(30, 27).accepted);
        assert!(judged(30, 26).reasons[0].contains("missed boxes 0.133 is above 0.1"));
        assert!(judged(30, 37).accepted);
        assert!(judged(30, 38).reasons[0].contains("extra boxes 0.211 is above 0.2"));
    }

    /// Cars and buses, so many of each model, the buses turned by so much.
    fn cars_and_buses(cars: usize, buses: usize, turned: f32) -> [Vec<Vec<Detection>>; 2] {
        let found = |turned: f32| {
            let mut found = boxes(cars, 0.0);
            found[0].extend((0..buses).map(|i| Detection {
                bbox: Box3d {
                    center: Vector3::new(i as f32 * 8.0, 30.0, 0.0),
                    size: Vector3::new(12.0, 2.5, 3.0),
                    yaw: turned,
                },
                class: 1,
                score: 0.8,
                velocity: None,
            }));
            found
        };
        [found(0.0), found(turned)]
    }

    fn verdict_of([float, int8]: [Vec<Vec<Detection>>; 2], gate: &Gate) -> Verdict {
        let classes = ["CAR", "BUS", "BICYCLE"].map(String::from);
        judge(&agreement(&float, &int8, &classes, &gate.pairing), gate)
    }

    #[test]
    fn the_verdict_says_what_was_judged_and_what_was_not_with_the_boxes() {
        let mut gate = quick().gate;
        gate.bands = None;
        let found = verdict_of(cars_and_buses(30, 9, 0.0), &gate);
        assert!(found.accepted && found.remarks.is_empty());
        assert_eq!(
            found.coverage().unwrap(),
            "judged CAR (30 boxes); not judged for lack of boxes: BUS (9 of 20 needed), BICYCLE (0 of 20 needed)"
        );
        let [bus, bicycle] = &found.not_judged[..] else {
            panic!("{found:?}");
        };
        assert_eq!((bus.float_boxes, bus.int8_boxes, bus.needed), (9, 9, 20));
        assert_eq!((bus.f1, bus.yaw_error), (Some(1.0), Some(0.0)));
        assert_eq!(
            (bicycle.boxes(), bicycle.yaw_error),
            (0, None),
            "no mean over nothing"
        );
    }

    #[test]
    fn what_looks_bad_over_too_few_boxes_is_a_remark() {
        let mut gate = quick().gate;
        gate.bands = None;
        let found = verdict_of(cars_and_buses(30, 9, 0.64), &gate);
        assert!(found.accepted, "{found:?}");
        let [remark] = &found.remarks[..] else {
            panic!("{found:?}");
        };
        for part in [
            "BUS was not judged",
            "9 of 20 needed",
            "heading error 0.640 rad is above 0.2",
        ] {
            assert!(remark.contains(part), "{remark}");
        }
        assert!(found.text().contains("  ! BUS"), "{}", found.text());
        // A little above the bound may be chance.
        let found = verdict_of(cars_and_buses(30, 9, 0.25), &gate);
        assert!(found.remarks.is_empty(), "{found:?}");
    }

    #[test]
    fn classes_that_must_be_judged_and_cannot_be_refuse_the_model() {
        let mut gate = quick().gate;
        for (wanted, refused) in [
            (vec!["car"], 0),
            (vec!["CAR", "BUS"], 1),
            (vec!["BICYCLE", "BUS"], 2),
        ] {
            let names = wanted.iter().map(|name| (*name).to_owned()).collect();
            gate.must_judge = MustJudge::Named(names);
            let found = verdict_of(cars_and_buses(30, 9, 0.0), &gate);
            assert_eq!(found.reasons.len(), refused, "{found:?}");
            assert_eq!(found.accepted, refused == 0);
        }
        gate.must_judge = MustJudge::All;
        let found = verdict_of(cars_and_buses(30, 9, 0.0), &gate);
        assert!(
            found.reasons[0].starts_with("BUS: ") && found.reasons[0].contains("9 of the 20 boxes"),
            "{found:?}"
        );
        assert!(
            verdict_of(cars_and_buses(30, 20, 0.0), &{
                gate.must_judge = MustJudge::Named(vec!["BUS".into()]);
                gate
            })
            .accepted
        );
    }

    #[test]
    fn a_model_of_which_nothing_was_judged_is_refused() {
        let gate = quick().gate;
        let found = verdict_of(cars_and_buses(15, 15, 0.0), &gate);
        assert!(!found.accepted && found.judged.is_empty());
        assert!(
            found.reasons[0].contains("CAR (15 of 20 needed), BUS (15 of 20 needed)"),
            "{found:?}"
        );
        assert!(found.headline().starts_with("REFUSED; nothing was judged"));
    }

    #[test]
    fn bands_without_boxes_enough_are_named_where_their_class_was_judged() {
        let gate = quick().gate;
        let found = verdict_of(cars_and_buses(30, 9, 0.0), &gate);
        let bands: Vec<String> = found.unjudged_bands().map(Evidence::to_string).collect();
        assert_eq!(bands, ["CAR at 0-30 m", "CAR at 30-50 m", "CAR at 50+ m"]);
        let text = found.coverage().unwrap();
        assert!(
            text.contains("nor in these distance bands: CAR at 0-30 m ("),
            "{text}"
        );
        assert!(!text.contains("BUS at"), "{text}");
    }

    #[test]
    fn means_over_no_pairs_do_not_pass_in_silence() {
        let mut gate = quick().gate;
        (gate.min_f1, gate.max_missed, gate.max_extra, gate.bands) = (0.0, 1.0, 1.0, None);
        let [float, _] = cars_and_buses(30, 0, 0.0);
        let found = verdict_of([float, vec![Vec::new()]], &gate);
        assert!(
            found.remarks[0].contains("no box of one model has a partner"),
            "{found:?}"
        );
        // Nor does a class that neither saw count as judged, however few boxes a recipe asks for.
        gate.min_boxes = 0;
        let found = verdict_of(cars_and_buses(30, 0, 0.0), &gate);
        assert!(found.accepted, "{found:?}");
        assert_eq!(found.unjudged_classes().count(), 2);
    }

    #[test]
    fn a_verdict_from_before_says_only_what_it_says() {
        let old: Verdict = serde_json::from_str(r#"{"accepted": true, "reasons": []}"#).unwrap();
        assert_eq!(old.coverage(), None);
        assert_eq!(old.headline(), "ACCEPTED");
        assert!(old.notes().is_empty());
    }

    #[test]
    fn too_few_boxes_are_no_agreement() {
        let nothing = verdict(&boxes(0, 0.0), &boxes(0, 0.0));
        assert!(
            !nothing.accepted && nothing.reasons[0].contains("0 boxes"),
            "{nothing:?}"
        );
    }
}
