//! The detector on the models of `tests/fixtures/tiny`, whose arithmetic can be done by hand.
//!
//! These tests need ONNX Runtime; without it they fail and say where it was looked for.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::f32::consts::FRAC_PI_2;
use std::path::{Path, PathBuf};

use approx::assert_relative_eq;
use centerpoint_ptq::cloud::condition::ConditionKind;
use centerpoint_ptq::cloud::{Point, Points};
use centerpoint_ptq::detector::description::{DimScale, HeatmapScale};
use centerpoint_ptq::detector::{
    Detector, DetectorError, Inference, ModelDescription, Precision, Provider, RuntimeOptions,
    TensorName,
};
use centerpoint_ptq::onnx::Model;
use centerpoint_ptq::onnx::proto::{NodeProto, TensorProto};
use centerpoint_ptq::sim::{Scene, SceneConfig, SceneKind, Sensor};
use nalgebra::Vector2;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny")
}

fn tiny() -> ModelDescription {
    ModelDescription::load(&folder()).unwrap()
}

fn options() -> RuntimeOptions {
    RuntimeOptions {
        threads: 1,
        ..RuntimeOptions::default()
    }
}

fn load(model: &ModelDescription) -> Detector {
    Detector::load(model, &options()).unwrap()
}

fn refusal(change: impl FnOnce(&mut ModelDescription)) -> String {
    let mut model = tiny();
    change(&mut model);
    Detector::load(&model, &options())
        .expect_err("the model should be refused")
        .to_string()
}

fn assert_says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "no `{part}` in: {message}");
    }
}

fn cloud(points: &[[f32; 3]]) -> Points {
    let point = |p: &[f32; 3]| Point {
        x: p[0],
        y: p[1],
        z: p[2],
        ..Point::default()
    };
    Points(points.iter().map(point).collect())
}

#[test]
fn one_point_gives_the_box_computed_by_hand() {
    let found = load(&tiny()).detect(&cloud(&[[1.7, -2.4, 0.5]])).unwrap();
    assert_eq!((found.pillars, found.dropped_pillars), (1, 0));
    let [detection] = found.detections.as_slice() else {
        panic!("{:?}", found.detections);
    };
    assert_eq!(detection.class, 0);
    assert_relative_eq!(detection.score, 1.0 / (1.0 + (-2f32).exp()), epsilon = 1e-6);
    let b = &detection.bbox;
    // Pillar (5, 1), map cell (2, 0).
    assert_relative_eq!(
        b.center.as_slice(),
        [1.0, -3.0, 0.5].as_slice(),
        epsilon = 1e-5
    );
    assert_relative_eq!(
        b.size.as_slice(),
        [4.0, 2.0, 1.5].as_slice(),
        epsilon = 1e-5
    );
    assert_relative_eq!(b.yaw, -FRAC_PI_2, epsilon = 1e-6);
    // Offsets from the pillar's centre (1.5, -2.5).
    assert_relative_eq!(
        detection.velocity.unwrap(),
        Vector2::new(0.2, 0.1),
        epsilon = 1e-5
    );
}

#[test]
fn an_empty_cloud_gives_no_boxes_and_leaves_nothing_behind() {
    let mut detector = load(&tiny());
    let one = cloud(&[[1.7, -2.4, 0.5]]);
    for points in [Points::default(), cloud(&[[100.0, 0.0, 0.0]])] {
        let before = detector.detect(&one).unwrap().detections;
        assert_eq!(before.len(), 1);
        let empty = detector.detect(&points).unwrap();
        assert_eq!((empty.detections.len(), empty.pillars), (0, 0));
        assert_eq!(detector.detect(&one).unwrap().detections, before);
    }
}

#[test]
fn a_frame_does_not_depend_on_the_one_before() {
    let frames: Vec<Points> = (0..6)
        .map(|i| {
            let spread = |j: usize, k: usize| ((i * 31 + j * k) % 80) as f32 / 10.0 - 4.0;
            cloud(
                &(0..5 * i + 3)
                    .map(|j| [spread(j, 17), spread(j, 29), spread(j, 7) / 4.0])
                    .collect::<Vec<_>>(),
            )
        })
        .collect();
    let mut running = load(&tiny());
    for frame in &frames {
        let fresh = load(&tiny()).detect(frame).unwrap();
        let again = running.detect(frame).unwrap();
        assert!(!fresh.detections.is_empty());
        assert_eq!(fresh.detections, again.detections);
        assert_eq!(fresh.dropped_pillars, again.dropped_pillars);
    }
}

