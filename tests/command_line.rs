//! What the command line says, what it does about a recording with faults, and what its exit code means.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::{Command, Output, Stdio};

use centerpoint_ptq::bag::msg::Header;
use centerpoint_ptq::bag::{Stamp, Writer};
use centerpoint_ptq::cloud::{Point, Points, encode};
use serde_json::{Value, json};

const SECOND: i64 = 1_000_000_000;
const WITH_LOSSES: i32 = 4;

fn tiny_model() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny");
    path.to_str().unwrap().to_owned()
}

/// A point each in cells of the tiny model's grid, the first on the car that it finds.
fn points(count: usize) -> Points {
    let point = |i: usize| Point {
        x: 1.7 - i as f32,
        y: -2.4,
        z: 0.5,
        ..Point::default()
    };
    Points((0..count).map(point).collect())
}

/// A cloud of a recording: its stamp, its points, and whether its bytes are complete.
struct Cloud {
    stamp: i64,
    points: usize,
    whole: bool,
}

fn good(stamp: i64) -> Cloud {
    Cloud {
        stamp,
        points: 1,
        whole: true,
    }
}

fn bad(stamp: i64) -> Cloud {
    Cloud {
        whole: false,
        ..good(stamp)
    }
}

/// A folder with `bag`, its clouds a tenth of a second apart from second 1 on, and `labels.json` of the car at
/// those times.
fn drive(clouds: &[Cloud]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut bag = Writer::create(&folder.path().join("bag")).unwrap();
    let mut labels = serde_json::Map::new();
    for (i, cloud) in clouds.iter().enumerate() {
        let logged = SECOND + i as i64 * SECOND / 10;
        let header = Header {
            stamp: Stamp(cloud.stamp),
            frame_id: "base_link".into(),
        };
        let mut message = encode(&points(cloud.points), header, false);
        if !cloud.whole {
            message.data.pop();
        }
        bag.write("/points", logged, &message).unwrap();
        let car = json!({
            "label": "CAR", "center": [1.0, -3.0, 0.5], "size_lwh": [4.0, 2.0, 1.5],
            "yaw": -1.5707964, "velocity": [0.2, 0.1], "points": 9,
        });
        labels.insert(logged.to_string(), json!([car]));
    }
    bag.finish().unwrap();
    std::fs::write(
        folder.path().join("labels.json"),
        Value::Object(labels).to_string(),
    )
    .unwrap();
    folder
}

fn at(i: i64) -> i64 {
    SECOND + i * SECOND / 10
}

fn good_drive() -> tempfile::TempDir {
    drive(&[good(at(0)), good(at(1)), good(at(2))])
}

fn one_bad_cloud() -> tempfile::TempDir {
    drive(&[good(at(0)), bad(at(1)), good(at(2)), good(at(3))])
}

/// The program in a folder, with no settings of whoever runs the tests.
fn program(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_centerpoint_ptq"));
    command.current_dir(folder);
    for variable in [
        "RUST_LOG",
        "RUST_BACKTRACE",
        "RUST_LIB_BACKTRACE",
        "NO_COLOR",
    ] {
        command.env_remove(variable);
    }
    command
}

fn tool(folder: &Path, arguments: &[&str]) -> Output {
    program(folder).args(arguments).output().unwrap()
}

fn said(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!text.contains("panicked"), "{text}");
    assert!(
        !text.contains('\u{1b}'),
        "colours are for a terminal: {text}"
    );
    text
}

fn read(folder: &Path, file: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(folder.join(file)).unwrap()).unwrap()
}

/// The subcommands that read clouds, and what they write, with the tiny model.
fn readers() -> Vec<(Vec<String>, &'static str)> {
    let model = tiny_model();
    [
        (
            &["detect", "--model", &model, "--out", "boxes.json"][..],
            "boxes.json",
        ),
        (
            &[
                "select",
                "--model",
                &model,
                "--min-period",
                "0",
                "--gap",
                "0",
                "--out",
                "frames",
            ],
            "frames",
        ),
        (
            &[
                "evaluate",
                "--model",
                &model,
                "--truth",
                "labels.json",
                "--resamples",
                "10",
                "--out",
                "scores.json",
            ],
            "scores.json",
        ),
        (
            &[
                "bench",
                "--model",
                &model,
                "--repeat",
                "1",
                "--json",
                "times.json",
            ],
            "times.json",
        ),
        (
            &["render", "--frame", "2", "--out", "picture.png"],
            "picture.png",
        ),
    ]
    .into_iter()
    .map(|(words, file)| {
        let mut words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        words.extend(["--bag".into(), "bag".into()]);
        (words, file)
    })
    .collect()
}

