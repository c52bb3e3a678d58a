//! Bags written, read back, cut, packed and mixed up.

// A test that cannot set up its files has failed.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

use centerpoint_ptq::bag::msg::{
    Header, Message, PointCloud2, PointField, TfMessage, TransformStamped,
};
use centerpoint_ptq::bag::{BagError, RawMessage, Reader, Stamp, WriteError, Writer};
use centerpoint_ptq::cloud::Point;
use centerpoint_ptq::cloud::frames::{Frame, Frames, InputOptions, Placement};
use proptest::prelude::*;

const SECOND: i64 = 1_000_000_000;

fn cloud(index: i64, points: u32) -> PointCloud2 {
    PointCloud2 {
        header: Header {
            stamp: Stamp(index * SECOND),
            frame_id: "lidar".into(),
        },
        height: 1,
        width: points,
        fields: ["x", "y", "z"]
            .iter()
            .enumerate()
            .map(|(i, name)| PointField::new(name, 4 * i as u32, PointField::FLOAT32))
            .collect(),
        is_bigendian: false,
        point_step: 12,
        row_step: 12 * points,
        data: (0..3 * points)
            .flat_map(|i| ((i as f32 * 0.37 + index as f32).sin() * 50.0).to_le_bytes())
            .collect(),
        is_dense: true,
    }
}

fn transform(index: i64) -> TfMessage {
    TfMessage {
        transforms: vec![TransformStamped {
            header: Header {
                stamp: Stamp(index * SECOND),
                frame_id: "odom".into(),
            },
            child_frame_id: "base_link".into(),
            ..Default::default()
        }],
    }
}

/// A bag of `count` clouds of 1000 points on /points and as many transforms on /tf.
fn write_bag(folder: &Path, count: i64) {
    let mut writer = Writer::create(folder).unwrap();
    writer.write("/tf_static", SECOND, &transform(0)).unwrap();
    for i in 1..=count {
        writer.write("/tf", i * SECOND, &transform(i)).unwrap();
        writer
            .write("/points", i * SECOND + 5, &cloud(i, 1000))
            .unwrap();
    }
    writer.finish().unwrap();
}

fn collect(path: &Path, topics: &[&str]) -> Vec<RawMessage> {
    let reader = Reader::open(path).unwrap();
    reader.messages(topics).map(Result::unwrap).collect()
}

fn assert_clouds(messages: &[RawMessage], count: i64) {
    assert_eq!(messages.len(), count as usize);
    for (i, message) in (1..).zip(messages) {
        assert_eq!(&*message.topic, "/points");
        assert_eq!(message.log_time, i * SECOND + 5);
        assert_eq!(PointCloud2::decode(&message.data), Ok(cloud(i, 1000)));
    }
}

#[test]
fn what_was_written_is_read_back() {
    let folder = tempfile::tempdir().unwrap();
    let bag = folder.path().join("drive");
    write_bag(&bag, 300);
    assert_clouds(&collect(&bag, &["/points"]), 300);
    assert_clouds(&collect(&bag.join("drive_0.mcap"), &["/points"]), 300);
    assert_eq!(collect(&bag, &["/tf", "/tf_static"]).len(), 301);
    assert_eq!(collect(&bag, &[]).len(), 0);
    assert_eq!(collect(&bag, &["/nothing"]).len(), 0);
    let reader = Reader::open(&bag).unwrap();
    assert_eq!(reader.all_messages().count(), 601);
    let topics: Vec<_> = reader
        .topics()
        .iter()
        .map(|t| (t.name.as_str(), t.type_name.as_str(), t.count))
        .collect();
    assert_eq!(
        topics,
        [
            ("/points", "sensor_msgs/msg/PointCloud2", Some(300)),
            ("/tf", "tf2_msgs/msg/TFMessage", Some(300)),
            ("/tf_static", "tf2_msgs/msg/TFMessage", Some(1)),
        ]
    );
    assert_eq!(
        reader.times(),
        Some((Stamp(SECOND), Stamp(300 * SECOND + 5)))
    );
    let single = Reader::open(&bag.join("drive_0.mcap")).unwrap();
    assert_eq!(single.topics(), reader.topics());
    assert_eq!(single.times(), reader.times());
}