#[test]
fn stages_called_one_by_one_agree_with_detect() {
    let mut detector = load(&tiny());
    let points = cloud(&[[1.7, -2.4, 0.5], [-3.0, 3.5, 0.1], [-2.9, 3.4, -0.7]]);
    let Inference { detections, .. } = detector.detect(&points).unwrap();
    let spatial = detector.spatial_features(&points).unwrap();
    assert_eq!(spatial.dim(), (1, 4, 8, 8));
    let maps = detector.heads(&spatial).unwrap();
    assert_eq!(detector.decode(&maps), detections);
    assert_eq!(detections.len(), 2);
}

#[test]
fn tensors_named_by_index_are_the_same_as_by_name() {
    let mut model = tiny();
    model.encoder.input = TensorName::Index(0);
    model.backbone.outputs.heatmap = TensorName::Index(0);
    model.backbone.outputs.rot = TensorName::Index(4);
    let points = cloud(&[[1.7, -2.4, 0.5]]);
    assert_eq!(
        load(&model).detect(&points).unwrap().detections,
        load(&tiny()).detect(&points).unwrap().detections
    );
}

#[test]
fn a_model_without_velocity_gives_none() {
    let mut model = tiny();
    model.backbone.outputs.vel = None;
    let found = load(&model).detect(&cloud(&[[0.0; 3]])).unwrap();
    assert_eq!(found.detections[0].velocity, None);
}

#[test]
fn pillars_beyond_the_limit_are_dropped_last_come_and_counted() {
    let mut model = tiny();
    model.grid.max_pillars = 2;
    let points = cloud(&[
        [0.5, 0.5, 0.0],
        [-3.5, -3.5, 0.0],
        [2.5, 2.5, 0.0],
        [2.6, 2.6, 0.0],
        [3.5, -3.5, 0.0],
    ]);
    let found = load(&model).detect(&points).unwrap();
    assert_eq!((found.pillars, found.dropped_pillars), (2, 2));
    assert!(found.detections.iter().all(|d| d.bbox.center.x < 2.0));
}

#[test]
fn a_tensor_that_is_not_there_is_refused_with_those_that_are() {
    let message = refusal(|m| m.backbone.outputs.heatmap = TensorName::Name("hm".into()));
    assert_says(
        &message,
        &[
            "backbone.onnx",
            "backbone.outputs.heatmap",
            "`hm`",
            "0: heatmap",
            "5: vel",
        ],
    );
    let message = refusal(|m| m.encoder.input = TensorName::Index(3));
    assert_says(
        &message,
        &["encoder.onnx", "encoder.input", "`3`", "0: input_features"],
    );
}

#[test]
fn a_file_that_is_not_there_or_no_onnx_is_refused_by_name() {
    let message = refusal(|m| m.encoder.file = "nowhere.onnx".into());
    assert_says(&message, &["nowhere.onnx", "encoder.file", "No such file"]);
    let message = refusal(|m| m.backbone.file = "model.yaml".into());
    assert_says(&message, &["model.yaml", "is not an ONNX model"]);
}

#[test]
fn a_truncated_file_is_refused() {
    let copy = tempfile::tempdir().unwrap();
    let bytes = std::fs::read(folder().join("backbone.onnx")).unwrap();
    std::fs::copy(
        folder().join("encoder.onnx"),
        copy.path().join("encoder.onnx"),
    )
    .unwrap();
    for length in [0, 10, bytes.len() / 2, bytes.len() - 1] {
        std::fs::write(copy.path().join("backbone.onnx"), &bytes[..length]).unwrap();
        let message = refusal(|m| m.folder = copy.path().into());
        assert_says(&message, &["backbone.onnx"]);
    }
}

