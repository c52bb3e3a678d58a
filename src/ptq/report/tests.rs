use super::*;
use crate::cloud::condition::ConditionCount;
use crate::cloud::frames::Loss;
use crate::cloud::summary::LossCount;
use crate::detector::kernels::{Kernels, Operator};
use crate::eval::{AgreementOptions, agreement};
use crate::geometry::{Box3d, Detection};
use crate::ptq::check::{Latencies, Latency, judge};
use crate::ptq::frames::Role;
use crate::ptq::quantizer::Levels;
use crate::ptq::recipe::tests::quick;
use crate::ptq::reconstruct::sensitivity::{Promoted, Promotion, Sensitivity};

/// What a name in somebody's file may hold.
const HOSTILE: &str = "<script>&\"'</td>--><img src=x onerror=alert(1)>";

fn quantizer(scale: f32) -> Quantizer {
    Quantizer {
        scale,
        zero_point: 0,
        levels: Levels::unsigned(8),
    }
}

fn tensor(name: &str, max: f32, learned: Option<f32>) -> TensorReport {
    TensorReport {
        tensors: vec![name.into(), format!("{name}/moved")],
        bits: 8,
        seen: Extremes {
            min: 0.0,
            max,
            count: 100,
            zeros: 90,
            not_finite: 0,
        },
        max_min: quantizer(max / 255.0),
        chosen: quantizer(max / 300.0),
        learned: learned.map(quantizer),
        clip: 0.85,
        error_max_min: 1.0 / 3.0e4,
        error_chosen: 0.1 / 7.0e3,
    }
}

fn layer(name: &str, error: f64) -> LayerReport {
    LayerReport {
        name: name.into(),
        op: "Conv".into(),
        shape: vec![64, 64, 3, 3],
        axis: 0,
        bits: 8,
        multiplications: 603_979_776,
        integer_kernel: true,
        error_max_min: 2.0 * error,
        error_chosen: error,
        clip: [0.5, 0.75, 1.0],
        scales: vec![0.1, 1.0 / 3.0, f32::MIN_POSITIVE],
    }
}

