//! Bags of a few bytes that stand for many, that name what is not theirs, or that never end: each is refused, says which
//! limit it goes beyond, and costs little.

// A test that cannot set up its files has failed.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use centerpoint_ptq::bag::{BagError, Excess, Limit, Limits, RawMessage, Reader};
use mcap::records::MessageHeader;
use mcap::{Compression, WriteOptions};

const MAGIC: &[u8] = b"\x89MCAP0\r\n";
const MB: u64 = 1 << 20;

/// An MCAP file of messages, by their times.
fn write_mcap(path: &Path, chunk: Option<u64>, messages: &[(i64, Vec<u8>)]) {
    let mut writer = WriteOptions::new()
        .use_chunks(chunk.is_some())
        .chunk_size(chunk)
        .compression(Some(Compression::Zstd))
        .compression_threads(0)
        .create(File::create(path).unwrap())
        .unwrap();
    let schema = writer
        .add_schema("std_msgs/msg/String", "ros2msg", b"string data")
        .unwrap();
    let channel_id = writer
        .add_channel(schema, "/a", "cdr", &BTreeMap::new())
        .unwrap();
    for (time, data) in messages {
        let header = MessageHeader {
            channel_id,
            sequence: 0,
            log_time: *time as u64,
            publish_time: 0,
        };
        writer.write_to_known_channel(&header, data).unwrap();
    }
    writer.finish().unwrap();
}

fn record(opcode: u8, body: &[u8]) -> Vec<u8> {
    [&[opcode], &(body.len() as u64).to_le_bytes()[..], body].concat()
}

/// Zeros, packed.
fn packed_zeros(bytes: u64) -> Vec<u8> {
    let mut packer = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    let zeros = vec![0; MB as usize];
    for _ in 0..bytes / MB {
        packer.write_all(&zeros).unwrap();
    }
    packer.finish().unwrap()
}

fn metadata(folder: &Path, files: &[&str], count: usize) {
    let list: Vec<String> = files
        .iter()
        .map(|file| format!("    - '{file}'\n"))
        .collect();
    let text = format!(
        "rosbag2_bagfile_information:\n  version: 4\n  message_count: {count}\n  relative_file_paths:\n{}  \
         topics_with_message_count:\n    - topic_metadata: {{name: /a, type: std_msgs/msg/String}}\n      \
         message_count: {count}\n",
        list.concat()
    );
    fs::write(folder.join("metadata.yaml"), text).unwrap();
}

fn all(path: &Path, limits: &Limits) -> (Vec<RawMessage>, Vec<BagError>) {
    let (mut messages, mut errors) = (Vec::new(), Vec::new());
    for item in Reader::open_with(path, limits).unwrap().all_messages() {
        match item {
            Ok(message) => messages.push(message),
            Err(error) => errors.push(error),
        }
    }
    (messages, errors)
}

/// The one limit that a bag goes beyond.
fn excess(errors: &[BagError]) -> Excess {
    match errors {
        [BagError::Limit { excess, .. }] => *excess,
        errors => panic!("{errors:?}"),
    }
}

/// Bounded in a way that a slow machine does not spoil.
fn quickly<T>(act: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = act();
    let took = start.elapsed();
    assert!(took < Duration::from_secs(30), "{took:?}");
    result
}

fn peak_memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM"))
        .unwrap();
    let kilobytes: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kilobytes << 10
}