#[test]
fn metadata_says_what_rosbag2_needs_to_play_the_bag() {
    let folder = tempfile::tempdir().unwrap();
    let bag = folder.path().join("drive");
    write_bag(&bag, 2);
    let text = fs::read_to_string(bag.join("metadata.yaml")).unwrap();
    let yaml: serde_yaml::Value = serde_yaml::from_str(&text).unwrap();
    let info = &yaml["rosbag2_bagfile_information"];
    assert_eq!(info["version"], 9);
    assert_eq!(info["storage_identifier"], "mcap");
    assert_eq!(info["message_count"], 5);
    assert_eq!(info["relative_file_paths"][0], "drive_0.mcap");
    let topics = info["topics_with_message_count"].as_sequence().unwrap();
    let durability = |name: &str| {
        let topic = topics
            .iter()
            .find(|t| t["topic_metadata"]["name"] == name)
            .unwrap();
        topic["topic_metadata"]["offered_qos_profiles"][0]["durability"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    assert_eq!(durability("/tf_static"), "transient_local");
    assert_eq!(durability("/tf"), "volatile");
}

#[test]
fn a_bag_without_messages_is_whole() {
    let folder = tempfile::tempdir().unwrap();
    let bag = folder.path().join("empty");
    Writer::create(&bag).unwrap().finish().unwrap();
    let reader = Reader::open(&bag).unwrap();
    assert!(reader.topics().is_empty());
    assert_eq!(reader.all_messages().count(), 0);
}

#[test]
fn an_unfinished_bag_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let bag = folder.path().join("drive");
    let mut writer = Writer::create(&bag).unwrap();
    writer.write("/tf", 0, &transform(0)).unwrap();
    drop(writer);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn an_existing_bag_is_not_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let bag = folder.path().join("drive");
    write_bag(&bag, 1);
    assert!(matches!(Writer::create(&bag), Err(WriteError::Exists(_))));
    assert_clouds(&collect(&bag, &["/points"]), 1);
}

#[test]
fn a_topic_keeps_its_type_and_times_are_not_negative() {
    let folder = tempfile::tempdir().unwrap();
    let mut writer = Writer::create(&folder.path().join("b")).unwrap();
    writer.write("/a", 0, &transform(0)).unwrap();
    assert!(matches!(
        writer.write("/a", 0, &cloud(0, 1)),
        Err(WriteError::TypeChange { .. })
    ));
    assert!(matches!(
        writer.write("/a", -1, &transform(0)),
        Err(WriteError::NegativeTime { .. })
    ));
}

/// Writes metadata.yaml as an older rosbag2 would.
fn write_metadata(folder: &Path, version: u32, files: &[&str], mode: &str, clouds: u64) {
    let files_block: String = files.iter().map(|f| format!("    - {f}\n")).collect();
    let format = if mode.is_empty() { "" } else { "zstd" };
    let text = format!(
        "rosbag2_bagfile_information:\n  version: {version}\n  storage_identifier: sqlite3\n  \
         relative_file_paths:\n{files_block}  duration:\n    nanoseconds: 1000\n  starting_time:\n    \
         nanoseconds_since_epoch: 1000\n  message_count: {clouds}\n  topics_with_message_count:\n    \
         - topic_metadata:\n        name: /points\n        type: sensor_msgs/msg/PointCloud2\n        \
         serialization_format: cdr\n        offered_qos_profiles: \"- history: 3\\n  depth: 0\"\n      \
         message_count: {clouds}\n  compression_format: \"{format}\"\n  compression_mode: \"{mode}\"\n"
    );
    fs::write(folder.join("metadata.yaml"), text).unwrap();
}

/// A database as rosbag2_storage_sqlite3 makes it, its rows in the given order.
fn write_db3(path: &Path, indices: &[i64], pack: bool) {
    fill_db3(&rusqlite::Connection::open(path).unwrap(), indices, pack);
}

fn fill_db3(db: &rusqlite::Connection, indices: &[i64], pack: bool) {
    db.execute_batch(
        "CREATE TABLE topics(id INTEGER PRIMARY KEY, name TEXT NOT NULL, type TEXT NOT NULL,
             serialization_format TEXT NOT NULL, offered_qos_profiles TEXT NOT NULL);
         CREATE TABLE messages(id INTEGER PRIMARY KEY, topic_id INTEGER NOT NULL,
             timestamp INTEGER NOT NULL, data BLOB NOT NULL);
         CREATE INDEX timestamp_idx ON messages (timestamp ASC);
         INSERT INTO topics VALUES(1, '/points', 'sensor_msgs/msg/PointCloud2', 'cdr', '');
         INSERT INTO topics VALUES(2, '/tf', 'tf2_msgs/msg/TFMessage', 'cdr', '');",
    )
    .unwrap();
    for &i in indices {
        for (topic, time, mut data) in [
            (2, i * SECOND, transform(i).encode()),
            (1, i * SECOND + 5, cloud(i, 1000).encode()),
        ] {
            if pack {
                data = zstd::encode_all(data.as_slice(), 1).unwrap();
            }
            db.execute(
                "INSERT INTO messages(topic_id, timestamp, data) VALUES(?1, ?2, ?3)",
                rusqlite::params![topic, time, data],
            )
            .unwrap();
        }
    }
}

#[test]
fn sqlite_files_are_read_in_order_of_time() {
    let folder = tempfile::tempdir().unwrap();
    let db = folder.path().join("b_0.db3");
    write_db3(&db, &[3, 1, 2, 4], false);
    assert_clouds(&collect(&db, &["/points"]), 4);
    let reader = Reader::open(&db).unwrap();
    assert_eq!(reader.topics()[1].name, "/tf");
    assert_eq!(reader.topics()[1].count, Some(4));
    assert_eq!(reader.times(), Some((Stamp(SECOND), Stamp(4 * SECOND + 5))));
    // Without metadata.yaml the folder is read by its files.
    assert_clouds(&collect(folder.path(), &["/points"]), 4);
}

#[test]
fn every_metadata_version_from_4_to_9_is_read() {
    let folder = tempfile::tempdir().unwrap();
    write_db3(&folder.path().join("b_0.db3"), &[1, 2], false);
    for version in 4..=9 {
        write_metadata(folder.path(), version, &["b_0.db3"], "", 2);
        assert_clouds(&collect(folder.path(), &["/points"]), 2);
    }
}

/// An MCAP file with clouds in the given order, a few to a chunk.
fn write_mcap(path: &Path, indices: &[i64], index: bool) {
    let mut writer = mcap::WriteOptions::new()
        .profile("ros2")
        .chunk_size(Some(30_000))
        .emit_summary_records(index)
        .emit_summary_offsets(index)
        .compression_threads(0)
        .create(fs::File::create(path).unwrap())
        .unwrap();
    for &i in indices {
        for (topic, type_name, time, data) in [
            ("/tf", TfMessage::TYPE, i * SECOND, transform(i).encode()),
            (
                "/points",
                PointCloud2::TYPE,
                i * SECOND + 5,
                cloud(i, 1000).encode(),
            ),
        ] {
            let schema = writer.add_schema(type_name, "ros2msg", b"").unwrap();
            let channel_id = writer
                .add_channel(schema, topic, "cdr", &Default::default())
                .unwrap();
            let header = mcap::records::MessageHeader {
                channel_id,
                sequence: 0,
                log_time: time as u64,
                publish_time: time as u64,
            };
            writer.write_to_known_channel(&header, &data).unwrap();
        }
    }
    writer.finish().unwrap();
}

/// What the library warns of meanwhile.
fn warnings(act: impl FnOnce()) -> String {
    #[derive(Clone, Default)]
    struct Log(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);
    impl std::io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::WARN)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    tracing::subscriber::with_default(subscriber, act);
    let bytes = log.0.lock().unwrap().clone();
    String::from_utf8(bytes).unwrap()
}

