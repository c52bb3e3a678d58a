//! `centerpoint_ptq inspect`: say what is in a model folder, an ONNX file or a bag.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::input::BagLimits;
use super::{Ended, terminal};
use crate::bag::msg::{Message, PointCloud2, PointField, TfMessage};
use crate::bag::{BagError, Limits, RawMessage, Reader, Stamp};
use crate::cloud::{DecodeOptions, decode_with_stats};
use crate::detector::description::ModelDescription;
use crate::onnx;
use crate::text::{one_line, shown, shown_all};

/// Longest error in a list of them that is shown whole, in characters.
const LONGEST_ERROR: usize = 500;

#[derive(clap::Args)]
pub struct Args {
    /// A rosbag2 folder, .mcap or .db3; a model folder or its model.yaml; or an .onnx file
    path: PathBuf,
    /// Write JSON instead of text
    #[arg(long)]
    json: bool,
    /// Read every message of a bag, and fail if any is damaged
    #[arg(long)]
    check: bool,
    #[command(flatten)]
    limits: BagLimits,
}

pub fn run(args: Args) -> anyhow::Result<Ended> {
    let path = &args.path;
    let is_onnx = path.extension().is_some_and(|ending| ending == "onnx");
    if is_onnx && path.is_file() {
        print(&args, &inspect_onnx(path)?, OnnxSummary::text)?;
        return Ok(Ended::Done);
    }
    if let Some(model) = model_file(path) {
        print(&args, &inspect_model(&model)?, ModelSummary::text)?;
        return Ok(Ended::Done);
    }
    let summary = inspect_bag(path, args.check, &args.limits.limits())?;
    print(&args, &summary, BagSummary::text)?;
    let damaged = summary.check.as_ref().map_or(0, |check| check.errors.len());
    anyhow::ensure!(
        damaged == 0,
        "{}: {damaged} error(s), listed above",
        path.display()
    );
    Ok(Ended::Done)
}

fn print<T: Serialize>(args: &Args, summary: &T, text: fn(&T) -> String) -> anyhow::Result<()> {
    match args.json {
        true => terminal::print_json(summary),
        false => terminal::print(&text(summary)),
    }
}

/// The model description that a path stands for, if it is one of a model.
fn model_file(path: &Path) -> Option<PathBuf> {
    if path.is_dir() {
        let model = path.join("model.yaml");
        return model.is_file().then_some(model);
    }
    let ending = path.extension()?;
    let is_yaml = ending == "yaml" || ending == "yml";
    (is_yaml && path.file_name()? != "metadata.yaml").then(|| path.to_owned())
}

#[derive(Serialize)]
struct OnnxSummary {
    kind: &'static str,
    path: PathBuf,
    bytes: u64,
    opset: i64,
    inputs: Vec<Value>,
    outputs: Vec<Value>,
    nodes: BTreeMap<String, usize>,
}

#[derive(Serialize)]
struct Value {
    name: String,
    /// `null` for a dimension that is free.
    shape: Option<Vec<Option<i64>>>,
}

impl Value {
    fn text(&self) -> String {
        let Some(shape) = &self.shape else {
            return shown(&self.name);
        };
        let dimension = |d: &Option<i64>| d.map_or("?".to_owned(), |d| d.to_string());
        let shape: Vec<String> = shape.iter().map(dimension).collect();
        format!("{} [{}]", shown(&self.name), shape.join(", "))
    }
}

fn inspect_onnx(path: &Path) -> anyhow::Result<OnnxSummary> {
    let model = onnx::Model::load(path)?;
    let values = |names: Vec<String>| {
        let value = |name: String| Value {
            shape: model.value_shape(&name),
            name,
        };
        names.into_iter().map(value).collect()
    };
    Ok(OnnxSummary {
        kind: "onnx",
        path: path.to_owned(),
        bytes: onnx::Outline::read(path)?.bytes(),
        opset: model.opset(),
        inputs: values(model.input_names()),
        outputs: values(model.output_names()),
        nodes: model.operator_counts(),
    })
}

