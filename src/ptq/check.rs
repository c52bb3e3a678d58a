//! The written model against the float one, on the engine that will run it and frames it was not calibrated on:
//! which kernels run, how long they take, and whether the boxes agree.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::frames::{Role, Spool};
use super::progress::{Progress, Stage};
use super::recipe::{Bounds, CheckSettings, Gate};
use super::report::null_is_nan;
use super::{PtqError, go_on};
use crate::detector::runtime::RuntimeOptions;
use crate::detector::{Detector, ModelDescription};
use crate::eval::{Agreement, AgreementCell, Spread, agreement};
use crate::geometry::Detection;

/// Which kernels ran, by ONNX Runtime's own profile.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Kernels {
    /// Convolutions that ran as integer kernels.
    pub integer_convolutions: usize,
    /// Convolutions that ran in float.
    pub float_convolutions: usize,
    /// Share of the convolutions' multiplications that ran on integers; absent where a kernel could not be
    /// traced back to its layer.
    pub integer_multiplications: Option<f64>,
    /// Share of the time in kernels that give integers (conversions not counted).
    pub integer_time: f64,
    /// Names of layers that ran on integers.
    pub integer_layers: Vec<String>,
    /// Kernels by operator.
    pub operators: Vec<Operator>,
}

/// All kernels of one operator and element type.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Operator {
    pub name: String,
    /// Element type of the first output.
    pub gives: String,
    pub provider: String,
    /// Nodes in the graph as the runtime rewrote it.
    pub nodes: usize,
    /// Time in one run, milliseconds.
    pub milliseconds: f64,
}

/// One entry of ONNX Runtime's profile; the fields used here.
#[derive(Deserialize)]
struct Event {
    cat: Option<String>,
    name: Option<String>,
    dur: Option<f64>,
    #[serde(default)]
    args: EventArgs,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct EventArgs {
    op_name: Option<String>,
    provider: Option<String>,
    output_type_shape: Vec<BTreeMap<String, serde_json::Value>>,
}

/// A convolution of the written graph.
#[derive(Debug, Clone, PartialEq)]
pub struct Convolution {
    pub name: String,
    /// The tensor it gives, before any activation.
    pub output: String,
    /// Multiplications per frame.
    pub multiplications: u64,
}

impl Convolution {
    /// Whether a kernel is this layer: the runtime calls a rewritten node after the node or after its output, with
    /// something behind it (`_token_7`, `_nchwc`).
    fn is_kernel(&self, kernel: &str) -> bool {
        [&self.name, &self.output].into_iter().any(|name| {
            let mut rest = match kernel.strip_prefix(name.as_str()) {
                Some(rest) => rest,
                None => return false,
            };
            while !rest.is_empty() {
                let next = rest.strip_prefix("_nchwc").or_else(|| {
                    let number = rest.strip_prefix("_token_")?;
                    Some(number.trim_start_matches(|c: char| c.is_ascii_digit()))
                });
                match next {
                    Some(next) => rest = next,
                    None => return false,
                }
            }
            true
        })
    }
}

/// Reads a profile of the runtime, made with a graph that has these convolutions.
pub fn read_profile(json: &str, layers: &[Convolution]) -> Result<Kernels, String> {
    let events: Vec<Event> = serde_json::from_str(json).map_err(|e| e.to_string())?;
    // Per kernel: operator, type, provider, times it ran, total microseconds.
    let mut kernels: BTreeMap<String, (String, String, String, u64, f64)> = BTreeMap::new();
    for event in events {
        let (Some(name), Some(op)) = (event.name, event.args.op_name) else {
            continue;
        };
        let Some(node) = name.strip_suffix("_kernel_time") else {
            continue;
        };
        if event.cat.as_deref() != Some("Node") {
            continue;
        }
        let gives = event
            .args
            .output_type_shape
            .first()
            .and_then(|t| t.keys().next().cloned());
        let kernel = kernels.entry(node.to_owned()).or_insert_with(|| {
            (
                op,
                gives.unwrap_or_default(),
                event.args.provider.unwrap_or_default(),
                0,
                0.0,
            )
        });
        kernel.3 += 1;
        kernel.4 += event.dur.unwrap_or(0.0);
    }
    if kernels.is_empty() {
        return Err("it lists no kernel".into());
    }
    let mut result = Kernels {
        integer_convolutions: 0,
        float_convolutions: 0,
        integer_multiplications: None,
        integer_time: 0.0,
        integer_layers: Vec::new(),
        operators: Vec::new(),
    };
    let mut by_operator: BTreeMap<(String, String, String), (usize, f64)> = BTreeMap::new();
    let (mut total_time, mut integer_time) = (0.0, 0.0);
    let (mut multiplications, mut integer, mut traced) = (0u64, 0u64, 0usize);
    for (node, (op, gives, provider, runs, time)) in kernels {
        let time = time / runs as f64 / 1e3;
        total_time += time;
        let integers = matches!(gives.as_str(), "uint8" | "int8");
        if integers && !op.contains("QuantizeLinear") {
            integer_time += time;
        }
        if op.contains("Conv") {
            let integer_kernel = op.contains("QLinearConv") || op.contains("ConvInteger");
            if integer_kernel {
                result.integer_convolutions += 1;
            } else {
                result.float_convolutions += 1;
            }
            if let Some(layer) = layers.iter().find(|l| l.is_kernel(&node)) {
                traced += 1;
                multiplications += layer.multiplications;
                if integer_kernel {
                    integer += layer.multiplications;
                    result.integer_layers.push(layer.name.clone());
                }
            }
        }
        let entry = by_operator.entry((op, gives, provider)).or_default();
        entry.0 += 1;
        entry.1 += time;
    }
    let convolutions = result.integer_convolutions + result.float_convolutions;
    if traced == convolutions && traced == layers.len() && multiplications > 0 {
        result.integer_multiplications = Some(integer as f64 / multiplications as f64);
    }
    if total_time > 0.0 {
        result.integer_time = integer_time / total_time;
    }
    result.operators = by_operator
        .into_iter()
        .map(
            |((name, gives, provider), (nodes, milliseconds))| Operator {
                name,
                gives,
                provider,
                nodes,
                milliseconds,
            },
        )
        .collect();
    Ok(result)
}

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
    let files = detector.end_profiling()?;
    let file = files.last().cloned().unwrap_or_default();
    let text = std::fs::read_to_string(&file).map_err(|source| PtqError::Io {
        action: "read the profile",
        path: file.clone(),
        source,
    })?;
    for written in &files {
        std::fs::remove_file(written).map_err(|source| PtqError::Io {
            action: "remove",
            path: written.clone(),
            source,
        })?;
    }
    read_profile(&text, layers).map_err(|message| PtqError::Profile { file, message })
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