#[test]
fn mcap_files_are_read_in_order_of_time_with_and_without_an_index() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("b_0.mcap");
    let order: Vec<i64> = (1..=40)
        .map(|i| if i > 20 { i - 20 } else { i + 20 })
        .collect();
    let swapped: Vec<i64> = (1..=40).map(|i: i64| ((i - 1) ^ 1) + 1).collect();
    let reversed: Vec<i64> = (1..=40).rev().collect();
    for order in [order, swapped, reversed] {
        for index in [true, false] {
            write_mcap(&path, &order, index);
            assert_clouds(&collect(&path, &["/points"]), 40);
            let all = collect(&path, &["/points", "/tf"]);
            assert!(
                all.windows(2)
                    .all(|pair| pair[0].log_time <= pair[1].log_time)
            );
            assert_eq!(all.len(), 80);
        }
    }
}

#[test]
fn frames_do_not_depend_on_the_order_in_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let order: Vec<i64> = (1..=12).collect();
    let swapped: Vec<i64> = (1..=12).map(|i: i64| ((i - 1) ^ 1) + 1).collect();
    let frames = |order: &[i64]| -> Vec<(Stamp, usize, usize)> {
        let path = folder.path().join("b_0.mcap");
        write_mcap(&path, order, true);
        let options = InputOptions {
            sweeps: 2,
            ..Default::default()
        };
        let frames = Frames::open(&path, &options).unwrap();
        frames
            .map(|frame| {
                let frame = frame.unwrap();
                (frame.stamp, frame.sweeps, frame.points.len())
            })
            .collect()
    };
    assert_eq!(frames(&order).len(), 12);
    assert_eq!(frames(&order), frames(&swapped));
}

#[test]
fn the_parts_of_a_bag_are_read_in_order_of_time_whatever_their_names_and_the_metadata_say() {
    // The last parts overlap.
    let parts = [
        ("z", vec![1, 2]),
        ("a", vec![3, 4, 6, 8]),
        ("b", vec![5, 7, 9]),
    ];
    for kind in ["db3", "mcap", "no_index.mcap"] {
        let folder = tempfile::tempdir().unwrap();
        let mut names = Vec::new();
        for (name, indices) in &parts {
            let name = format!("{name}.{kind}");
            let path = folder.path().join(&name);
            match kind {
                "db3" => write_db3(&path, indices, false),
                _ => write_mcap(&path, indices, kind == "mcap"),
            }
            names.push(name);
        }
        assert_clouds(&collect(folder.path(), &["/points"]), 9);
        for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2]] {
            let names = order.map(|i| names[i].as_str());
            write_metadata(folder.path(), 5, &names, "", 9);
            assert_clouds(&collect(folder.path(), &["/points"]), 9);
        }
    }
}

#[test]
fn packed_parts_are_read_in_order_of_time_where_the_metadata_knows_it() {
    let folder = tempfile::tempdir().unwrap();
    let parts = [("b_0.mcap.zstd", 3..=4), ("b_1.mcap.zstd", 1..=2)];
    let mut files = String::from("  files:\n");
    for (name, indices) in parts {
        let plain = folder.path().join("plain");
        write_mcap(&plain, &indices.clone().collect::<Vec<_>>(), true);
        let packed = zstd::encode_all(fs::read(&plain).unwrap().as_slice(), 1).unwrap();
        fs::remove_file(plain).unwrap();
        fs::write(folder.path().join(name), packed).unwrap();
        files += &format!(
            "    - path: {name}\n      starting_time:\n        nanoseconds_since_epoch: {}\n      \
             duration:\n        nanoseconds: 1\n      message_count: 4\n",
            indices.start() * SECOND
        );
    }
    let names = ["b_0.mcap.zstd", "b_1.mcap.zstd"];
    write_metadata(folder.path(), 5, &names, "FILE", 4);
    // Where it does not, they come as they are listed, and that is told.
    let told = warnings(|| {
        let times = collect(folder.path(), &["/points"]);
        let times: Vec<i64> = times.iter().map(|m| m.log_time / SECOND).collect();
        assert_eq!(times, [3, 4, 1, 2]);
    });
    assert!(
        told.contains("b_1.mcap.zstd") && told.contains("out of order"),
        "{told}"
    );
    let path = folder.path().join("metadata.yaml");
    let text = fs::read_to_string(&path).unwrap() + &files;
    fs::write(&path, text).unwrap();
    let told = warnings(|| assert_clouds(&collect(folder.path(), &["/points"]), 4));
    assert_eq!(told, "");
    // Without metadata the files themselves say.
    fs::remove_file(&path).unwrap();
    assert_clouds(&collect(folder.path(), &["/points"]), 4);
}

#[test]
fn a_recorder_that_was_killed_while_it_wrote_the_metadata_leaves_a_bag_that_is_read() {
    let folder = tempfile::tempdir().unwrap();
    write_db3(&folder.path().join("b_0.db3"), &[1, 2], false);
    write_db3(&folder.path().join("b_1.db3"), &[3], false);
    let path = folder.path().join("metadata.yaml");
    let part = |file: &str, start, count| centerpoint_ptq::bag::Part {
        file: file.to_owned(),
        start: Stamp(start),
        end: Stamp(start),
        topics: vec![
            centerpoint_ptq::bag::PartTopic::of::<PointCloud2>("/points", count),
            centerpoint_ptq::bag::PartTopic::of::<TfMessage>("/tf", count),
        ],
    };
    let parts = [part("b_0.db3", SECOND, 2), part("b_1.db3", 3 * SECOND, 1)];
    centerpoint_ptq::bag::write_metadata(folder.path(), &parts).unwrap();
    let new = fs::read_to_string(&path).unwrap();
    write_metadata(folder.path(), 4, &["b_0.db3", "b_1.db3"], "", 3);
    let old = fs::read_to_string(&path).unwrap();
    for text in [new, old] {
        for length in 0..=text.len() {
            fs::write(&path, &text[..length]).unwrap();
            assert_clouds(&collect(folder.path(), &["/points"]), 3);
            let reader = Reader::open(folder.path()).unwrap();
            assert_eq!(reader.topics()[0].count, Some(3), "cut at {length}");
        }
    }
    fs::write(&path, "").unwrap();
    let told = warnings(|| drop(Reader::open(folder.path()).unwrap()));
    assert_eq!(told.lines().count(), 1, "{told}");
    assert!(
        told.contains("metadata.yaml is not a rosbag2 metadata file"),
        "{told}"
    );
    assert!(told.contains("as if there were no metadata"), "{told}");
}