#[test]
fn a_message_that_unpacks_to_gigabytes_is_refused_and_the_next_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.mcap");
    let bomb = packed_zeros(1 << 30);
    assert!(bomb.len() < 100_000);
    write_mcap(&path, None, &[(1, bomb), (2, vec![0, 1, 0, 0, 7])]);
    let before = peak_memory();
    let (messages, errors) = quickly(|| all(&path, &Limits::default()));
    assert_eq!(messages.len(), 1);
    assert_eq!(excess(&errors).limit, Limit::Message);
    assert!(peak_memory() - before < 900 * MB);
    let text = errors[0].to_string();
    assert!(
        text.contains("268435456") && text.contains("--max-message-mb"),
        "{text}"
    );

    // One that is small enough is read, and the limit can be raised.
    let small = packed_zeros(3 * MB);
    write_mcap(&path, None, &[(1, small)]);
    let tight = Limits {
        message_bytes: 2 * MB,
        ..Limits::default()
    };
    assert_eq!(excess(&all(&path, &tight).1).limit, Limit::Message);
    assert_eq!(all(&path, &Limits::default()).0[0].data.len(), 3 << 20);
}

#[test]
fn a_plain_message_has_the_same_limit_in_and_out_of_chunks() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.mcap");
    let tight = Limits {
        message_bytes: 1000,
        ..Limits::default()
    };
    for chunk in [None, Some(4096)] {
        write_mcap(&path, chunk, &[(1, vec![1; 1001]), (2, vec![1; 1000])]);
        let (messages, errors) = all(&path, &tight);
        assert_eq!(messages.len(), 1);
        let Excess { most, claimed, .. } = excess(&errors);
        assert_eq!((most, claimed), (1000, Some(1001)));
    }
}

#[test]
fn a_chunk_that_claims_too_much_costs_nothing_and_only_its_messages() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.mcap");
    let packed = packed_zeros(1 << 30);
    let mut chunk = Vec::new();
    chunk.extend([0; 16]);
    chunk.extend((1u64 << 30).to_le_bytes());
    chunk.extend(0u32.to_le_bytes());
    chunk.extend(4u32.to_le_bytes());
    chunk.extend(b"zstd");
    chunk.extend((packed.len() as u64).to_le_bytes());
    chunk.extend(packed);
    fs::write(
        &path,
        [MAGIC, &record(6, &chunk), &record(15, &[0; 4])].concat(),
    )
    .unwrap();
    let before = peak_memory();
    let (_, errors) = quickly(|| all(&path, &Limits::default()));
    let Excess { limit, claimed, .. } = excess(&errors);
    assert_eq!((limit, claimed), (Limit::Chunk, Some(1 << 30)));
    assert!(peak_memory() - before < 100 * MB);
    let text = errors[0].to_string();
    assert!(
        text.contains("--max-chunk-mb") && text.contains("536870912"),
        "{text}"
    );
}

#[test]
fn many_chunks_that_each_stay_below_their_limit_are_ended_by_what_they_cost_together() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.mcap");
    // Chunks that overlap from beginning to end, so that each message has another one unpacked.
    let messages: Vec<(i64, Vec<u8>)> = (0..2000i64)
        .map(|i| (i * 37 % 2000, vec![0; MB as usize]))
        .collect();
    write_mcap(&path, Some(64 * MB), &messages);
    let tight = Limits {
        expansion: 1,
        ..Limits::default()
    };
    let reader = Reader::open_with(&path, &tight).unwrap();
    let (mut read, mut last) = (0, None);
    for item in reader.all_messages() {
        assert!(last.is_none(), "goes on behind what ends it");
        match item {
            Ok(_) => read += 1,
            Err(error) => last = Some(error),
        }
    }
    assert!(read < 2000, "{read}");
    assert_eq!(excess(&[last.unwrap()]).limit, Limit::Expansion);
}

