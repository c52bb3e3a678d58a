//! `centerpoint_ptq render`: draw a frame of a bag with boxes from above as a PNG.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};

use super::input::{Intake, SensorPose, Strictness, parse_pose};
use super::numbers::within;
use super::output::{check_file, write_whole};
use super::{Ended, terminal};
use crate::cloud::frames::InputOptions;
use crate::eval::boxes::BoxesFile;
use crate::eval::stamps::{Pairing, TOLERANCE_NS};
use crate::eval::truth::{ClassMap, Labels};
use crate::geometry::Box3d;
use crate::render::{AMBER, BevOptions, BoxLayer, CYAN, GREEN, bev};

#[derive(clap::Args)]
pub struct Args {
    /// rosbag2 folder, .mcap or .db3 file
    #[arg(long, value_name = "PATH")]
    bag: PathBuf,
    /// Topic of the clouds; may be left out where the bag has only one
    #[arg(long)]
    topic: Option<String>,
    /// Frame of the boxes, in which the picture is drawn
    #[arg(long, value_name = "FRAME", default_value = "base_link")]
    model_frame: String,
    /// Pose of the sensor in that frame, instead of /tf: "x y z roll pitch yaw" in metres and
    /// radians
    #[arg(long, value_name = "POSE", value_parser = parse_pose, allow_hyphen_values = true)]
    sensor_pose: Option<SensorPose>,
    /// Which frame of the bag, counted from 0
    #[arg(long, value_name = "I", default_value_t = 0, conflicts_with = "stamp")]
    frame: usize,
    /// Which frame of the bag, by its stamp in nanoseconds
    #[arg(long, value_name = "NS", allow_hyphen_values = true)]
    stamp: Option<i64>,
    /// Sweeps to draw, the newest included
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = within::<usize>(1..=100))]
    sweeps: usize,
    #[command(flatten)]
    strictness: Strictness,

    /// Detections to draw: a file of `detect`
    #[arg(long, value_name = "JSON")]
    boxes: Option<PathBuf>,
    /// Detections of another model; the first ones are then drawn broad below them
    #[arg(long, value_name = "JSON", requires = "boxes")]
    boxes2: Option<PathBuf>,
    /// Labelled boxes to draw, dashed: labels.json or what else `evaluate --truth` reads
    #[arg(long, value_name = "PATH")]
    labels: Option<PathBuf>,
    /// Leave out detections below this score
    #[arg(long, value_name = "SCORE", default_value_t = 0.0, value_parser = within::<f32>(0.0..=1.0))]
    min_score: f32,

    /// Names in the legend for --boxes and --boxes2
    #[arg(long, value_name = "A,B", value_delimiter = ',')]
    names: Vec<String>,
    /// First line of the legend
    #[arg(long, value_name = "TEXT", default_value = "")]
    title: String,
    /// What to show: back,front,right,left in metres from the origin
    #[arg(long, value_name = "M,M,M,M", value_parser = parse_view, allow_hyphen_values = true)]
    view: Option<View>,
    /// Pixels per metre
    #[arg(long, value_name = "N", value_parser = within::<f32>(0.01..=1000.0))]
    scale: Option<f32>,
    /// PNG file to write
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// Extents along x and y.
#[derive(Debug, Clone, Copy)]
struct View {
    x: (f32, f32),
    y: (f32, f32),
}

fn parse_view(text: &str) -> Result<View, String> {
    let numbers: Vec<f32> = text
        .split(',')
        .map(|part| {
            part.trim()
                .parse()
                .ok()
                .filter(|n: &f32| n.is_finite())
                .ok_or_else(|| format!("`{part}` is not a number"))
        })
        .collect::<Result<_, _>>()?;
    match numbers[..] {
        [back, front, right, left] if back < front && right < left => Ok(View {
            x: (back, front),
            y: (right, left),
        }),
        _ => Err(
            "four numbers are needed: back < front, right < left, for example \
                  -40,60,-30,30"
                .into(),
        ),
    }
}