#[test]
fn metadata_is_read_with_empty_keys_numbers_as_text_and_keys_of_later_versions() {
    let folder = tempfile::tempdir().unwrap();
    write_db3(&folder.path().join("b_0.db3"), &[1, 2], false);
    write_metadata(folder.path(), 9, &["b_0.db3"], "", 4);
    let path = folder.path().join("metadata.yaml");
    let whole = fs::read_to_string(&path).unwrap();
    let edits: [&[(&str, &str)]; 9] = [
        &[("version: 9", "version: \"9\"")],
        &[("version: 9", "version: 9.0")],
        &[("version: 9", "version: ~\n  later_key: {a: [1]}")],
        &[("message_count: 4", "message_count: '4'")],
        &[("nanoseconds: 1000", "nanoseconds: \" 1000 \"")],
        &[("compression_format: \"\"", "compression_format: ~")],
        &[("compression_mode: \"\"", "compression_mode:\n  files: ~")],
        &[("storage_identifier: sqlite3", "storage_identifier: null")],
        &[(
            "relative_file_paths:\n    - b_0.db3",
            "relative_file_paths: ~\n  files:\n    - path: b_0.db3\n      duration: ~",
        )],
    ];
    for edits in edits {
        let mut text = whole.clone();
        for (from, to) in edits {
            assert!(text.contains(from), "{from}");
            text = text.replace(from, to);
        }
        fs::write(&path, &text).unwrap();
        let told = warnings(|| assert_clouds(&collect(folder.path(), &["/points"]), 2));
        assert!(!told.contains("as if there were no"), "{told}");
    }
    // Nothing is left that says what is there.
    for key in [
        "files: ~",
        "relative_file_paths: ~",
        "topics_with_message_count: ~",
    ] {
        let text = format!("rosbag2_bagfile_information:\n  version: 9\n  {key}\n");
        fs::write(&path, text).unwrap();
        let told = warnings(|| assert_clouds(&collect(folder.path(), &["/points"]), 2));
        assert!(told.contains("lists no files"), "{told}");
    }
}

#[test]
fn files_that_the_metadata_does_not_list_are_told_and_not_read() {
    let folder = tempfile::tempdir().unwrap();
    write_db3(&folder.path().join("b_0.db3"), &[1, 2], false);
    write_db3(&folder.path().join("b_1.db3"), &[3], false);
    write_metadata(folder.path(), 4, &["b_0.db3"], "", 4);
    let told = warnings(|| assert_clouds(&collect(folder.path(), &["/points"]), 2));
    assert!(told.contains("does not list b_1.db3"), "{told}");
    // Unless it is older than its files, as one that the recorder wrote at a split.
    write_metadata(folder.path(), 4, &["b_0.db3"], "", 3);
    let told = warnings(|| assert_clouds(&collect(folder.path(), &["/points"]), 3));
    assert!(told.contains("older than the files"), "{told}");
}

#[test]
fn a_listed_file_that_is_gone_costs_its_own_messages() {
    let folder = tempfile::tempdir().unwrap();
    write_db3(&folder.path().join("b_0.db3"), &[1, 2], false);
    write_metadata(folder.path(), 5, &["b_0.db3", "b_1.db3"], "", 4);
    let told = warnings(|| {
        let reader = Reader::open(folder.path()).unwrap();
        let (good, bad): (Vec<_>, Vec<_>) = reader.messages(&["/points"]).partition(Result::is_ok);
        assert_eq!((good.len(), bad.len()), (2, 1));
        let text = bad[0].as_ref().unwrap_err().to_string();
        assert!(text.contains("b_1.db3"), "{text}");
    });
    assert!(told.contains("lists") && told.contains("b_1.db3"), "{told}");
}

#[test]
fn counts_that_the_files_contradict_are_told_and_corrected() {
    for kind in ["db3", "mcap"] {
        let folder = tempfile::tempdir().unwrap();
        let name = format!("b_0.{kind}");
        match kind {
            "db3" => write_db3(&folder.path().join(&name), &[1, 2], false),
            _ => write_mcap(&folder.path().join(&name), &[1, 2], true),
        }
        write_metadata(folder.path(), 5, &[&name], "", 7);
        let told = warnings(|| {
            let reader = Reader::open(folder.path()).unwrap();
            let counts: Vec<_> = reader
                .topics()
                .iter()
                .map(|t| (&*t.name, t.count))
                .collect();
            assert_eq!(counts, [("/points", Some(2)), ("/tf", Some(2))]);
            assert_clouds(&collect(folder.path(), &["/points"]), 2);
        });
        assert!(
            told.contains("counts 7 messages") && told.contains("hold 4"),
            "{told}"
        );
    }
}

#[test]
fn types_have_their_ros2_names_however_the_bag_writes_them() {
    for name in [
        "sensor_msgs/msg/PointCloud2",
        "sensor_msgs/PointCloud2",
        "sensor_msgs::msg::dds_::PointCloud2_",
        "sensor_msgs/msg/dds_/PointCloud2_",
        "sensor_msgs::msg::PointCloud2",
    ] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("b_0.db3");
        write_db3(&path, &[1], false);
        let db = rusqlite::Connection::open(&path).unwrap();
        db.execute("UPDATE topics SET type = ?1 WHERE id = 1", [name])
            .unwrap();
        drop(db);
        let read = |bag: &Path| {
            let reader = Reader::open(bag).unwrap();
            let clouds = reader.topics_of_type(PointCloud2::TYPE).count();
            assert_eq!(clouds, 1, "{name}");
            assert_eq!(
                Frames::open(bag, &InputOptions::default()).unwrap().count(),
                1
            );
        };
        read(&path);
        write_metadata(folder.path(), 5, &["b_0.db3"], "", 2);
        let metadata = folder.path().join("metadata.yaml");
        let text = fs::read_to_string(&metadata).unwrap();
        fs::write(&metadata, text.replace(PointCloud2::TYPE, name)).unwrap();
        read(folder.path());
    }
}

#[test]
fn split_bags_without_metadata_are_read_by_number_and_counted_together() {
    let folder = tempfile::tempdir().unwrap();
    for i in 1..=11 {
        write_db3(&folder.path().join(format!("b_{i}.db3")), &[i], false);
    }
    assert_clouds(&collect(folder.path(), &["/points"]), 11);
    let reader = Reader::open(folder.path()).unwrap();
    assert_eq!(reader.topics()[0].count, Some(11));
}

