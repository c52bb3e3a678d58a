//! Every key of `model.yaml` and of the recipe is on its page or in its examples, and changes something.
//!
//! The keys are asked of the types themselves: a key or a choice that does not exist is refused with those that do.
//! These tests need ONNX Runtime; without it they fail and say where it was looked for.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use centerpoint_ptq::cloud::{Point, Points};
use centerpoint_ptq::detector::decode::{self, HeadMaps};
use centerpoint_ptq::detector::{Detector, ModelDescription, RuntimeOptions};
use centerpoint_ptq::onnx::Model;
use centerpoint_ptq::ptq;
use centerpoint_ptq::ptq::progress::Silent;
use centerpoint_ptq::ptq::recipe::{Recipe, Target};
use ndarray::Array4;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_yaml::Value;

mod small;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A place in a document: keys and, in sequences, positions.
type Place = Vec<String>;

fn step<'a>(value: &'a mut Value, key: &str) -> Option<&'a mut Value> {
    match value {
        Value::Sequence(items) => items.get_mut(key.parse::<usize>().ok()?),
        Value::Mapping(map) => map.get_mut(key),
        _ => None,
    }
}

fn at<'a>(document: &'a mut Value, place: &[String]) -> Option<&'a mut Value> {
    place
        .iter()
        .try_fold(document, |value, key| step(value, key))
}

/// The words in backticks behind `expected`.
fn expected(error: &str) -> Vec<String> {
    let Some((_, words)) = error.split_once("expected") else {
        return Vec::new();
    };
    let words = words.split('`').skip(1).step_by(2);
    words.map(str::to_owned).collect()
}

/// What the types know of a document.
#[derive(Default)]
struct Schema {
    /// Keys with dots between the levels, without positions.
    keys: BTreeSet<String>,
    /// Choices by key.
    choices: BTreeMap<String, Vec<String>>,
}

fn dotted(place: &[String]) -> String {
    let keys = place.iter().filter(|k| k.parse::<usize>().is_err());
    keys.cloned().collect::<Vec<_>>().join(".")
}

/// Asks the types for keys and choices by offering ones that there are not.
fn schema(document: &Value, parse: &dyn Fn(&str) -> Result<(), String>) -> Schema {
    let refusal = |place: &[String], change: &dyn Fn(&mut Value)| {
        let mut changed = document.clone();
        change(at(&mut changed, place).unwrap());
        let text = serde_yaml::to_string(&changed).unwrap();
        parse(&text).err().unwrap_or_default()
    };
    let mut found = Schema::default();
    let mut open: Vec<Place> = vec![vec![]];
    while let Some(place) = open.pop() {
        let mut copy = document.clone();
        match at(&mut copy, &place).unwrap() {
            Value::Mapping(map) => {
                let error = refusal(&place, &|value| {
                    let map = value.as_mapping_mut().unwrap();
                    map.insert("no_such_key".into(), "no such value".into());
                });
                if error.contains("unknown field") {
                    let prefix = dotted(&place);
                    for key in expected(&error) {
                        let key = match prefix.as_str() {
                            "" => key,
                            prefix => format!("{prefix}.{key}"),
                        };
                        found.keys.insert(key);
                    }
                }
                for key in map.keys().filter_map(Value::as_str) {
                    open.push([place.clone(), vec![key.to_owned()]].concat());
                }
            }
            Value::Sequence(items) => {
                for index in 0..items.len() {
                    open.push([place.clone(), vec![index.to_string()]].concat());
                }
            }
            Value::String(_) => {
                let error = refusal(&place, &|value| *value = "no_such_choice".into());
                if error.contains("unknown variant") {
                    found.choices.insert(dotted(&place), expected(&error));
                }
            }
            _ => {}
        }
    }
    found
}

/// Keys of a document that hold no other keys.
fn leaves(schema: &Schema) -> BTreeSet<String> {
    let holds = |key: &String| {
        let prefix = format!("{key}.");
        schema.keys.iter().any(|other| other.starts_with(&prefix))
    };
    let leaves = schema.keys.iter().filter(|key| !holds(key));
    leaves.cloned().collect()
}

