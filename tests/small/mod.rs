//! A small two-part model and frames for it, made on the spot.

// Each test file uses its own part of this.
#![allow(dead_code, clippy::unwrap_used)]

use std::path::Path;

use centerpoint_ptq::bag::Stamp;
use centerpoint_ptq::cloud::{Point, Points};
use centerpoint_ptq::detector::ModelDescription;
use centerpoint_ptq::onnx::Model;
use centerpoint_ptq::onnx::proto::{
    DimensionProto, DimensionValue, GraphProto, ModelProto, NodeProto, OperatorSetIdProto,
    StringStringEntryProto, TensorProto, TensorShapeProto, TensorType, TypeProto, TypeValue,
    ValueInfoProto,
};
use centerpoint_ptq::ptq::frames::Sample;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

pub fn value(name: &str, dims: &[i64]) -> ValueInfoProto {
    let dim = |&d: &i64| DimensionProto {
        value: Some(if d < 0 {
            DimensionValue::Param(format!("free{}", -d))
        } else {
            DimensionValue::Value(d)
        }),
        denotation: None,
    };
    ValueInfoProto {
        name: Some(name.into()),
        r#type: Some(TypeProto {
            value: Some(TypeValue::Tensor(TensorType {
                elem_type: Some(1),
                shape: Some(TensorShapeProto {
                    dim: dims.iter().map(dim).collect(),
                }),
            })),
            denotation: None,
        }),
        ..Default::default()
    }
}

pub fn model(
    version: i64,
    node: Vec<NodeProto>,
    initializer: Vec<TensorProto>,
    input: Vec<ValueInfoProto>,
    output: Vec<ValueInfoProto>,
) -> Model {
    let proto = ModelProto {
        ir_version: Some(8),
        opset_import: vec![OperatorSetIdProto {
            domain: Some(String::new()),
            version: Some(version),
        }],
        graph: Some(GraphProto {
            name: Some("test".into()),
            node,
            initializer,
            input,
            output,
            ..Default::default()
        }),
        ..Default::default()
    };
    Model::from_proto(proto, "test.onnx").unwrap()
}

pub fn random(rng: &mut impl Rng, name: &str, dims: &[usize], low: f32, high: f32) -> TensorProto {
    let data: Vec<f32> = (0..dims.iter().product())
        .map(|_| rng.random_range(low..high))
        .collect();
    TensorProto::f32(name, dims, &data)
}

/// A small two-part model on a grid of 32 x 32 cells whose heatmap fires on dense pillars.
pub fn model_folder(folder: &Path) -> ModelDescription {
    model_of_heads(
        folder,
        &[
            ("heatmap", 2usize, -2.0f32),
            ("reg", 2, 0.5),
            ("height", 1, 0.0),
            ("dim", 3, 0.5),
            ("rot", 2, 0.7),
        ],
    )
}