#[test]
fn an_empty_part_of_a_split_bag_is_an_error_behind_the_other_parts() {
    let folder = tempfile::tempdir().unwrap();
    write_db3(&folder.path().join("b_0.db3"), &[1, 2], false);
    fs::write(folder.path().join("b_1.db3"), "").unwrap();
    let read = || -> Vec<_> {
        let reader = Reader::open(folder.path()).unwrap();
        reader.messages(&["/points"]).collect()
    };
    let without_metadata = read();
    write_metadata(folder.path(), 5, &["b_0.db3", "b_1.db3"], "", 2);
    for items in [without_metadata, read()] {
        let good: Vec<bool> = items.iter().map(Result::is_ok).collect();
        assert_eq!(good, [true, true, false]);
        let text = items[2].as_ref().unwrap_err().to_string();
        assert!(text.contains("b_1.db3") && text.contains("empty"), "{text}");
    }
}

#[test]
fn files_packed_with_zstd_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let db = folder.path().join("plain.db3");
    write_db3(&db, &[1, 2], false);
    write_bag(&folder.path().join("drive"), 2);
    let mcap = folder.path().join("drive/drive_0.mcap");
    for (plain, packed) in [(db, "b_0.db3.zstd"), (mcap, "b_0.mcap.zstd")] {
        let bag = tempfile::tempdir().unwrap();
        let bytes = zstd::encode_all(fs::read(&plain).unwrap().as_slice(), 1).unwrap();
        fs::write(bag.path().join(packed), bytes).unwrap();
        assert_clouds(&collect(bag.path(), &["/points"]), 2);
        write_metadata(bag.path(), 5, &[packed], "FILE", 2);
        assert_clouds(&collect(bag.path(), &["/points"]), 2);
    }
}

#[test]
fn messages_packed_with_zstd_are_read() {
    let folder = tempfile::tempdir().unwrap();
    write_db3(&folder.path().join("b_0.db3"), &[1, 2], true);
    write_metadata(folder.path(), 5, &["b_0.db3"], "MESSAGE", 2);
    assert_clouds(&collect(folder.path(), &["/points"]), 2);
}

#[test]
fn another_compression_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    write_db3(&folder.path().join("b_0.db3"), &[1], false);
    write_metadata(folder.path(), 5, &["b_0.db3"], "MESSAGE", 1);
    let path = folder.path().join("metadata.yaml");
    let text = fs::read_to_string(&path).unwrap().replace("zstd", "snappy");
    fs::write(path, text).unwrap();
    let error = Reader::open(folder.path()).unwrap_err().to_string();
    assert!(error.contains("snappy"), "{error}");
}

/// MCAP files as others write them: plain, lz4 chunks, no chunks, no index.
#[test]
fn every_kind_of_mcap_is_read() {
    use mcap::{Compression, WriteOptions};
    let folder = tempfile::tempdir().unwrap();
    let options = || WriteOptions::new().profile("ros2").compression_threads(0);
    for (name, options) in [
        ("plain", options().compression(None)),
        ("lz4", options().compression(Some(Compression::Lz4))),
        ("no_chunks", options().use_chunks(false)),
        (
            "no_index",
            options()
                .emit_summary_records(false)
                .emit_summary_offsets(false)
                .emit_message_indexes(false),
        ),
    ] {
        let path = folder.path().join(format!("{name}.mcap"));
        let mut writer = options.create(fs::File::create(&path).unwrap()).unwrap();
        let schema = writer
            .add_schema(PointCloud2::TYPE, "ros2msg", PointCloud2::SCHEMA.as_bytes())
            .unwrap();
        let channel = writer
            .add_channel(schema, "/points", "cdr", &Default::default())
            .unwrap();
        for i in 1..=200 {
            let header = mcap::records::MessageHeader {
                channel_id: channel,
                sequence: 0,
                log_time: (i * SECOND + 5) as u64,
                publish_time: 0,
            };
            writer
                .write_to_known_channel(&header, &cloud(i, 1000).encode())
                .unwrap();
        }
        writer.finish().unwrap();
        assert_clouds(&collect(&path, &["/points"]), 200);
        let reader = Reader::open(&path).unwrap();
        assert_eq!(reader.topics().len(), 1, "{name}");
        assert_eq!(reader.topics()[0].count, Some(200), "{name}");
        let times = (Stamp(SECOND + 5), Stamp(200 * SECOND + 5));
        assert_eq!(reader.times(), Some(times), "{name}");
    }
}

/// Every prefix of a file yields messages that are right, in order, and then an error; and never
/// panics.
#[test]
fn a_cut_mcap_yields_what_is_whole_and_then_an_error_with_the_offset() {
    let folder = tempfile::tempdir().unwrap();
    write_bag(&folder.path().join("drive"), 300);
    let whole = fs::read(folder.path().join("drive/drive_0.mcap")).unwrap();
    let cut = folder.path().join("cut.mcap");
    let mut most = 0;
    let step = whole.len() / 97;
    for length in (0..64).chain((64..whole.len()).step_by(step)) {
        fs::write(&cut, &whole[..length]).unwrap();
        let Ok(reader) = Reader::open(&cut) else {
            assert!(length < 8, "only a file without magic cannot be opened");
            continue;
        };
        let mut good = 0;
        let mut errors = Vec::new();
        for item in reader.messages(&["/points"]) {
            match item {
                Ok(message) => {
                    assert!(errors.is_empty(), "messages after the break");
                    good += 1;
                    assert_eq!(
                        PointCloud2::decode(&message.data),
                        Ok(cloud(good, 1000)),
                        "cut at {length}"
                    );
                }
                Err(error) => errors.push(error),
            }
        }
        assert!(good >= most, "a longer prefix holds no fewer messages");
        most = good;
        // A cut within the index at the very end loses nothing.
        assert!(errors.len() == 1 || good == 300, "cut at {length}");
        for error in errors {
            let text = error.to_string();
            assert!(text.contains("cut.mcap") && text.contains("byte"), "{text}");
        }
    }
    assert!(most > 250, "{most}");
}