fn words(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}

#[test]
fn a_bad_cloud_costs_itself_in_every_subcommand() {
    let folder = one_bad_cloud();
    for (command, file) in readers() {
        let output = tool(folder.path(), &words(&command));
        let said = said(&output);
        assert_eq!(
            output.status.code(),
            Some(WITH_LOSSES),
            "{command:?}: {said}"
        );
        assert!(said.contains("warning: left out: cloud of frame"), "{said}");
        assert!(
            said.contains("warning: 1 message could not be read"),
            "{said}"
        );
        assert!(folder.path().join(file).exists(), "{command:?}");
    }
    let boxes = read(folder.path(), "boxes.json");
    for stamp in [at(0), at(2), at(3)] {
        assert_eq!(boxes[stamp.to_string()].as_array().unwrap().len(), 1);
    }
    for (file, frames) in [("boxes.json", 3), ("scores.json", 3), ("times.json", 3)] {
        let input = &read(folder.path(), file)["input"];
        assert_eq!(input["frames"], frames, "{file}");
        assert_eq!(input["losses"][0]["kind"], "bad_cloud", "{file}");
        assert_eq!(input["losses"][0]["count"], 1, "{file}");
    }
    // What was lost stays with the detections.
    let arguments = [
        "evaluate",
        "--detections",
        "boxes.json",
        "--truth",
        "labels.json",
        "--json",
    ];
    let output = tool(folder.path(), &arguments);
    assert!(said(&output).contains("boxes.json: 1 message could not be read"));
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(result["models"][0]["input"]["losses"][0]["count"], 1);
    assert_eq!(result["labels_without_frame"], 1);
}

#[test]
fn where_nothing_may_be_lost_nothing_is_written() {
    let folder = one_bad_cloud();
    for (mut command, file) in readers() {
        command.push("--strict".into());
        let output = tool(folder.path(), &words(&command));
        let said = said(&output);
        assert_eq!(output.status.code(), Some(1), "{command:?}: {said}");
        assert!(
            said.contains("error:") && said.contains("--strict"),
            "{said}"
        );
        assert!(!folder.path().join(file).exists(), "{command:?}");
    }
    let left = std::fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(left, 2, "the bag and its labels");
}

#[test]
fn a_recording_without_a_usable_cloud_is_an_error_with_its_first_reason() {
    let folder = drive(&[bad(at(0)), bad(at(1))]);
    for (command, file) in readers() {
        let output = tool(folder.path(), &words(&command));
        let said = said(&output);
        assert_eq!(output.status.code(), Some(1), "{command:?}: {said}");
        assert!(
            said.contains("error: no cloud of bag could be used: cloud of frame"),
            "{said}"
        );
        assert!(!folder.path().join(file).exists(), "{command:?}");
    }
}

#[test]
fn a_recording_that_was_cut_off_gives_what_it_holds() {
    // Enough for several chunks of a file.
    let large = |i| Cloud {
        points: 3000,
        ..good(at(i))
    };
    let clouds: Vec<Cloud> = (0..80).map(large).collect();
    let folder = drive(&clouds);
    let bag = folder.path().join("bag");
    let file = std::fs::read_dir(&bag)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some_and(|ending| ending == "mcap"))
        .unwrap();
    let bytes = std::fs::read(&file).unwrap();
    let cut = folder.path().join("cut.mcap");
    std::fs::write(&cut, &bytes[..bytes.len() / 2]).unwrap();
    let detect = [
        "detect",
        "--model",
        &tiny_model(),
        "--bag",
        "cut.mcap",
        "--out",
        "boxes.json",
    ];
    let output = tool(folder.path(), &detect);
    let said = said(&output);
    assert!(said.contains("warning:"), "{said}");
    assert_eq!(output.status.code(), Some(WITH_LOSSES), "{said}");
    let input = &read(folder.path(), "boxes.json")["input"];
    assert_eq!(input["losses"][0]["kind"], "damaged_bag");
    let frames = input["frames"].as_u64().unwrap();
    assert!((1..80).contains(&frames), "{frames}");
}

