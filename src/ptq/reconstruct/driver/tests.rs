//! What a reconstruction promises: it computes what the exported file computes, its gradients are true, it gains
//! where there is something to gain, never ends worse than it began, and goes on where it was killed.

use ndarray::Array4;
use ort::value::TensorRef;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::*;
use crate::detector::runtime::{RuntimeOptions, session_from_bytes};
use crate::onnx::proto::{NodeProto, TensorProto};
use crate::onnx::tests::{model, value};
use crate::ptq::export;
use crate::ptq::plan::{self, Plan};
use crate::ptq::progress::Silent;
use crate::ptq::quantizer::Levels;
use crate::ptq::ranges::Extremes;
use crate::ptq::recipe::{Recipe, Target, tests::quick};
use crate::ptq::reconstruct::program::Block;
use crate::ptq::reconstruct::sensitivity::{self, SensitivitySettings};
use crate::ptq::reconstruct::{CropSettings, PositiveSettings, TgplSettings};
use crate::ptq::weights::LayerWeights;

const CELLS: usize = 16;

fn random(rng: &mut ChaCha8Rng, name: &str, dims: &[usize], low: f32, high: f32) -> TensorProto {
    let count = dims.iter().product();
    let data: Vec<f32> = (0..count).map(|_| rng.random_range(low..high)).collect();
    TensorProto::f32(name, dims, &data)
}

fn convolution(name: &str, input: &str, output: &str, kernel: i64, stride: i64) -> NodeProto {
    let (w, b) = (format!("{name}_w"), format!("{name}_b"));
    let pad = kernel / 2;
    NodeProto::new("Conv", name, &[input, &w, &b], &[output])
        .with_ints("kernel_shape", &[kernel, kernel])
        .with_ints("pads", &[pad, pad, pad, pad])
        .with_ints("strides", &[stride, stride])
}

fn relu(name: &str, output: &str) -> NodeProto {
    NodeProto::new("Relu", &format!("{name}_relu"), &[name], &[output])
}

/// Two branches of different stride, joined, with a heatmap and a box head: all that a CenterPoint is made of.
fn network_of_two_branches(seed: u64) -> Model {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut nodes = vec![
        convolution("down", "x", "down", 3, 2),
        relu("down", "down_r"),
        convolution("deep", "down_r", "deep", 3, 1),
        relu("deep", "deep_r"),
        NodeProto::new("ConvTranspose", "up", &["deep_r", "up_w", "up_b"], &["up"])
            .with_ints("kernel_shape", &[2, 2])
            .with_ints("strides", &[2, 2]),
        relu("up", "up_r"),
        convolution("side", "x", "side", 1, 1),
        relu("side", "side_r"),
        NodeProto::new("Concat", "cat", &["up_r", "side_r"], &["cat"]).with_int("axis", 1),
        convolution("shared", "cat", "shared", 3, 1),
        relu("shared", "shared_r"),
    ];
    let mut constants = Vec::new();
    let mut layer = |name: &str, dims: [usize; 4], bias: f32| {
        let fan = (dims[1] * dims[2] * dims[3]) as f32;
        let width = (6.0 / fan).sqrt();
        constants.push(random(&mut rng, &format!("{name}_w"), &dims, -width, width));
        let outputs = if name == "up" { dims[1] } else { dims[0] };
        let bias = random(&mut rng, "", &[outputs], bias - 0.1, bias + 0.1);
        constants.push(TensorProto {
            name: Some(format!("{name}_b")),
            ..bias
        });
    };
    layer("down", [8, 4, 3, 3], 0.1);
    layer("deep", [8, 8, 3, 3], 0.1);
    layer("up", [8, 6, 2, 2], 0.1);
    layer("side", [4, 4, 1, 1], 0.1);
    layer("shared", [8, 10, 3, 3], 0.1);
    let mut outputs = Vec::new();
    for (head, channels, bias) in [("heatmap", 2, -1.0), ("reg", 2, 0.0)] {
        let (first, mid) = (format!("{head}_0"), format!("{head}_r"));
        nodes.push(convolution(&first, "shared_r", &first, 3, 1));
        nodes.push(relu(&first, &mid));
        nodes.push(convolution(&format!("{head}_1"), &mid, head, 1, 1));
        layer(&first, [8, 8, 3, 3], 0.1);
        layer(&format!("{head}_1"), [channels, 8, 1, 1], bias);
        let cells = CELLS as i64;
        outputs.push(value(head, &[-1, channels as i64, cells, cells]));
    }
    let cells = CELLS as i64;
    let input = value("x", &[-1, 4, cells, cells]);
    let model = model(17, nodes, constants, vec![input], outputs);
    plan::prepare(model).unwrap().model
}

