//! What belongs to a model: weights that exporters put in files beside the graph are part of it wherever it is told
//! from others, weighed, copied or held against a hash.
//!
//! These tests need ONNX Runtime; without it they fail and say where it was looked for.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::path::{Path, PathBuf};

use centerpoint_ptq::calibration::store::{FloatModel, Limits, ModelStore, Selection, Unfit};
use centerpoint_ptq::detector::{Detector, ModelDescription, ModelFiles, RuntimeOptions};
use centerpoint_ptq::onnx::{Model, Outline};
use centerpoint_ptq::ptq::progress::Silent;
use centerpoint_ptq::ptq::recipe::{Recipe, Target};
use centerpoint_ptq::ptq::report::{FileRecord, Report};
use centerpoint_ptq::ptq::{self};

mod small;
use small::{model_folder, put_weights_beside, samples};

fn load(model: &ModelDescription) -> Detector {
    Detector::load(model, &RuntimeOptions::default()).unwrap()
}

fn refusal(model: &ModelDescription) -> String {
    let refused = Detector::load(model, &RuntimeOptions::default());
    refused
        .expect_err("the model should be refused")
        .to_string()
}

/// The small model with the weights of both graphs in files beside them.
fn with_weights_beside(folder: &Path) -> ModelDescription {
    let model = model_folder(folder);
    put_weights_beside(&model.encoder_path(), "encoder.onnx.data");
    put_weights_beside(&model.backbone_path(), "backbone.onnx.data");
    model
}

/// Another value for the last weight of a file, as after more training.
fn train(weights: &Path) {
    let mut bytes = fs::read(weights).unwrap();
    let end = bytes.len() - 4;
    let value = f32::from_le_bytes(bytes[end..].try_into().unwrap());
    bytes[end..].copy_from_slice(&(value + 0.25).to_le_bytes());
    fs::write(weights, bytes).unwrap();
}

fn new_folder(parent: &Path, name: &str) -> PathBuf {
    let folder = parent.join(name);
    fs::create_dir(&folder).unwrap();
    folder
}

/// A recipe that takes few frames and accepts any model.
fn lenient() -> Recipe {
    let mut recipe = Recipe::load_or_default(None).unwrap();
    let gate = &mut recipe.gate;
    (gate.min_boxes_total, gate.min_boxes, gate.bands) = (0, 1, None);
    (gate.min_f1, gate.max_missed, gate.max_extra) = (0.0, 1.0, 1.0);
    (
        gate.max_centre_error,
        gate.max_size_error,
        gate.max_yaw_error,
    ) = (100.0, 100.0, 10.0);
    recipe
}

fn quantize(model: &ModelDescription, out: &Path) -> Report {
    let frames = samples(24).into_iter();
    ptq::quantize(model, frames, &lenient(), Target::Cpu, out, &mut Silent).unwrap()
}

/// Has the report of an INT8 model list its files as they are now.
fn note_files(made: &Path) {
    let mut report = Report::load(made).unwrap();
    report.int8_files = FileRecord::all_of(&ModelDescription::load(made).unwrap()).unwrap();
    let text = serde_json::to_string(&report).unwrap();
    fs::write(made.join("report.json"), text).unwrap();
}

#[test]
fn weights_beside_the_graph_are_listed_and_weighed() {
    let folder = tempfile::tempdir().unwrap();
    let model = with_weights_beside(folder.path());
    let files = ModelFiles::of(&model).unwrap();
    let names = [
        "encoder.onnx",
        "backbone.onnx",
        "encoder.onnx.data",
        "backbone.onnx.data",
    ];
    let expected: Vec<PathBuf> = names.iter().map(|n| folder.path().join(n)).collect();
    assert_eq!(files.paths(), expected);
    let bytes: u64 = expected
        .iter()
        .map(|f| fs::metadata(f).unwrap().len())
        .sum();
    assert_eq!(files.bytes().unwrap(), bytes);
    assert_eq!(load(&model).model_bytes(), bytes);
    let records = FileRecord::all_of(&model).unwrap();
    assert_eq!(records.iter().map(|r| r.bytes).sum::<u64>(), bytes);
}