/// A document with another value, `None` to take the key out. Keys of `layers` mean its first item.
fn with(document: &Value, key: &str, value: Option<&str>) -> Value {
    let mut changed = document.clone();
    let mut place: Place = key.split('.').map(str::to_owned).collect();
    if place[0] == "layers" {
        place.insert(1, "0".into());
    }
    let last = place.pop().unwrap();
    let parent = at(&mut changed, &place)
        .and_then(Value::as_mapping_mut)
        .unwrap();
    match value {
        Some(value) => parent.insert(last.into(), serde_yaml::from_str(value).unwrap()),
        None => parent.remove(last.as_str()),
    };
    changed
}

fn text(document: &Value) -> String {
    serde_yaml::to_string(document).unwrap()
}

// --- the page ----------------------------------------------------------------------------------------------------

fn page() -> String {
    fs::read_to_string(root().join("docs/model.md")).unwrap()
}

/// The example of the page.
fn example() -> Value {
    let page = page();
    let (_, rest) = page.split_once("```yaml\n").unwrap();
    serde_yaml::from_str(rest.split_once("```").unwrap().0).unwrap()
}

fn described(text: &str) -> Result<ModelDescription, String> {
    ModelDescription::parse(text, Path::new("model.yaml")).map_err(|e| e.to_string())
}

fn model_schema() -> Schema {
    schema(&example(), &|text| described(text).map(|_| ()))
}

/// Key, what holds where it is left out, and its row.
fn rows() -> Vec<(String, String, String)> {
    let page = page();
    let rows = page.lines().filter(|line| line.starts_with("| `"));
    let rows = rows.filter_map(|row| {
        let cells: Vec<&str> = row.split(" | ").collect();
        let key = cells[0].trim_start_matches("| ").trim_matches('`');
        (cells.len() == 3).then(|| {
            (
                key.to_owned(),
                cells[1].trim_matches('`').to_owned(),
                cells[2].to_owned(),
            )
        })
    });
    rows.collect()
}

#[test]
fn the_example_has_every_key_and_is_a_model() {
    let schema = model_schema();
    assert!(schema.keys.len() > 40, "{:?}", schema.keys);
    let mut document = example();
    for key in &schema.keys {
        let place: Place = key.split('.').map(str::to_owned).collect();
        assert!(
            at(&mut document, &place).is_some(),
            "{key} is not in the example"
        );
    }
    described(&text(&document)).unwrap();
}

#[test]
fn the_page_has_every_key_and_no_other() {
    let schema = model_schema();
    let on_page: BTreeSet<String> = rows().into_iter().map(|(key, ..)| key).collect();
    let leaves = leaves(&schema);
    let missing: Vec<_> = leaves.difference(&on_page).collect();
    assert!(missing.is_empty(), "not on the page: {missing:?}");
    let unknown: Vec<_> = on_page.difference(&schema.keys).collect();
    assert!(unknown.is_empty(), "no keys: {unknown:?}");
}

#[test]
fn the_page_has_every_choice() {
    let rows: BTreeMap<String, String> = rows().into_iter().map(|(k, _, text)| (k, text)).collect();
    let choices = model_schema().choices;
    assert_eq!(choices.len(), 12, "{choices:?}");
    for (key, choices) in choices {
        for choice in choices {
            let row = &rows[&key];
            assert!(
                row.contains(&format!("`{choice}`")),
                "{key}: {choice}: {row}"
            );
        }
    }
}

#[test]
fn the_page_says_what_holds_where_a_key_is_left_out() {
    let document = example();
    for (key, left_out, _) in rows() {
        let without = with(&document, &key, None);
        let model = described(&text(&without));
        if left_out == "required" {
            let error = model.expect_err(&key);
            let name = key.rsplit('.').next().unwrap();
            assert!(
                error.contains(&format!("missing field `{name}`")) || error.contains("no `format`"),
                "{error}"
            );
            continue;
        }
        let model = model.unwrap_or_else(|e| panic!("{key} is not required? {e}"));
        if key == "post.iou_nms.separate_classes" {
            // Left out it stays so in the description, and means this.
            let same = with(&document, &key, Some(&left_out));
            let same = described(&text(&same)).unwrap();
            assert_eq!(model.separate_classes(), same.separate_classes());
            continue;
        }
        if left_out == "none" {
            let mut value = serde_yaml::to_value(&model).unwrap();
            let place: Place = key.split('.').map(str::to_owned).collect();
            assert_eq!(at(&mut value, &place), None, "{key}");
        } else {
            let said = with(&document, &key, Some(&left_out));
            assert_eq!(described(&text(&said)).unwrap(), model, "{key}");
        }
    }
}