/// Maps of which most cells are empty.
fn maps(count: usize, channels: usize, seed: u64) -> Array4<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut maps = Array4::zeros((count, channels, CELLS, CELLS));
    for mut map in maps.outer_iter_mut() {
        for y in 0..CELLS {
            for x in 0..CELLS {
                if rng.random_bool(0.3) {
                    for c in 0..channels {
                        map[[c, y, x]] = rng.random_range(0.0..2.0);
                    }
                }
            }
        }
    }
    maps
}

fn recipe(weight_bits: u32, activation_bits: u32) -> Recipe {
    let mut recipe = quick();
    recipe.weights.bits = weight_bits;
    recipe.activations.bits = activation_bits;
    recipe
}

/// Rounded to the nearest, with steps from the extremes of what the float network says.
fn nearest(graph: &Model, recipe: &Recipe, x: &Array4<f32>) -> Quantization {
    let target = recipe.target(Target::Cpu);
    let plan = Plan::new(graph, recipe, target).unwrap();
    let weights = plan
        .layers
        .iter()
        .map(|layer| {
            let weight = graph.initializer_f32(&layer.weight).unwrap();
            let levels = Levels::symmetric(layer.weight_bits);
            LayerWeights::calibrate(&weight, layer.axis, levels, &recipe.weights.search).unwrap()
        })
        .collect();
    let device = Device::default();
    let network = Network::<Inner>::new(graph, &device).unwrap();
    let mut seen = Values::default();
    seen.insert("x".into(), tensor(x).into());
    for node in 0..network.nodes().len() {
        network.step(node, &mut seen).unwrap();
    }
    let activations = plan
        .groups
        .iter()
        .map(|group| {
            let mut extremes = Extremes::default();
            for name in &group.sources {
                extremes.add(&seen.get(name).unwrap().to_vec());
            }
            target.activations.max_min(&extremes, group.bits)
        })
        .collect();
    Quantization {
        plan,
        weights,
        activations,
    }
}

fn tensor(x: &Array4<f32>) -> Tensor<Inner, 4> {
    let (n, c, h, w) = x.dim();
    let data: Vec<f32> = x.iter().copied().collect();
    Tensor::from_data(TensorData::new(data, [n, c, h, w]), &Device::default())
}

fn settings() -> Reconstruction {
    Reconstruction {
        iterations: 60,
        batch: 4,
        block: 1,
        rate: 0.05,
        activation_rate: 0.001,
        regularizer: 1.0,
        beta: [20.0, 2.0],
        warm_up: 0.2,
        drop: 0.5,
        crops: CropSettings {
            size: 0,
            margin: 0,
            per_frame: 1,
            max: 100,
            judged: 8,
            memory_mb: 1000,
        },
        positives: PositiveSettings {
            threshold: 0.1,
            max: 100,
            radius: 0,
        },
        tgpl: TgplSettings {
            weight: 1.0,
            every: 1,
            boxes: 0.25,
            velocity: 0.2,
        },
        seed: 7,
        multiplications: 0.0,
    }
}

