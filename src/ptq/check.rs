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

/// Whether the INT8 model may replace the float one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verdict {
    pub accepted: bool,
    /// Why not; empty if accepted.
    pub reasons: Vec<String>,
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

impl Bounds {
    /// Whether there are enough boxes to judge. Boxes that only INT8 finds count as much as boxes it misses.
    pub fn judges(&self, cell: &AgreementCell) -> bool {
        (cell.matched + cell.missed).max(cell.matched + cell.extra) >= self.min_boxes
    }

    /// The bounds that some boxes do not keep, all of them if there are enough to judge.
    pub fn breaches(&self, cell: &AgreementCell) -> Vec<Breach> {
        if !self.judges(cell) {
            return Vec::new();
        }
        let mean = |spread: Option<Spread>| spread.map_or(0.0, |s| s.mean);
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

/// Holds the agreement against the gate's bounds: each class, and each class in each distance band.
pub fn judge(agreement: &Agreement, gate: &Gate) -> Verdict {
    let mut reasons = Vec::new();
    let total = agreement.total.matched + agreement.total.missed;
    if total < gate.min_boxes_total {
        reasons.push(format!(
            "the float model found {total} boxes on the {} held-out frames; {} are needed to judge",
            agreement.frames, gate.min_boxes_total
        ));
    }
    let mut hold = |name: &str, cell: &AgreementCell, bounds: &Bounds| {
        let counts = format!(
            "{} matched, {} missed, {} extra",
            cell.matched, cell.missed, cell.extra
        );
        let breaches = bounds.breaches(cell);
        reasons.extend(breaches.iter().map(|b| format!("{name}: {b} ({counts})")));
    };
    for class in &agreement.classes {
        hold(&class.class, &class.all, &gate.class());
        if let Some(bounds) = &gate.bands {
            for band in &class.bands {
                hold(&format!("{} at {} m", class.class, band.band), band, bounds);
            }
        }
    }
    Verdict {
        accepted: reasons.is_empty(),
        reasons,
    }
}

#[cfg(test)]
mod tests {
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

    #[test]
    fn too_few_boxes_are_no_agreement() {
        let nothing = verdict(&boxes(0, 0.0), &boxes(0, 0.0));
        assert!(
            !nothing.accepted && nothing.reasons[0].contains("0 boxes"),
            "{nothing:?}"
        );
    }
}