/// Also where what leads to the rows lies behind the break.
#[test]
fn a_cut_database_yields_all_rows_that_are_whole_and_then_an_error_with_what_is_missing() {
    for page_size in [512, 4096, 65536] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("whole.db3");
        let connection = rusqlite::Connection::open(&path).unwrap();
        connection
            .execute_batch(&format!("PRAGMA page_size = {page_size}"))
            .unwrap();
        let count = 60;
        fill_db3(&connection, &(1..=count).collect::<Vec<_>>(), false);
        drop(connection);
        let whole = fs::read(&path).unwrap();
        let cut = folder.path().join("cut.db3");
        let (mut most, mut opened) = (0, 0);
        for length in (0..whole.len()).step_by(whole.len() / 61) {
            fs::write(&cut, &whole[..length]).unwrap();
            let Ok(reader) = Reader::open(&cut) else {
                continue;
            };
            opened += 1;
            let items: Vec<_> = reader.messages(&["/points"]).collect();
            let errors: Vec<String> = items
                .iter()
                .filter_map(|item| Some(item.as_ref().err()?.to_string()))
                .collect();
            assert_eq!(errors.len(), 1, "cut at {length}: {errors:?}");
            assert!(items.last().unwrap().is_err());
            let said = format!("{length} of {} bytes", whole.len());
            assert!(errors[0].contains(&said), "{errors:?}");
            let good: Vec<_> = items.into_iter().flatten().collect();
            assert_clouds(&good, good.len() as i64);
            // A row and a half may be cut, or lie in the page that is.
            let there = length as i64 * count / whole.len() as i64;
            let slack = 3 + page_size / 2500;
            assert!(
                good.len() as i64 > there - slack,
                "{} of {there}, cut at {length}",
                good.len()
            );
            assert!(good.len() >= most);
            most = good.len();
        }
        assert!(opened > 50, "{opened}");
    }
}

#[test]
fn a_database_whose_recorder_was_killed_is_read_with_its_journal() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("live.db3");
    let connection = rusqlite::Connection::open(&path).unwrap();
    let mode: String = connection
        .query_row("PRAGMA journal_mode = WAL", [], |row| row.get(0))
        .unwrap();
    assert_eq!(mode, "wal");
    fill_db3(&connection, &[1, 2, 3], false);
    // What the disk holds at this moment.
    let killed = folder.path().join("killed.db3");
    fs::copy(&path, &killed).unwrap();
    let journal = folder.path().join("live.db3-wal");
    assert!(fs::metadata(&journal).unwrap().len() > 0);
    fs::copy(journal, folder.path().join("killed.db3-wal")).unwrap();
    assert_clouds(&collect(&killed, &["/points"]), 3);
}

#[test]
fn a_cut_packed_file_yields_what_is_whole_and_then_one_error() {
    let folder = tempfile::tempdir().unwrap();
    write_bag(&folder.path().join("drive"), 100);
    let db = folder.path().join("plain.db3");
    write_db3(&db, &(1..=100).collect::<Vec<_>>(), false);
    for plain in [folder.path().join("drive/drive_0.mcap"), db] {
        let plain = fs::read(plain).unwrap();
        let packed = zstd::bulk::compress(&plain, 1).unwrap();
        let cut = folder.path().join("cut.zstd");
        let (mut most, mut opened) = (0, 0);
        for length in (1..packed.len()).step_by(packed.len() / 23) {
            fs::write(&cut, &packed[..length]).unwrap();
            let Ok(reader) = Reader::open(&cut) else {
                continue;
            };
            opened += 1;
            let items: Vec<_> = reader.messages(&["/points"]).collect();
            let error = items.last().unwrap().as_ref().unwrap_err().to_string();
            let good: Vec<_> = items.into_iter().flatten().collect();
            assert!(error.contains("the packed file was cut off"), "{error}");
            let said = format!(" of {} bytes could be unpacked", plain.len());
            assert!(error.contains(&said), "{error}");
            assert_clouds(&good, good.len() as i64);
            assert!(good.len() >= most);
            most = good.len();
        }
        assert!(opened > 15, "{opened}");
        assert!(most > 60, "{most}");
    }
}

#[test]
fn a_cut_recording_says_how_many_messages_of_its_metadata_are_missing() {
    let folder = tempfile::tempdir().unwrap();
    let bag = folder.path().join("drive");
    write_bag(&bag, 100);
    let path = bag.join("drive_0.mcap");
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    let items: Vec<_> = Reader::open(&bag).unwrap().messages(&["/points"]).collect();
    let (good, bad): (Vec<_>, Vec<_>) = items.into_iter().partition(Result::is_ok);
    assert!((30..70).contains(&good.len()), "{}", good.len());
    let error = bad.into_iter().next().unwrap().unwrap_err();
    assert!(
        matches!(error, BagError::Incomplete { given, expected: 100, .. }
        if given == good.len() as u64)
    );
    let text = error.to_string();
    let said = format!(
        "of 100 messages on the topics read {} could be read",
        good.len()
    );
    assert!(
        text.contains(&said) && text.contains("drive_0.mcap"),
        "{text}"
    );
}

#[test]
fn a_damaged_chunk_costs_its_own_messages_only() {
    let folder = tempfile::tempdir().unwrap();
    write_bag(&folder.path().join("drive"), 300);
    let path = folder.path().join("drive/drive_0.mcap");
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x55;
    fs::write(&path, bytes).unwrap();
    let reader = Reader::open(&path).unwrap();
    let (good, bad): (Vec<_>, Vec<_>) = reader.messages(&["/points"]).partition(Result::is_ok);
    assert!((100..300).contains(&good.len()), "{}", good.len());
    assert_eq!(bad.len(), 1);
    let last = good.last().unwrap().as_ref().unwrap();
    assert_eq!(PointCloud2::decode(&last.data), Ok(cloud(300, 1000)));
}