impl OnnxSummary {
    fn text(&self) -> String {
        let list = |values: &[Value]| {
            let values: Vec<String> = values.iter().map(Value::text).collect();
            values.join(", ")
        };
        let nodes: Vec<String> = self
            .nodes
            .iter()
            .map(|(operator, count)| format!("{count} {}", shown(operator)))
            .collect();
        format!(
            "{}: ONNX, opset {}, {}\n  in    {}\n  out   {}\n  nodes {}\n",
            self.path.display(),
            self.opset,
            size(self.bytes),
            list(&self.inputs),
            list(&self.outputs),
            nodes.join(", ")
        )
    }
}

#[derive(Serialize)]
struct ModelSummary {
    kind: &'static str,
    path: PathBuf,
    /// Values that the encoder reads for each point.
    encoder_features: usize,
    /// Pillars along x and y.
    grid: [usize; 2],
    model: ModelDescription,
    parts: Vec<OnnxSummary>,
}

fn inspect_model(path: &Path) -> anyhow::Result<ModelSummary> {
    let model = ModelDescription::load(path)?;
    let mut parts = Vec::new();
    for part in [model.encoder_path(), model.backbone_path()] {
        parts.push(inspect_onnx(&part)?);
    }
    Ok(ModelSummary {
        kind: "model",
        path: path.to_owned(),
        encoder_features: model.feature_count(),
        grid: model.grid_size(),
        model,
        parts,
    })
}

impl ModelSummary {
    fn text(&self) -> String {
        let (model, grid) = (&self.model, &self.model.grid);
        let mut text = format!(
            "{}: model \"{}\", {}\n  classes {}\n  frame   {}, {} sweeps, {} values a point\n  \
             grid    {} x {} pillars of {} x {} m, x {} to {}, y {} to {}, z {} to {} m; at most \
             {} pillars of {} points\n",
            self.path.display(),
            model.name,
            model.precision,
            model.classes.join(", "),
            model.frame,
            model.points.sweeps,
            self.encoder_features,
            self.grid[0],
            self.grid[1],
            grid.pillar[0],
            grid.pillar[1],
            grid.min[0],
            grid.max[0],
            grid.min[1],
            grid.max[1],
            grid.min[2],
            grid.max[2],
            grid.max_pillars,
            grid.max_points,
        );
        for part in &self.parts {
            text.push_str(&part.text());
        }
        text
    }
}

#[derive(Serialize)]
struct BagSummary {
    kind: &'static str,
    path: PathBuf,
    files: Vec<BagFile>,
    /// Log times of the first and last message, nanoseconds.
    times: Option<(Stamp, Stamp)>,
    topics: Vec<TopicSummary>,
    /// Child frames and their parents.
    transforms: BTreeSet<(String, String)>,
    #[serde(skip_serializing_if = "Option::is_none")]
    check: Option<Check>,
}

#[derive(Serialize)]
struct BagFile {
    path: PathBuf,
    bytes: u64,
}