#[test]
fn descriptions_that_contradict_the_graph_are_refused() {
    let message = refusal(|m| {
        m.classes.push("BUS".into());
        m.post.score_thresholds.push(0.5);
    });
    assert_says(
        &message,
        &[
            "`heatmap`",
            "[1, 2, 4, 4]",
            "[1, 3, 4, 4]",
            "CAR, PEDESTRIAN, BUS",
        ],
    );

    let message = refusal(|m| m.grid.decorations.clear());
    assert_says(&message, &["input_features", "[?, ?, 9]", "make 4 values"]);

    let message = refusal(|m| m.grid.downsample = 4);
    assert_says(
        &message,
        &["[1, 2, 4, 4]", "[1, 2, 2, 2]", "grid.downsample"],
    );

    let message = refusal(|m| {
        let outputs = &mut m.backbone.outputs;
        std::mem::swap(&mut outputs.reg, &mut outputs.dim);
    });
    assert_says(&message, &["`dim`", "[1, 3, 4, 4]", "backbone.outputs.reg"]);

    let message = refusal(|m| m.encoder.file = "encoder_five_channels.onnx".into());
    assert_says(&message, &["backbone.onnx", "5 channels", "4 channels"]);
}

#[test]
fn two_heads_on_one_tensor_are_refused_however_it_is_named() {
    for tensor in [TensorName::Name("rot".into()), TensorName::Index(4)] {
        let message = refusal(|m| m.backbone.outputs.vel = Some(tensor));
        assert_says(
            &message,
            &["backbone.outputs.vel", "`rot`", "`backbone.outputs.rot`"],
        );
    }
}

/// An operator with integer attributes.
type Behind<'a> = (&'a str, &'a [(&'a str, i64)]);

