//! Quantization held against ONNX Runtime: what is rewritten computes the same, what is exported computes what this
//! crate's own integer arithmetic says, and a whole run makes a model folder that loads and runs on integers.
//!
//! These tests need ONNX Runtime; without it they fail and say where it was looked for.

// A test that cannot go on fails.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use centerpoint_ptq::bag::Stamp;
use centerpoint_ptq::cloud::{Point, Points};
use centerpoint_ptq::detector::runtime::{self, RuntimeOptions};
use centerpoint_ptq::detector::{Detector, ModelDescription};
use centerpoint_ptq::onnx::proto::{NodeProto, TensorProto, TypeValue, data_type};
use centerpoint_ptq::onnx::{Model, deconvolution, fold, opset};
use centerpoint_ptq::ptq::export::{self, Quantization};
use centerpoint_ptq::ptq::frames::Sample;
use centerpoint_ptq::ptq::plan::{self, Plan};
use centerpoint_ptq::ptq::progress::{Progress, Silent, Stage};
use centerpoint_ptq::ptq::quantizer::{Levels, Quantizer};
use centerpoint_ptq::ptq::ranges::Extremes;
use centerpoint_ptq::ptq::recipe::{Recipe, Target};
use centerpoint_ptq::ptq::weights::LayerWeights;
use centerpoint_ptq::ptq::{self, PtqError};
use ndarray::{Array4, ArrayD, IxDyn};
use ort::value::TensorRef;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

mod small;
use small::{model, model_folder, random, samples, value};

fn quick() -> Recipe {
    Recipe::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join("calibration/quick.yaml")).unwrap()
}

/// Runs a model with one input; all outputs by name.
fn run(model: &Model, input: &ArrayD<f32>) -> HashMap<String, ArrayD<f32>> {
    let options = RuntimeOptions {
        threads: 1,
        ..Default::default()
    };
    let mut session = runtime::session_from_bytes(&model.encode(), "test", &options).unwrap();
    let names = model.output_names();
    let input_name = model.input_names()[0].clone();
    let tensor = TensorRef::from_array_view(input.view()).unwrap();
    let outputs = session
        .run(ort::inputs![input_name.as_str() => tensor])
        .unwrap();
    names
        .into_iter()
        .map(|n| {
            let (shape, values) = outputs[n.as_str()].try_extract_tensor::<f32>().unwrap();
            let shape: Vec<usize> = shape.iter().map(|&d| d as usize).collect();
            let array = ArrayD::from_shape_vec(IxDyn(&shape), values.to_vec()).unwrap();
            (n, array)
        })
        .collect()
}

fn image(rng: &mut impl Rng, dims: [usize; 4]) -> ArrayD<f32> {
    ArrayD::from_shape_simple_fn(IxDyn(&dims), || rng.random_range(-1.0f32..1.0))
}

/// Largest difference, as a share of the largest value.
fn difference(a: &ArrayD<f32>, b: &ArrayD<f32>) -> f32 {
    assert_eq!(a.shape(), b.shape());
    let scale = a.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    assert!(scale > 0.01, "an output of nothing shows nothing");
    a.iter()
        .zip(b)
        .fold(0.0f32, |m, (x, y)| m.max((x - y).abs()))
        / scale
}

#[test]
fn transposed_convolutions_as_1x1_convolutions_compute_what_onnx_runtime_computes() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for (k, inputs, outputs) in [(1, 5, 3), (2, 4, 6), (3, 7, 2), (4, 3, 5)] {
        for (bias, relu) in [(false, false), (true, true)] {
            let mut nodes = vec![];
            let mut constants = vec![random(&mut rng, "w", &[inputs, outputs, k, k], -1.0, 1.0)];
            let mut reads = vec!["x", "w"];
            if bias {
                constants.push(random(&mut rng, "b", &[outputs], -1.0, 1.0));
                reads.push("b");
            }
            let up = if relu { "t" } else { "y" };
            nodes.push(
                NodeProto::new("ConvTranspose", "up", &reads, &[up])
                    .with_ints("kernel_shape", &[k as i64, k as i64])
                    .with_ints("strides", &[k as i64, k as i64]),
            );
            if relu {
                nodes.push(NodeProto::new("Relu", "relu", &["t"], &["y"]));
            }
            let side = 6 * k as i64;
            let before = model(
                17,
                nodes,
                constants,
                vec![value("x", &[1, inputs as i64, 6, 6])],
                vec![value("y", &[1, outputs as i64, side, side])],
            );
            let mut after = before.clone();
            let rewritten = deconvolution::rewrite(&mut after).unwrap();
            assert_eq!(rewritten.nodes, ["up"]);
            assert!(!after.operator_counts().contains_key("ConvTranspose"));
            let x = image(&mut rng, [1, inputs, 6, 6]);
            let d = difference(&run(&before, &x)["y"], &run(&after, &x)["y"]);
            assert!(d < 1e-6, "kernel {k}: {d}");
        }
    }
}

#[test]
fn a_transposed_convolution_that_overlaps_stays_and_the_reason_is_told() {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let mut m = model(
        17,
        vec![
            NodeProto::new("ConvTranspose", "up", &["x", "w"], &["y"])
                .with_ints("strides", &[2, 2]),
        ],
        vec![random(&mut rng, "w", &[2, 2, 3, 3], -1.0, 1.0)],
        vec![value("x", &[1, 2, 4, 4])],
        vec![value("y", &[1, 2, 9, 9])],
    );
    let rewritten = deconvolution::rewrite(&mut m).unwrap();
    assert_eq!(rewritten.nodes.len(), 0);
    assert!(
        rewritten.kept[0].1.contains("differs from stride"),
        "{rewritten:?}"
    );
}