// --- model.yaml ----------------------------------------------------------------------------------------------------

/// Other values are not read at all: there is one version and one layout.
const ONLY_ONE: &[&str] = &["format", "layout"];
/// A name, and a word on what may be quantized; neither is of the network.
const SAID_ONLY: &[&str] = &["name", "precision"];
/// Read where clouds are placed, joined and judged, before a detector sees them; held in the tests of that.
const OF_CLOUDS: &[&str] = &[
    "frame",
    "points.sweeps",
    "points.sweep_period",
    "points.intensity_max",
    "grid.ground",
];

/// The tiny model with every key.
const FULL: &str = "
format: 1
name: tiny
precision: float
layout: two_part
classes: [CAR, PEDESTRIAN]
frame: base_link
encoder: { file: encoder.onnx, input: input_features, output: pillar_features }
backbone:
  file: backbone.onnx
  input: spatial_features
  outputs: { heatmap: heatmap, reg: reg, height: height, dim: dim, rot: rot, vel: vel }
points: { features: [x, y, z, intensity], intensity_scale: 0.5, intensity_max: 255.0, sweeps: 2, sweep_period: 0.1 }
grid:
  min: [-4.0, -4.0, -2.0]
  max: [4.0, 4.0, 2.0]
  pillar: [1.0, 1.0]
  max_pillars: 16
  max_points: 4
  decorations: [cluster_xyz, centre_xy]
  downsample: 2
  ground: 0.0
head: { heatmap: logit, dim_scale: log, dim_order: wlh, rot_order: sin_cos, yaw: legacy, velocity_frame: ego }
post:
  peak_kernel: 3
  score_thresholds: [0.5, 0.5]
  yaw_norm_thresholds: [0.3, 0.0]
  max_detections: 4
  circle_nms: { distance: 2.0, unit: metres }
  iou_nms: { threshold: 0.1, search_distance: 10.0, separate_classes: [PEDESTRIAN], suppressors: kept }
";

/// Other values that make another model, or one that the graph contradicts.
const OTHERS: &[(&str, &str)] = &[
    ("classes", "[BUS, PEDESTRIAN]"),
    ("encoder.file", "encoder_five_channels.onnx"),
    ("encoder.input", "points"),
    ("encoder.output", "1"),
    ("backbone.file", "backbone_nan.onnx"),
    ("backbone.input", "3"),
    ("backbone.outputs.heatmap", "hm"),
    ("backbone.outputs.reg", "center"),
    ("backbone.outputs.height", "center_z"),
    ("backbone.outputs.dim", "size"),
    ("backbone.outputs.rot", "7"),
    ("backbone.outputs.vel", "speed"),
    ("points.features", "[x, y, intensity, z]"),
    ("points.intensity_scale", "0.25"),
    ("grid.min", "[-4.0, -4.0, 0.2]"),
    ("grid.max", "[4.0, 4.0, 0.4]"),
    ("grid.pillar", "[0.5, 0.5]"),
    ("grid.max_pillars", "3"),
    ("grid.max_points", "2"),
    ("grid.decorations", "[centre_xy, cluster_xyz]"),
    ("grid.downsample", "4"),
    ("head.heatmap", "sigmoid"),
    ("head.dim_scale", "linear"),
    ("head.dim_order", "lwh"),
    ("head.rot_order", "cos_sin"),
    ("head.yaw", "direct"),
    ("head.velocity_frame", "object"),
    ("post.peak_kernel", "0"),
    ("post.score_thresholds", "[0.5, 0.9]"),
    ("post.yaw_norm_thresholds", "[0.8, 0.0]"),
    ("post.max_detections", "2"),
    ("post.circle_nms.distance", "3.0"),
    ("post.circle_nms.unit", "squared_metres"),
    ("post.iou_nms.threshold", "0.5"),
    ("post.iou_nms.search_distance", "0.1"),
    ("post.iou_nms.separate_classes", "[]"),
    ("post.iou_nms.suppressors", "all"),
];