/// A copy of the tiny model whose backbone was changed: nodes behind an output, which get what it was, and give it anew.
fn with_behind(output: &str, behind: &[Behind<'_>]) -> (tempfile::TempDir, ModelDescription) {
    let copy = tempfile::tempdir().unwrap();
    std::fs::copy(
        folder().join("encoder.onnx"),
        copy.path().join("encoder.onnx"),
    )
    .unwrap();
    let mut backbone = Model::load(folder().join("backbone.onnx")).unwrap();
    let graph = backbone.graph_mut();
    let inner = format!("{output}_0");
    for node in &mut graph.node {
        for name in node.output.iter_mut().filter(|o| *o == output) {
            name.clone_from(&inner);
        }
    }
    let mut value = inner;
    for (i, (op, attributes)) in behind.iter().enumerate() {
        let next = match i + 1 == behind.len() {
            true => output.to_owned(),
            false => format!("{output}_{}", i + 1),
        };
        let mut node = NodeProto::new(op, &format!("behind_{i}"), &[&value], &[&next]);
        for (key, number) in *attributes {
            node = node.with_int(key, *number);
        }
        graph.node.push(node);
        value = next;
    }
    backbone.validate().unwrap();
    backbone.save(copy.path().join("backbone.onnx")).unwrap();
    let mut model = tiny();
    model.folder = copy.path().into();
    (copy, model)
}

#[test]
fn a_sigmoid_that_the_graph_shows_to_be_there_or_not_has_to_be_described_so() {
    let message = refusal(|m| m.head.heatmap = HeatmapScale::Sigmoid);
    assert_says(&message, &["backbone.onnx", "`head.heatmap`", "`logit`"]);

    // Past operators that only move or bound values.
    let endings: [&[Behind<'_>]; 4] = [
        &[("Sigmoid", &[])],
        &[("Sigmoid", &[]), ("Identity", &[])],
        &[("Sigmoid", &[]), ("Cast", &[("to", 1)]), ("Clip", &[])],
        &[("Softmax", &[("axis", 1)]), ("Identity", &[])],
    ];
    for ending in endings {
        let (_copy, mut model) = with_behind("heatmap", ending);
        let refused = Detector::load(&model, &options()).unwrap_err().to_string();
        assert_says(&refused, &["`head.heatmap`", "is logit", "`sigmoid`"]);
        model.head.heatmap = HeatmapScale::Sigmoid;
        let found = load(&model).detect(&cloud(&[[1.7, -2.4, 0.5]])).unwrap();
        assert!(!found.detections.is_empty() && found.conditions.is_empty());
        assert!(found.detections.iter().all(|d| d.score <= 1.0));
    }
    // Others leave it open, and the values tell.
    let (_copy, mut model) = with_behind("heatmap", &[("Tanh", &[])]);
    load(&model);
    model.head.heatmap = HeatmapScale::Sigmoid;
    let error = Detector::load(&model, &options()).unwrap_err();
    assert!(matches!(error, DetectorError::NoProbabilities { .. }));
    assert_says(
        &error.to_string(),
        &["`head.heatmap: sigmoid`", "-0.964", "logit"],
    );
}

#[test]
fn logits_that_are_all_probabilities_are_doubted_after_some_frames() {
    // Between 0 and 1 by other means than a sigmoid.
    let (_copy, model) = with_behind("heatmap", &[("Abs", &[]), ("Tanh", &[])]);
    let mut detector = load(&model);
    let points = cloud(&[[1.7, -2.4, 0.5]]);
    let told = |detector: &mut Detector, points: &Points| {
        let conditions = detector.detect(points).unwrap().conditions;
        let scale = conditions
            .into_iter()
            .find(|c| c.kind == ConditionKind::HeatmapScale);
        scale.map(|c| c.text)
    };
    // Nothing in a cloud says nothing about the network.
    for _ in 0..5 {
        assert_eq!(told(&mut detector, &Points::default()), None);
    }
    assert_eq!(told(&mut detector, &points), None);
    assert_eq!(told(&mut detector, &points), None);
    for _ in 0..3 {
        let text = told(&mut detector, &points).unwrap();
        assert_says(
            &text,
            &["between 0 and 1", "`head.heatmap: logit`", "`sigmoid`"],
        );
    }
    let mut right = load(&tiny());
    for _ in 0..5 {
        assert_eq!(told(&mut right, &points), None);
    }
}

#[test]
fn sizes_of_another_scale_are_refused_where_the_graph_shows_it_and_told_where_boxes_do() {
    let (_copy, mut model) = with_behind("dim", &[("Exp", &[])]);
    let refused = Detector::load(&model, &options()).unwrap_err().to_string();
    assert_says(&refused, &["`head.dim_scale`", "is log", "`linear`"]);
    model.head.dim_scale = DimScale::Linear;
    load(&model);

    // Three objects, far apart.
    let points = cloud(&[[1.7, -2.4, 0.5], [-3.0, 3.5, 0.1], [3.0, 3.5, 0.1]]);
    let told = |model: &ModelDescription| {
        let found = load(model).detect(&points).unwrap();
        let sizes = found
            .conditions
            .into_iter()
            .filter(|c| c.kind == ConditionKind::BoxSize);
        sizes.map(|c| c.text).collect::<Vec<_>>()
    };
    assert!(told(&tiny()).is_empty());
    // Metres that are taken for logarithms.
    let (_copy, model) = with_behind("dim", &[("Exp", &[]), ("Neg", &[]), ("Neg", &[])]);
    let [text] = told(&model).try_into().unwrap();
    assert_says(&text, &["3 of 3 boxes", "longer than 50 m", "`linear`"]);
    // Logarithms that are taken for metres: below 0 for what is smaller than a metre.
    let (_copy, mut model) = with_behind("dim", &[("Neg", &[])]);
    model.head.dim_scale = DimScale::Linear;
    let [text] = told(&model).try_into().unwrap();
    assert_says(&text, &["3 of 3 boxes", "left out", "`log`"]);
}

#[test]
fn a_trained_network_is_not_doubted_unless_it_is_described_wrongly() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
    let demo = ModelDescription::load(&folder).unwrap();
    let config = SceneConfig {
        kind: Some(SceneKind::Urban),
        mount: Some([0.0, 0.0, 1.8, 0.0, 0.0, 0.0]),
        ..SceneConfig::new(Sensor::preset("hdl64").unwrap())
    };
    let scene = Scene::generate(5, &config).unwrap();
    let frames: Vec<Points> = (0..4)
        .map(|i| {
            let mut points = scene.sweep(i).points;
            for point in &mut points.0 {
                point.z += 1.8;
            }
            points
        })
        .collect();
    let told = |change: &dyn Fn(&mut ModelDescription)| {
        let mut model = demo.clone();
        change(&mut model);
        let mut detector = load(&model);
        let mut kinds: Vec<ConditionKind> = Vec::new();
        let mut boxes = 0;
        for frame in &frames {
            let found = detector.detect(frame).unwrap();
            boxes += found.detections.len();
            kinds.extend(found.conditions.iter().map(|c| c.kind));
        }
        kinds.dedup();
        (boxes > 0, kinds)
    };
    assert_eq!(told(&|_| ()), (true, vec![]));
    let (_, linear) = told(&|m| m.head.dim_scale = DimScale::Linear);
    assert_eq!(linear, [ConditionKind::BoxSize]);
    let (_, swapped) = told(&|m| {
        let outputs = &mut m.backbone.outputs;
        std::mem::swap(&mut outputs.reg, &mut outputs.rot);
    });
    assert_eq!(swapped, [ConditionKind::CentreOffset]);
    let (_, still) = told(&|m| {
        let outputs = &mut m.backbone.outputs;
        outputs.rot = outputs.vel.take().unwrap();
    });
    assert_eq!(still, [ConditionKind::HeadingVector]);
}

#[test]
fn pillars_that_do_not_fit_are_told_with_figures() {
    let mut model = tiny();
    model.grid.max_pillars = 2;
    let points = cloud(&[[0.5, 0.5, 0.0], [-3.5, -3.5, 0.0], [2.5, 2.5, 0.0]]);
    let found = load(&model).detect(&points).unwrap();
    let [condition] = found.conditions.as_slice() else {
        panic!("{:?}", found.conditions);
    };
    assert_eq!(condition.kind, ConditionKind::DroppedPillars);
    assert_says(
        &condition.text,
        &["1 of 3 pillars", "`grid.max_pillars` is 2"],
    );
}

#[test]
fn a_quantized_graph_that_is_called_float_is_refused() {
    let (_copy, mut model) = with_behind("rot", &[("Identity", &[])]);
    let mut backbone = Model::load(model.backbone_path()).unwrap();
    let graph = backbone.graph_mut();
    graph
        .initializer
        .push(TensorProto::f32("step", &[], &[0.01]));
    graph.initializer.push(TensorProto::i8("zero", &[], &[0]));
    for (op, from, to) in [
        ("QuantizeLinear", "spatial_features", "integers"),
        ("DequantizeLinear", "integers", "floats"),
    ] {
        graph
            .node
            .insert(0, NodeProto::new(op, op, &[from, "step", "zero"], &[to]));
    }
    backbone.sort_topologically().unwrap();
    backbone.save(model.backbone_path()).unwrap();
    let refused = Detector::load(&model, &options()).unwrap_err().to_string();
    assert_says(&refused, &["`precision`", "QuantizeLinear", "`int8`"]);
    model.precision = Precision::Int8;
    load(&model);
}

#[test]
fn numbers_that_are_not_finite_are_an_error_and_the_next_frame_works() {
    let mut model = tiny();
    model.backbone.file = "backbone_nan.onnx".into();
    let mut detector = load(&model);
    let error = detector.detect(&cloud(&[[0.0, 0.0, 1.0]])).unwrap_err();
    assert!(matches!(&error, DetectorError::NonFinite { tensor, .. } if tensor == "height"));
    assert_says(&error.to_string(), &["height", "backbone_nan.onnx"]);
    let found = detector.detect(&cloud(&[[0.0, 0.0, -1.0]])).unwrap();
    assert_eq!(found.detections.len(), 1);
}

#[test]
fn points_that_are_not_finite_fall_outside_the_grid() {
    let mut detector = load(&tiny());
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let found = detector
            .detect(&cloud(&[[bad, 0.0, 0.0], [0.0, bad, 0.0], [0.0, 0.0, bad]]))
            .unwrap();
        assert_eq!(found.pillars, 0);
    }
}