#[test]
fn a_packed_file_fills_the_temporary_folder_no_further_than_its_size_allows() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a_0.mcap.zstd");
    // A file without its size in its header, and one with it.
    let bomb = packed_zeros(600 * MB);
    fs::write(&path, &bomb).unwrap();
    metadata(folder.path(), &["a_0.mcap.zstd"], 1);
    for _ in 0..2 {
        let (_, errors) = quickly(|| all(folder.path(), &Limits::default()));
        assert!(
            matches!(&errors[0], BagError::Limit { excess, .. } if excess.limit == Limit::FileExpansion),
            "{errors:?}"
        );
        assert!(errors[0].to_string().contains("--max-expansion"));
    }
    let mut packer = zstd::bulk::Compressor::new(1).unwrap();
    fs::write(&path, packer.compress(&vec![0; 300 << 20]).unwrap()).unwrap();
    let (_, errors) = all(folder.path(), &Limits::default());
    assert!(
        matches!(&errors[0], BagError::Limit { excess, .. } if excess.claimed == Some(300 << 20)),
        "{errors:?}"
    );
    let tight = Limits {
        file_bytes: 1000,
        ..Limits::default()
    };
    let (_, errors) = all(folder.path(), &tight);
    assert!(errors[0].to_string().contains("--max-unpacked-mb"));
}

#[test]
fn a_file_with_holes_costs_what_is_in_it_and_not_what_it_measures() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.mcap");
    let huge = 1u64 << 40;
    // A message, a chunk and a definition that claim a terabyte, and one that is only holes.
    for start in [5u8, 6, 4, 0] {
        let mut file = File::create(&path).unwrap();
        file.write_all(MAGIC).unwrap();
        file.write_all(&[start]).unwrap();
        file.write_all(&(huge - 100).to_le_bytes()).unwrap();
        file.set_len(huge).unwrap();
        let before = peak_memory();
        quickly(|| all(&path, &Limits::default()));
        assert!(peak_memory() - before < 100 * MB);
    }
    fs::write(&path, [MAGIC, &[0; 4096][..]].concat()).unwrap();
    let (_, errors) = all(&path, &Limits::default());
    assert!(errors[0].to_string().contains("zeros"), "{errors:?}");
}

#[test]
fn the_list_of_what_is_to_be_read_has_a_limit() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.mcap");
    // Each message outside of chunks breaks the order.
    let messages: Vec<(i64, Vec<u8>)> = (0..5000).map(|i| (5000 - i, vec![1])).collect();
    let tight = Limits {
        index_bytes: 100_000,
        ..Limits::default()
    };
    write_mcap(&path, None, &messages);
    let (read, errors) = all(&path, &tight);
    assert!(read.len() < 1000);
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert!(
        errors[0].to_string().contains("--max-index-mb"),
        "{errors:?}"
    );
    write_mcap(&path, Some(1 << 20), &messages);
    let tight = Limits {
        index_bytes: 50_000,
        ..Limits::default()
    };
    let (_, errors) = all(&path, &tight);
    assert!(
        errors[0].to_string().contains("--max-index-mb"),
        "{errors:?}"
    );
    assert_eq!(all(&path, &Limits::default()).0.len(), 5000);
}

#[test]
fn errors_of_any_number_are_told_up_to_some() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.mcap");
    // A hundred thousand messages that are too short.
    let mut file = MAGIC.to_vec();
    for _ in 0..100_000 {
        file.extend(record(5, &[0]));
    }
    file.extend(record(15, &[0; 4]));
    fs::write(&path, file).unwrap();
    let (_, errors) = all(&path, &Limits::default());
    assert!(errors.len() < 200, "{}", errors.len());
    let last = errors.last().unwrap().to_string();
    assert!(last.contains("99900 more errors"), "{last}");
}