#[test]
fn folded_batch_normalization_computes_the_same() {
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let mut constants = vec![
        random(&mut rng, "w", &[6, 4, 3, 3], -1.0, 1.0),
        random(&mut rng, "b", &[6], -1.0, 1.0),
        random(&mut rng, "u", &[6, 2, 2, 2], -1.0, 1.0),
    ];
    for (i, channels) in [(0, 6), (1, 4), (2, 6)] {
        constants.push(random(
            &mut rng,
            &format!("gamma{i}"),
            &[channels],
            0.5,
            2.0,
        ));
        constants.push(random(
            &mut rng,
            &format!("beta{i}"),
            &[channels],
            -1.0,
            1.0,
        ));
        constants.push(random(
            &mut rng,
            &format!("mean{i}"),
            &[channels],
            -1.0,
            1.0,
        ));
        constants.push(random(&mut rng, &format!("var{i}"), &[channels], 0.1, 2.0));
    }
    let bn = |i: usize, from: &str, to: &str| {
        let parts = ["gamma", "beta", "mean", "var"].map(|p| format!("{p}{i}"));
        let mut inputs = vec![from];
        inputs.extend(parts.iter().map(String::as_str));
        NodeProto::new("BatchNormalization", &format!("bn{i}"), &inputs, &[to])
    };
    let pads = |n: NodeProto| n.with_ints("pads", &[1, 1, 1, 1]);
    let before = model(
        17,
        vec![
            pads(NodeProto::new("Conv", "conv", &["x", "w", "b"], &["c"])),
            bn(0, "c", "cn"),
            NodeProto::new("Relu", "relu", &["cn"], &["r"]),
            // Two groups of three inputs and two outputs.
            NodeProto::new("ConvTranspose", "up", &["r", "u"], &["t"])
                .with_ints("strides", &[2, 2])
                .with_int("group", 2),
            bn(1, "t", "y"),
            // The same weights and bias once more, with another normalization.
            pads(NodeProto::new("Conv", "twin", &["x", "w", "b"], &["d"])),
            bn(2, "d", "z"),
        ],
        constants,
        vec![value("x", &[1, 4, 8, 8])],
        vec![value("y", &[1, 4, 16, 16]), value("z", &[1, 6, 8, 8])],
    );
    let mut after = before.clone();
    assert_eq!(fold::batch_norm(&mut after).unwrap(), ["bn0", "bn1", "bn2"]);
    assert!(!after.operator_counts().contains_key("BatchNormalization"));
    let x = image(&mut rng, [1, 4, 8, 8]);
    let (a, b) = (run(&before, &x), run(&after, &x));
    for name in ["y", "z"] {
        let d = difference(&a[name], &b[name]);
        assert!(d < 1e-5, "{name}: {d}");
    }
}

#[test]
fn a_raised_operator_set_computes_the_same() {
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    let before = model(
        11,
        vec![
            NodeProto::new("Unsqueeze", "in", &["x"], &["a"]).with_ints("axes", &[2]),
            NodeProto::new("ReduceSum", "sum", &["a"], &["b"])
                .with_ints("axes", &[3])
                .with_int("keepdims", 1),
            NodeProto::new("Squeeze", "out", &["b"], &["c"]).with_ints("axes", &[2]),
            NodeProto::new("Softmax", "soft", &["c"], &["d"]).with_int("axis", -1),
            NodeProto::new("Split", "split", &["x"], &["e", "f"])
                .with_int("axis", 1)
                .with_ints("split", &[1, 3]),
            NodeProto::new("Dropout", "drop", &["e"], &["g"]),
            NodeProto::new("Mul", "mul", &["d", "g"], &["y"]),
        ],
        vec![],
        vec![value("x", &[1, 4, 1, 5])],
        vec![value("y", &[-1, -2, -3, -4])],
    );
    let mut after = before.clone();
    assert!(opset::raise(&mut after, 17).unwrap());
    let x = image(&mut rng, [1, 4, 1, 5]);
    assert!(difference(&run(&before, &x)["y"], &run(&after, &x)["y"]) < 1e-6);
}

/// Two convolutions side by side, joined, and a third on top; everything quantized.
fn small_graph(rng: &mut impl Rng) -> Model {
    model(
        17,
        vec![
            NodeProto::new("Conv", "left", &["x", "wl", "bl"], &["l"])
                .with_ints("pads", &[1, 1, 1, 1])
                .with_ints("strides", &[2, 2]),
            NodeProto::new("Relu", "left_relu", &["l"], &["lr"]),
            NodeProto::new("ConvTranspose", "up", &["lr", "wu", "bu"], &["u"])
                .with_ints("strides", &[2, 2]),
            NodeProto::new("Relu", "up_relu", &["u"], &["ur"]),
            NodeProto::new("Conv", "right", &["x", "wr", "br"], &["r"])
                .with_ints("pads", &[1, 1, 1, 1]),
            NodeProto::new("Relu", "right_relu", &["r"], &["rr"]),
            NodeProto::new("Concat", "cat", &["ur", "rr"], &["c"]).with_int("axis", 1),
            NodeProto::new("Conv", "top", &["c", "wt", "bt"], &["t"])
                .with_ints("pads", &[1, 1, 1, 1]),
            NodeProto::new("Relu", "top_relu", &["t"], &["y"]),
        ],
        vec![
            random(rng, "wl", &[6, 4, 3, 3], -0.5, 0.5),
            random(rng, "bl", &[6], -0.2, 0.2),
            random(rng, "wu", &[6, 5, 2, 2], -0.5, 0.5),
            random(rng, "bu", &[5], -0.2, 0.2),
            random(rng, "wr", &[3, 4, 3, 3], -0.5, 0.5),
            random(rng, "br", &[3], -0.2, 0.2),
            random(rng, "wt", &[7, 8, 3, 3], -0.5, 0.5),
            random(rng, "bt", &[7], -0.2, 0.2),
        ],
        vec![value("x", &[1, 4, 12, 12])],
        vec![value("y", &[1, 7, 12, 12])],
    )
}