#[test]
fn one_file_of_weights_for_both_graphs_counts_once() {
    let folder = tempfile::tempdir().unwrap();
    let model = with_weights_beside(folder.path());
    let alone = ModelFiles::of(&model).unwrap().bytes().unwrap();
    // The encoder's weights in front of the backbone's.
    let data = |name: &str| folder.path().join(name);
    let mut joint = fs::read(data("encoder.onnx.data")).unwrap();
    let ahead = joint.len();
    joint.extend(fs::read(data("backbone.onnx.data")).unwrap());
    fs::write(data("weights.bin"), joint).unwrap();
    for (graph, ahead) in [(model.encoder_path(), 0), (model.backbone_path(), ahead)] {
        let mut proto = Model::decode(&fs::read(&graph).unwrap(), &graph).unwrap();
        for tensor in &mut proto.graph_mut().initializer {
            tensor.external_data[0].value = Some("weights.bin".into());
            let offset: usize = tensor.external_data[1]
                .value
                .as_ref()
                .unwrap()
                .parse()
                .unwrap();
            tensor.external_data[1].value = Some((offset + ahead).to_string());
        }
        fs::write(&graph, proto.encode()).unwrap();
    }
    let files = ModelFiles::of(&model).unwrap();
    assert_eq!(files.paths().len(), 3);
    let graphs = |model: &ModelDescription| {
        let size = |p: PathBuf| fs::metadata(p).unwrap().len();
        size(model.encoder_path()) + size(model.backbone_path())
    };
    let weights = fs::metadata(data("weights.bin")).unwrap().len();
    assert_eq!(files.bytes().unwrap(), graphs(&model) + weights);
    assert_eq!(load(&model).model_bytes(), graphs(&model) + weights);
    assert!(alone.abs_diff(files.bytes().unwrap()) < 1000);
}

#[test]
fn the_id_is_another_after_more_training_and_the_same_for_a_copy() {
    let folder = tempfile::tempdir().unwrap();
    let model = with_weights_beside(folder.path());
    let before = load(&model).id().to_owned();
    let copy = tempfile::tempdir().unwrap();
    for path in ModelFiles::of(&model).unwrap().paths() {
        fs::copy(path, copy.path().join(path.file_name().unwrap())).unwrap();
    }
    let moved = ModelDescription {
        folder: copy.path().into(),
        ..model.clone()
    };
    assert_eq!(load(&moved).id(), before);
    for weights in ["encoder.onnx.data", "backbone.onnx.data"] {
        let unlike = load(&moved).id().to_owned();
        train(&copy.path().join(weights));
        assert_ne!(load(&moved).id(), unlike, "{weights}");
    }
}

#[test]
fn the_id_is_that_of_the_boxes_and_not_of_names() {
    let folder = tempfile::tempdir().unwrap();
    let model = model_folder(folder.path());
    let id = |change: &dyn Fn(&mut ModelDescription)| {
        let mut model = model.clone();
        change(&mut model);
        load(&model).id().to_owned()
    };
    let as_it_is = id(&|_| ());
    assert_eq!(id(&|m| m.name = "other".into()), as_it_is);
    assert_eq!(id(&|m| m.post.score_thresholds = vec![0.9, 0.9]), as_it_is);
    use centerpoint_ptq::detector::description::{DimOrder, YawConvention};
    assert_ne!(id(&|m| m.head.yaw = YawConvention::Direct), as_it_is);
    assert_ne!(id(&|m| m.head.dim_order = DimOrder::Lwh), as_it_is);
    assert_ne!(id(&|m| m.classes.reverse()), as_it_is);
    assert_ne!(id(&|m| m.points.sweeps = 2), as_it_is);
    let swapped = id(&|m| {
        let outputs = &mut m.backbone.outputs;
        std::mem::swap(&mut outputs.reg, &mut outputs.rot);
    });
    assert_ne!(swapped, as_it_is);
}