/// Boxes of maps at random, enough of them that every rule has something to decide.
fn decoded(model: &ModelDescription) -> String {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let mut found = Vec::new();
    for _ in 0..40 {
        let mut map = |channels: usize, low: f32, high: f32| {
            Array4::from_shape_simple_fn((1, channels, 4, 4), || rng.random_range(low..high))
        };
        let maps = HeadMaps {
            heatmap: map(2, -3.0, 3.0),
            reg: map(2, 0.0, 1.0),
            height: map(1, -1.0, 1.0),
            dim: map(3, 0.8, 1.8),
            rot: map(2, -1.0, 1.0),
            vel: Some(map(2, -5.0, 5.0)),
        };
        for detection in decode::decode(&maps.view(), model) {
            found.push(format!("{} {detection:?}", model.classes[detection.class]));
        }
    }
    found.join("\n")
}

/// All that a description makes of a model: what is refused when it is loaded, else what the network reads and the
/// boxes that come out.
fn observed(description: &str) -> String {
    let path = root().join("tests/fixtures/tiny/model.yaml");
    let model = ModelDescription::parse(description, &path)
        .unwrap_or_else(|e| panic!("the values of this test have to be possible ones: {e}"));
    let mut detector = match Detector::load(&model, &RuntimeOptions::default()) {
        Ok(detector) => detector,
        Err(error) => return error.to_string(),
    };
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    let mut point = || Point {
        x: rng.random_range(-4.0..4.0),
        y: rng.random_range(-4.0..4.0),
        z: rng.random_range(-1.0..1.0),
        intensity: rng.random_range(0.0..255.0),
        ring: 5,
        ..Point::default()
    };
    let points = Points((0..25).map(|_| point()).collect());
    let inference = detector.detect(&points);
    let boxes = inference.map(|i| (i.detections, i.pillars, i.dropped_pillars));
    let pillars = detector.pillars();
    format!("{boxes:?}\n{pillars:?}\n{}", decoded(&model))
}

#[test]
fn every_key_of_a_description_changes_something() {
    let full: Value = serde_yaml::from_str(FULL).unwrap();
    let schema = schema(&full, &|text| described(text).map(|_| ()));
    let held: BTreeSet<String> = [ONLY_ONE, SAID_ONLY, OF_CLOUDS]
        .concat()
        .into_iter()
        .chain(OTHERS.iter().map(|(key, _)| *key))
        .map(str::to_owned)
        .collect();
    assert_eq!(
        leaves(&schema),
        held,
        "keys without a test, or tests without a key"
    );
    let before = observed(&text(&full));
    let idle = OTHERS
        .iter()
        .filter(|(key, other)| observed(&text(&with(&full, key, Some(other)))) == before);
    let idle: Vec<_> = idle.collect();
    assert!(idle.is_empty(), "these change nothing: {idle:?}");
    for key in ONLY_ONE {
        assert!(described(&text(&with(&full, key, Some("2")))).is_err());
    }
    for (key, other) in [("name", "other"), ("precision", "int8")] {
        let other = with(&full, key, Some(other));
        assert_eq!(observed(&text(&other)), before, "{key} is more than said");
        assert_ne!(described(&text(&other)), described(&text(&full)));
    }
}

// --- recipes ---------------------------------------------------------------------------------------------------------

/// Change no number of the model: a name, the time to measure for, and threads, whose number no result depends on.
const OF_THE_RUN: &[&str] = &["name", "check.warm_up", "check.latency_runs", "threads"];
/// Decide whether there is a model at all.
const ONLY_REFUSES: &[(&str, &str)] = &[
    ("format", "2"),
    ("frames.min_calibration", "13"),
    ("frames.min_held_out", "13"),
];