#[test]
fn what_makes_results_worse_is_in_them_and_what_does_not_is_not() {
    let crowded = |stamp| Cloud {
        points: 3,
        ..good(stamp)
    };
    let folder = drive(&[good(at(0)), crowded(at(1)), crowded(at(2))]);
    let model = folder.path().join("model");
    std::fs::create_dir(&model).unwrap();
    for file in ["encoder.onnx", "backbone.onnx", "model.yaml"] {
        std::fs::copy(Path::new(&tiny_model()).join(file), model.join(file)).unwrap();
    }
    let detect = [
        "detect",
        "--model",
        "model",
        "--bag",
        "bag",
        "--out",
        "boxes.json",
    ];
    let output = tool(folder.path(), &detect);
    assert_eq!(
        (output.status.code(), said(&output).contains("max_pillars")),
        (Some(0), false)
    );

    let yaml = std::fs::read_to_string(model.join("model.yaml")).unwrap();
    let fewer = yaml.replace("max_pillars: 16", "max_pillars: 1");
    assert_ne!(yaml, fewer);
    std::fs::write(model.join("model.yaml"), fewer).unwrap();
    let output = tool(folder.path(), &detect);
    let said = said(&output);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert_eq!(said.matches("`grid.max_pillars` is 1").count(), 1, "{said}");
    assert!(
        said.contains("warning: dropped pillars in 2 of 3 frames"),
        "{said}"
    );
    let conditions = &read(folder.path(), "boxes.json")["input"]["conditions"];
    let dropped = conditions.as_array().unwrap().iter();
    let dropped: Vec<&Value> = dropped.filter(|c| c["kind"] == "dropped_pillars").collect();
    assert_eq!(dropped.len(), 1);
    assert_eq!(dropped[0]["frames"], 2);
}

#[test]
fn warnings_of_the_library_are_plain_lines_that_can_be_turned_down_or_up() {
    let folder = good_drive();
    std::fs::remove_file(folder.path().join("bag/metadata.yaml")).unwrap();
    let detect = [
        "detect",
        "--model",
        &tiny_model(),
        "--bag",
        "bag",
        "--out",
        "boxes.json",
    ];
    let plain = said(&tool(folder.path(), &detect));
    let warned = "warning: bag: no metadata.yaml";
    assert_eq!(plain.matches(warned).count(), 1, "{plain}");
    assert!(
        !plain.contains("centerpoint_ptq::"),
        "no module paths: {plain}"
    );
    assert!(plain.contains("3 frames"), "{plain}");

    let quiet = tool(folder.path(), &[&["--quiet"], &detect[..]].concat());
    assert_eq!((said(&quiet).as_str(), quiet.status.code()), ("", Some(0)));
    let quiet = tool(folder.path(), &[&detect[..], &["--quiet"]].concat());
    assert_eq!(said(&quiet), "");
    let quiet = tool(
        folder.path(),
        &[
            "detect", "--quiet", "--model", "absent", "--bag", "bag", "--out", "b",
        ],
    );
    assert!(said(&quiet).starts_with("error: "));

    let with = |filter: &str| {
        let output = program(folder.path())
            .args(detect)
            .env("RUST_LOG", filter)
            .output();
        said(&output.unwrap())
    };
    assert!(!with("error").contains("warning:"));
    assert!(with("info").contains("info: ONNX Runtime"));
    let odd = with("no=such=filter");
    assert!(odd.contains("RUST_LOG") && odd.contains(warned), "{odd}");
}

#[test]
fn a_refusal_says_each_cause_once_and_has_no_backtrace() {
    let folder = one_bad_cloud();
    let output = program(folder.path())
        .args([
            "detect",
            "--strict",
            "--model",
            &tiny_model(),
            "--bag",
            "bag",
            "--out",
            "boxes.json",
        ])
        .env("RUST_BACKTRACE", "1")
        .output()
        .unwrap();
    let said = said(&output);
    assert_eq!(said.matches("error:").count(), 1, "{said}");
    assert!(!said.contains("backtrace"), "{said}");
    assert_eq!(said.matches("cloud of frame").count(), 1, "{said}");
    let missing = tool(folder.path(), &["inspect", "nowhere.mcap"]);
    let missing = String::from_utf8(missing.stderr).unwrap();
    assert_eq!(missing.matches("nowhere.mcap").count(), 1, "{missing}");
}