#[test]
fn weights_from_outside_the_folder_are_refused_by_name() {
    let outside = tempfile::tempdir().unwrap();
    let secret = outside.path().join("weights.bin");
    let folder = tempfile::tempdir().unwrap();
    let model = model_folder(folder.path());
    put_weights_beside(&model.backbone_path(), "weights.bin");
    load(&model);
    let graph = fs::read(model.backbone_path()).unwrap();
    fs::rename(folder.path().join("weights.bin"), &secret).unwrap();
    let missing = refusal(&model);
    for word in ["weights.bin", "backbone.onnx", "No such file"] {
        assert!(missing.contains(word), "{missing}");
    }
    std::os::unix::fs::symlink(&secret, folder.path().join("weights.bin")).unwrap();
    let led_out = refusal(&model);
    assert!(led_out.contains("a link that leads out"), "{led_out}");
    for location in [
        secret.to_str().unwrap().to_owned(),
        "../weights.bin".to_owned(),
        "weights/../../weights.bin".to_owned(),
    ] {
        let mut proto = Model::decode(&graph, "backbone.onnx").unwrap();
        for tensor in &mut proto.graph_mut().initializer {
            tensor.external_data[0].value = Some(location.clone());
        }
        fs::write(model.backbone_path(), proto.encode()).unwrap();
        let message = refusal(&model);
        assert!(message.contains("outside the model's folder"), "{message}");
        assert!(Model::load(model.backbone_path()).is_err());
        let store = FloatModel::of(&model).unwrap_err().to_string();
        assert!(store.contains("outside the model's folder"), "{store}");
    }
}

#[test]
fn a_model_whose_files_are_all_links_into_one_folder_loads() {
    let real = tempfile::tempdir().unwrap();
    let model = with_weights_beside(real.path());
    let linked = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(real.path()).unwrap() {
        let path = entry.unwrap().path();
        let link = linked.path().join(path.file_name().unwrap());
        std::os::unix::fs::symlink(&path, link).unwrap();
    }
    let through = ModelDescription::load(linked.path()).unwrap();
    assert_eq!(load(&through).id(), load(&model).id());
}

#[test]
fn a_graph_may_be_a_link_to_a_file_elsewhere_and_to_nothing_else() {
    let elsewhere = tempfile::tempdir().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let model = model_folder(folder.path());
    let id = load(&model).id().to_owned();
    // As `colcon build --symlink-install` and Bazel lay out what they install.
    let (graph, moved) = (model.encoder_path(), elsewhere.path().join("other.onnx"));
    fs::rename(&graph, &moved).unwrap();
    std::os::unix::fs::symlink(&moved, &graph).unwrap();
    assert_eq!(load(&model).id(), id);
    let files = FileRecord::all_of(&model).unwrap();
    assert_eq!(load(&model).files(), files);
    for (target, said) in [("/dev/zero", "a device"), ("/tmp", "a folder")] {
        fs::remove_file(&graph).unwrap();
        std::os::unix::fs::symlink(target, &graph).unwrap();
        let message = refusal(&model);
        assert!(
            message.contains(said) && message.contains("encoder.onnx"),
            "{message}"
        );
    }
}

#[test]
fn a_model_beyond_all_bounds_is_refused_before_it_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let model = with_weights_beside(folder.path());
    for name in ["backbone.onnx", "encoder.onnx.data", "encoder.onnx"] {
        let path = folder.path().join(name);
        let before = fs::read(&path).unwrap();
        // A hole: it takes no room on the disk.
        let hole = fs::File::options().write(true).open(&path).unwrap();
        hole.set_len(1 << 40).unwrap();
        for message in [
            refusal(&model),
            FileRecord::all_of(&model).unwrap_err().to_string(),
            FloatModel::of(&model).unwrap_err().to_string(),
        ] {
            for part in [name, "1099512 MB", "1000 MB", "model_max_mb"] {
                assert!(message.contains(part), "{message}");
            }
        }
        fs::write(&path, before).unwrap();
    }
    // Each by itself would do, and together they are too large.
    for name in ["encoder.onnx.data", "backbone.onnx.data"] {
        let hole = fs::File::options()
            .write(true)
            .open(folder.path().join(name));
        hole.unwrap().set_len(600_000_000).unwrap();
    }
    let message = refusal(&model);
    assert!(message.contains("1201 MB"), "{message}");
}