#[test]
fn a_provider_that_the_library_lacks_is_refused_with_those_it_has() {
    let runtime = centerpoint_ptq::detector::runtime::init().unwrap();
    let available = runtime.providers();
    assert!(available.contains(&Provider::Cpu));
    for provider in Provider::ALL {
        if available.contains(&provider) {
            continue;
        }
        let options = RuntimeOptions {
            provider,
            ..options()
        };
        let message = Detector::load(&tiny(), &options).unwrap_err().to_string();
        assert_says(
            &message,
            &[provider.name(), "it has: cpu", "ORT_DYLIB_PATH"],
        );
    }
}

#[test]
fn the_id_is_that_of_the_weights() {
    let (one, other) = (load(&tiny()), load(&tiny()));
    assert_eq!(one.id(), other.id());
    assert_eq!(one.id().len(), 12);
    let mut model = tiny();
    model.backbone.file = "backbone_nan.onnx".into();
    assert_ne!(load(&model).id(), one.id());
    let size = |name| std::fs::metadata(folder().join(name)).unwrap().len();
    assert_eq!(
        one.model_bytes(),
        size("encoder.onnx") + size("backbone.onnx")
    );
}

#[test]
fn a_detector_can_move_to_another_thread() {
    let mut detector = load(&tiny());
    let found = std::thread::spawn(move || detector.detect(&cloud(&[[0.0; 3]])).unwrap())
        .join()
        .unwrap();
    assert_eq!(found.detections.len(), 1);
}