/// Weights and activations calibrated on one input.
fn calibrated(graph: &Model, recipe: &Recipe, target: Target, x: &ArrayD<f32>) -> Quantization {
    let settings = recipe.target(target);
    let plan = Plan::new(graph, recipe, settings).unwrap();
    let weights: Vec<LayerWeights> = plan
        .layers
        .iter()
        .map(|l| {
            let w = graph.initializer_f32(&l.weight).unwrap();
            LayerWeights::calibrate(
                &w,
                l.axis,
                Levels::symmetric(l.weight_bits),
                &recipe.weights.search,
            )
            .unwrap()
        })
        .collect();
    let mut watched = graph.clone();
    for tensor in plan.groups.iter().flat_map(|g| &g.sources) {
        if tensor != "x" && tensor != "y" {
            watched
                .graph_mut()
                .output
                .push(value(tensor, &[-1, -2, -3, -4]));
        }
    }
    let seen = run(&watched, x);
    let activations = plan
        .groups
        .iter()
        .map(|g| {
            let mut extremes = Extremes::default();
            for tensor in &g.sources {
                let values = if tensor == "x" { x } else { &seen[tensor] };
                extremes.add(values.as_slice().unwrap());
            }
            settings.activations.max_min(&extremes, g.bits)
        })
        .collect();
    let mut quantization = Quantization {
        plan,
        weights,
        activations,
    };
    quantization.fit_biases(graph).unwrap();
    quantization
}

/// A plain convolution over integers: exact sums, one rounding at the end.
fn integer_convolution(
    input: &Array4<i32>,
    input_zero: i32,
    weights: &LayerWeights,
    bias: &[i64],
    (stride, pad): (usize, usize),
) -> Array4<i64> {
    let &[outputs, inputs, kernel, _] = weights.dims.as_slice() else {
        panic!("four axes");
    };
    let (_, _, height, width) = input.dim();
    let size = |n: usize| (n + 2 * pad - kernel) / stride + 1;
    Array4::from_shape_fn((1, outputs, size(height), size(width)), |(_, o, y, x)| {
        let mut sum = bias[o];
        for i in 0..inputs {
            for dy in 0..kernel {
                for dx in 0..kernel {
                    let (sy, sx) = (
                        (y * stride + dy).wrapping_sub(pad),
                        (x * stride + dx).wrapping_sub(pad),
                    );
                    if sy < height && sx < width {
                        let w = weights.integers[((o * inputs + i) * kernel + dy) * kernel + dx];
                        sum += i64::from(input[[0, i, sy, sx]] - input_zero) * i64::from(w);
                    }
                }
            }
        }
        sum
    })
}

/// The graph of [`small_graph`] in integers only, by this crate's own quantizers.
fn integer_forward(graph: &Model, q: &Quantization, x: &ArrayD<f32>) -> Array4<i32> {
    let quantizer = |tensor: &str| -> Quantizer { q.activations[q.plan.group_of(tensor).unwrap()] };
    let layer = |name: &str, input: &Array4<i32>, geometry: (usize, usize)| -> Array4<i32> {
        let at = q.plan.layers.iter().position(|l| l.name == name).unwrap();
        let (l, w) = (&q.plan.layers[at], &q.weights[at]);
        let (from, to) = (quantizer(&l.input), quantizer(&l.output));
        let bias = graph
            .initializer_f32(l.bias.as_ref().unwrap())
            .unwrap()
            .data;
        let scales = w.scales();
        let bias: Vec<i64> = bias
            .iter()
            .zip(&scales)
            .map(|(b, s)| (b / (s * from.scale)).round_ties_even() as i64)
            .collect();
        let sums = integer_convolution(input, from.zero_point, w, &bias, geometry);
        Array4::from_shape_fn(sums.dim(), |(n, c, y, x)| {
            let value = sums[[n, c, y, x]] as f32 * (scales[c] * from.scale);
            // The Relu of unsigned integers is their lower end.
            to.quantize(value.max(0.0))
        })
    };
    let input = x.view().into_dimensionality::<ndarray::Ix4>().unwrap();
    let input = input.mapv(|v| quantizer("x").quantize(v));
    let left = layer("left", &input, (2, 1));
    let wide = layer("up", &left, (1, 0));
    let (_, channels, height, width) = wide.dim();
    let up = Array4::from_shape_fn((1, channels / 4, height * 2, width * 2), |(_, c, y, x)| {
        wide[[0, (y % 2 * 2 + x % 2) * (channels / 4) + c, y / 2, x / 2]]
    });
    let right = layer("right", &input, (1, 1));
    let cat = ndarray::concatenate![ndarray::Axis(1), up, right];
    layer("top", &cat, (1, 1))
}

