//! Every operator against ONNX Runtime, whole models too, and gradients against finite differences.

use burn_autodiff::Autodiff;
use burn_flex::Flex;
use burn_tensor::Tensor;
use ort::value::TensorRef;
use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::{Network, Value, Values};
use crate::detector::runtime::{RuntimeOptions, session_from_bytes};
use crate::onnx::Model;
use crate::onnx::proto::{AttributeProto, NodeProto, TensorProto, attribute_type};
use crate::onnx::tests::{model, value};

fn random(count: usize, seed: u64) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    (0..count).map(|_| rng.random_range(-2.0..2.0)).collect()
}

fn float(mut node: NodeProto, name: &str, value: f32) -> NodeProto {
    node.attribute.push(AttributeProto {
        name: Some(name.into()),
        r#type: Some(attribute_type::FLOAT),
        f: Some(value),
        ..Default::default()
    });
    node
}

/// A graph of one node `y = op(x, constants)`.
fn one(node: NodeProto, dims: &[usize], constants: Vec<TensorProto>) -> Model {
    let shape: Vec<i64> = dims.iter().map(|&d| d as i64).collect();
    let outputs = node.output.iter().map(|o| untyped(o)).collect();
    model(17, vec![node], constants, vec![value("x", &shape)], outputs)
}

/// An output whose shape the runtime works out.
fn untyped(name: &str) -> crate::onnx::proto::ValueInfoProto {
    let mut output = value(name, &[]);
    if let Some(crate::onnx::proto::TypeValue::Tensor(tensor)) =
        output.r#type.as_mut().and_then(|t| t.value.as_mut())
    {
        tensor.shape = None;
    }
    output
}

/// Shapes and values of all outputs, by the runtime.
fn by_runtime(model: &Model, dims: &[usize], x: &[f32]) -> Vec<(Vec<usize>, Vec<f32>)> {
    let mut session =
        session_from_bytes(&model.encode(), "test", &RuntimeOptions::default()).unwrap();
    let input = ndarray::ArrayD::from_shape_vec(dims, x.to_vec()).unwrap();
    let input = TensorRef::from_array_view(input.view()).unwrap();
    let outputs = session.run(ort::inputs![input]).unwrap();
    model
        .output_names()
        .iter()
        .map(|name| {
            let (shape, values) = outputs[name.as_str()].try_extract_tensor::<f32>().unwrap();
            (shape.iter().map(|&d| d as usize).collect(), values.to_vec())
        })
        .collect()
}

fn by_network(model: &Model, dims: &[usize], x: &[f32]) -> Vec<(Vec<usize>, Vec<f32>)> {
    let device = Default::default();
    let network = Network::<Flex>::new(model, &device).unwrap();
    let mut values = Values::default();
    let input = Value::from_f32(dims, x.to_vec(), &device).unwrap();
    values.insert(network.inputs()[0].clone(), input);
    network.run(&mut values).unwrap();
    let give = |name: &String| {
        let value = values.get(name).unwrap();
        (value.dims(), value.to_vec())
    };
    network.outputs().iter().map(give).collect()
}

/// The largest difference, as a share of the largest value.
fn compare(model: &Model, dims: &[usize], seed: u64) -> f32 {
    let x = random(dims.iter().product(), seed);
    let (expected, got) = (by_runtime(model, dims, &x), by_network(model, dims, &x));
    assert_eq!(expected.len(), got.len());
    let mut worst = 0f32;
    for ((shape, expected), (dims, got)) in expected.iter().zip(&got) {
        let scalar = shape.is_empty() && dims == &[1];
        assert!(
            shape == dims || scalar,
            "{shape:?} by the runtime, {dims:?} here"
        );
        let size = expected.iter().fold(1e-3f32, |m, v| m.max(v.abs()));
        for (e, g) in expected.iter().zip(got) {
            assert!(g.is_finite() == e.is_finite());
            worst = worst.max((e - g).abs() / size);
        }
    }
    worst
}

fn assert_same(node: NodeProto, dims: &[usize], constants: Vec<TensorProto>) {
    let label = format!("{} {dims:?}", node.label());
    let model = one(node, dims, constants);
    for seed in 0..3 {
        let worst = compare(&model, dims, seed);
        assert!(worst < 1e-5, "{label}: off by {worst}");
    }
}

fn weights(name: &str, dims: &[usize]) -> TensorProto {
    TensorProto::f32(name, dims, &random(dims.iter().product(), 77))
}