/// Few bits, so that every rule has something to decide, and everything small.
fn small_recipe() -> Value {
    let file = root().join("calibration/w4a4.yaml");
    let mut recipe: Value = serde_yaml::from_str(&fs::read_to_string(file).unwrap()).unwrap();
    for (key, value) in [
        ("frames.max", "16"),
        ("frames.block", "1"),
        ("frames.hold_out_every", "2"),
        ("frames.min_calibration", "2"),
        ("frames.min_held_out", "2"),
        ("weights.search.steps", "20"),
        ("activations.search.steps", "20"),
        ("activations.bins", "512"),
        ("input_bits", "6"),
        ("equalization.frames", "4"),
        ("reconstruction.iterations", "8"),
        (
            "reconstruction.crops",
            "{ size: 16, margin: 2, per_frame: 2, max: 12, judged: 4, memory_mb: 100 }",
        ),
        (
            "reconstruction.positives",
            "{ threshold: 0.1, max: 50, radius: 1 }",
        ),
        (
            "sensitivity",
            "{ windows: 4, keep: 1, max_float_share: 0.5, max_float_bytes: 1000000 }",
        ),
        (
            "layers",
            "[{ name: up, keep_float: false, weight_bits: 8, activation_bits: 8 }]",
        ),
        (
            "gate.pairing",
            "{ distance: 1.0, class_distance: { PEDESTRIAN: 1.0 }, bands: [6.0] }",
        ),
        ("gate.min_boxes", "5"),
        ("gate.min_boxes_total", "5"),
        ("gate.bands.min_boxes", "3"),
        ("check", "{ warm_up: 0, latency_runs: 1 }"),
        ("threads", "1"),
    ] {
        if key == "layers" {
            recipe
                .as_mapping_mut()
                .unwrap()
                .insert(key.into(), serde_yaml::from_str(value).unwrap());
        } else {
            recipe = with(&recipe, key, Some(value));
        }
    }
    recipe
}

/// Quantizes the small model; all that depends on the recipe and not on the clock.
struct Bench {
    folder: tempfile::TempDir,
    float: ModelDescription,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let heads = [
            ("heatmap", 2, -2.0),
            ("reg", 2, 0.5),
            ("height", 1, 0.0),
            ("dim", 3, 0.5),
            ("rot", 2, 0.7),
            ("vel", 2, 0.1),
        ];
        let float = small::model_of_heads(folder.path(), &heads);
        Bench { folder, float }
    }

    fn observed(&self, recipe: &Value, target: Target) -> Result<String, String> {
        let recipe =
            Recipe::parse(&text(recipe), Path::new("recipe.yaml")).map_err(|e| e.to_string())?;
        let out: PathBuf = self.folder.path().join("out");
        let _ = fs::remove_dir_all(&out);
        let frames = small::samples(20).into_iter();
        let report = ptq::quantize(&self.float, frames, &recipe, target, &out, &mut Silent)
            .map_err(|e| e.to_string())?;
        let mut graph = Model::load(out.join("backbone.onnx")).unwrap();
        graph.proto_mut().metadata_props.clear();
        let mut report = serde_json::to_value(report).unwrap();
        let map = report.as_object_mut().unwrap();
        for of_the_clock in ["recipe", "tool", "cost", "int8_files"] {
            map.remove(of_the_clock);
        }
        for block in map["reconstruction"].as_array_mut().unwrap() {
            block.as_object_mut().unwrap().remove("seconds");
        }
        let check = map["check"].as_object_mut().unwrap();
        for of_the_clock in ["latency", "kernels"] {
            check.remove(of_the_clock);
        }
        Ok(format!("{report}\n{:?}", graph.graph()))
    }
}

/// Holds that each key's other value gives another result.
fn assert_changes(target: Target, others: &[(&str, &str)]) {
    let bench = Bench::new();
    let recipe = small_recipe();
    let before = bench.observed(&recipe, target).unwrap();
    let idle: Vec<_> = others
        .iter()
        .filter(|(key, other)| {
            let after = bench.observed(&with(&recipe, key, Some(other)), target);
            after.unwrap_or_else(|e| panic!("{key}: {other}: {e}")) == before
        })
        .collect();
    assert!(idle.is_empty(), "these change nothing: {idle:?}");
}

