//! `centerpoint_ptq detect`: run a model over a bag and write the detections as JSON.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use ndarray::{ArrayView, Dimension};
use serde::Serialize;

use super::input::{FrameArgs, insert_unique, load_model};
use super::numbers::{THREADS, within};
use super::output::{check_file, check_folder, write_whole};
use super::{Ended, terminal};
use crate::cloud::Points;
use crate::cloud::summary::InputSummary;
use crate::detector::{Detector, ModelDescription, Provider, RuntimeOptions};
use crate::geometry::Detection;

#[derive(clap::Args)]
pub struct Args {
    /// Model description (model.yaml) or the folder that holds it
    #[arg(long)]
    model: PathBuf,
    #[command(flatten)]
    frames: FrameArgs,
    #[command(flatten)]
    runtime: RuntimeArgs,
    /// JSON file to write: {"<stamp in ns>": [{label, score, center, size_lwh, yaw, velocity}]}.
    /// Where clouds were lost, or something made the results worse, its key "input" says so
    #[arg(long)]
    out: PathBuf,
    /// Also write each frame's points, pillars, spatial features and head maps as .npy files to
    /// this folder, one subfolder per stamp
    #[arg(long, value_name = "DIR")]
    dump: Option<PathBuf>,
}

/// How the model runs.
#[derive(clap::Args, Clone)]
pub struct RuntimeArgs {
    /// Threads within an operator; 0 means one per core
    #[arg(long, default_value_t = 0, value_parser = within(THREADS))]
    pub threads: usize,
    /// What runs the network: cpu, cuda, tensorrt or openvino
    #[arg(long, default_value_t = Provider::Cpu)]
    pub provider: Provider,
}

impl RuntimeArgs {
    pub fn options(&self) -> RuntimeOptions {
        RuntimeOptions {
            threads: self.threads,
            provider: self.provider,
            ..Default::default()
        }
    }
}

/// A detection as others read it.
#[derive(Serialize)]
struct Record<'a> {
    label: &'a str,
    score: f32,
    center: [f32; 3],
    size_lwh: [f32; 3],
    yaw: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    velocity: Option<[f32; 2]>,
}

impl<'a> Record<'a> {
    fn new(detection: &Detection, model: &'a ModelDescription) -> Self {
        Record {
            label: &model.classes[detection.class],
            score: detection.score,
            center: detection.bbox.center.into(),
            size_lwh: detection.bbox.size.into(),
            yaw: detection.bbox.yaw,
            velocity: detection.velocity.map(Into::into),
        }
    }
}

/// What `--out` gets.
#[derive(Serialize)]
struct Output<'a> {
    #[serde(flatten)]
    frames: BTreeMap<i64, Vec<Record<'a>>>,
    #[serde(skip_serializing_if = "InputSummary::is_clean")]
    input: &'a InputSummary,
}

pub fn run(args: Args) -> anyhow::Result<Ended> {
    check_file(&args.out)?;
    if let Some(folder) = &args.dump {
        check_folder(folder)?;
    }
    let model = load_model(&args.model)?;
    let mut detector = Detector::load(&model, &args.runtime.options())?;
    let mut found: BTreeMap<i64, Vec<Record<'_>>> = BTreeMap::new();
    let mut milliseconds = 0.0;
    let (intake, frames) = args.frames.open(&model)?;
    for frame in frames {
        let frame = frame?;
        let stamp = frame.stamp.0;
        let inference = match detector.detect(&frame.points) {
            Ok(inference) => inference,
            Err(error) => {
                intake.failed(frame.stamp, &error)?;
                continue;
            }
        };
        intake.detected(&inference.conditions);
        milliseconds += inference.timing.total_ms;
        if let Some(folder) = &args.dump {
            dump(
                &folder.join(stamp.to_string()),
                &mut detector,
                &frame.points,
            )?;
        }
        let records = inference
            .detections
            .iter()
            .map(|d| Record::new(d, &model))
            .collect();
        insert_unique(&mut found, stamp, records)?;
    }
    let input = intake.finish()?;
    let frames = found.len();
    let boxes: usize = found.values().map(Vec::len).sum();
    let output = Output {
        frames: found,
        input: &input,
    };
    write_whole(&args.out, |file| {
        serde_json::to_writer(&mut *file, &output)?;
        Ok(file.write_all(b"\n")?)
    })?;
    terminal::note(&format!(
        "{frames} frames, {boxes} boxes, {:.1} ms per frame -> {}",
        milliseconds / frames as f64,
        args.out.display()
    ));
    Ok(input.ended())
}

/// Everything between points and boxes, for a comparison with another implementation.
fn dump(folder: &Path, detector: &mut Detector, points: &Points) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder)
        .with_context(|| format!("cannot make the folder {}", folder.display()))?;
    let rows: Vec<f32> = points
        .0
        .iter()
        .flat_map(|p| [p.x, p.y, p.z, p.intensity, p.time_lag, f32::from(p.ring)])
        .collect();
    let rows = ArrayView::from_shape((points.0.len(), 6), &rows)
        .context("six values make a row of points.npy")?;
    save_npy(&folder.join("points.npy"), rows)?;
    let spatial = detector.spatial_features(points)?;
    let (features, cells) = detector.pillars();
    save_npy(&folder.join("pillars.npy"), features.view())?;
    // Whole numbers below 2^24 are exact as f32.
    let cells: Vec<f32> = cells.iter().map(|c| *c as f32).collect();
    save_npy(&folder.join("cells.npy"), ArrayView::from(&cells))?;
    save_npy(&folder.join("spatial.npy"), spatial.view())?;
    for (head, map) in detector.heads(&spatial)?.iter() {
        save_npy(&folder.join(format!("{head}.npy")), map.view())?;
    }
    Ok(())
}

/// Writes an array in NumPy's format, version 1.0.
fn save_npy<D: Dimension>(path: &Path, array: ArrayView<'_, f32, D>) -> anyhow::Result<()> {
    let shape: String = array.shape().iter().map(|n| format!("{n}, ")).collect();
    let mut header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({shape}), }}");
    // Magic, version, length and header together end at a multiple of 64 with a line break.
    while !(10 + header.len() + 1).is_multiple_of(64) {
        header.push(' ');
    }
    header.push('\n');
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    for value in array {
        bytes.extend(value.to_le_bytes());
    }
    write_whole(path, |file| Ok(file.write_all(&bytes)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn npy_files_have_an_aligned_header_and_little_endian_values() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.npy");
        let array = ndarray::array![[1.0f32, 2.0, 3.0]];
        save_npy(&path, array.view()).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let header = u16::from_le_bytes([bytes[8], bytes[9]]) as usize;
        assert_eq!((10 + header) % 64, 0);
        assert!(String::from_utf8_lossy(&bytes[10..10 + header]).contains("(1, 3, )"));
        assert_eq!(
            bytes[10 + header..],
            [0, 0, 128, 63, 0, 0, 0, 64, 0, 0, 64, 64]
        );
    }
}