#[test]
fn operators_without_attributes_agree_with_the_runtime() {
    for op in [
        "Abs",
        "Dropout",
        "Elu",
        "Exp",
        "HardSigmoid",
        "HardSwish",
        "Identity",
        "LeakyRelu",
        "Neg",
        "Relu",
        "Sigmoid",
        "Softmax",
        "Softplus",
        "Tanh",
        "Transpose",
        "GlobalAveragePool",
        "ReduceMax",
        "ReduceMean",
        "ReduceSum",
    ] {
        assert_same(
            NodeProto::new(op, op, &["x"], &["y"]),
            &[2, 3, 4, 5],
            vec![],
        );
    }
    // Where the domain is bounded.
    for op in ["Log", "Sqrt", "Reciprocal"] {
        let nodes = vec![
            NodeProto::new("Exp", "exp", &["x"], &["e"]),
            NodeProto::new(op, op, &["e"], &["y"]),
        ];
        let m = model(
            17,
            nodes,
            vec![],
            vec![value("x", &[2, 3, 4])],
            vec![untyped("y")],
        );
        assert!(compare(&m, &[2, 3, 4], 1) < 1e-5, "{op}");
    }
}

#[test]
fn operators_of_two_tensors_widen_shapes_as_the_runtime_does() {
    for op in ["Add", "Sub", "Mul", "Div", "Max", "Min"] {
        for (dims, other) in [
            (vec![2, 3, 4, 5], vec![3, 1, 1]),
            (vec![4, 1], vec![2, 1, 6]),
            (vec![3], vec![3]),
        ] {
            assert_same(
                NodeProto::new(op, op, &["x", "w"], &["y"]),
                &dims,
                vec![weights("w", &other)],
            );
        }
    }
}

#[test]
fn operators_that_move_values_agree_with_the_runtime() {
    let i64s = |name: &str, data: &[i64]| TensorProto::i64(name, &[data.len()], data);
    let node = |op: &str, inputs: &[&str]| NodeProto::new(op, op, inputs, &["y"]);
    let d = &[2, 8, 4, 6];
    assert_same(
        node("DepthToSpace", &["x"]).with_int("blocksize", 2),
        d,
        vec![],
    );
    assert_same(
        node("DepthToSpace", &["x"])
            .with_int("blocksize", 2)
            .with_string("mode", "CRD"),
        d,
        vec![],
    );
    assert_same(
        node("SpaceToDepth", &["x"]).with_int("blocksize", 2),
        d,
        vec![],
    );
    assert_same(
        node("Concat", &["x", "w", "x"]).with_int("axis", 1),
        d,
        vec![weights("w", &[2, 3, 4, 6])],
    );
    assert_same(
        node("Transpose", &["x"]).with_ints("perm", &[0, 2, 3, 1]),
        d,
        vec![],
    );
    assert_same(
        node("Reshape", &["x", "s"]),
        d,
        vec![i64s("s", &[0, -1, 3])],
    );
    assert_same(node("Flatten", &["x"]).with_int("axis", 2), d, vec![]);
    assert_same(node("Unsqueeze", &["x", "a"]), d, vec![i64s("a", &[0, -1])]);
    assert_same(
        node("Squeeze", &["x", "a"]),
        &[2, 1, 4, 1],
        vec![i64s("a", &[1, -1])],
    );
    let cut = vec![
        i64s("s", &[1, -3]),
        i64s("e", &[3, 1000]),
        i64s("a", &[2, 3]),
    ];
    assert_same(node("Slice", &["x", "s", "e", "a"]), d, cut);
    assert_same(
        node("Pad", &["x", "p"]),
        d,
        vec![i64s("p", &[0, 0, 1, 2, 0, 0, 3, 0])],
    );
    let split = NodeProto::new("Split", "split", &["x", "s"], &["y", "z"]).with_int("axis", 1);
    assert_same(split, d, vec![i64s("s", &[3, 5])]);
    let resize = node("Resize", &["x", "", "s"])
        .with_string("mode", "nearest")
        .with_string("coordinate_transformation_mode", "asymmetric")
        .with_string("nearest_mode", "floor");
    assert_same(
        resize,
        d,
        vec![TensorProto::f32("s", &[4], &[1.0, 1.0, 2.0, 3.0])],
    );
    for op in ["ReduceMax", "ReduceMean"] {
        assert_same(
            node(op, &["x"])
                .with_ints("axes", &[1])
                .with_int("keepdims", 0),
            d,
            vec![],
        );
    }
}