#[test]
fn weights_that_are_cut_off_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let model = with_weights_beside(folder.path());
    let weights = folder.path().join("backbone.onnx.data");
    let bytes = fs::read(&weights).unwrap();
    fs::write(&weights, &bytes[..bytes.len() / 2]).unwrap();
    let error = Model::load(model.backbone_path()).unwrap_err().to_string();
    assert!(
        error.contains("backbone.onnx.data") && error.contains("cut off"),
        "{error}"
    );
}

#[test]
fn a_small_file_that_is_named_again_and_again_does_not_fill_the_memory() {
    let folder = tempfile::tempdir().unwrap();
    let model = with_weights_beside(folder.path());
    let weights = folder.path().join("backbone.onnx.data");
    let path = model.backbone_path();
    let before = Model::decode(&fs::read(&path).unwrap(), &path).unwrap();
    let refused = |change: &dyn Fn(&mut Vec<centerpoint_ptq::onnx::proto::TensorProto>)| {
        let mut graph = before.clone();
        change(&mut graph.graph_mut().initializer);
        fs::write(&path, graph.encode()).unwrap();
        // Neither here nor by ONNX Runtime, which would take them all.
        let said = Model::load(&path).unwrap_err().to_string();
        assert_eq!(refusal(&model), said);
        said
    };
    let shape = refused(&|tensors| tensors[0].dims = vec![3]);
    assert!(shape.contains("its shape needs 12"), "{shape}");
    let all = fs::metadata(&weights).unwrap().len() / 4;
    let again = refused(&|tensors| {
        for i in 0..3000 {
            let mut tensor = tensors[0].clone();
            tensor.name = Some(format!("again_{i}"));
            tensor.dims = vec![all as i64];
            tensor.external_data.truncate(1);
            tensors.push(tensor);
        }
    });
    assert!(again.contains("again and again"), "{again}");
}

#[test]
fn a_folder_whose_files_lie_elsewhere_is_not_taken_into_the_store() {
    let folder = tempfile::tempdir().unwrap();
    let float = model_folder(&new_folder(folder.path(), "float"));
    let out = folder.path().join("int8");
    quantize(&float, &out);
    let store = ModelStore::new(folder.path().join("store"), Limits::NONE);
    let text = fs::read_to_string(out.join("model.yaml")).unwrap();
    for elsewhere in [
        out.join("encoder.onnx").display().to_string(),
        "../../../float/encoder.onnx".to_owned(),
    ] {
        let moved = text.replace("file: encoder.onnx", &format!("file: {elsewhere}"));
        fs::write(out.join("model.yaml"), moved).unwrap();
        let refused = store.import(&out).unwrap_err().to_string();
        assert!(refused.contains("it is no model"), "{refused}");
    }
    assert!(store.list().unwrap().versions.is_empty());
}

#[test]
fn tensors_within_nodes_may_lie_beside_the_graph_too() {
    use centerpoint_ptq::onnx::proto::{
        AttributeProto, NodeProto, StringStringEntryProto, TensorProto,
    };
    let folder = tempfile::tempdir().unwrap();
    let mut value = TensorProto::f32("", &[2], &[1.0, 2.0]);
    value.raw_data = None;
    value.data_location = Some(1);
    value.external_data = vec![StringStringEntryProto {
        key: Some("location".into()),
        value: Some("constant.bin".into()),
    }];
    let mut node = NodeProto::new("Constant", "c", &[], &["y"]);
    node.attribute.push(AttributeProto {
        name: Some("value".into()),
        r#type: Some(4),
        t: Some(value),
        ..Default::default()
    });
    let graph = small::model(
        17,
        vec![node],
        vec![],
        vec![],
        vec![small::value("y", &[2])],
    );
    let path = folder.path().join("graph.onnx");
    graph.save(&path).unwrap();
    assert!(Outline::read(&path).is_err(), "the file is not there");
    let bytes: Vec<u8> = [3f32, 4.0].iter().flat_map(|v| v.to_le_bytes()).collect();
    fs::write(folder.path().join("constant.bin"), bytes).unwrap();
    let outline = Outline::read(&path).unwrap();
    assert_eq!(outline.external(), [Path::new("constant.bin")]);
    let whole = Model::load(&path).unwrap();
    let tensor = whole.graph().node[0].attribute[0].t.as_ref().unwrap();
    assert_eq!(tensor.to_f32().unwrap().data, [3.0, 4.0]);
}