#[test]
fn the_exported_model_computes_our_own_integer_arithmetic_within_one_step() {
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let mut recipe = quick();
    recipe.keep_float.head_outputs = false;
    for weight_bits in [8, 4] {
        recipe.weights.bits = weight_bits;
        let graph = plan::prepare(small_graph(&mut rng)).unwrap().model;
        let x = image(&mut rng, [1, 4, 12, 12]);
        let quantization = calibrated(&graph, &recipe, Target::Cpu, &x);
        let exported = export::qdq(&graph, &quantization, recipe.target(Target::Cpu)).unwrap();
        let got = &run(&exported, &x)["y"];
        let expected = integer_forward(&graph, &quantization, &x);
        let out = quantization.activations[quantization.plan.group_of("y").unwrap()];
        let (mut exact, mut worst) = (0usize, 0);
        for (g, e) in got.iter().zip(expected.iter()) {
            let steps = (out.quantize(*g) - e).abs();
            exact += usize::from(steps == 0);
            worst = worst.max(steps);
        }
        // An integer off by one in a middle layer may move the last by more than its own rounding.
        let share = exact as f32 / got.len() as f32;
        assert!(
            worst <= 1 && share > 0.99,
            "{weight_bits} bits: {worst} steps, {share} exact"
        );
        // And the whole is near the float model.
        let d = difference(&run(&graph, &x)["y"], got);
        assert!(d < if weight_bits == 8 { 0.03 } else { 0.4 }, "{d}");
    }
}

#[test]
fn the_integers_in_the_file_are_ours() {
    let mut rng = ChaCha8Rng::seed_from_u64(6);
    let mut recipe = quick();
    recipe.keep_float.head_outputs = false;
    let graph = plan::prepare(small_graph(&mut rng)).unwrap().model;
    let x = image(&mut rng, [1, 4, 12, 12]);
    for target in [Target::Cpu, Target::TensorRt] {
        let q = calibrated(&graph, &recipe, target, &x);
        let bytes = export::qdq(&graph, &q, recipe.target(target))
            .unwrap()
            .encode();
        let read = Model::decode(&bytes, "read back").unwrap();
        for (layer, w) in q.plan.layers.iter().zip(&q.weights) {
            let node = read
                .graph()
                .node
                .iter()
                .find(|n| n.name.as_deref() == Some(&layer.name))
                .unwrap();
            let source = |value: &str| {
                read.graph()
                    .node
                    .iter()
                    .find(|n| n.output[0] == value)
                    .unwrap()
            };
            let dq = source(&node.input[1]);
            assert!(dq.is("DequantizeLinear"));
            let stored = read.initializer(&dq.input[0]).unwrap().to_i64().unwrap();
            assert_eq!(stored.dims, w.dims);
            assert!(
                stored
                    .data
                    .iter()
                    .zip(&w.integers)
                    .all(|(a, b)| *a == i64::from(*b))
            );
            assert_eq!(read.initializer_f32(&dq.input[1]).unwrap().data, w.scales());
            let activation = source(&node.input[0]);
            let scale = read.initializer_f32(&activation.input[1]).unwrap().data;
            assert_eq!(
                scale,
                [q.activations[q.plan.group_of(&layer.input).unwrap()].scale]
            );
            // TensorRT wants its bias in float.
            let bias_is_constant = read.initializer(&node.input[2]).is_some();
            assert_eq!(bias_is_constant, target == Target::TensorRt);
        }
    }
}

#[test]
fn four_bit_activations_are_clipped_to_sixteen_levels() {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let mut recipe = quick();
    recipe.keep_float.head_outputs = false;
    recipe.activations.bits = 4;
    let graph = plan::prepare(small_graph(&mut rng)).unwrap().model;
    let x = image(&mut rng, [1, 4, 12, 12]);
    let q = calibrated(&graph, &recipe, Target::Cpu, &x);
    let exported = export::qdq(&graph, &q, recipe.target(Target::Cpu)).unwrap();
    let y = run(&exported, &x.mapv(|v| v * 3.0))["y"].clone();
    let mut levels: Vec<i32> = y.iter().map(|v| v.to_bits() as i32).collect();
    levels.sort_unstable();
    levels.dedup();
    assert!((3..=16).contains(&levels.len()), "{} levels", levels.len());
}