const OF_RANGES: &[(&str, &str)] = &[
    ("frames.max", "14"),
    ("frames.block", "2"),
    ("frames.hold_out_every", "3"),
    ("equalization.alpha", "0.9"),
    ("equalization.limit", "1.1"),
    ("equalization.frames", "1"),
    ("weights.bits", "5"),
    ("weights.search.alpha", "0.3"),
    ("weights.search.beta", "1.0"),
    ("weights.search.steps", "50"),
    ("weights.search.p", "4.0"),
    ("activations.bits", "5"),
    ("activations.search.alpha", "0.3"),
    ("activations.search.beta", "1.0"),
    ("activations.search.steps", "50"),
    ("activations.search.p", "1.0"),
    ("activations.bins", "256"),
    ("input_bits", "8"),
    ("keep_float.head_outputs", "false"),
    ("layers.name", "lateral"),
    ("layers.keep_float", "true"),
    ("layers.weight_bits", "5"),
    ("layers.activation_bits", "5"),
    ("targets.cpu.activations", "int8_symmetric"),
    ("targets.cpu.bias", "float"),
];

const OF_RECONSTRUCTION: &[(&str, &str)] = &[
    ("reconstruction.iterations", "5"),
    ("reconstruction.batch", "2"),
    ("reconstruction.block", "1"),
    ("reconstruction.rate", "0.3"),
    ("reconstruction.activation_rate", "0.05"),
    ("reconstruction.regularizer", "9.0"),
    ("reconstruction.beta", "[30.0, 2.0]"),
    ("reconstruction.warm_up", "0.7"),
    ("reconstruction.drop", "0.1"),
    ("reconstruction.seed", "1"),
    ("reconstruction.crops.size", "24"),
    ("reconstruction.crops.margin", "4"),
    ("reconstruction.crops.per_frame", "1"),
    ("reconstruction.crops.max", "6"),
    ("reconstruction.crops.judged", "2"),
    ("reconstruction.positives.threshold", "0.3"),
    ("reconstruction.positives.max", "1"),
    ("reconstruction.positives.radius", "0"),
    ("reconstruction.tgpl.weight", "9.0"),
    ("reconstruction.tgpl.every", "2"),
    ("reconstruction.tgpl.boxes", "3.0"),
    ("reconstruction.tgpl.velocity", "9.0"),
    ("sensitivity.windows", "1"),
    ("sensitivity.keep", "0"),
];

const OF_THE_GATE: &[(&str, &str)] = &[
    ("gate.pairing.distance", "0.01"),
    ("gate.pairing.class_distance", "{ CAR: 0.01 }"),
    ("gate.pairing.bands", "[3.0]"),
    ("gate.min_boxes", "100000"),
    ("gate.min_boxes_total", "100000"),
    ("gate.must_judge", "[PEDESTRIAN]"),
    ("gate.min_f1", "1.0"),
    ("gate.max_missed", "0.0"),
    ("gate.max_extra", "0.0"),
    ("gate.max_centre_error", "0.000001"),
    ("gate.max_yaw_error", "0.000001"),
    ("gate.max_size_error", "0.000001"),
    ("gate.bands.min_boxes", "100000"),
    ("gate.bands.min_f1", "1.0"),
    ("gate.bands.max_missed", "0.0"),
    ("gate.bands.max_extra", "0.0"),
    ("gate.bands.max_centre_error", "0.000001"),
    ("gate.bands.max_yaw_error", "0.000001"),
    ("gate.bands.max_size_error", "0.000001"),
];

const OF_TENSORRT: &[(&str, &str)] = &[
    ("targets.tensorrt.activations", "uint8"),
    ("targets.tensorrt.bias", "int32"),
    ("targets.tensorrt.reduce_range", "always"),
];

/// Keys that need a network or bits of their own to matter, each with a test below.
const BY_THEMSELVES: &[&str] = &[
    "targets.cpu.reduce_range",
    "targets.cpu.conv_transpose",
    "targets.tensorrt.conv_transpose",
    "reconstruction.multiplications",
    "reconstruction.crops.memory_mb",
    "sensitivity.max_float_share",
    "sensitivity.max_float_bytes",
];

#[test]
fn every_key_of_a_recipe_is_held_here() {
    let recipe = small_recipe();
    let parse = |text: &str| Recipe::parse(text, Path::new("recipe.yaml")).map(|_| ());
    let schema = schema(&recipe, &|text| parse(text).map_err(|e| e.to_string()));
    parse(&text(&recipe)).unwrap();
    let changing = [
        OF_RANGES,
        OF_RECONSTRUCTION,
        OF_THE_GATE,
        OF_TENSORRT,
        ONLY_REFUSES,
    ]
    .concat();
    let held: BTreeSet<String> = changing
        .into_iter()
        .map(|(key, _)| key)
        .chain([OF_THE_RUN, BY_THEMSELVES].concat())
        .map(str::to_owned)
        .collect();
    assert_eq!(
        leaves(&schema),
        held,
        "keys without a test, or tests without a key"
    );
}