/// Adaptive rounding and learned steps only.
fn without_task(mut settings: Reconstruction) -> Reconstruction {
    settings.tgpl.weight = 0.0;
    settings
}

fn subject<'a>(graph: &'a Model, windows: &Array4<f32>) -> Subject<'a> {
    Subject {
        graph,
        input: "x",
        heads: [(Head::Heatmap, "heatmap"), (Head::Reg, "reg")]
            .map(|(head, name)| (head, name.to_owned()))
            .to_vec(),
        scale: HeatmapScale::Logit,
        bias: BiasType::Int32,
        windows: windows.clone(),
        margin: 0,
    }
}

fn run(
    graph: &Model,
    windows: &Array4<f32>,
    quantization: &mut Quantization,
    settings: &Reconstruction,
) -> Vec<Outcome> {
    let subject = subject(graph, windows);
    let checkpoint = Checkpoint::none();
    reconstruct(subject, quantization, settings, &checkpoint, &mut Silent).unwrap()
}

/// Everything that needs a driver, with one made.
fn with_driver<T>(
    graph: &Model,
    windows: &Array4<f32>,
    quantization: &mut Quantization,
    settings: &Reconstruction,
    work: impl FnOnce(&mut Driver<'_>, Tuner) -> T,
) -> T {
    let device = Device::default();
    let program = Program::new(graph, &quantization.plan, settings.block).unwrap();
    let inner = network::<Inner>(graph, &device).unwrap();
    let subject = subject(graph, windows);
    let heads = subject.heads.clone();
    let maps = windows.clone();
    let mut driver = Driver::new(&subject, maps, &program, &inner, quantization, settings).unwrap();
    let outputs = driver.outputs(&Silent).unwrap();
    let positives = Positives::find(heads, subject.scale, outputs, &settings.positives, 0).unwrap();
    assert!(positives.count() > 10, "few positives show little");
    let tuner = Tuner {
        schedule: Schedule {
            iterations: settings.iterations,
            every: settings.tgpl.every,
        },
        grad: network::<Grad>(graph, &device).unwrap(),
        positives,
        float_weights: program_weights(graph, &driver).unwrap(),
        settled: vec![false; driver.quantization.plan.groups.len()],
    };
    driver
        .advance(&program.glue(&driver.done), &Silent)
        .unwrap();
    work(&mut driver, tuner)
}

/// Runs all blocks that remain, along both paths.
fn to_the_end(driver: &mut Driver<'_>) {
    let program = driver.program;
    for block in &program.blocks {
        driver.advance(&block.nodes, &Silent).unwrap();
        driver
            .advance(&program.glue(&driver.done), &Silent)
            .unwrap();
    }
}

#[test]
fn what_is_tuned_computes_what_the_exported_model_computes() {
    // 7 bits: exact on processors whose 8-bit products saturate, too.
    for (weight_bits, activation_bits, seed) in [(7, 8, 1), (4, 8, 2), (4, 4, 3)] {
        let graph = network_of_two_branches(seed);
        let mut recipe = recipe(weight_bits, activation_bits);
        // So that the outputs are integers too.
        recipe.keep_float.head_outputs = false;
        let x = maps(2, 4, seed);
        let mut quantization = nearest(&graph, &recipe, &x);
        run(&graph, &x, &mut quantization, &settings());
        let mut wide = quantization.clone();
        assert!(wide.fit_biases(&graph).unwrap().is_empty());

        let exported = export::qdq(&graph, &quantization, recipe.target(Target::Cpu)).unwrap();
        let options = RuntimeOptions::default();
        let mut session = session_from_bytes(&exported.encode(), "exported", &options).unwrap();
        let input = TensorRef::from_array_view(x.view()).unwrap();
        let outputs = session.run(ort::inputs![input]).unwrap();
        with_driver(
            &graph,
            &x,
            &mut quantization.clone(),
            &settings(),
            |driver, _| {
                to_the_end(driver);
                for name in ["heatmap", "reg"] {
                    let by_runtime = outputs[name].try_extract_tensor::<f32>().unwrap().1;
                    let ours = values(&driver.quantized[name]);
                    let group = quantization.plan.group_of(name).unwrap();
                    let step = quantization.activations[group];
                    assert_eq!(ours.len(), by_runtime.len());
                    let steps: Vec<i32> = ours
                        .iter()
                        .zip(by_runtime)
                        .map(|(a, b)| (step.quantize(*a) - step.quantize(*b)).abs())
                        .collect();
                    let exact = steps.iter().filter(|s| **s == 0).count() as f32;
                    let share = exact / steps.len() as f32;
                    let worst = steps.iter().max().unwrap();
                    assert!(
                        *worst <= 1 && share > 0.98,
                        "{weight_bits} bits, {name}: {worst} steps, {share} exact"
                    );
                    // The comparison sees something: nobody would agree with a network of other weights.
                    assert!(ours.iter().any(|v| step.quantize(*v) != step.quantize(0.0)));
                }
            },
        );
    }
}

#[test]
fn the_exported_integers_and_steps_are_the_tuned_ones() {
    let graph = network_of_two_branches(3);
    let recipe = recipe(4, 8);
    let x = maps(8, 4, 3);
    let before = nearest(&graph, &recipe, &x);
    let mut tuned = before.clone();
    let outcomes = run(&graph, &x, &mut tuned, &settings());
    assert!(outcomes.iter().filter(|o| o.taken).count() >= 4);
    let bytes = export::qdq(&graph, &tuned, recipe.target(Target::Cpu))
        .unwrap()
        .encode();
    let file = Model::decode(&bytes, "read back").unwrap();
    let source = |value: &str| {
        let nodes = &file.graph().node;
        nodes.iter().find(|n| n.output[0] == value).unwrap()
    };
    for (index, (layer, weights)) in tuned.plan.layers.iter().zip(&tuned.weights).enumerate() {
        let nodes = &file.graph().node;
        let node = nodes.iter().find(|n| n.name.as_ref() == Some(&layer.name));
        let node = node.unwrap();
        let constant = source(&node.input[1]);
        let stored = file
            .initializer(&constant.input[0])
            .unwrap()
            .to_i64()
            .unwrap();
        let ours: Vec<i64> = weights.integers.iter().map(|&i| i.into()).collect();
        assert_eq!(stored.data, ours, "{}", layer.name);
        // Each is one of the two integers around the float weight.
        let float = graph.initializer_f32(&layer.weight).unwrap().data;
        let scales = weights.scales();
        for (i, (&w, &q)) in float.iter().zip(&weights.integers).enumerate() {
            let level = (w / scales[weights.channel(i)]).clamp(-7.0, 7.0);
            assert!(
                f32::from(q) == level.floor() || f32::from(q) == level.ceil(),
                "{level} became {q}"
            );
        }
        let outcome = outcomes.iter().find(|o| o.layers == [index]).unwrap();
        let changed = weights.integers != before.weights[index].integers;
        assert_eq!(changed, outcome.flipped[0] > 0.0);
        let group = tuned.plan.group_of(&layer.input).unwrap();
        let scale = file
            .initializer_f32(&source(&node.input[0]).input[1])
            .unwrap();
        assert_eq!(scale.data, [tuned.activations[group].scale]);
    }
    let moved = tuned.activations.iter().zip(&before.activations);
    assert!(
        moved.filter(|(a, b)| a.scale != b.scale).count() >= 2,
        "steps were learned"
    );
}

#[test]
fn adaptive_rounding_finds_what_nearest_rounding_misses() {
    // Every weight lies 0.45 of a step above a level and all inputs rise and fall together, so that rounding to the
    // nearest loses 0.45 of a step times their sum. Rounding 45 % of the weights up loses next to nothing.
    let mut rng = ChaCha8Rng::seed_from_u64(4);
    let step = 1.0 / 7.0;
    let dims = [6usize, 16, 1, 1];
    let planted: Vec<f32> = (0..96)
        .map(|i| match i % 16 {
            // The largest pins the step.
            0 => 7.0 * step,
            _ => (rng.random_range(-4i32..=4) as f32 + 0.45) * step,
        })
        .collect();
    let cells = CELLS as i64;
    let graph = model(
        17,
        vec![
            convolution("planted", "x", "planted", 1, 1),
            convolution("heatmap_1", "planted", "heatmap", 1, 1),
            convolution("reg_1", "planted", "reg", 1, 1),
        ],
        vec![
            TensorProto::f32("planted_w", &dims, &planted),
            TensorProto::f32("planted_b", &[6], &[0.0; 6]),
            random(&mut rng, "heatmap_1_w", &[2, 6, 1, 1], -0.5, 0.5),
            TensorProto::f32("heatmap_1_b", &[2], &[0.0; 2]),
            random(&mut rng, "reg_1_w", &[2, 6, 1, 1], -0.5, 0.5),
            TensorProto::f32("reg_1_b", &[2], &[0.0; 2]),
        ],
        vec![value("x", &[-1, 16, cells, cells])],
        vec![
            value("heatmap", &[-1, 2, cells, cells]),
            value("reg", &[-1, 2, cells, cells]),
        ],
    );
    let graph = plan::prepare(graph).unwrap().model;
    let mut x = maps(8, 16, 4);
    for mut map in x.outer_iter_mut() {
        for y in 0..CELLS {
            for x in 0..CELLS {
                let common = map[[0, y, x]];
                for c in 0..16 {
                    map[[c, y, x]] = common * (1.0 + 0.1 * map[[c, y, x]]);
                }
            }
        }
    }
    let mut recipe = recipe(4, 8);
    recipe.weights.search.steps = 1;
    recipe.weights.search.alpha = 1.0;
    recipe.weights.search.beta = 1.0;
    let mut quantization = nearest(&graph, &recipe, &x);
    assert_eq!(quantization.plan.layers.len(), 1);
    let scales = quantization.weights[0].scales();
    assert!(scales.iter().all(|s| (s - step).abs() < 1e-6));
    let mut settings = without_task(settings());
    settings.iterations = 300;
    settings.activation_rate = 0.0;
    settings.drop = 0.0;
    let outcome = run(&graph, &x, &mut quantization, &settings).remove(0);
    assert!(outcome.taken);
    assert!(
        outcome.error_after < 0.05 * outcome.error_before,
        "{} of {}",
        outcome.error_after,
        outcome.error_before
    );
    // As many of the fifteen go up as the sum needs: 6.75 of them.
    for channel in quantization.weights[0]
        .integers
        .chunks(16)
        .zip(planted.chunks(16))
    {
        let up = channel.0.iter().zip(channel.1).skip(1);
        let up = up.filter(|(q, w)| f32::from(**q) > **w / step).count();
        assert!((5..=9).contains(&up), "{up} of 15 rounded up");
    }
}

#[test]
fn a_block_never_ends_worse_than_rounded_to_the_nearest() {
    let (mut kept, mut taken) = (0, 0);
    for seed in 0..4 {
        let graph = network_of_two_branches(seed);
        let x = maps(8, 4, seed);
        let before = nearest(&graph, &recipe(4, 4), &x);
        // One: a rate that ruins. Two: a reasonable one.
        for (rate, iterations) in [(5.0, 2), (0.05, 30)] {
            let mut settings = without_task(settings());
            (settings.rate, settings.iterations) = (rate, iterations);
            let mut tuned = before.clone();
            for outcome in run(&graph, &x, &mut tuned, &settings) {
                let layer = outcome.layers[0];
                let same = tuned.weights[layer].integers == before.weights[layer].integers;
                if outcome.taken {
                    taken += 1;
                    assert!(outcome.error_after < outcome.error_before);
                } else {
                    kept += 1;
                    assert!(same, "the nearest integers stay");
                    assert_eq!(outcome.error_after, outcome.error_before);
                    assert_eq!(outcome.flipped, [0.0]);
                }
            }
        }
    }
    assert!(kept >= 8 && taken >= 8, "{kept} kept, {taken} taken");
}

/// The task-guided loss of a block's output, for the windows given.
fn task_loss<B: Convolve>(
    driver: &Driver<'_>,
    tuner: &Tuner,
    network: &Network<B>,
    block: &Block,
    output: Tensor<B, 4>,
    lift: impl Fn(Tensor<Inner, 4>) -> Tensor<B, 4> + Copy,
) -> Tensor<B, 1> {
    let tail = driver.program.tail(block, &driver.done);
    let windows: Vec<usize> = (0..driver.windows).collect();
    let mut raw = Values::default();
    raw.insert(block.output.clone(), output.into());
    let maps = tuner
        .heads(driver, network, block, &tail, &windows, raw, lift)
        .unwrap();
    let loss = &driver.settings.tgpl;
    tuner
        .positives
        .loss(&windows, &maps, loss, lift, &driver.device)
        .unwrap()
}

#[test]
fn the_gradient_of_the_task_guided_loss_equals_finite_differences() {
    let graph = network_of_two_branches(5);
    let x = maps(2, 4, 5);
    let mut quantization = nearest(&graph, &recipe(4, 8), &x);
    with_driver(
        &graph,
        &x,
        &mut quantization,
        &settings(),
        |driver, tuner| {
            let program = driver.program;
            for block in &program.blocks {
                let nodes = &block.nodes;
                let quantized = driver.run(nodes, Path::Quantized, &Silent).unwrap();
                if driver.done.iter().filter(|d| !**d).count() > nodes.len() {
                    let at = quantized[&block.output].clone();
                    let tracked = Tensor::<Grad, 4>::from_inner(at.clone()).require_grad();
                    let loss = task_loss(
                        driver,
                        &tuner,
                        &tuner.grad,
                        block,
                        tracked.clone(),
                        Tensor::from_inner,
                    );
                    let here = scalar(loss.clone().inner());
                    let gradient = tracked.grad(&loss.backward()).unwrap();
                    let slope = scalar(gradient.clone().square().sum().sqrt());
                    assert!(
                        here > 1e-5 && slope > 1e-4,
                        "{}: {here} {slope}",
                        block.output
                    );
                    // Along the gradient, far enough for 32 bits and near enough not to cross many kinks.
                    let along = gradient / slope as f32;
                    let value = |t: f32| {
                        let moved = at.clone() + along.clone() * t;
                        scalar(task_loss(
                            driver,
                            &tuner,
                            driver.network,
                            block,
                            moved,
                            |t| t,
                        ))
                    };
                    let t = (0.01 * here / slope) as f32;
                    let measured = (value(t) - value(-t)) / f64::from(2.0 * t);
                    assert!(
                        (measured / slope - 1.0).abs() < 0.03,
                        "{}: {slope} by the gradient, {measured} by differences",
                        block.output
                    );
                }
                driver.advance(nodes, &Silent).unwrap();
                driver
                    .advance(&program.glue(&driver.done), &Silent)
                    .unwrap();
            }
        },
    );
}

#[test]
fn the_task_guided_loss_brings_the_heads_back_where_objects_are() {
    let graph = network_of_two_branches(6);
    let x = maps(24, 4, 6);
    let start = nearest(&graph, &recipe(3, 8), &x);
    let error_at_positives = |settings: &Reconstruction| -> f64 {
        let mut tuned = start.clone();
        let mut settings = settings.clone();
        settings.iterations = 120;
        run(&graph, &x, &mut tuned, &settings);
        with_driver(&graph, &x, &mut tuned, &settings, |driver, tuner| {
            to_the_end(driver);
            let windows: Vec<usize> = (0..driver.windows).collect();
            let loss = tuner.positives.loss::<Inner>(
                &windows,
                &driver.quantized,
                &settings.tgpl,
                |t| t,
                &driver.device,
            );
            scalar(loss.unwrap())
        })
    };
    let with = error_at_positives(&settings());
    let mut far = settings();
    far.tgpl.weight = 0.0;
    // The loss is measured all the same.
    let without = error_at_positives(&far);
    assert!(with < without, "{with} with, {without} without");
}

/// Stops when it is told of a block.
struct StopAt(&'static str, bool);

impl Progress for StopAt {
    fn update(&mut self, _stage: Stage, _fraction: f64, detail: &str) {
        self.1 |= detail.contains(self.0);
    }
    fn cancelled(&self) -> bool {
        self.1
    }
}

#[test]
fn work_that_was_interrupted_goes_on_to_the_same_result() {
    let graph = network_of_two_branches(8);
    let x = maps(8, 4, 8);
    let start = nearest(&graph, &recipe(4, 4), &x);
    let mut settings = settings();
    settings.iterations = 15;
    let mut whole = start.clone();
    let outcomes = run(&graph, &x, &mut whole, &settings);
    assert!(outcomes.iter().any(|o| o.taken));

    let folder = tempfile::tempdir().unwrap();
    let open = || Checkpoint::open(&folder.path().join("resume"), "key").unwrap();
    for stop in ["block 3 of", "block 5 of"] {
        let mut cut = start.clone();
        let result = reconstruct(
            subject(&graph, &x),
            &mut cut,
            &settings,
            &open(),
            &mut StopAt(stop, false),
        );
        assert!(matches!(result, Err(PtqError::Cancelled)), "{result:?}");
    }
    let mut again = start.clone();
    let resumed = reconstruct(
        subject(&graph, &x),
        &mut again,
        &settings,
        &open(),
        &mut Silent,
    )
    .unwrap();
    for (a, b) in whole.weights.iter().zip(&again.weights) {
        assert_eq!(a.integers, b.integers);
    }
    assert_eq!(whole.activations, again.activations);
    for (a, b) in outcomes.into_iter().zip(resumed) {
        assert_eq!(Outcome { seconds: 0.0, ..a }, Outcome { seconds: 0.0, ..b });
    }
}

#[test]
fn less_memory_means_fewer_windows_and_still_a_result() {
    let graph = network_of_two_branches(9);
    let x = maps(40, 4, 9);
    let mut quantization = nearest(&graph, &recipe(4, 8), &x);
    let mut settings = settings();
    settings.iterations = 5;
    settings.crops.memory_mb = 1;
    let outcomes = run(&graph, &x, &mut quantization, &settings);
    assert_eq!(outcomes.len(), quantization.plan.layers.len());
}

#[test]
fn a_layer_of_two_bits_among_eight_is_the_most_sensitive() {
    let graph = network_of_two_branches(10);
    let x = maps(6, 4, 10);
    for planted in ["deep", "side", "heatmap_0"] {
        let mut recipe = recipe(8, 8);
        recipe.layers =
            serde_yaml::from_str(&format!("[{{ name: {planted}, weight_bits: 2 }}]")).unwrap();
        let mut quantization = nearest(&graph, &recipe, &x);
        let wish = SensitivitySettings {
            windows: 6,
            keep: 0,
            max_float_share: 0.0,
            max_float_bytes: 0,
        };
        let subject = subject(&graph, &x);
        let ranking =
            sensitivity::measure(&subject, &mut quantization, &wish, &settings(), &mut Silent)
                .unwrap();
        assert_eq!(ranking.len(), quantization.plan.layers.len());
        assert_eq!(
            (ranking[0].layer.as_str(), ranking[0].weight_bits),
            (planted, 2)
        );
        let (first, second) = (ranking[0].task.unwrap(), ranking[1].task.unwrap());
        assert!(first > second, "{planted}: {first} before {second}");
    }
}