#[test]
fn a_length_that_a_record_claims_is_held_against_the_record() {
    let magic = b"\x89MCAP0\r\n";
    let record = |opcode: u8, body: &[u8]| {
        let length = (body.len() as u64).to_le_bytes();
        [&[opcode], &length[..], body].concat()
    };
    // 4 GiB of profile, topic type, topic, message counts and offsets of message indexes.
    let claim = u32::MAX.to_le_bytes();
    let records = [
        record(1, &claim),
        record(3, &[&[1, 0], &claim[..]].concat()),
        record(4, &[&[0; 4], &claim[..]].concat()),
        record(11, &[&[0; 42], &claim[..]].concat()),
        record(8, &[&[0; 32], &claim[..]].concat()),
    ];
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("claims.mcap");
    for body in records {
        fs::write(&path, [&magic[..], &body].concat()).unwrap();
        // As the start of a file that breaks off, and as the whole summary of a complete one.
        let reader = Reader::open(&path).unwrap();
        assert!(reader.topics().is_empty());
        assert!(reader.all_messages().all(|item| item.is_err()));
        let start = (8u64 + 13).to_le_bytes();
        let footer = record(2, &[&start[..], &[0; 12]].concat());
        let end = record(15, &[0; 4]);
        fs::write(&path, [&magic[..], &end, &body, &footer, magic].concat()).unwrap();
        let reader = Reader::open(&path).unwrap();
        assert_eq!(reader.all_messages().count(), 0);
    }
}

#[test]
fn wrong_paths_and_files_get_errors_that_say_what_was_found() {
    let folder = tempfile::tempdir().unwrap();
    let error = |path: &Path| Reader::open(path).unwrap_err();

    let missing = error(&folder.path().join("nowhere"));
    assert!(matches!(missing, BagError::NotFound(_)));
    assert!(missing.to_string().contains("nowhere"));

    let empty = error(folder.path()).to_string();
    assert!(empty.contains("there is nothing"), "{empty}");
    fs::write(folder.path().join("notes.txt"), "hello").unwrap();
    let other = error(folder.path()).to_string();
    assert!(other.contains("notes.txt"), "{other}");
    let text = error(&folder.path().join("notes.txt")).to_string();
    assert!(text.contains("neither MCAP nor SQLite"), "{text}");

    let ros1 = folder.path().join("old.bag");
    fs::write(&ros1, "#ROSBAG V2.0\n").unwrap();
    assert!(matches!(error(&ros1), BagError::Ros1 { .. }));

    fs::write(folder.path().join("metadata.yaml"), "a: [").unwrap();
    assert!(matches!(error(folder.path()), BagError::Metadata { .. }));
    write_metadata(folder.path(), 5, &["gone_0.db3"], "", 1);
    let gone = error(folder.path());
    assert!(matches!(gone, BagError::MissingFile { .. }));
    assert!(gone.to_string().contains("gone_0.db3"), "{gone}");
}

#[test]
fn ros1_mcap_is_refused_with_its_profile() {
    let folder = tempfile::tempdir().unwrap();
    for (profile, encoding) in [("ros1", "ros1"), ("", "ros1")] {
        let path = folder.path().join("ros1.mcap");
        let mut writer = mcap::WriteOptions::new()
            .profile(profile)
            .create(fs::File::create(&path).unwrap())
            .unwrap();
        writer
            .add_channel(0, "/points", encoding, &Default::default())
            .unwrap();
        writer.finish().unwrap();
        let error = Reader::open(&path).unwrap_err();
        assert!(matches!(error, BagError::Ros1 { .. }));
        assert!(error.to_string().contains("ros1"), "{error}");
    }
}