#[test]
fn real_encoders_survive_a_round_trip_byte_by_byte_and_compute_the_same_at_opset_17() {
    let Some(data) = std::env::var_os("CENTERPOINT_PTQ_DATA") else {
        eprintln!("skipped: CENTERPOINT_PTQ_DATA is not set, no real ONNX files to read");
        return;
    };
    let mut files: Vec<PathBuf> = std::fs::read_dir(PathBuf::from(data).join("onnx"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    files.sort();
    assert_eq!(files.len(), 4);
    let mut rng = ChaCha8Rng::seed_from_u64(8);
    for file in files {
        let bytes = std::fs::read(&file).unwrap();
        let before = Model::load(&file).unwrap();
        assert!(before.encode() == bytes, "{} changed", file.display());
        let mut after = before.clone();
        fold::constants(&mut after).unwrap();
        fold::batch_norm(&mut after).unwrap();
        assert!(opset::raise(&mut after, 17).unwrap());
        let input = before.input_names()[0].clone();
        let shape: Vec<usize> = before
            .value_shape(&input)
            .unwrap()
            .into_iter()
            .map(|d| d.map_or(7, |d| d as usize))
            .collect();
        let x = ArrayD::from_shape_simple_fn(IxDyn(&shape), || rng.random_range(-1.0f32..1.0));
        let (a, b) = (run(&before, &x), run(&after, &x));
        for (name, value) in &a {
            let d = difference(value, &b[name]);
            assert!(d < 1e-5, "{} {name}: {d}", file.display());
        }
    }
}

/// The small model finds little in a frame, so it takes many frames to judge it.
fn many() -> Recipe {
    let mut recipe = quick();
    recipe.frames.max = 160;
    recipe
}

/// All of the method, with as few steps as show that it works.
fn with_reconstruction() -> Recipe {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("calibration");
    let mut recipe = Recipe::load(&folder.join("standard.yaml")).unwrap();
    let settings = recipe.reconstruction.as_mut().unwrap();
    settings.iterations = 8;
    settings.crops.judged = 8;
    recipe
}

fn entries(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

#[test]
fn a_run_writes_a_model_folder_whose_layers_all_run_on_integers() {
    let folder = tempfile::tempdir().unwrap();
    let float = model_folder(folder.path());
    let out = folder.path().join("int8");
    let recipe = many();
    let report = ptq::quantize(
        &float,
        samples(160).into_iter(),
        &recipe,
        Target::Cpu,
        &out,
        &mut Silent,
    )
    .unwrap();

    assert_eq!(
        entries(&out),
        [
            "backbone.onnx",
            "encoder.onnx",
            "model.yaml",
            "report.html",
            "report.json",
            "report.txt"
        ]
    );
    assert_eq!(
        entries(folder.path()),
        ["backbone.onnx", "encoder.onnx", "int8", "model.yaml"]
    );
    assert_eq!(
        (report.frames.calibration, report.frames.held_out),
        (120, 40)
    );

    // Every quantized convolution, the deconvolution among them, ran as an integer kernel.
    let kernels = &report.check.kernels;
    assert_eq!(report.layers.len(), 9);
    assert!(
        report.layers.iter().all(|l| l.integer_kernel),
        "{kernels:#?}"
    );
    assert_eq!(kernels.integer_convolutions, 9, "{kernels:#?}");
    assert_eq!(
        kernels.float_convolutions, 5,
        "the last of each head stays in float"
    );
    assert!(kernels.integer_multiplications.unwrap() > 0.9);
    assert_eq!(report.changes.rewritten_deconvolutions, ["up"]);
    assert_eq!(report.changes.folded_batch_norms, ["bn"]);

    // The search is never worse than max-min, and weights are finer than activations.
    for t in &report.tensors {
        assert!(t.error_chosen <= t.error_max_min, "{t:?}");
        assert!(t.error_chosen < 0.01, "{t:?}");
    }
    for l in &report.layers {
        assert!(
            l.error_chosen <= l.error_max_min && l.error_chosen < 0.001,
            "{l:?}"
        );
    }

    // It agrees with the float model, on boxes there are.
    let total = &report.check.agreement.total;
    assert!(total.matched > 25, "{}", report.summary());
    assert!(report.check.verdict.accepted, "{}", report.summary());

    // The folder is a model like any other, and says what made it.
    let int8 = ModelDescription::load(&out).unwrap();
    let mut detector = Detector::load(&int8, &RuntimeOptions::default()).unwrap();
    let found: usize = samples(40)
        .into_iter()
        .map(|s| {
            detector
                .detect(&s.unwrap().points)
                .unwrap()
                .detections
                .len()
        })
        .sum();
    assert!(found > 20, "{found}");
    let file = Model::load(int8.backbone_path()).unwrap();
    let expected = &report.float_files[1].sha256;
    assert_eq!(
        file.metadata("centerpoint_ptq.float_sha256"),
        Some(expected.as_str())
    );
    assert_eq!(
        file.metadata("centerpoint_ptq.calibration_frames"),
        Some("120")
    );
    assert_eq!(file.metadata("centerpoint_ptq.accepted"), Some("true"));
    let json: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(out.join("report.json")).unwrap()).unwrap();
    assert_eq!(json["check"]["verdict"]["accepted"], true);
    assert_eq!(json["frames"]["list"].as_array().unwrap().len(), 160);
    // An INT8 model cannot be quantized again.
    let again = ptq::quantize(
        &int8,
        samples(160).into_iter(),
        &recipe,
        Target::Cpu,
        &folder.path().join("again"),
        &mut Silent,
    );
    assert!(matches!(again, Err(PtqError::NotFloat { .. })));
}

#[test]
fn the_same_frames_give_the_same_model() {
    let folder = tempfile::tempdir().unwrap();
    let float = model_folder(folder.path());
    for mut recipe in [quick(), with_reconstruction()] {
        let bytes = ["a", "b"].map(|name| {
            let out = folder.path().join(format!("{}_{name}", recipe.name));
            // Whatever the number of threads.
            recipe.threads += 1;
            let report = ptq::quantize(
                &float,
                samples(24).into_iter(),
                &recipe,
                Target::Cpu,
                &out,
                &mut Silent,
            )
            .unwrap();
            let mut model = Model::load(out.join("backbone.onnx")).unwrap();
            model.proto_mut().metadata_props.clear();
            (model.encode(), report.frames.sha256)
        });
        assert!(bytes[0] == bytes[1], "{}", recipe.name);
    }
}

#[test]
fn a_tensorrt_model_is_symmetric_int8_and_agrees_too() {
    let folder = tempfile::tempdir().unwrap();
    let float = model_folder(folder.path());
    let out = folder.path().join("int8");
    let report = ptq::quantize(
        &float,
        samples(160).into_iter(),
        &many(),
        Target::TensorRt,
        &out,
        &mut Silent,
    )
    .unwrap();
    assert!(
        report
            .tensors
            .iter()
            .all(|t| t.chosen.zero_point == 0 && t.chosen.levels.min == -128)
    );
    assert!(report.check.verdict.accepted, "{}", report.summary());
    let model = Model::load(out.join("backbone.onnx")).unwrap();
    assert!(
        model
            .graph()
            .initializer
            .iter()
            .all(|t| t.data_type != Some(2)),
        "no uint8 anywhere"
    );
}

#[test]
fn a_gate_that_cannot_be_met_refuses_but_writes() {
    let folder = tempfile::tempdir().unwrap();
    let float = model_folder(folder.path());
    let out = folder.path().join("int8");
    let mut recipe = quick();
    // Two bits cannot carry this.
    recipe.weights.bits = 2;
    recipe.activations.bits = 2;
    let report = ptq::quantize(
        &float,
        samples(24).into_iter(),
        &recipe,
        Target::Cpu,
        &out,
        &mut Silent,
    )
    .unwrap();
    assert!(!report.check.verdict.accepted, "{}", report.summary());
    assert!(report.summary().contains("REFUSED"));
    assert!(out.join("model.yaml").is_file());
}

#[test]
fn the_whole_method_tunes_every_layer_and_agrees_no_less_than_ranges_alone() {
    let folder = tempfile::tempdir().unwrap();
    let float = model_folder(folder.path());
    let before = entries(folder.path());
    let reports = [quick(), with_reconstruction()].map(|mut recipe| {
        recipe.frames.max = 160;
        recipe.weights.bits = 4;
        if let Some(settings) = recipe.reconstruction.as_mut() {
            settings.iterations = 60;
            settings.rate = 0.05;
        }
        let out = folder.path().join(&recipe.name);
        let frames = samples(160).into_iter();
        ptq::quantize(&float, frames, &recipe, Target::Cpu, &out, &mut Silent).unwrap()
    });
    let [quick, whole] = &reports;
    // Each layer once, the blocks in network order.
    let blocks: Vec<&Vec<usize>> = whole.reconstruction.iter().map(|o| &o.layers).collect();
    assert!(blocks.is_sorted_by_key(|layers| layers[0]), "{blocks:?}");
    let mut tuned: Vec<usize> = blocks.into_iter().flatten().copied().collect();
    tuned.sort_unstable();
    assert_eq!(tuned, (0..whole.layers.len()).collect::<Vec<_>>());
    assert!(
        whole
            .reconstruction
            .iter()
            .any(|o| o.taken && o.flipped[0] > 0.0)
    );
    assert!(whole.summary().contains("reconstruction"));
    let f1 = |report: &ptq::report::Report| report.check.agreement.total.f1.unwrap();
    assert!(f1(whole) >= f1(quick), "{} {}", f1(whole), f1(quick));
    // Nothing is left but the two models.
    let mut now = entries(folder.path());
    now.retain(|e| !before.contains(e));
    assert_eq!(now, ["quick", "standard"]);
}

#[test]
fn the_worst_layers_get_the_precision_that_the_recipe_allows() {
    let folder = tempfile::tempdir().unwrap();
    let float = model_folder(folder.path());
    for weight_bits in [4, 8] {
        let mut recipe = with_reconstruction();
        recipe.weights.bits = weight_bits;
        recipe.reconstruction.as_mut().unwrap().iterations = 1;
        let wish = recipe.sensitivity.as_mut().unwrap();
        (wish.keep, wish.max_float_share) = (2, 1.0);
        let out = folder.path().join(format!("int8_{weight_bits}"));
        let frames = samples(24).into_iter();
        let report =
            ptq::quantize(&float, frames, &recipe, Target::Cpu, &out, &mut Silent).unwrap();
        let ranked: Vec<&str> = report
            .sensitivity
            .iter()
            .map(|s| s.layer.as_str())
            .collect();
        let promoted: Vec<&str> = report.promoted.iter().map(|p| p.layer.as_str()).collect();
        assert_eq!(promoted, ranked[..2]);
        for name in &ranked {
            let quantized = report.layers.iter().find(|l| l.name == *name);
            match (promoted.contains(name), weight_bits) {
                // 7 where the processor's 8-bit products saturate.
                (true, 4) => assert!(quantized.unwrap().bits >= 7),
                (true, _) => assert!(report.float_layers.iter().any(|l| l.name == *name)),
                (false, bits) => assert!(quantized.unwrap().bits <= bits),
            }
        }
        assert_eq!(report.recipe, recipe, "the recipe stays as it was given");
    }
}

struct StopAt(Stage, bool);

impl Progress for StopAt {
    fn update(&mut self, stage: Stage, _fraction: f64, _detail: &str) {
        self.1 |= stage == self.0;
    }
    fn cancelled(&self) -> bool {
        self.1
    }
}

#[test]
fn cancelled_at_any_stage_nothing_is_left() {
    let folder = tempfile::tempdir().unwrap();
    let float = model_folder(folder.path());
    let before = entries(folder.path());
    for stage in [
        Stage::Frames,
        Stage::Weights,
        Stage::Ranges,
        Stage::Search,
        Stage::Reconstruct,
        Stage::Export,
        Stage::Check,
    ] {
        let out = folder.path().join("int8");
        let mut stop = StopAt(stage, false);
        let result = ptq::quantize(
            &float,
            samples(24).into_iter(),
            &with_reconstruction(),
            Target::Cpu,
            &out,
            &mut stop,
        );
        assert!(
            matches!(result, Err(PtqError::Cancelled)),
            "{stage:?}: {result:?}"
        );
        assert_eq!(entries(folder.path()), before, "{stage:?}");
    }
}

#[test]
fn what_a_killed_run_left_goes_with_the_next_run_and_what_is_in_use_stays() {
    let folder = tempfile::tempdir().unwrap();
    let float = model_folder(folder.path());
    let [dead, alive, other] =
        ["dead", "alive", "other"].map(|n| folder.path().join(format!(".{n}.partial")));
    for path in [&dead, &alive, &other] {
        std::fs::create_dir(path).unwrap();
        std::fs::write(path.join("backbone.onnx"), "half of it").unwrap();
    }
    std::fs::write(dead.join("centerpoint_ptq.lock"), "").unwrap();
    let lock = std::fs::File::create(alive.join("centerpoint_ptq.lock")).unwrap();
    lock.lock().unwrap();
    let out = folder.path().join("int8");
    let result = ptq::quantize(
        &float,
        samples(3).into_iter(),
        &quick(),
        Target::Cpu,
        &out,
        &mut Silent,
    );
    assert!(matches!(result, Err(PtqError::TooFewFrames { .. })));
    assert!(!dead.exists() && alive.exists() && other.exists());
}

#[test]
fn bad_input_is_an_error_that_says_what_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let float = model_folder(folder.path());
    let before = entries(folder.path());
    let out = folder.path().join("int8");
    let error =
        |float: &ModelDescription, frames: Vec<Result<Sample, std::io::Error>>, out: &Path| {
            ptq::quantize(
                float,
                frames.into_iter(),
                &quick(),
                Target::Cpu,
                out,
                &mut Silent,
            )
            .unwrap_err()
            .to_string()
        };
    let empty = || {
        Ok(Sample {
            stamp: Stamp(0),
            points: Points(vec![]),
            sweeps: 1,
            conditions: Vec::new(),
            role: None,
        })
    };
    let far = |i: usize| {
        let point = Point {
            x: 500.0,
            ..Default::default()
        };
        Ok(Sample {
            stamp: Stamp(i as i64),
            points: Points(vec![point]),
            sweeps: 1,
            conditions: Vec::new(),
            role: None,
        })
    };
    assert!(error(&float, samples(9), &out).contains("too few frames: 9"));
    assert!(error(&float, vec![], &out).contains("too few frames: 0"));
    assert!(
        error(&float, (0..30).map(|_| empty()).collect(), &out).contains("all 30 frames are empty")
    );
    assert!(error(&float, (0..30).map(far).collect(), &out).contains("frames are empty"));
    let mut broken = samples(5);
    broken.push(Err(std::io::Error::other("the bag ends here")));
    let message = error(&float, broken, &out);
    assert!(
        message.contains("frame 5") && message.contains("the bag ends here"),
        "{message}"
    );
    assert!(error(&float, samples(40), folder.path()).contains("exists already"));

    let mut damaged = float.clone();
    std::fs::write(folder.path().join("damaged.onnx"), b"\x08\x08garbage").unwrap();
    damaged.backbone.file = "damaged.onnx".into();
    assert!(error(&damaged, samples(40), &out).contains("damaged.onnx"));
    std::fs::remove_file(folder.path().join("damaged.onnx")).unwrap();
    assert_eq!(entries(folder.path()), before);
}

/// Turns the weights of an ONNX file into halves, with a Cast behind the input and before each output: what converters
/// make of a graph.
fn to_half(path: &Path) {
    let mut m = Model::load(path).unwrap();
    let cast = |from: &str, to: &str, kind: i32| {
        NodeProto::new("Cast", &format!("to_{to}"), &[from], &[to]).with_int("to", i64::from(kind))
    };
    let (inputs, outputs) = (m.input_names(), m.output_names());
    let graph = m.graph_mut();
    for tensor in &mut graph.initializer {
        let floats = tensor.to_f32().unwrap().data;
        let halves = floats.iter().map(|v| half::f16::from_f32(*v));
        tensor.raw_data = Some(halves.flat_map(|h| h.to_le_bytes()).collect());
        tensor.data_type = Some(data_type::FLOAT16);
    }
    let inner = |name: &String| format!("{name}_half");
    for node in &mut graph.node {
        for name in node.input.iter_mut().chain(&mut node.output) {
            if inputs.contains(name) || outputs.contains(name) {
                *name = inner(name);
            }
        }
    }
    let before = inputs
        .iter()
        .map(|n| cast(n, &inner(n), data_type::FLOAT16));
    let behind = outputs.iter().map(|n| cast(&inner(n), n, data_type::FLOAT));
    graph.node = before
        .chain(std::mem::take(&mut graph.node))
        .chain(behind)
        .collect();
    m.validate().unwrap();
    m.save(path).unwrap();
}

#[test]
fn a_float16_model_is_quantized_from_float32_copies_of_its_weights() {
    let folder = tempfile::tempdir().unwrap();
    let float = model_folder(folder.path());
    to_half(&float.backbone_path());
    to_half(&float.encoder_path());
    Detector::load(&float, &RuntimeOptions::default()).unwrap();
    for recipe in [many(), with_reconstruction()] {
        let out = folder.path().join(&recipe.name);
        let frames = samples(recipe.frames.max.min(160)).into_iter();
        let report =
            ptq::quantize(&float, frames, &recipe, Target::Cpu, &out, &mut Silent).unwrap();
        assert_eq!(report.changes.widened, ["float16"]);
        assert_eq!(report.layers.len(), 9);
        assert!(report.layers.iter().all(|l| l.integer_kernel));
        let f1 = report.check.agreement.total.f1.unwrap();
        assert!(f1 > 0.9, "{}", report.summary());
        let written = Model::load(out.join("backbone.onnx")).unwrap();
        let halves = |t: &TensorProto| t.data_type == Some(data_type::FLOAT16);
        assert!(!written.graph().initializer.iter().any(halves));
    }
}

#[test]
fn what_a_graph_made_in_memory_fails_on_is_not_blamed_on_the_file() {
    let mut rng = ChaCha8Rng::seed_from_u64(12);
    let mut m = small_graph(&mut rng);
    m.graph_mut().node[1].op_type = Some("NoSuchOperator".into());
    let refused = ptq::observe::Observer::new(&m, "x", &["l".into()], &RuntimeOptions::default());
    let message = refused.err().unwrap().to_string();
    let words = "cannot load the graph that quantization made of test.onnx";
    assert!(message.contains(words), "{message}");
}

#[test]
fn versions_that_the_runtime_does_not_take_are_told_with_those_that_it_does() {
    let folder = tempfile::tempdir().unwrap();
    let float = model_folder(folder.path());
    let path = float.backbone_path();
    let before = Model::load(&path).unwrap();
    let refusal = |change: &dyn Fn(&mut Model)| {
        let mut m = before.clone();
        change(&mut m);
        m.save(&path).unwrap();
        let refused = Detector::load(&float, &RuntimeOptions::default());
        refused
            .expect_err("the model should be refused")
            .to_string()
    };
    let ir = refusal(&|m| m.proto_mut().ir_version = Some(99));
    for word in [
        "backbone.onnx has IR version 99",
        "takes no newer than",
        "model.ir_version = ",
    ] {
        assert!(ir.contains(word), "{ir}");
    }
    let opset = refusal(&|m| m.proto_mut().opset_import[0].version = Some(77));
    for word in [
        "backbone.onnx has operator set 77",
        "takes no newer than",
        "opset_version=",
    ] {
        assert!(opset.contains(word), "{opset}");
    }
    // Another fault is told as it is.
    let other = refusal(&|m| m.graph_mut().node[1].op_type = Some("NoSuchOperator".into()));
    assert!(other.contains("NoSuchOperator"), "{other}");
}

#[test]
fn inputs_and_outputs_in_halves_are_refused_in_own_words() {
    let folder = tempfile::tempdir().unwrap();
    let float = model_folder(folder.path());
    let path = float.backbone_path();
    let mut m = Model::load(&path).unwrap();
    // A pass through a Cast that gives halves.
    let heatmap = "heatmap".to_owned();
    let graph = m.graph_mut();
    for node in &mut graph.node {
        for output in node.output.iter_mut().filter(|o| **o == heatmap) {
            *output = "heatmap_float".into();
        }
    }
    let kind = i64::from(data_type::FLOAT16);
    let cast = NodeProto::new("Cast", "cast", &["heatmap_float"], &["heatmap"]);
    graph.node.push(cast.with_int("to", kind));
    let output = graph
        .output
        .iter_mut()
        .find(|o| o.name.as_ref() == Some(&heatmap));
    if let Some(TypeValue::Tensor(tensor)) = output.unwrap().r#type.as_mut().unwrap().value.as_mut()
    {
        tensor.elem_type = Some(data_type::FLOAT16);
    }
    m.save(&path).unwrap();
    let message = Detector::load(&float, &RuntimeOptions::default())
        .unwrap_err()
        .to_string();
    for word in ["backbone.outputs.heatmap", "float32", "keep_io_types"] {
        assert!(message.contains(word), "{message}");
    }
}

#[test]
fn an_operator_without_a_copy_is_told_before_a_frame_is_read_with_the_way_out() {
    let folder = tempfile::tempdir().unwrap();
    let float = model_folder(folder.path());
    let path = float.backbone_path();
    let mut m = Model::load(&path).unwrap();
    let relu = m
        .graph_mut()
        .node
        .iter_mut()
        .find(|n| n.is("Relu"))
        .unwrap();
    relu.op_type = Some("Celu".into());
    m.save(&path).unwrap();
    let none = std::iter::from_fn(|| -> Option<Result<Sample, std::io::Error>> {
        panic!("no frame is to be read")
    });
    let recipe = with_reconstruction();
    let out = folder.path().join("int8");
    let refused = ptq::quantize(&float, none, &recipe, Target::Cpu, &out, &mut Silent);
    let message = refused.unwrap_err().to_string();
    for word in ["Celu", "differentiable copy", "quick.yaml"] {
        assert!(message.contains(word), "{message}");
    }
}