#[test]
fn labels_that_no_frame_has_are_an_error_with_the_likely_cause() {
    let folder = good_drive();
    let labels = |map: &dyn Fn(i64) -> i64| {
        let of = |i: i64| (map(at(i)).to_string(), json!([]));
        let text = Value::Object((0..3).map(of).collect()).to_string();
        std::fs::write(folder.path().join("other.json"), text).unwrap();
    };
    let evaluate = || {
        let model = tiny_model();
        let arguments = [
            "evaluate",
            "--model",
            &model,
            "--bag",
            "bag",
            "--truth",
            "other.json",
            "--json",
        ];
        let output = tool(folder.path(), &arguments);
        assert_eq!(output.status.code(), Some(1));
        assert!(output.stdout.is_empty(), "no AP of nothing");
        said(&output)
    };
    labels(&|_| 0);
    assert!(evaluate().contains("stamp 0"), "{}", evaluate());
    labels(&|stamp| stamp + 37 * SECOND);
    let offset = evaluate();
    assert!(
        offset.contains("none of the 3 frames has labels"),
        "{offset}"
    );
    let picture = [
        "render",
        "--bag",
        "bag",
        "--labels",
        "other.json",
        "--out",
        "f.png",
    ];
    let picture = said(&tool(folder.path(), &picture));
    assert!(
        picture.contains("the frame has no labels: its stamp is"),
        "{picture}"
    );
    assert!(picture.contains("after their frame"), "{picture}");

    // Some match: the score is theirs, and the rest is told.
    labels(&|stamp| stamp + SECOND / 10);
    let arguments = [
        "evaluate",
        "--model",
        &tiny_model(),
        "--bag",
        "bag",
        "--truth",
        "other.json",
    ];
    let output = tool(folder.path(), &arguments);
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(
        table.contains("1 of 3 frames have no labels, and 1 of 3 stamps"),
        "{table}"
    );
}

#[test]
fn clouds_without_stamps_do_not_take_each_other_s_place() {
    let folder = drive(&[good(0), good(0), good(0)]);
    let model = tiny_model();
    let arguments = [
        "evaluate", "--model", &model, "--model2", &model, "--bag", "bag", "--json",
    ];
    let output = tool(folder.path(), &arguments);
    match output.status.success() {
        true => {
            let result: Value = serde_json::from_slice(&output.stdout).unwrap();
            assert_eq!(result["frames"], 3);
        }
        false => assert!(
            said(&output).contains("the same stamp"),
            "{}",
            said(&output)
        ),
    }
}

#[test]
fn numbers_that_python_does_not_know_are_unknown_or_refused_by_place() {
    let folder = good_drive();
    let text = std::fs::read_to_string(folder.path().join("labels.json")).unwrap();
    let evaluate = |text: &str| {
        std::fs::write(folder.path().join("labels.json"), text).unwrap();
        let model = tiny_model();
        let arguments = [
            "evaluate",
            "--model",
            &model,
            "--bag",
            "bag",
            "--truth",
            "labels.json",
            "--json",
        ];
        tool(folder.path(), &arguments)
    };
    let with_gaps = text
        .replace("\"velocity\":[0.2,0.1]", "\"velocity\":[NaN,NaN]")
        .replace("\"points\":9", "\"points\":NaN");
    assert_ne!(text, with_gaps);
    let output = evaluate(&with_gaps);
    assert!(output.status.success(), "{}", said(&output));
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    let car = &result["models"][0]["evaluation"]["classes"][0]["all"];
    assert_eq!(car["errors"]["velocity"], Value::Null);

    for (from, to, parts) in [
        (
            "\"yaw\":-1.5707964",
            "\"yaw\":NaN",
            &["labels.json", "[0]", "yaw is NaN"][..],
        ),
        (
            "[1.0,-3.0,0.5]",
            "[1.0,-Infinity,0.5]",
            &["center is [1.0, -Infinity, 0.5]"],
        ),
        (
            "\"points\":9",
            "\"points\":99999999999",
            &["points is 99999999999"],
        ),
        (
            "\"yaw\":-1.5707964",
            "\"yaw\":-1.5707964,",
            &["labels.json", "trailing comma"],
        ),
    ] {
        let wrong = text.replace(from, to);
        assert_ne!(wrong, text, "{from}");
        let output = evaluate(&wrong);
        assert_eq!(output.status.code(), Some(1));
        for part in parts {
            assert!(
                said(&output).contains(part),
                "no {part} in {}",
                said(&output)
            );
        }
    }
}