    #[test]
    fn a_profile_is_read_per_kernel_and_layer() {
        let event = |name: &str, op: &str, gives: &str, us: u32| {
            format!(
                r#"{{"cat":"Node","name":"{name}_kernel_time","dur":{us},"args":{{"op_name":"{op}","provider":"CPUExecutionProvider","output_type_shape":[{{"{gives}":[1,2]}}]}}}}"#
            )
        };
        let mut all = vec![r#"{"cat":"Session","name":"model_run","dur":9}"#.to_string()];
        for _run in 0..2 {
            all.push(event("/a/Conv_token_3", "QLinearConv", "uint8", 3000));
            all.push(event("/a/Conv2_nchwc", "Conv", "float", 1000));
        }
        let layer = |name: &str, output: &str, multiplications| Convolution {
            name: name.into(),
            output: output.into(),
            multiplications,
        };
        let layers = [layer("/a/Conv", "a", 90), layer("/a/Last", "/a/Conv2", 10)];
        let kernels = read_profile(&format!("[{}]", all.join(",")), &layers).unwrap();
        assert_eq!(
            (kernels.integer_convolutions, kernels.float_convolutions),
            (1, 1)
        );
        assert_eq!(kernels.integer_multiplications, Some(0.9));
        assert_eq!(kernels.integer_time, 0.75);
        assert_eq!(kernels.integer_layers, ["/a/Conv"]);
        assert_eq!(kernels.operators[1].milliseconds, 3.0);
        assert!(read_profile("[]", &layers).is_err());
        assert!(read_profile("{", &layers).is_err());
    }
}