#[test]
fn a_name_is_kept_and_quoted_up_to_a_length_and_without_control_characters() {
    let folder = tempfile::tempdir().unwrap();
    let channel = |topic: &str, encoding: &str| {
        let mut body = vec![1, 0, 0, 0];
        for text in [topic, encoding] {
            body.extend((text.len() as u32).to_le_bytes());
            body.extend(text.as_bytes());
        }
        body.extend([0; 4]);
        record(4, &body)
    };
    let message = record(5, &[&[1, 0], &[0; 20][..], &[0, 1, 0, 0]].concat());
    let path = folder.path().join("a.mcap");
    let long = "t".repeat(1_000_000);
    fs::write(&path, [MAGIC, &channel(&long, "cdr"), &message].concat()).unwrap();
    let reader = Reader::open(&path).unwrap();
    assert!(reader.topics().is_empty());
    for error in reader.all_messages().filter_map(Result::err) {
        assert!(
            error.to_string().len() < 1000,
            "{}",
            error.to_string().len()
        );
    }

    let escape = "\u{1b}[2J\u{202e}\n/forged";
    fs::write(&path, [MAGIC, &channel(escape, escape), &message].concat()).unwrap();
    let (_, errors) = all(&path, &Limits::default());
    let text = errors[0].to_string();
    assert!(text.contains("\\u{1b}[2J\\u{202e}\\u{a}/forged"), "{text}");
    assert!(
        errors
            .iter()
            .all(|error| !error.to_string().contains(char::is_control))
    );

    // Likewise the names of files.
    let named = folder.path().join("\u{1b}[2J.mcap");
    fs::write(&named, "").unwrap();
    let text = Reader::open(&named).unwrap_err().to_string();
    assert!(!text.contains(char::is_control), "{text}");
}

#[test]
fn metadata_names_files_of_its_folder_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("secret.txt");
    fs::write(&secret, "root:hash").unwrap();
    let outside = folder.path().join("outside.mcap");
    write_mcap(&outside, None, &[(1, vec![1])]);
    let bag = folder.path().join("bag");
    fs::create_dir(&bag).unwrap();
    let absolute = secret.display().to_string();
    let other = outside.display().to_string();
    for name in [
        "../secret.txt",
        "x/../../secret.txt",
        &absolute,
        "..",
        "/",
        &other,
        "../outside.mcap",
    ] {
        metadata(&bag, &[name], 1);
        let error = Reader::open(&bag).unwrap_err();
        assert!(
            matches!(error, BagError::OutsideFile { .. }),
            "{name}: {error}"
        );
        assert!(!error.to_string().contains("root"), "{error}");
    }
    // Beside a file that is there, the others cost only themselves and are not opened.
    write_mcap(&bag.join("a_0.mcap"), None, &[(1, vec![1])]);
    metadata(&bag, &["a_0.mcap", "../outside.mcap"], 1);
    assert_eq!(all(&bag, &Limits::default()).0.len(), 1);
    // Of a path that old recorders wrote, or that was right elsewhere, the name counts.
    for name in [
        "bag/a_0.mcap",
        "./a_0.mcap",
        "/old/place/bag/a_0.mcap",
        "../bag/a_0.mcap",
    ] {
        metadata(&bag, &[name], 1);
        assert_eq!(all(&bag, &Limits::default()).0.len(), 1, "{name}");
    }
}

#[test]
fn what_a_file_holds_is_never_quoted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a_0.mcap");
    fs::write(&path, "root:$6$hash").unwrap();
    metadata(folder.path(), &["a_0.mcap"], 1);
    for path in [folder.path(), &path] {
        let error = Reader::open(path).unwrap_err().to_string();
        assert!(!error.contains("root"), "{error}");
    }
    fs::write(&path, "").unwrap();
    let error = Reader::open(&path).unwrap_err().to_string();
    assert!(error.contains("it is empty"), "{error}");
}