#[test]
fn products_and_norms_agree_with_the_runtime() {
    let node = |op: &str, inputs: &[&str]| NodeProto::new(op, op, inputs, &["y"]);
    assert_same(
        node("MatMul", &["x", "w"]),
        &[2, 5, 7],
        vec![weights("w", &[7, 3])],
    );
    assert_same(
        node("MatMul", &["x", "w"]),
        &[2, 5, 7],
        vec![weights("w", &[2, 7, 3])],
    );
    let gemm = float(
        node("Gemm", &["x", "w", "b"]).with_int("transB", 1),
        "alpha",
        0.5,
    );
    assert_same(
        gemm,
        &[4, 6],
        vec![weights("w", &[3, 6]), weights("b", &[3])],
    );
    let positive: Vec<f32> = random(3, 5).iter().map(|v| v.abs() + 0.1).collect();
    let norm = float(
        node("BatchNormalization", &["x", "s", "b", "m", "v"]),
        "epsilon",
        1e-3,
    );
    let parts = vec![
        weights("s", &[3]),
        weights("b", &[3]),
        weights("m", &[3]),
        TensorProto::f32("v", &[3], &positive),
    ];
    assert_same(norm, &[2, 3, 4, 5], parts);
    let clip = node("Clip", &["x", "lo", "hi"]);
    let bounds = vec![
        TensorProto::f32("lo", &[], &[-0.5]),
        TensorProto::f32("hi", &[], &[1.0]),
    ];
    assert_same(clip, &[2, 9], bounds);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn convolutions_of_any_shape_agree_with_the_runtime(
        (groups, per_group, out_per_group) in (1usize..3, 1usize..4, 1usize..4),
        (rows, columns) in (5usize..12, 5usize..12),
        kernel in (1usize..4, 1usize..4),
        strides in (1i64..4, 1i64..4),
        dilations in (1i64..3, 1i64..3),
        pads in (0i64..3, 0i64..3, 0i64..3, 0i64..3),
        with_bias: bool,
        seed in 0u64..1000,
    ) {
        let (cin, cout) = (groups * per_group, groups * out_per_group);
        let mut node = NodeProto::new("Conv", "conv", &["x", "w"], &["y"])
            .with_ints("strides", &[strides.0, strides.1])
            .with_ints("dilations", &[dilations.0, dilations.1])
            .with_ints("kernel_shape", &[kernel.0 as i64, kernel.1 as i64])
            .with_ints("pads", &[pads.0, pads.1, pads.2, pads.3])
            .with_int("group", groups as i64);
        let mut constants = vec![weights("w", &[cout, per_group, kernel.0, kernel.1])];
        if with_bias {
            node.input.push("b".into());
            constants.push(weights("b", &[cout]));
        }
        let dims = [2, cin, rows, columns];
        prop_assert!(compare(&one(node, &dims, constants), &dims, seed) < 1e-5);
    }

    #[test]
    fn transposed_convolutions_of_any_shape_agree_with_the_runtime(
        (cin, cout) in (1usize..4, 1usize..4),
        (rows, columns) in (2usize..7, 2usize..7),
        kernel in (1usize..4, 1usize..4),
        strides in (1i64..4, 1i64..4),
        pad in 0i64..2,
        seed in 0u64..1000,
    ) {
        let node = NodeProto::new("ConvTranspose", "up", &["x", "w"], &["y"])
            .with_ints("strides", &[strides.0, strides.1])
            .with_ints("kernel_shape", &[kernel.0 as i64, kernel.1 as i64])
            .with_ints("pads", &[pad, pad, pad, pad]);
        let dims = [2, cin, rows, columns];
        let full = |n: usize, s: i64, k: usize| (n as i64 - 1) * s + k as i64 - 2 * pad;
        prop_assume!(full(rows, strides.0, kernel.0) > 0 && full(columns, strides.1, kernel.1) > 0);
        let constants = vec![weights("w", &[cin, cout, kernel.0, kernel.1])];
        prop_assert!(compare(&one(node, &dims, constants), &dims, seed) < 1e-5);
    }

    #[test]
    fn pools_of_any_shape_agree_with_the_runtime(
        max: bool,
        size in 5usize..12,
        kernel in 1i64..4,
        stride in 1i64..4,
        pad in 0i64..3,
        counts_border in 0i64..2,
        seed in 0u64..1000,
    ) {
        prop_assume!(pad < kernel);
        let mut node = NodeProto::new(if max { "MaxPool" } else { "AveragePool" }, "pool", &["x"], &["y"])
            .with_ints("strides", &[stride, stride])
            .with_ints("kernel_shape", &[kernel, kernel])
            .with_ints("pads", &[pad, pad, pad, pad]);
        if !max {
            node = node.with_int("count_include_pad", counts_border);
        }
        let dims = [2, 3, size, size + 1];
        prop_assert!(compare(&one(node, &dims, vec![]), &dims, seed) < 1e-5);
    }

    #[test]
    fn shapes_that_do_not_fit_are_errors_and_no_panics(
        op in prop::sample::select(vec![
            "Conv", "ConvTranspose", "Concat", "Add", "MatMul", "Gemm", "BatchNormalization", "Reshape", "Slice",
            "Split", "Pad", "Squeeze", "Unsqueeze", "DepthToSpace", "SpaceToDepth", "MaxPool", "Resize", "Transpose",
        ]),
        dims in prop::collection::vec(0usize..4, 0..5),
        other in prop::collection::vec(1usize..4, 0..5),
        ints in prop::collection::vec(-9i64..9, 0..5),
        attributes in prop::collection::vec(-2i64..5, 0..5),
        with_ints: bool,
    ) {
        let mut node = NodeProto::new(op, op, &["x", "w", "w", "w", "w"], &["y"])
            .with_int("axis", attributes.first().copied().unwrap_or(1))
            .with_int("blocksize", attributes.first().copied().unwrap_or(1))
            .with_int("group", attributes.last().copied().unwrap_or(1));
        for name in ["strides", "kernel_shape", "pads", "perm", "dilations"] {
            node = node.with_ints(name, &attributes);
        }
        let constant = if with_ints {
            TensorProto::i64("w", &[ints.len()], &ints)
        } else {
            TensorProto::f32("w", &other, &random(other.iter().product(), 3))
        };
        let model = one(node, &[1], vec![constant]);
        let device = Default::default();
        if let Ok(network) = Network::<Flex>::new(&model, &device)
            && let Some(x) = Value::from_f32(&dims, random(dims.iter().product(), 1), &device)
        {
            let mut values = Values::default();
            values.insert("x".into(), x);
            let _ = network.run(&mut values);
        }
    }
}