/// The same with these heads: names, channels and biases.
pub fn model_of_heads(folder: &Path, heads: &[(&str, usize, f32)]) -> ModelDescription {
    let mut rng = ChaCha8Rng::seed_from_u64(9);
    let encoder = model(
        17,
        vec![
            NodeProto::new("MatMul", "linear", &["points", "w"], &["a"]),
            NodeProto::new("Relu", "relu", &["a"], &["b"]),
            NodeProto::new("ReduceMax", "max", &["b"], &["pillars"])
                .with_ints("axes", &[1])
                .with_int("keepdims", 1),
        ],
        vec![random(&mut rng, "w", &[9, 8], -0.4, 0.6)],
        vec![value("points", &[-1, 8, 9])],
        vec![value("pillars", &[-1, 1, 8])],
    );
    encoder.save(folder.join("encoder.onnx")).unwrap();
    let mut nodes = vec![
        NodeProto::new("Conv", "b0", &["spatial", "w0", "c0"], &["b0"])
            .with_ints("pads", &[1, 1, 1, 1])
            .with_ints("strides", &[2, 2]),
        NodeProto::new("Relu", "b0_relu", &["b0"], &["b0r"]),
        NodeProto::new("Conv", "b1", &["b0r", "w1", "c1"], &["b1"])
            .with_ints("pads", &[1, 1, 1, 1])
            .with_ints("strides", &[2, 2]),
        NodeProto::new("Relu", "b1_relu", &["b1"], &["b1r"]),
        NodeProto::new("Conv", "lateral", &["b0r", "wl"], &["la"]),
        NodeProto::new("Relu", "lateral_relu", &["la"], &["lar"]),
        NodeProto::new("ConvTranspose", "up", &["b1r", "wu"], &["up"])
            .with_ints("strides", &[2, 2]),
        NodeProto::new(
            "BatchNormalization",
            "bn",
            &["up", "g", "be", "me", "va"],
            &["upn"],
        ),
        NodeProto::new("Relu", "up_relu", &["upn"], &["upr"]),
        NodeProto::new("Concat", "cat", &["lar", "upr"], &["cat"]).with_int("axis", 1),
    ];
    let mut constants = vec![
        random(&mut rng, "w0", &[16, 8, 3, 3], -0.2, 0.3),
        random(&mut rng, "c0", &[16], -0.1, 0.1),
        random(&mut rng, "w1", &[16, 16, 3, 3], -0.1, 0.12),
        random(&mut rng, "c1", &[16], -0.1, 0.1),
        random(&mut rng, "wl", &[8, 16, 1, 1], -0.2, 0.3),
        random(&mut rng, "wu", &[16, 8, 2, 2], -0.2, 0.3),
        random(&mut rng, "g", &[8], 0.5, 1.0),
        random(&mut rng, "be", &[8], -0.1, 0.1),
        random(&mut rng, "me", &[8], -0.1, 0.1),
        random(&mut rng, "va", &[8], 0.5, 1.0),
    ];
    let mut outputs = Vec::new();
    for &(head, channels, bias) in heads {
        let (h, w, c) = (
            format!("{head}_h"),
            format!("{head}_w"),
            format!("{head}_c"),
        );
        let (a, r) = (format!("{head}_a"), format!("{head}_r"));
        nodes.push(
            NodeProto::new("Conv", &format!("{head}_0"), &["cat", &h], &[&a])
                .with_ints("pads", &[1, 1, 1, 1]),
        );
        nodes.push(NodeProto::new(
            "Relu",
            &format!("{head}_relu"),
            &[&a],
            &[&r],
        ));
        nodes.push(NodeProto::new(
            "Conv",
            &format!("{head}_1"),
            &[&r, &w, &c],
            &[head],
        ));
        constants.push(random(&mut rng, &h, &[8, 16, 3, 3], -0.1, 0.1));
        let spread = if head == "heatmap" { 0.2 } else { 0.01 };
        constants.push(random(&mut rng, &w, &[channels, 8, 1, 1], -spread, spread));
        constants.push(TensorProto::f32(&c, &[channels], &vec![bias; channels]));
        outputs.push(value(head, &[1, channels as i64, 16, 16]));
    }
    let backbone = model(
        17,
        nodes,
        constants,
        vec![value("spatial", &[1, 8, 32, 32])],
        outputs,
    );
    backbone.save(folder.join("backbone.onnx")).unwrap();
    let names: Vec<String> = heads.iter().map(|(n, ..)| format!("{n}: {n}")).collect();
    let yaml = "
format: 1
name: small
layout: two_part
classes: [CAR, PEDESTRIAN]
encoder: { file: encoder.onnx, input: points, output: pillars }
backbone:
  file: backbone.onnx
  input: spatial
  outputs: { HEADS }
points: { features: [x, y, z, time_lag] }
grid:
  min: [-12.8, -12.8, -3.0]
  max: [12.8, 12.8, 5.0]
  pillar: [0.8, 0.8]
  max_pillars: 2000
  max_points: 8
  decorations: [cluster_xyz, centre_xy]
  downsample: 2
head: { heatmap: logit, dim_scale: log, dim_order: wlh, rot_order: sin_cos, yaw: legacy }
post: { peak_kernel: 3, score_thresholds: [0.3, 0.3] }
";
    let path = folder.join("model.yaml");
    std::fs::write(&path, yaml.replace("HEADS", &names.join(", "))).unwrap();
    ModelDescription::load(&path).unwrap()
}

/// Clusters of points here and there.
pub fn samples(count: usize) -> Vec<Result<Sample, std::io::Error>> {
    let mut rng = ChaCha8Rng::seed_from_u64(10);
    (0..count)
        .map(|i| {
            let mut points = Vec::new();
            for _cluster in 0..12 {
                let (cx, cy) = (
                    rng.random_range(-11.0f32..11.0),
                    rng.random_range(-11.0f32..11.0),
                );
                for _point in 0..60 {
                    points.push(Point {
                        x: cx + rng.random_range(-1.0..1.0),
                        y: cy + rng.random_range(-1.0..1.0),
                        z: rng.random_range(-1.0..1.0),
                        ..Default::default()
                    });
                }
            }
            Ok(Sample {
                stamp: Stamp(i as i64 * 100_000_000),
                points: Points(points),
                sweeps: 1,
                conditions: Vec::new(),
                role: None,
            })
        })
        .collect()
}

/// Moves the weights of an ONNX file to a file beside it, as exporters do.
pub fn put_weights_beside(graph: &Path, data: &str) {
    let mut model = Model::load(graph).unwrap();
    let mut bytes: Vec<u8> = Vec::new();
    for tensor in &mut model.graph_mut().initializer {
        let raw = tensor.raw_data.take().unwrap();
        let entry = |key: &str, value: String| StringStringEntryProto {
            key: Some(key.into()),
            value: Some(value),
        };
        tensor.external_data = vec![
            entry("location", data.into()),
            entry("offset", bytes.len().to_string()),
            entry("length", raw.len().to_string()),
        ];
        tensor.data_location = Some(1);
        bytes.extend(raw);
    }
    std::fs::write(graph, model.encode()).unwrap();
    let folder = graph.parent().unwrap();
    std::fs::create_dir_all(folder.join(data).parent().unwrap()).unwrap();
    std::fs::write(folder.join(data), bytes).unwrap();
}