#[test]
fn a_link_out_of_the_folder_is_followed_only_for_who_asks_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let outside = folder.path().join("outside.mcap");
    write_mcap(&outside, None, &[(1, vec![1])]);
    let bag = folder.path().join("bag");
    fs::create_dir(&bag).unwrap();
    symlink(&outside, bag.join("a_0.mcap")).unwrap();
    let trusting = Limits {
        follow_links: true,
        ..Limits::default()
    };
    for with_metadata in [false, true] {
        if with_metadata {
            metadata(&bag, &["a_0.mcap"], 1);
        }
        let error = Reader::open(&bag).unwrap_err();
        assert!(matches!(error, BagError::OutsideLink(_)), "{error}");
        assert!(error.to_string().contains("--follow-links"), "{error}");
        assert_eq!(all(&bag, &trusting).0.len(), 1);
    }
    // The path that was asked for may be a link, and links within the folder may be there.
    assert_eq!(all(&bag.join("a_0.mcap"), &Limits::default()).0.len(), 1);
    fs::remove_file(bag.join("a_0.mcap")).unwrap();
    fs::copy(&outside, bag.join("data")).unwrap();
    symlink("data", bag.join("a_0.mcap")).unwrap();
    let link = folder.path().join("link");
    symlink(&bag, &link).unwrap();
    assert_eq!(all(&link, &Limits::default()).0.len(), 1);
    // Metadata from elsewhere is not read, nor quoted.
    fs::write(folder.path().join("secret.yaml"), "password: hunter2").unwrap();
    fs::remove_file(bag.join("metadata.yaml")).unwrap();
    symlink("../secret.yaml", bag.join("metadata.yaml")).unwrap();
    let error = Reader::open(&bag).unwrap_err();
    assert!(matches!(error, BagError::OutsideLink(_)), "{error}");
}

#[test]
fn only_regular_files_are_opened() {
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("a_0.mcap");
    let make = |path: &PathBuf| {
        let made = std::process::Command::new("mkfifo").arg(path).status();
        assert!(made.unwrap().success());
    };
    make(&pipe);
    quickly(|| {
        for path in [&pipe, folder.path(), Path::new("/dev/zero")] {
            let error = Reader::open(path).unwrap_err();
            assert!(matches!(error, BagError::NoFile(_)), "{error}");
        }
        metadata(folder.path(), &["a_0.mcap"], 1);
        Reader::open(folder.path()).unwrap_err();
        // SQLite opens a journal by its name.
        let database = folder.path().join("b.db3");
        fill_db3(&database, "", 1);
        make(&folder.path().join("b.db3-wal"));
        let error = Reader::open(&database).unwrap_err();
        assert!(matches!(error, BagError::NoFile(_)), "{error}");
    });
}

#[test]
fn metadata_of_any_size_depth_and_expansion_is_refused_before_it_is_parsed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("metadata.yaml");
    let start = "rosbag2_bagfile_information:\n  version: 5\n  custom_data: ";
    let mut laughs = "a0: &a0 [x, x]\n".to_owned();
    for i in 1..40 {
        laughs += &format!("a{i}: &a{i} [*a{0}, *a{0}, *a{0}]\n", i - 1);
    }
    let long = format!("{start}'{}'", "x".repeat(20 << 20));
    quickly(|| {
        for (text, why) in [
            (
                format!("{start}{}", "{a: ".repeat(200_000)),
                "nested more than 100",
            ),
            (
                format!("{start}{}", "[".repeat(200_000)),
                "nested more than 100",
            ),
            (laughs, "aliases expanded"),
            (long, "longer than"),
            (
                format!("{start}[{}]", "x,".repeat(2_000_000)),
                "more than 1000000 values",
            ),
        ] {
            fs::write(&path, text).unwrap();
            let error = Reader::open(folder.path()).unwrap_err().to_string();
            assert!(error.contains(why), "{why}: {error}");
            assert!(error.len() < 500);
        }
    });
    // As on any other fault of the metadata, the files count.
    write_mcap(&folder.path().join("a_0.mcap"), None, &[(1, vec![1])]);
    assert_eq!(all(folder.path(), &Limits::default()).0.len(), 1);
}