#[test]
fn an_unknown_operator_is_refused_by_name() {
    let model = one(
        NodeProto::new("GridSample", "odd_one", &["x"], &["y"]),
        &[1, 1, 2, 2],
        vec![],
    );
    let error = Network::<Flex>::new(&model, &Default::default())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("odd_one") && error.contains("GridSample"),
        "{error}"
    );
    let pool = NodeProto::new("MaxPool", "roof", &["x"], &["y"]).with_int("ceil_mode", 1);
    let error = Network::<Flex>::new(&one(pool, &[1], vec![]), &Default::default()).unwrap_err();
    assert!(error.to_string().contains("ceil_mode"), "{error}");
}

#[test]
fn the_demo_model_agrees_with_the_runtime() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
    for (file, dims) in [
        ("pts_voxel_encoder.onnx", vec![7, 32, 9]),
        ("pts_backbone_neck_head.onnx", vec![1, 32, 256, 256]),
    ] {
        let mut model = Model::load(folder.join(file)).unwrap();
        crate::onnx::fold::constants(&mut model).unwrap();
        let worst = compare(&model, &dims, 4);
        assert!(worst < 1e-4, "{file}: off by {worst}");
        let prepared = crate::ptq::plan::prepare(model).unwrap().model;
        let worst = compare(&prepared, &dims, 4);
        assert!(worst < 1e-4, "{file} prepared: off by {worst}");
    }
}