#[test]
fn an_output_that_cannot_be_written_is_found_before_anything_is_read() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("there")).unwrap();
    std::fs::write(folder.path().join("there/file"), "").unwrap();
    // Nothing else that is named exists, so whatever is read first would be the error.
    let needs = ["--model", "absent", "--bag", "absent"];
    for (start, option, kind) in [
        (&["detect"][..], "--out", "file"),
        (&["detect", "--out", "a.json"], "--dump", "folder"),
        (&["bench"], "--json", "file"),
        (&["evaluate"], "--out", "file"),
        (&["select"], "--out", "new"),
        (&["quantize"], "--out", "new"),
    ] {
        let taken = match kind {
            "file" => &["absent/a.json", "there"][..],
            "new" => &["there", "there/file/bag"],
            _ => &["there/file/new"],
        };
        for out in taken {
            let arguments = [start, &needs[..], &[option, out]].concat();
            let output = tool(folder.path(), &arguments);
            let said = said(&output);
            assert_eq!(output.status.code(), Some(1), "{arguments:?}");
            assert!(
                said.contains(out) && !said.contains("model"),
                "{arguments:?}: {said}"
            );
        }
    }
    for arguments in [
        &["render", "--bag", "absent", "--out", "there"][..],
        &["report", "absent", "--out", "nowhere/page.html"],
        &["simulate", "--frames", "1", "--out", "there"],
        &["simulate", "--frames", "1", "--out", "there/file/bag"],
    ] {
        let output = tool(folder.path(), arguments);
        let out = *arguments.last().unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        assert!(said(&output).contains(out), "{}", said(&output));
    }
    let left = std::fs::read_dir(folder.path()).unwrap().count();
    assert_eq!(left, 1, "no trace");
}

#[test]
fn a_recipe_that_is_missing_is_told_before_anything_else() {
    let folder = tempfile::tempdir().unwrap();
    for arguments in [
        &[
            "quantize",
            "--model",
            "absent",
            "--bag",
            "absent",
            "--out",
            "int8",
            "--recipe",
            "none.yaml",
        ][..],
        &[
            "evaluate",
            "--model",
            "absent",
            "--model2",
            "absent",
            "--bag",
            "absent",
            "--gate",
            "none.yaml",
        ],
    ] {
        let said = said(&tool(folder.path(), arguments));
        assert!(
            said.contains("none.yaml") && !said.contains("absent"),
            "{said}"
        );
    }
}

#[test]
fn a_reader_that_has_gone_away_is_no_error() {
    let folder = good_drive();
    let model = tiny_model();
    let store = folder.path().join("store");
    let store = store.to_str().unwrap();
    for arguments in [
        &["--help"][..],
        &["inspect", "bag"],
        &["inspect", &model, "--json"],
        &["models", "list", "--store", store],
        &[
            "evaluate",
            "--model",
            &model,
            "--bag",
            "bag",
            "--truth",
            "labels.json",
        ],
        &["bench", "--model", &model, "--bag", "bag", "--repeat", "1"],
        &[
            "select",
            "--model",
            &model,
            "--bag",
            "bag",
            "--min-period",
            "0",
            "--gap",
            "0",
            "--out",
            "frames",
        ],
        &[
            "simulate",
            "--sensor",
            "vlp16",
            "--frames",
            "1",
            "--out",
            "simulated",
        ],
        &[
            "detect",
            "--model",
            &model,
            "--bag",
            "bag",
            "--out",
            "/dev/stdout",
        ],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = program(folder.path())
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(writer)
            .stderr(Stdio::piped())
            .output()
            .unwrap();
        assert_eq!(
            output.status.code(),
            Some(0),
            "{arguments:?}: {}",
            said(&output)
        );
    }
    // Nor one that does not listen to warnings.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let status = program(folder.path())
        .args([
            "detect",
            "--model",
            &model,
            "--bag",
            "bag",
            "--out",
            "boxes.json",
        ])
        .stderr(writer)
        .status();
    assert_eq!(status.unwrap().code(), Some(0));
    assert!(folder.path().join("boxes.json").exists());
}

#[test]
fn a_pose_may_be_in_brackets() {
    let folder = good_drive();
    let model = tiny_model();
    for pose in ["[0.0, 0.0, 0.1, 0, 0, 0]", "0,0,0.1,0,0,0", "0 0 0.1 0 0 0"] {
        let out = ["--out", "boxes.json", "--sensor-pose", pose];
        let arguments = [&["detect", "--model", &model, "--bag", "bag"], &out[..]].concat();
        let output = tool(folder.path(), &arguments);
        assert_eq!(output.status.code(), Some(0), "{pose}: {}", said(&output));
    }
}