#[test]
fn a_bag_of_a_million_files_is_refused_and_a_file_counts_once() {
    let folder = tempfile::tempdir().unwrap();
    write_mcap(&folder.path().join("a_0.mcap"), None, &[(1, vec![1])]);
    let names: Vec<String> = (0..100_000).map(|i| format!("a_{i}.mcap")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    metadata(folder.path(), &names, 1);
    let error = quickly(|| Reader::open(folder.path()).unwrap_err());
    let text = error.to_string();
    assert!(
        text.contains("100000 files") && text.contains("--max-bag-files"),
        "{text}"
    );

    let same: Vec<&str> = ["a_0.mcap", "./a_0.mcap", "x/a_0.mcap"].repeat(5000);
    metadata(folder.path(), &same, 1);
    quickly(|| assert_eq!(all(folder.path(), &Limits::default()).0.len(), 1));
}

#[test]
fn topics_of_any_number_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    write_mcap(&folder.path().join("a_0.mcap"), None, &[(1, vec![1])]);
    let tight = Limits {
        topics: 0,
        ..Limits::default()
    };
    for _ in 0..2 {
        let error = Reader::open_with(folder.path(), &tight)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("1 topics") && error.contains("--max-bag-topics"),
            "{error}"
        );
        metadata(folder.path(), &["a_0.mcap"], 1);
    }
}

#[test]
fn counts_that_overflow_are_counts_that_the_files_contradict() {
    let folder = tempfile::tempdir().unwrap();
    write_mcap(&folder.path().join("a_0.mcap"), None, &[(1, vec![1])]);
    let topic = |name: &str| {
        format!(
            "    - topic_metadata: {{name: {name}, type: std_msgs/msg/String}}\n      message_count: {}\n",
            u64::MAX
        )
    };
    let text = format!(
        "rosbag2_bagfile_information:\n  version: 4\n  message_count: 1\n  relative_file_paths: [a_0.mcap]\n  \
         topics_with_message_count:\n{}{}{}",
        topic("/a"),
        topic("/b"),
        topic("/a")
    );
    fs::write(folder.path().join("metadata.yaml"), text).unwrap();
    assert_eq!(all(folder.path(), &Limits::default()).0.len(), 1);
}

const TABLES: &str = "CREATE TABLE topics(id INTEGER PRIMARY KEY, name TEXT NOT NULL, type TEXT NOT NULL, \
                      serialization_format TEXT NOT NULL, offered_qos_profiles TEXT NOT NULL); \
                      INSERT INTO topics VALUES(1, '/a', 'std_msgs/msg/String', 'cdr', '');";
const MESSAGES: &str = "CREATE TABLE messages(id INTEGER PRIMARY KEY, topic_id INTEGER NOT NULL, \
                        timestamp INTEGER NOT NULL, data BLOB NOT NULL);";

/// A database, with `instead` of its table of messages if that is not empty.
fn fill_db3(path: &Path, instead: &str, rows: i64) {
    let _ = fs::remove_file(path);
    let db = rusqlite::Connection::open(path).unwrap();
    db.execute_batch(TABLES).unwrap();
    let is_plain = instead.is_empty();
    db.execute_batch(if is_plain { MESSAGES } else { instead })
        .unwrap();
    db.execute_batch("BEGIN").unwrap();
    for id in 0..rows {
        if is_plain {
            let row = "INSERT INTO messages VALUES(?1, 1, ?1, x'0001000007')";
            db.execute(row, [id]).unwrap();
        }
    }
    db.execute_batch("COMMIT").unwrap();
}