#[derive(Serialize)]
struct TopicSummary {
    name: String,
    #[serde(rename = "type")]
    type_name: String,
    count: Option<u64>,
    /// How its messages are encoded, where that is nothing that can be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    encoding: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_cloud: Option<CloudSummary>,
    /// Why there is no first cloud.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

#[derive(Serialize)]
struct CloudSummary {
    stamp: Stamp,
    frame_id: String,
    width: u32,
    height: u32,
    point_step: u32,
    fields: Vec<String>,
    points: usize,
    non_finite: usize,
    /// Least and greatest values in the cloud's frame, metres.
    min: [f32; 3],
    max: [f32; 3],
    /// Field read as intensity, and its range.
    intensity: Option<(String, [f32; 2])>,
    /// Field read as ring, and how many there are.
    rings: Option<(String, usize)>,
    /// Whether it is made of several sweeps already.
    joined: bool,
}

#[derive(Serialize)]
struct Check {
    messages: u64,
    errors: Vec<String>,
}

/// How many transform messages of a bag to look at: enough to meet every publisher.
const TRANSFORMS_READ: usize = 1000;

/// How many transforms of a bag to list.
const TRANSFORMS_LISTED: usize = 10_000;

fn inspect_bag(path: &Path, check: bool, limits: &Limits) -> anyhow::Result<BagSummary> {
    let reader = Reader::open_with(path, limits)?;
    let mut topics = Vec::new();
    for topic in reader.topics() {
        topics.push(TopicSummary {
            name: topic.name.clone(),
            type_name: topic.type_name.clone(),
            count: topic.count,
            encoding: topic.encoding.clone(),
            first_cloud: None,
            error: None,
        });
    }
    first_clouds(&reader, &mut topics);
    let tf: Vec<&str> = reader
        .topics_of_type(TfMessage::TYPE)
        .map(|topic| topic.name.as_str())
        .collect();
    let transforms = match tf.is_empty() {
        true => BTreeSet::new(),
        false => reader
            .messages(&tf)
            .flatten()
            .take(TRANSFORMS_READ)
            .filter_map(|message| TfMessage::decode(&message.data).ok())
            .flat_map(|tf| tf.transforms)
            .take(TRANSFORMS_LISTED)
            .map(|transform| (transform.child_frame_id, transform.header.frame_id))
            .collect(),
    };
    let file = |path: &Path| BagFile {
        path: path.to_owned(),
        bytes: std::fs::metadata(path).map_or(0, |file| file.len()),
    };
    Ok(BagSummary {
        kind: "bag",
        path: path.to_owned(),
        files: reader.files().map(file).collect(),
        times: reader.times(),
        topics,
        transforms,
        check: check.then(|| check_bag(&reader)),
    })
}

/// Looks at the first cloud of each topic, in one pass over the bag: a topic whose messages are not there, or cannot be
/// read, shows only at its end.
fn first_clouds(reader: &Reader, topics: &mut [TopicSummary]) {
    let readable = |topic: &TopicSummary| {
        topic.encoding.is_none() && topic.count != Some(0) && topic.type_name == PointCloud2::TYPE
    };
    let mut wanted: BTreeMap<String, &mut TopicSummary> = topics
        .iter_mut()
        .filter(|topic| readable(topic))
        .map(|topic| (topic.name.clone(), topic))
        .collect();
    let mut damage = None;
    let names: Vec<String> = wanted.keys().cloned().collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut messages = reader.messages(&names);
    while !wanted.is_empty()
        && let Some(item) = messages.next()
    {
        match item {
            Ok(message) => {
                let Some(topic) = wanted.remove(&*message.topic) else {
                    continue;
                };
                match cloud_summary(&message) {
                    Ok(cloud) => topic.first_cloud = Some(cloud),
                    Err(error) => topic.error = Some(terminal::causes(&error)),
                }
            }
            Err(error) => {
                damage.get_or_insert_with(|| terminal::causes(&error.into()));
            }
        }
    }
    for topic in wanted.into_values() {
        topic.error.clone_from(&damage);
    }
}

fn cloud_summary(message: &RawMessage) -> anyhow::Result<CloudSummary> {
    let cloud = PointCloud2::decode(&message.data)?;
    let (points, stats) = decode_with_stats(&cloud, &DecodeOptions::default())?;
    let (mut min, mut max) = ([f32::INFINITY; 3], [f32::NEG_INFINITY; 3]);
    let mut intensity = [f32::INFINITY, f32::NEG_INFINITY];
    let mut rings = BTreeSet::new();
    for point in points.iter() {
        for (axis, value) in [point.x, point.y, point.z].into_iter().enumerate() {
            min[axis] = min[axis].min(value);
            max[axis] = max[axis].max(value);
        }
        intensity = [
            intensity[0].min(point.intensity),
            intensity[1].max(point.intensity),
        ];
        rings.insert(point.ring);
    }
    if points.is_empty() {
        (min, max, intensity) = ([0.0; 3], [0.0; 3], [0.0; 2]);
    }
    Ok(CloudSummary {
        stamp: cloud.header.stamp,
        frame_id: cloud.header.frame_id,
        width: cloud.width,
        height: cloud.height,
        point_step: cloud.point_step,
        fields: cloud.fields.iter().map(describe_field).collect(),
        points: points.len(),
        non_finite: stats.non_finite,
        min,
        max,
        intensity: stats.intensity.map(|name| (name, intensity)),
        rings: stats.ring.map(|name| (name, rings.len())),
        joined: stats.has_time_lag,
    })
}

fn describe_field(field: &PointField) -> String {
    const TYPES: [&str; 9] = ["?", "i8", "u8", "i16", "u16", "i32", "u32", "f32", "f64"];
    let kind = TYPES.get(usize::from(field.datatype)).unwrap_or(&"?");
    match field.count {
        0 | 1 => format!("{} {kind}@{}", field.name, field.offset),
        count => format!("{} {kind}[{count}]@{}", field.name, field.offset),
    }
}

fn check_bag(reader: &Reader) -> Check {
    let types: BTreeMap<&str, &str> = reader
        .topics()
        .iter()
        .map(|topic| (topic.name.as_str(), topic.type_name.as_str()))
        .collect();
    // Who has read so many knows the bag.
    const TOLD: usize = 1000;
    let (mut messages, mut errors, mut more) = (0, Vec::new(), 0u64);
    let mut tell = |error: String| match errors.len() {
        TOLD.. => more += 1,
        _ => errors.push(error),
    };
    for message in reader.all_messages() {
        let message = match message {
            Ok(message) => message,
            // No damage; it is said of the topic.
            Err(BagError::Encoding { .. }) => continue,
            Err(error) => {
                tell(error.to_string());
                continue;
            }
        };
        messages += 1;
        let result = match types.get(&*message.topic) {
            Some(&PointCloud2::TYPE) => PointCloud2::decode(&message.data)
                .map_err(|error| error.to_string())
                .and_then(|cloud| {
                    let result = decode_with_stats(&cloud, &DecodeOptions::default());
                    result.map_err(|error| error.to_string())
                })
                .map(|_| ()),
            Some(&TfMessage::TYPE) => TfMessage::decode(&message.data)
                .map_err(|error| error.to_string())
                .map(|_| ()),
            _ => Ok(()),
        };
        if let Err(error) = result {
            let time = Stamp(message.log_time);
            tell(format!("{} at {time}: {error}", message.topic));
        }
    }
    if more > 0 {
        errors.push(format!("{more} more errors are not listed"));
    }
    Check { messages, errors }
}

impl BagSummary {
    fn text(&self) -> String {
        let mut text = format!("{}: bag", self.path.display());
        if let Some((start, end)) = self.times {
            text += &format!(", {:.1} s from {start}", end.seconds_since(start));
        }
        text += "\n";
        for file in &self.files {
            text += &format!("  file  {}, {}\n", file.path.display(), size(file.bytes));
        }
        for topic in &self.topics {
            let count = topic
                .count
                .map_or("?".to_owned(), |count| count.to_string());
            text += &format!(
                "  topic {}, {count} x {}",
                shown(&topic.name),
                shown(&topic.type_name)
            );
            if let Some(encoding) = &topic.encoding {
                let encoding = shown(encoding);
                text +=
                    &format!(", cannot be read: encoded as \"{encoding}\", not \"cdr\" (ROS 2)");
            }
            text += "\n";
            if let Some(cloud) = &topic.first_cloud {
                text += &cloud.text();
            }
            if let Some(error) = &topic.error {
                text += &format!(
                    "          cannot be read: {}\n",
                    one_line(error, LONGEST_ERROR)
                );
            }
        }
        for (child, parent) in &self.transforms {
            text += &format!("  tf    {} -> {}\n", shown(parent), shown(child));
        }
        if let Some(check) = &self.check {
            text += &format!("  {} messages read\n", check.messages);
            for error in &check.errors {
                text += &format!("  error {}\n", one_line(error, LONGEST_ERROR));
            }
        }
        text
    }
}

impl CloudSummary {
    fn text(&self) -> String {
        let mut text = format!(
            "          first cloud: frame {}, stamp {}, {} x {} points of {} bytes\n          \
             fields {}\n          {} points, {} not finite; x {:.1} to {:.1}, y {:.1} to {:.1}, \
             z {:.1} to {:.1} m\n",
            shown(&self.frame_id),
            self.stamp,
            self.width,
            self.height,
            self.point_step,
            shown_all(&self.fields),
            self.points,
            self.non_finite,
            self.min[0],
            self.max[0],
            self.min[1],
            self.max[1],
            self.min[2],
            self.max[2],
        );
        text += "          ";
        text += &match &self.intensity {
            Some((field, [low, high])) => {
                format!("intensity from \"{}\", {low} to {high}", shown(field))
            }
            None => "no intensity".to_owned(),
        };
        text += &match &self.rings {
            Some((field, count)) => format!("; {count} rings from \"{}\"", shown(field)),
            None => "; no rings".to_owned(),
        };
        if self.joined {
            text += "; several sweeps joined";
        }
        text + "\n"
    }
}

fn size(bytes: u64) -> String {
    match bytes {
        0..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        _ => format!("{:.1} MB", bytes as f64 / 1e6),
    }
}