/// A report with a class that neither model saw, and hostile text wherever text comes from a file.
pub(crate) fn sample() -> Report {
    let found = |shift: f32| {
        let detection = |i: u8| Detection {
            bbox: Box3d {
                center: nalgebra::Vector3::new(f32::from(i) * 2.0 + shift, 0.0, 0.0),
                size: nalgebra::Vector3::new(4.0, 2.0, 1.5),
                yaw: 0.0,
            },
            class: 0,
            score: 0.9,
            velocity: None,
        };
        vec![(0..30).map(detection).collect::<Vec<_>>()]
    };
    let classes = [HOSTILE.to_owned(), "NEVER_SEEN".to_owned()];
    let agreement = agreement(
        &found(0.0),
        &found(0.3),
        &classes,
        &AgreementOptions::default(),
    );
    let recipe = Recipe {
        name: HOSTILE.into(),
        ..quick()
    };
    let latency = Latency {
        median: 82.252_539,
        p95: 88.181_192_000_000_01,
        min: 75.2,
    };
    let file = |bytes| FileRecord {
        file: HOSTILE.into(),
        bytes,
        sha256: "6a4c".into(),
    };
    Report {
        format: FORMAT,
        model: HOSTILE.into(),
        target: Target::Cpu,
        tool: Tool {
            version: "0.1.0".into(),
            onnx_runtime: "1.31.1".into(),
            machine: HOSTILE.into(),
            exact_u8s8: true,
            created: 1_795_575_055,
        },
        float_files: vec![file(4_517_795)],
        int8_files: vec![file(1_221_820)],
        reduced_range: false,
        changes: Changes {
            opset_from: 11,
            opset_to: 17,
            widened: vec![],
            folded_batch_norms: vec![HOSTILE.into()],
            rewritten_deconvolutions: vec![],
            kept_deconvolutions: vec![(HOSTILE.into(), HOSTILE.into())],
        },
        equalized: vec![Equalized {
            tensor: HOSTILE.into(),
            least: 0.25,
            most: 4.0,
        }],
        frames: Frames {
            calibration: 1,
            held_out: 1,
            empty: 0,
            sha256: "00ff".into(),
            list: vec![FrameRecord {
                stamp: 1_700_000_000_000_000_001,
                role: Role::HeldOut,
                points: 7,
                sweeps: Some(1),
                sha256: "ab".into(),
            }],
        },
        input: Input {
            sweeps_wanted: 2,
            sweeps: [(1, 1)].into(),
            left_out: [(1, 3)].into(),
            read: InputSummary {
                frames: 5,
                conditions: vec![ConditionCount {
                    kind: ConditionKind::NoEgoMotion,
                    frames: 2,
                    text: HOSTILE.into(),
                }],
                losses: vec![LossCount {
                    kind: Loss::BadCloud,
                    count: 1,
                    text: HOSTILE.into(),
                }],
                skipped_at_start: 1,
            },
        },
        layers: vec![layer(HOSTILE, 1e-5), layer("/head/Conv", 3e-4)],
        tensors: vec![
            tensor(HOSTILE, 36.131_74, Some(0.1)),
            tensor("b", 0.7, None),
        ],
        sensitivity: vec![Sensitivity {
            layer: HOSTILE.into(),
            weight_bits: 8,
            activation_bits: 8,
            local: 1e-4,
            task: Some(2.5e-3),
            weights: 12,
        }],
        promoted: vec![Promoted {
            layer: HOSTILE.into(),
            to: Promotion::Float,
        }],
        reconstruction: vec![
            Outcome {
                layers: vec![0],
                error_before: 0.0344,
                error_after: 0.0117,
                tgpl_before: Some(0.08),
                tgpl_after: Some(0.04),
                flipped: vec![0.081],
                converged: vec![0.33],
                taken: true,
                iterations: 200,
                seconds: 12.5,
            },
            Outcome {
                layers: vec![1],
                ..Default::default()
            },
        ],
        float_layers: vec![FloatLayer {
            name: HOSTILE.into(),
            op: "Conv".into(),
            output: String::new(),
            weight: None,
            reason: HOSTILE.into(),
        }],
        check: Checked {
            kernels: Kernels {
                integer_convolutions: 2,
                float_convolutions: 1,
                integer_multiplications: Some(0.998),
                integer_time: 0.9,
                integer_layers: vec![HOSTILE.into(), "/head/Conv".into()],
                operators: vec![Operator {
                    name: HOSTILE.into(),
                    gives: "uint8".into(),
                    provider: HOSTILE.into(),
                    nodes: 2,
                    milliseconds: 1.5,
                }],
            },
            latency: Latencies {
                runs: 20,
                threads: 0,
                float_backbone: latency,
                int8_backbone: latency,
                backbone_speedup: 1.0,
                float_total: latency,
                int8_total: latency,
            },
            verdict: judge(&agreement, &recipe.gate),
            agreement,
        },
        recipe,
        cost: Cost {
            seconds: 382.397_219_244,
            stages: vec![("frames".into(), 3.3), ("search".into(), 361.0)],
            peak_memory: Some(858_529_792),
        },
    }
}

fn json(report: &Report) -> String {
    serde_json::to_string_pretty(report).unwrap()
}

fn parse(text: &str) -> Result<Report, ReportError> {
    Report::parse(text, Path::new("some/report.json"))
}

#[test]
fn a_stored_report_comes_back_as_it_was() {
    let report = sample();
    let again = parse(&json(&report)).unwrap();
    assert_eq!(again, report);
    assert_eq!(json(&again), json(&report));
    assert_eq!(again.page(), report.page());
    assert_eq!(again.summary(), report.summary());
}

#[test]
fn what_json_cannot_hold_comes_back_as_not_a_number() {
    let mut report = sample();
    report.check.latency.float_backbone.p95 = f64::NAN;
    report.check.latency.backbone_speedup = f64::INFINITY;
    report.layers[0].error_chosen = f64::NAN;
    report.reconstruction[0].error_after = f64::NAN;
    let again = parse(&json(&report)).unwrap();
    assert!(again.check.latency.float_backbone.p95.is_nan());
    assert!(again.check.latency.backbone_speedup.is_nan());
    assert!(again.layers[0].error_chosen.is_nan());
    assert!(again.reconstruction[0].error_after.is_nan());
    assert_eq!(json(&again), json(&report));
}