#[test]
fn only_plain_tables_of_a_database_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.db3");
    let endless = "WITH RECURSIVE n(id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM n) \
                   SELECT id, 1 AS topic_id, id AS timestamp, zeroblob(1000000000) AS data FROM n";
    let columns = "id INTEGER PRIMARY KEY, topic_id INTEGER DEFAULT 1, timestamp INTEGER DEFAULT 1";
    quickly(|| {
        for instead in [
            format!("CREATE VIEW messages AS {endless}"),
            format!(
                "CREATE TABLE messages({columns}, data BLOB AS (zeroblob(1000000000))); \
                 INSERT INTO messages(id) VALUES (1), (2), (3)"
            ),
            "CREATE VIRTUAL TABLE messages USING rtree(id, topic_id, timestamp, data, x)"
                .to_owned(),
            "CREATE VIRTUAL TABLE messages USING fts5(id, topic_id, timestamp, data)".to_owned(),
        ] {
            fill_db3(&path, &instead, 0);
            let error = Reader::open(&path).unwrap_err();
            assert!(
                matches!(
                    error,
                    BagError::SqliteTable { .. } | BagError::Sqlite { .. }
                ),
                "{error}"
            );
        }
        let db = rusqlite::Connection::open(&path).unwrap();
        db.execute_batch(&format!(
            "DROP TABLE messages; DROP TABLE topics; {MESSAGES} CREATE VIEW topics AS \
             WITH RECURSIVE n(id) AS (SELECT 1 UNION ALL SELECT id + 1 FROM n) \
             SELECT id, '/' || id AS name, 'a' AS type, 'cdr' AS serialization_format FROM n"
        ))
        .unwrap();
        drop(db);
        let error = Reader::open(&path).unwrap_err();
        assert!(error.to_string().contains("topics is a view"), "{error}");
    });
    fill_db3(&path, "", 3);
    assert_eq!(all(&path, &Limits::default()).0.len(), 3);
}

#[test]
fn pages_that_name_each_other_give_no_rows_without_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.db3");
    fill_db3(&path, "", 3000);
    let db = rusqlite::Connection::open(&path).unwrap();
    let root: i64 = db
        .query_row(
            "SELECT rootpage FROM sqlite_master WHERE name = 'messages'",
            [],
            |row| row.get(0),
        )
        .unwrap();
    let size: i64 = db
        .query_row("PRAGMA page_size", [], |row| row.get(0))
        .unwrap();
    drop(db);
    let (root, size) = (root as usize, size as usize);
    // Every child of the root becomes the same interior page, whose children are the same one in turn: each level
    // multiplies the rows by hundreds.
    let mut bytes = fs::read(&path).unwrap();
    let pages = bytes.len() / size;
    let leaf = (1..=pages)
        .rfind(|page| bytes[(page - 1) * size] == 13 && *page != root)
        .unwrap() as u32;
    let mut below = leaf;
    let levels = 6;
    for _ in 0..levels {
        let mut page = vec![0; size];
        page[0] = 5;
        let cells = 300usize;
        page[3..5].copy_from_slice(&(cells as u16).to_be_bytes());
        page[8..12].copy_from_slice(&below.to_be_bytes());
        let mut at = size;
        for cell in 0..cells {
            at -= 6;
            page[at..at + 4].copy_from_slice(&below.to_be_bytes());
            page[at + 4] = 0x81;
            page[at + 5] = 1;
            page[12 + 2 * cell..14 + 2 * cell].copy_from_slice(&(at as u16).to_be_bytes());
        }
        page[5..7].copy_from_slice(&(at as u16).to_be_bytes());
        bytes.extend(page);
        below = (bytes.len() / size) as u32;
    }
    let start = (root - 1) * size;
    let last = bytes.len() - size;
    let page = bytes[last..].to_vec();
    bytes[start..start + size].copy_from_slice(&page);
    let count = (bytes.len() / size) as u32;
    bytes[28..32].copy_from_slice(&count.to_be_bytes());
    fs::write(&path, bytes).unwrap();
    quickly(|| {
        let Ok(reader) = Reader::open(&path) else {
            return;
        };
        let errors = reader.all_messages().filter(Result::is_err).count();
        assert_eq!(errors, 1);
    });
}