#[test]
fn it_starts_where_nothing_is_set_up() {
    let folder = good_drive();
    let bare = |arguments: &[&str]| -> Output {
        let path = Path::new(env!("CARGO_BIN_EXE_centerpoint_ptq"));
        let command = &mut Command::new(path);
        command
            .args(arguments)
            .env_clear()
            .current_dir(folder.path());
        command.output().unwrap()
    };
    assert!(bare(&["--help"]).status.success());
    assert!(bare(&["play", "--help"]).status.success());
    assert!(bare(&["inspect", "bag"]).status.success());
    let play = bare(&["play", "--bag", "bag"]);
    // Either ROS 2 is found where the linker was told, or what is missing is said.
    if !play.status.success() {
        assert!(said(&play).contains("ROS 2"), "{}", said(&play));
    }
}

#[test]
fn a_file_is_not_put_in_the_place_of_a_device() {
    let folder = good_drive();
    let arguments = [
        "detect",
        "--model",
        &tiny_model(),
        "--bag",
        "bag",
        "--out",
        "/dev/stdout",
    ];
    let output = tool(folder.path(), &arguments);
    let boxes: Value = serde_json::from_slice(&output.stdout).unwrap();
    for i in 0..3 {
        assert!(boxes[at(i).to_string()].is_array(), "{boxes}");
    }
}

#[test]
fn outputs_follow_links_and_take_the_place_of_regular_files_only() {
    use std::os::unix::fs::FileTypeExt;
    let folder = good_drive();
    let path = |name: &str| folder.path().join(name);
    std::fs::create_dir(path("real")).unwrap();
    let pipe = path("pipe");
    assert!(
        Command::new("mkfifo")
            .arg(&pipe)
            .status()
            .unwrap()
            .success()
    );
    for (link, target) in [
        ("link", "real/boxes.json"),
        ("to_pipe", "pipe"),
        ("to_null", "/dev/null"),
    ] {
        std::os::unix::fs::symlink(target, path(link)).unwrap();
    }
    let model = tiny_model();
    let written = |out: &str| {
        let arguments = ["detect", "--model", &model, "--bag", "bag", "--out", out];
        let output = tool(folder.path(), &arguments);
        assert_eq!(output.status.code(), Some(0), "{out}: {}", said(&output));
    };
    // First where the link leads to nothing yet, and then to a file.
    for _ in 0..2 {
        written("link");
        assert!(path("link").is_symlink());
        assert!(read(folder.path(), "real/boxes.json")[at(0).to_string()].is_array());
        std::fs::write(path("real/boxes.json"), "old").unwrap();
    }
    written("to_null");
    written("/dev/null");
    let null = std::fs::metadata("/dev/null").unwrap();
    assert!(null.file_type().is_char_device());
    // One reader gets it all, whatever is checked before.
    for out in ["pipe", "to_pipe"] {
        let reader = Command::new("cat")
            .arg(&pipe)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        written(out);
        let boxes = reader.wait_with_output().unwrap().stdout;
        let boxes: Value = serde_json::from_slice(&boxes).unwrap();
        assert!(boxes[at(0).to_string()].is_array(), "{boxes}");
    }
    assert!(
        std::fs::symlink_metadata(&pipe)
            .unwrap()
            .file_type()
            .is_fifo()
    );
    assert!(path("to_pipe").is_symlink() && path("to_null").is_symlink());
}

#[test]
fn a_model_beyond_the_bound_is_refused_by_name_size_and_option() {
    let folder = tempfile::tempdir().unwrap();
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
    let demo = demo.to_str().unwrap();
    for command in [
        &["inspect", demo][..],
        &[
            "detect",
            "--model",
            demo,
            "--bag",
            "absent",
            "--out",
            "boxes.json",
        ],
        &["bench", "--model", demo, "--bag", "absent"],
    ] {
        let arguments = [command, &["--max-model-mb", "4"]].concat();
        let output = tool(folder.path(), &arguments);
        let said = said(&output);
        assert_eq!(output.status.code(), Some(1), "{said}");
        for part in [
            "pts_backbone_neck_head.onnx",
            "5 MB",
            "4 MB",
            "--max-model-mb",
        ] {
            assert!(said.contains(part), "{said}");
        }
    }
}