#[test]
fn a_quantized_model_needs_no_file_of_the_float_one_and_is_known_by_all_of_them() {
    let folder = tempfile::tempdir().unwrap();
    let float = with_weights_beside(&new_folder(folder.path(), "float"));
    let out = folder.path().join("int8");
    let report = quantize(&float, &out);
    let names: Vec<&str> = report.float_files.iter().map(|f| f.file.as_str()).collect();
    let all = [
        "encoder.onnx",
        "backbone.onnx",
        "encoder.onnx.data",
        "backbone.onnx.data",
    ];
    assert_eq!(names, all);

    let store = ModelStore::new(folder.path().join("store"), Limits::NONE);
    let version = store.import(&out).unwrap();
    let fit = |float: &ModelDescription| {
        let float = FloatModel::of(float).unwrap();
        store.fit(&version.id, &Selection::default(), &float)
    };
    fit(&float).unwrap();
    for name in ["encoder.onnx.data", "backbone.onnx.data"] {
        let weights = float.folder.join(name);
        let before = fs::read(&weights).unwrap();
        train(&weights);
        assert!(matches!(fit(&float), Err(Unfit::OtherFloat)), "{name}");
        fs::write(&weights, before).unwrap();
    }
    let mut other = float.clone();
    other.grid.max_points = 7;
    let unfit = fit(&other).unwrap_err().to_string();
    assert!(unfit.contains("grid.max_points"), "{unfit}");
    other = float.clone();
    other.post.score_thresholds = vec![0.9, 0.9];
    fit(&other).unwrap();

    // Nothing of the float model is needed any more.
    fs::remove_dir_all(&float.folder).unwrap();
    let stored = ModelDescription::load(&version.description()).unwrap();
    assert_eq!(ModelFiles::of(&stored).unwrap().paths().len(), 2);
    load(&stored);
}

#[test]
fn a_float_model_that_changes_while_it_is_quantized_gives_no_model() {
    let folder = tempfile::tempdir().unwrap();
    let float = model_folder(&new_folder(folder.path(), "float"));
    let out = folder.path().join("int8");
    for graph in [float.encoder_path(), float.backbone_path()] {
        let before = fs::read(&graph).unwrap();
        let frames = samples(24).into_iter().inspect(|_| {
            let mut other = Model::decode(&before, &graph).unwrap();
            other.set_metadata("trained", "more");
            other.save(&graph).unwrap();
        });
        let made = ptq::quantize(&float, frames, &lenient(), Target::Cpu, &out, &mut Silent);
        let said = made.unwrap_err().to_string();
        let name = graph.file_name().unwrap().to_str().unwrap();
        assert!(
            said.contains(name) && said.contains("another file"),
            "{said}"
        );
        assert!(!out.exists());
        fs::write(&graph, before).unwrap();
    }
}

#[test]
fn a_folder_without_its_weights_is_not_taken_into_the_store() {
    let folder = tempfile::tempdir().unwrap();
    let float = model_folder(&new_folder(folder.path(), "float"));
    let out = folder.path().join("int8");
    quantize(&float, &out);
    put_weights_beside(&out.join("encoder.onnx"), "encoder.onnx.data");
    note_files(&out);
    let store = ModelStore::new(folder.path().join("store"), Limits::NONE);
    let whole = store.import(&out).unwrap();
    assert!(whole.folder.join("encoder.onnx.data").is_file());
    fs::remove_file(out.join("encoder.onnx.data")).unwrap();
    let refused = store.import(&out).unwrap_err().to_string();
    assert!(refused.contains("encoder.onnx.data"), "{refused}");
}