#[test]
fn a_gradient_equals_finite_differences() {
    let nodes = vec![
        NodeProto::new("Conv", "down", &["x", "w"], &["d"]).with_ints("strides", &[2, 2]),
        NodeProto::new("Relu", "relu", &["d"], &["r"]),
        NodeProto::new("DepthToSpace", "wide", &["r"], &["s"]).with_int("blocksize", 2),
        NodeProto::new("MaxPool", "pool", &["s"], &["p"]).with_ints("kernel_shape", &[2, 2]),
        NodeProto::new("Sigmoid", "sigmoid", &["p"], &["g"]),
        NodeProto::new("Concat", "cat", &["g", "p"], &["y"]).with_int("axis", 1),
    ];
    let constants = vec![weights("w", &[4, 2, 2, 2])];
    let m = model(
        17,
        nodes,
        constants,
        vec![value("x", &[1, 2, 6, 6])],
        vec![untyped("y")],
    );
    let device = Default::default();
    let x = random(72, 9);
    let weigh: Vec<f32> = random(50, 10);
    let loss = |x: &[f32]| -> f64 {
        let y = &by_network(&m, &[1, 2, 6, 6], x)[0].1;
        y.iter().zip(&weigh).map(|(y, w)| f64::from(y * w)).sum()
    };
    let network = Network::<Autodiff<Flex>>::new(&m, &device).unwrap();
    let tracked: Tensor<Autodiff<Flex>, 4> = Value::from_f32(&[1, 2, 6, 6], x.clone(), &device)
        .unwrap()
        .rank4()
        .unwrap()
        .require_grad();
    let mut values = Values::default();
    values.insert("x".into(), tracked.clone().into());
    network.run(&mut values).unwrap();
    let y = values.get("y").unwrap().rank4().unwrap();
    assert_eq!(y.dims(), [1, 2, 5, 5]);
    let weigh_tensor = Value::from_f32(&[1, 2, 5, 5], weigh.clone(), &device)
        .unwrap()
        .rank4()
        .unwrap();
    let gradients = (y * weigh_tensor).sum().backward();
    let gradient: Vec<f32> = tracked
        .grad(&gradients)
        .unwrap()
        .to_data()
        .iter::<f32>()
        .collect();
    let step = 1e-3;
    for i in 0..x.len() {
        let moved = |by: f32| {
            let mut x = x.clone();
            x[i] += by;
            loss(&x)
        };
        let slope = (moved(step) - moved(-step)) / f64::from(2.0 * step);
        // Kinks of Relu and maxima lie nearer than the step for none of these values.
        assert!(
            (slope - f64::from(gradient[i])).abs() < 0.02,
            "{i}: {slope} and {}",
            gradient[i]
        );
    }
}

/// Real encoders, whose copies of shapes and maxima their exporters wrote in four ways.
#[test]
fn real_encoders_agree_with_the_runtime() {
    let Some(data) = std::env::var_os("CENTERPOINT_PTQ_DATA") else {
        eprintln!("skipped: CENTERPOINT_PTQ_DATA is not set, no real ONNX files to read");
        return;
    };
    let folder = std::path::PathBuf::from(data).join("onnx");
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    files.sort();
    assert_eq!(files.len(), 4);
    for (seed, file) in files.iter().enumerate() {
        let mut model = Model::load(file).unwrap();
        // One of them has its nodes in another order.
        model.sort_topologically().unwrap();
        let shape = model.value_shape(&model.input_names()[0]).unwrap();
        let dims: Vec<usize> = shape.iter().map(|d| d.map_or(7, |d| d as usize)).collect();
        let worst = compare(&model, &dims, seed as u64);
        assert!(worst < 1e-4, "{}: off by {worst}", file.display());
    }
}

#[test]
fn operators_on_shapes_agree_with_the_runtime() {
    let list = |name: &str, values: &[i64]| TensorProto::i64(name, &[values.len()], values);
    // y = Expand(x, [Shape(x)[0] * 3, Shape(x)[1]]) and the like, as exporters write it.
    let nodes = vec![
        NodeProto::new("Shape", "shape", &["x"], &["s"]),
        NodeProto::new("Gather", "rows", &["s", "zero"], &["n"]),
        NodeProto::new("Gather", "columns", &["s", "one"], &["c"]),
        NodeProto::new("Mul", "triple", &["n", "three"], &["n3"]),
        NodeProto::new("Concat", "join", &["n3", "c"], &["wanted"]).with_int("axis", 0),
        NodeProto::new("Equal", "open", &["wanted", "minus"], &["is_open"]),
        NodeProto::new("Where", "close", &["is_open", "one", "wanted"], &["closed"]),
        NodeProto::new("Expand", "expand", &["x", "closed"], &["e"]),
        NodeProto::new("Tile", "tile", &["e", "twice"], &["t"]),
        NodeProto::new("Gather", "pick", &["t", "picks"], &["y"]).with_int("axis", 1),
    ];
    let constants = vec![
        list("zero", &[0]),
        list("one", &[1]),
        list("three", &[3]),
        list("minus", &[-1]),
        list("twice", &[2, 1]),
        list("picks", &[3, 0, -1]),
    ];
    let model = model(
        17,
        nodes,
        constants,
        vec![value("x", &[1, 4])],
        vec![untyped("y")],
    );
    assert_eq!(compare(&model, &[1, 4], 1), 0.0);
}