#[test]
fn every_key_of_ranges_changes_something() {
    assert_changes(Target::Cpu, OF_RANGES);
}

#[test]
fn every_key_of_the_reconstruction_changes_something() {
    assert_changes(Target::Cpu, OF_RECONSTRUCTION);
}

#[test]
fn every_key_of_the_gate_changes_something() {
    assert_changes(Target::Cpu, OF_THE_GATE);
}

#[test]
fn every_key_of_the_tensorrt_target_changes_something() {
    assert_changes(Target::TensorRt, OF_TENSORRT);
}

#[test]
fn keys_that_only_refuse_do() {
    let bench = Bench::new();
    for (key, other) in ONLY_REFUSES {
        let refused = bench.observed(&with(&small_recipe(), key, Some(other)), Target::Cpu);
        assert!(refused.is_err(), "{key}: {other}");
    }
}

#[test]
fn keys_of_the_run_change_no_result() {
    let bench = Bench::new();
    let before = bench.observed(&small_recipe(), Target::Cpu).unwrap();
    for (key, other) in OF_THE_RUN.iter().zip(["other", "1", "2", "2"]) {
        let other = with(&small_recipe(), key, Some(other));
        let after = bench.observed(&other, Target::Cpu).unwrap();
        assert!(after == before, "{key} changes a result");
    }
}

#[test]
fn keys_that_need_a_case_of_their_own_change_something() {
    let bench = Bench::new();
    let differs = |recipe: &Value, target, key: &str, values: [&str; 2]| {
        let [a, b] = values.map(|value| {
            let recipe = with(recipe, key, Some(value));
            bench.observed(&recipe, target).unwrap()
        });
        assert!(a != b, "{key} changes nothing");
    };
    // Of 8 bits one goes; of 4 none would have to.
    let eight = ["weights.bits", "activations.bits"]
        .iter()
        .fold(small_recipe(), |recipe, key| with(&recipe, key, Some("8")));
    differs(
        &eight,
        Target::Cpu,
        "targets.cpu.reduce_range",
        ["always", "never"],
    );
    // What has 8 bits can only stay in float.
    for (key, none) in [
        ("sensitivity.max_float_share", "0.0"),
        ("sensitivity.max_float_bytes", "0"),
    ] {
        let much = if key.ends_with("share") {
            "1.0"
        } else {
            "1000000"
        };
        differs(&eight, Target::Cpu, key, [none, much]);
    }
    // A bound leaves a number of steps, and of windows, that are not worth to be bounded.
    let long = with(&small_recipe(), "reconstruction.iterations", Some("24"));
    let key = "reconstruction.multiplications";
    differs(&long, Target::Cpu, key, ["1.0", "0"]);
    let crops = "{ size: 16, margin: 2, per_frame: 40, max: 400, judged: 4, memory_mb: 100 }";
    let wide = with(&small_recipe(), "reconstruction.crops", Some(crops));
    let key = "reconstruction.crops.memory_mb";
    differs(&wide, Target::Cpu, key, ["1", "100"]);
    // A transposed convolution that overlaps cannot become another.
    let path = bench.float.backbone_path();
    let mut graph = Model::load(&path).unwrap();
    let wide = small::random(
        &mut ChaCha8Rng::seed_from_u64(5),
        "wu",
        &[16, 8, 4, 4],
        -0.1,
        0.1,
    );
    graph.set_initializer(wide);
    let up = graph
        .graph_mut()
        .node
        .iter_mut()
        .find(|n| n.is("ConvTranspose"))
        .unwrap();
    *up = up.clone().with_ints("pads", &[1, 1, 1, 1]);
    graph.save(&path).unwrap();
    let light = with(&small_recipe(), "reconstruction", None);
    let light = with(&light, "sensitivity", None);
    for (target, name) in [(Target::Cpu, "cpu"), (Target::TensorRt, "tensorrt")] {
        let key = format!("targets.{name}.conv_transpose");
        differs(&light, target, &key, ["true", "false"]);
    }
}