#[test]
fn a_report_is_found_by_its_folder_too() {
    let folder = tempfile::tempdir().unwrap();
    let report = sample();
    std::fs::write(folder.path().join(JSON_FILE), json(&report)).unwrap();
    assert_eq!(Report::load(folder.path()).unwrap(), report);
    assert_eq!(
        Report::load(&folder.path().join(JSON_FILE)).unwrap(),
        report
    );
}

#[test]
fn a_report_that_cannot_be_read_is_refused_by_name() {
    let good = json(&sample());
    for (text, word) in [
        ("", "EOF"),
        ("no JSON at all", "expected"),
        (&good[..good.len() / 2], "EOF"),
        ("{}", "format"),
        (r#"{"format": 7, "else": "unknown"}"#, "format 7"),
        (r#"{"format": 1}"#, "missing field"),
        (
            &good.replace("\"held_out\"", "\"unheard_of\""),
            "unheard_of",
        ),
    ] {
        let error = parse(text).unwrap_err().to_string();
        assert!(
            error.contains("some/report.json") && error.contains(word),
            "{error}"
        );
    }
    let error = Report::load(Path::new("not/there.json")).unwrap_err();
    assert!(matches!(error, ReportError::Read { .. }));
    assert!(error.to_string().contains("not/there.json"));
}

#[test]
fn text_from_files_never_becomes_markup() {
    let page = sample().page();
    assert!(!page.contains("<script"));
    assert!(!page.contains("<img"));
    let escaped = "&lt;script&gt;&amp;&quot;";
    // Model, machine, recipe, class, layers, tensors, ...
    assert!(page.matches(escaped).count() > 20);
    assert!(!page.contains("://"), "it loads nothing");
}

/// No coordinate that a browser would refuse.
fn assert_drawable(page: &str) {
    for wrong in ["NaN", "\"inf", "\"-inf", "inf%"] {
        assert!(!page.contains(wrong), "{wrong}");
    }
}

#[test]
fn a_page_of_nothing_is_a_page() {
    let mut report = sample();
    report.reconstruction.clear();
    report.layers.clear();
    report.tensors.clear();
    report.float_layers.clear();
    report.float_files.clear();
    report.int8_files.clear();
    report.frames.list.clear();
    report.check.kernels.operators.clear();
    report.check.kernels.integer_multiplications = None;
    report.check.agreement = agreement(&[], &[], &[], &AgreementOptions::default());
    report.cost.stages.clear();
    report.cost.peak_memory = None;
    report.tool.created = u64::MAX;
    let page = report.page();
    assert_drawable(&page);
    assert!(page.contains("rounded to the nearest") && page.contains("not known"));
    report.summary();
}

#[test]
fn numbers_that_are_none_draw_nothing() {
    let mut report = sample();
    for (tensor, value) in report.tensors.iter_mut().zip([f32::NAN, 0.0]) {
        tensor.tensors.clear();
        tensor.seen = Extremes::default();
        tensor.seen.max = value;
        tensor.max_min.scale = value;
        tensor.chosen.scale = f32::INFINITY;
        tensor.learned = Some(quantizer(value));
        tensor.clip = value;
        tensor.error_max_min = f64::NAN;
        tensor.error_chosen = 0.0;
    }
    report.layers[0].error_max_min = f64::INFINITY;
    report.layers[0].error_chosen = -1.0;
    report.layers[0].clip = [f32::INFINITY, f32::NAN, 0.0];
    let outcome = &mut report.reconstruction[0];
    outcome.layers = vec![0, 77];
    outcome.error_before = f64::NAN;
    outcome.flipped = vec![f64::NAN];
    outcome.converged.clear();
    report.check.latency.float_backbone.median = f64::NAN;
    report.check.kernels.operators[0].milliseconds = f64::INFINITY;
    report.cost.seconds = f64::NAN;
    report.cost.stages[0].1 = -1.0;
    assert_drawable(&report.page());
    report.summary();
}

#[test]
fn what_was_not_judged_stands_beside_the_verdict() {
    let report = sample();
    let page = report.page();
    let verdict =
        &page[page.find("class=\"verdict").unwrap()..page.find("class=\"tiles\"").unwrap()];
    for part in [
        "Judged",
        "(30 of float, 30 of INT8)",
        "Not judged",
        "NEVER_SEEN (0 of float, 0 of INT8; 20 needed)",
    ] {
        assert!(verdict.contains(part), "{part}: {verdict}");
    }
    assert!(
        !verdict.contains("class=\"note\"") && !verdict.contains("class=\"dim\""),
        "not in grey"
    );
    let text = report.summary();
    for part in [
        "judged      ",
        "NOT JUDGED   NEVER_SEEN (0 of float, 0 of INT8, 20 needed)",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let json: serde_json::Value = serde_json::from_str(&json(&report)).unwrap();
    let verdict = &json["check"]["verdict"];
    assert_eq!(verdict["judged"][0]["float_boxes"], 30);
    let unseen = verdict["not_judged"].as_array().unwrap();
    let unseen = unseen.iter().find(|e| e["class"] == "NEVER_SEEN").unwrap();
    assert_eq!(
        (&unseen["needed"], &unseen["yaw_error"]),
        (&20.into(), &serde_json::Value::Null)
    );
}

#[test]
fn remarks_stand_beside_the_verdict() {
    let mut report = sample();
    report.check.verdict.remarks = vec!["calibrated on single sweeps".into()];
    let page = report.page();
    let verdict = &page[..page.find("class=\"tiles\"").unwrap()];
    assert!(verdict.contains("calibrated on single sweeps"), "{verdict}");
    assert!(report.summary().contains("  ! calibrated on single sweeps"));
}

#[test]
fn a_report_from_before_says_what_its_verdict_rests_on_all_the_same() {
    let report = sample();
    let mut old: serde_json::Value = serde_json::from_str(&json(&report)).unwrap();
    for key in ["judged", "not_judged", "remarks"] {
        old["check"]["verdict"].as_object_mut().unwrap().remove(key);
    }
    old.as_object_mut().unwrap().remove("input");
    old["frames"]["list"][0]
        .as_object_mut()
        .unwrap()
        .remove("sweeps");
    let old = parse(&old.to_string()).unwrap();
    assert_eq!(old.check.verdict, report.check.verdict);
    assert_eq!(
        (old.input.sweeps_wanted, old.frames.list[0].sweeps),
        (0, None)
    );
    assert!(old.page().contains("is not in this report"));
}

#[test]
fn the_report_says_how_the_frames_were_read() {
    let report = sample();
    let (page, text) = (report.page(), report.summary());
    for part in [
        "sweeps in the frames used, where the model wants 2: 1 frame of 1 sweep",
        "left out, since they have fewer sweeps than the 2 that the model wants: 3 frames of 1 sweep",
        "no ego motion in 2 of 5 frames",
        "1 message could not be read",
        "1 cloud at the start was skipped",
    ] {
        assert!(page.contains(part) && text.contains(part), "{part}: {text}");
    }
    let json: serde_json::Value = serde_json::from_str(&json(&report)).unwrap();
    assert_eq!(json["input"]["sweeps"]["1"], 1);
    assert_eq!(json["input"]["conditions"][0]["kind"], "no_ego_motion");
    assert_eq!(json["input"]["losses"][0]["kind"], "bad_cloud");
}

#[test]
fn frames_with_too_few_sweeps_are_told_by_role() {
    let frame = |role, sweeps| FrameRecord {
        stamp: 0,
        role,
        points: 1,
        sweeps: Some(sweeps),
        sha256: String::new(),
    };
    let told = |frames: &[FrameRecord]| {
        Input::new(2, frames, Told::default(), &Conditions::default()).few_sweeps(frames)
    };
    assert_eq!(
        told(&[frame(Role::Calibration, 2), frame(Role::HeldOut, 2)]),
        None
    );
    assert_eq!(
        told(&[
            frame(Role::Calibration, 2),
            frame(Role::Calibration, 1),
            frame(Role::HeldOut, 1)
        ])
        .unwrap(),
        "calibrated on 1 of 2 frames with single sweeps, checked on 1 of 1 frames with single sweeps, where the model \
         wants 2 sweeps"
    );
}

#[test]
fn a_class_without_boxes_says_so() {
    let page = sample().page();
    let agreement = page.split("id=\"agreement\"").nth(1).unwrap();
    let row = agreement.split("NEVER_SEEN").nth(1).unwrap();
    let row = &row[..row.find("</tr>").unwrap()];
    assert!(row.contains("no boxes") && !row.contains("<svg"), "{row}");
}