#[test]
fn topics_in_other_encodings_are_one_error_each_and_the_others_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let encodings = [("/cdr", "cdr"), ("/json", "json"), ("/old", "ros1")];
    let mcap = folder.path().join("mixed.mcap");
    let mut writer = mcap::Writer::new(fs::File::create(&mcap).unwrap()).unwrap();
    let database = folder.path().join("mixed.db3");
    write_db3(&database, &[], false);
    let db = rusqlite::Connection::open(&database).unwrap();
    db.execute("DELETE FROM topics", []).unwrap();
    for (id, (topic, encoding)) in (1..).zip(encodings) {
        let channel_id = writer
            .add_channel(0, topic, encoding, &Default::default())
            .unwrap();
        db.execute(
            "INSERT INTO topics VALUES(?1, ?2, 'a/msg/B', ?3, '')",
            rusqlite::params![id, topic, encoding],
        )
        .unwrap();
        for log_time in 0..3 {
            let header = mcap::records::MessageHeader {
                channel_id,
                sequence: 0,
                log_time,
                publish_time: 0,
            };
            writer.write_to_known_channel(&header, b"{}").unwrap();
            db.execute(
                "INSERT INTO messages(topic_id, timestamp, data) VALUES(?1, ?2, x'7b7d')",
                rusqlite::params![id, log_time as i64],
            )
            .unwrap();
        }
    }
    writer.finish().unwrap();
    drop(db);
    // Each by itself, and both as the parts of a bag.
    for (bag, count) in [(mcap.as_path(), 3), (&database, 3), (folder.path(), 6)] {
        let reader = Reader::open(bag).unwrap();
        let encodings: Vec<_> = reader
            .topics()
            .iter()
            .map(|t| t.encoding.as_deref())
            .collect();
        assert_eq!(encodings, [None, Some("json"), Some("ros1")]);
        let (good, bad): (Vec<_>, Vec<_>) = reader.all_messages().partition(Result::is_ok);
        assert_eq!(good.len(), count);
        let mut texts: Vec<_> = bad
            .into_iter()
            .map(|item| item.unwrap_err().to_string())
            .collect();
        texts.sort_by_key(|text| text.contains("ros1"));
        assert_eq!(texts.len(), 2, "{texts:?}");
        assert!(
            texts[0].contains("/json") && texts[0].contains("\"json\""),
            "{texts:?}"
        );
        assert!(
            texts[1].contains("/old") && texts[1].contains("\"ros1\""),
            "{texts:?}"
        );
        assert_eq!(
            reader.messages(&["/cdr"]).map(Result::unwrap).count(),
            count
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn mutated_files_never_panic(
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        cut in prop::option::of(any::<prop::sample::Index>()),
        kind in 0..3usize,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let mut bytes = pristine(kind);
        for (at, value) in edits {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        fs::write(&path, bytes).unwrap();
        if let Ok(reader) = Reader::open(&path) {
            for message in reader.all_messages().take(1000).flatten() {
                let _ = PointCloud2::decode(&message.data);
                let _ = TfMessage::decode(&message.data);
            }
        }
    }
}

/// A small chunked MCAP, one without chunks, a database.
fn pristine(kind: usize) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file");
    if kind == 2 {
        write_db3(&path, &[1], false);
    } else {
        let mut writer = mcap::WriteOptions::new()
            .use_chunks(kind == 0)
            .compression(None)
            .calculate_chunk_crcs(false)
            .create(fs::File::create(&path).unwrap())
            .unwrap();
        let schema = writer.add_schema(TfMessage::TYPE, "ros2msg", b"").unwrap();
        let channel_id = writer
            .add_channel(schema, "/tf", "cdr", &Default::default())
            .unwrap();
        for log_time in 0..4 {
            let header = mcap::records::MessageHeader {
                channel_id,
                sequence: 0,
                log_time,
                publish_time: 0,
            };
            writer
                .write_to_known_channel(&header, &transform(1).encode())
                .unwrap();
        }
        writer.finish().unwrap();
    }
    fs::read(&path).unwrap()
}

/// The folder of real recordings, or `None` with a word about it.
fn real_data() -> Option<PathBuf> {
    let folder = std::env::var_os("CENTERPOINT_PTQ_DATA").map(PathBuf::from);
    if folder.is_none() {
        eprintln!("skipped: CENTERPOINT_PTQ_DATA is not set, no real recordings to read");
    }
    folder
}

#[test]
fn real_ros1_mcap_is_refused() {
    let Some(data) = real_data() else { return };
    let error = Reader::open(&data.join("ros1_mcap/ouster_os1.mcap")).unwrap_err();
    assert!(matches!(error, BagError::Ros1 { .. }), "{error}");
}

/// Frames of a real recording, with the checks that hold for any spinning sensor on a car.
fn real_frames(bag: &Path, options: &InputOptions, points: std::ops::Range<usize>) -> Vec<Frame> {
    let frames = Frames::open(bag, options).unwrap();
    let hint = frames.len_hint();
    let frames: Vec<Frame> = frames.map(Result::unwrap).collect();
    assert_eq!(hint, Some(frames.len()));
    for pair in frames.windows(2) {
        let period = pair[1].stamp.seconds_since(pair[0].stamp);
        assert!((0.05..0.2).contains(&period), "{period} s between sweeps");
    }
    for frame in &frames {
        assert!(points.contains(&frame.stats.total), "{}", frame.stats.total);
        let ranges: Vec<f32> = frame.points.iter().map(|p| p.x.hypot(p.y)).collect();
        assert!(ranges.iter().all(|range| *range < 300.0));
        let far = ranges.iter().filter(|range| **range > 30.0).count();
        assert!(far * 50 > ranges.len(), "next to nothing beyond 30 m");
        // Most returns of a car's sensor come from the ground around it.
        let ground = frame.points.iter().filter(|p| p.z.abs() < 0.6).count();
        assert!(
            ground * 4 > frame.points.len(),
            "{ground} points near the ground"
        );
        let bright = frame.points.iter().filter(|p| p.intensity > 0.0).count();
        assert!(bright * 2 > frame.points.len());
    }
    frames
}

#[test]
fn real_argoverse_drive_gives_36_frames_joined_by_its_tf() {
    let Some(data) = real_data() else { return };
    let options = InputOptions {
        model_frame: Some("base_link".into()),
        sweeps: 2,
        ..Default::default()
    };
    let frames = real_frames(&data.join("argoverse1_drive"), &options, 80_000..100_000);
    assert_eq!(frames.len(), 36);
    let rings: std::collections::BTreeSet<u16> = frames[0].points.iter().map(|p| p.ring).collect();
    // Two sensors of 32 beams that number them alike.
    assert_eq!(rings, (0..32).collect());
    for (i, frame) in frames.iter().enumerate() {
        assert_eq!(frame.sweeps, if i == 0 { 1 } else { 2 });
        assert!(frame.fixed_from_model.is_some());
        let older = frame.points.iter().filter(|p| p.time_lag > 0.0).count();
        assert_eq!(older > 80_000, i > 0);
    }
    // What stands still must fall together better with the motion than without it.
    let alone = InputOptions {
        sweeps: 1,
        ..options
    };
    let singles = real_frames(&data.join("argoverse1_drive"), &alone, 80_000..100_000);
    let cells = |points: &[Point]| -> std::collections::HashSet<(i32, i32, i32)> {
        let walls = points.iter().filter(|p| p.z > 1.0 && p.z < 5.0);
        walls
            .map(|p| [p.x, p.y, p.z].map(|v| (v / 0.2).floor() as i32).into())
            .collect()
    };
    let (mut with, mut without) = (0, 0);
    for (pair, joined) in singles.windows(2).zip(&frames[1..]) {
        let now = cells(&pair[1].points.0);
        let moved: Vec<Point> = joined
            .points
            .iter()
            .filter(|p| p.time_lag > 0.0)
            .copied()
            .collect();
        with += cells(&moved).intersection(&now).count();
        without += cells(&pair[0].points.0).intersection(&now).count();
    }
    let travelled =
        singles[0].fixed_from_model.unwrap().inverse() * singles[35].fixed_from_model.unwrap();
    eprintln!(
        "argoverse: {:.1} m travelled; cells shared with the sweep before: {with} with ego \
         motion, {without} without",
        travelled.translation.vector.norm()
    );
    assert!(
        with > without,
        "{with} shared cells with motion, {without} without"
    );
}

#[test]
fn real_kitti_drive_gives_24_frames_placed_by_the_sensor_pose() {
    let Some(data) = real_data() else { return };
    let options = InputOptions {
        model_frame: Some("base_link".into()),
        sensor_pose: Some([0.0, 0.0, 1.73, 0.0, 0.0, 0.0]),
        sweeps: 2,
        ..Default::default()
    };
    let frames = real_frames(&data.join("kitti_drive_0052"), &options, 110_000..130_000);
    assert_eq!(frames.len(), 24);
    for frame in frames {
        assert_eq!(frame.placement, Placement::SensorPose);
        // No tf, no ego motion, so no joining.
        assert_eq!(frame.sweeps, 1);
        assert!(frame.points.iter().all(|p| p.intensity <= 1.0));
    }
}