#[test]
fn a_row_is_no_longer_than_its_file_and_its_limit() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.db3");
    fill_db3(&path, "", 1);
    let db = rusqlite::Connection::open(&path).unwrap();
    db.execute(
        "INSERT INTO messages VALUES(7, 1, 7, zeroblob(3000000))",
        [],
    )
    .unwrap();
    drop(db);
    let tight = Limits {
        message_bytes: MB,
        ..Limits::default()
    };
    let (messages, errors) = all(&path, &tight);
    assert_eq!(messages.len(), 1);
    assert_eq!(excess(&errors).claimed, Some(3_000_000));
    assert_eq!(all(&path, &Limits::default()).0.len(), 2);
    // A file that was cut off is read without SQLite.
    let db = rusqlite::Connection::open(&path).unwrap();
    db.execute("INSERT INTO messages VALUES(8, 1, 8, zeroblob(50000))", [])
        .unwrap();
    drop(db);
    let file = File::options().write(true).open(&path).unwrap();
    let length = file.metadata().unwrap().len();
    file.set_len(length - 100).unwrap();
    let longest = |limits: &Limits| {
        let (messages, errors) = all(&path, limits);
        assert!(
            matches!(errors.last(), Some(BagError::SqliteCut { .. })),
            "{errors:?}"
        );
        messages.iter().map(|message| message.data.len()).max()
    };
    assert_eq!(longest(&Limits::default()), Some(3_000_000));
    assert!(longest(&tight) < Some(MB as usize));
}

#[test]
fn reading_stops_where_it_is_asked_to() {
    let folder = tempfile::tempdir().unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let limits = Limits {
        stop: Some(Arc::clone(&stop)),
        ..Limits::default()
    };
    let messages: Vec<(i64, Vec<u8>)> = (0..100).map(|i| (i, vec![1; 100])).collect();
    let database = folder.path().join("a.db3");
    fill_db3(&database, "", 10_000);
    let plain = folder.path().join("a.mcap");
    write_mcap(&plain, None, &messages);
    let chunks = folder.path().join("b.mcap");
    write_mcap(&chunks, Some(1000), &messages);
    let packed = folder.path().join("c.mcap.zstd");
    fs::write(
        &packed,
        zstd::encode_all(File::open(&plain).unwrap(), 1).unwrap(),
    )
    .unwrap();
    for path in [&database, &plain, &chunks, &packed] {
        stop.store(false, std::sync::atomic::Ordering::Relaxed);
        let reader = Reader::open_with(path, &limits).unwrap();
        let mut items = reader.all_messages();
        assert!(items.next().unwrap().is_ok());
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let left: Vec<_> = items.collect();
        assert!(left.len() < 100, "{}: {}", path.display(), left.len());
        assert!(
            matches!(left.last(), Some(Err(BagError::Stopped(_)))),
            "{}",
            path.display()
        );
        let error = reader.all_messages().find_map(Result::err);
        assert!(
            matches!(error, Some(BagError::Stopped(_))),
            "{}: {error:?}",
            path.display()
        );
    }
}

#[test]
fn an_unpacked_file_leaves_no_name_behind() {
    let folder = tempfile::tempdir().unwrap();
    let plain = folder.path().join("a.mcap");
    write_mcap(&plain, Some(1000), &[(1, vec![1]), (2, vec![2])]);
    let packed = folder.path().join("a.mcap.zstd");
    fs::write(
        &packed,
        zstd::encode_all(File::open(&plain).unwrap(), 1).unwrap(),
    )
    .unwrap();
    fs::remove_file(&plain).unwrap();
    let reader = Reader::open(folder.path()).unwrap();
    let mut items = reader.all_messages();
    items.next().unwrap().unwrap();
    // A process that is killed now would leave what has a name.
    let own = format!("/proc/{}/fd", std::process::id());
    let names = fs::read_dir(own)
        .unwrap()
        .flatten()
        .filter_map(|fd| fs::read_link(fd.path()).ok());
    let unpacked: Vec<PathBuf> = names
        .filter(|name| name.display().to_string().contains("bag-unpacked-"))
        .collect();
    assert!(!unpacked.is_empty());
    assert!(unpacked.iter().all(|name| !name.exists()), "{unpacked:?}");
    assert_eq!(items.count(), 1);
}