pub fn run(args: Args) -> anyhow::Result<Ended> {
    check_file(&args.out)?;
    let options = InputOptions {
        topic: args.topic.clone(),
        model_frame: Some(args.model_frame.clone()),
        sensor_pose: args.sensor_pose.map(|pose| pose.0),
        sweeps: args.sweeps.max(1),
        ..InputOptions::default()
    };
    let in_bag = || format!("in {}", args.bag.display());
    let intake = Intake::new(args.strictness);
    let frames = intake.open(&args.bag, &options)?;
    let mut wanted = None;
    let mut seen = Vec::new();
    for (i, frame) in frames.enumerate() {
        let frame = frame?;
        let found = match args.stamp {
            Some(stamp) => frame.stamp.0 == stamp,
            None => i == args.frame,
        };
        if found {
            wanted = Some(frame);
            break;
        }
        seen.push(frame.stamp.0);
    }
    let input = intake.finish()?;
    let frame = match (wanted, args.stamp) {
        (Some(frame), _) => frame,
        (None, Some(stamp)) => bail!(
            "no frame at {stamp} ns {}: its {} frames are from {} to {} ns",
            in_bag(),
            seen.len(),
            seen.first().copied().unwrap_or_default(),
            seen.last().copied().unwrap_or_default()
        ),
        (None, None) => bail!(
            "no frame {} {}: it has {}",
            args.frame,
            in_bag(),
            seen.len()
        ),
    };
    let stamp = frame.stamp.0;

    let mut layers = Vec::new();
    if let Some(path) = &args.labels {
        let labels = Labels::load(path, &ClassMap::default())?;
        let Some((_, truths)) = labels.nearest(stamp, TOLERANCE_NS) else {
            return Err(unpaired(
                "labels",
                path,
                stamp,
                labels.frames().map(|(stamp, _)| stamp),
            ));
        };
        let boxes = truths.iter().map(|t| t.bbox).collect();
        layers.push(BoxLayer::new("labels", boxes, GREEN).dashed());
    }
    let name = |i: usize, path: &Path| match args.names.get(i) {
        Some(name) => name.clone(),
        None => path
            .file_stem()
            .map_or_else(|| "boxes".into(), |s| s.to_string_lossy().into_owned()),
    };
    if let Some(path) = &args.boxes {
        let boxes = boxes_at(path, stamp, args.min_score)?;
        let layer = BoxLayer::new(name(0, path), boxes, AMBER);
        layers.push(match args.boxes2 {
            Some(_) => layer.broad(),
            None => layer,
        });
    }
    if let Some(path) = &args.boxes2 {
        let boxes = boxes_at(path, stamp, args.min_score)?;
        layers.push(BoxLayer::new(name(1, path), boxes, CYAN).thin());
    }

    let mut options = BevOptions {
        title: args.title.clone(),
        ..BevOptions::default()
    };
    if let Some(View { x, y }) = args.view {
        (options.x, options.y) = (x, y);
    }
    if let Some(scale) = args.scale {
        ensure!(
            scale.is_finite() && scale > 0.0,
            "--scale must be a positive number of pixels per metre"
        );
        options.scale = scale;
    }
    let picture = bev(&frame.points, &layers, &options);
    let mut png = std::io::Cursor::new(Vec::new());
    picture
        .write_to(&mut png, image::ImageFormat::Png)
        .context("cannot make the PNG")?;
    write_whole(&args.out, |file| Ok(file.write_all(png.get_ref())?))?;
    let counts: Vec<String> = layers
        .iter()
        .map(|l| format!("{} {}", l.boxes.len(), l.label))
        .collect();
    terminal::note(&format!(
        "frame at {stamp} ns: {} points; boxes: {} -> {}",
        frame.points.0.len(),
        if counts.is_empty() {
            "none".into()
        } else {
            counts.join(", ")
        },
        args.out.display()
    ));
    Ok(input.ended())
}

/// Nothing in a file belongs to the frame at a stamp.
fn unpaired(
    what: &str,
    path: &Path,
    stamp: i64,
    stamps: impl Iterator<Item = i64>,
) -> anyhow::Error {
    let problem = Pairing::new([stamp], stamps).problem(what);
    let problem = problem.unwrap_or_else(|| format!("no {what} belong to the frame at {stamp} ns"));
    anyhow::anyhow!("{}: {problem}", path.display())
}

/// The boxes of the frame at a stamp.
fn boxes_at(path: &Path, stamp: i64, min_score: f32) -> anyhow::Result<Vec<Box3d>> {
    let frames: BTreeMap<i64, _> = BoxesFile::load(path)?.frames;
    let Some(found) = frames.get(&stamp) else {
        return Err(unpaired("detections", path, stamp, frames.keys().copied()));
    };
    Ok(found
        .iter()
        .filter(|d| d.score >= min_score)
        .map(|d| d.bbox)
        .collect())
}
