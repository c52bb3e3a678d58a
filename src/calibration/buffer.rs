//! A bounded store of frames as the network sees them: sweeps joined, in the model's frame.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use thiserror::Error;

use crate::bag::msg::Header;
use crate::bag::{Stamp, WriteError, Writer};
use crate::cloud::{self, frames::Frame};

/// Topic of the frames in a written buffer.
pub const TOPIC: &str = "/centerpoint/calibration/pointcloud";

/// Which frames stay. All choice is made here.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BufferPolicy {
    /// Frames held at the most; the oldest leaves first.
    pub max_frames: usize,
    /// Seconds between two frames at the least, by their stamps.
    pub min_period_s: f64,
}

impl BufferPolicy {
    /// Whether a frame may follow the one taken last. A stamp that jumps back (a recording that
    /// starts over) counts as far away.
    fn wants(&self, stamp: Stamp, last: Option<Stamp>) -> bool {
        match last {
            Some(last) if stamp >= last => stamp.seconds_since(last) >= self.min_period_s,
            _ => true,
        }
    }
}

/// The frames at hand for a calibration.
#[derive(Debug)]
pub struct CalibrationBuffer {
    policy: BufferPolicy,
    frames: VecDeque<Arc<Frame>>,
    last: Option<Stamp>,
}

impl CalibrationBuffer {
    pub fn new(policy: BufferPolicy) -> Self {
        Self {
            policy,
            frames: VecDeque::new(),
            last: None,
        }
    }

    pub fn policy(&self) -> BufferPolicy {
        self.policy
    }

    /// Takes effect at once: frames too many leave.
    pub fn set_policy(&mut self, policy: BufferPolicy) {
        self.policy = policy;
        self.shrink(policy.max_frames);
    }

    /// Takes the frame if the policy wants it. Costs a reference count, no copy.
    pub fn offer(&mut self, frame: &Arc<Frame>) -> bool {
        if self.policy.max_frames == 0 || !self.policy.wants(frame.stamp, self.last) {
            return false;
        }
        self.shrink(self.policy.max_frames - 1);
        self.frames.push_back(frame.clone());
        self.last = Some(frame.stamp);
        true
    }

    fn shrink(&mut self, frames: usize) {
        while self.frames.len() > frames {
            self.frames.pop_front();
        }
    }

    pub fn len(&self) -> usize {
        self.frames.len()
    }

    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// The frames in the order they came.
    pub fn snapshot(&self) -> Vec<Arc<Frame>> {
        self.frames.iter().cloned().collect()
    }
}

/// Why the buffer was not written.
#[derive(Debug, Error)]
pub enum BufferError {
    #[error("cannot write the calibration frames to {}: {source}", .folder.display())]
    Bag { folder: PathBuf, source: WriteError },
    #[error("cannot {what} {}: {source}", .path.display())]
    Io {
        what: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("writing the calibration frames was cancelled")]
    Cancelled,
}

/// Writes frames as a rosbag2 (MCAP) below `folder` and returns the bag.
///
/// Points are in the model's frame and carry their `time_lag`, so the bag needs no `/tf`. Only the
/// subfolder `frames` is replaced, and only once the new one is whole.
pub fn write(
    frames: &[Arc<Frame>],
    folder: &Path,
    cancel: &AtomicBool,
) -> Result<PathBuf, BufferError> {
    let io = |what, path: &Path| {
        let path = path.to_owned();
        move |source| BufferError::Io { what, path, source }
    };
    let bag_error = |source| BufferError::Bag {
        folder: folder.to_owned(),
        source,
    };
    std::fs::create_dir_all(folder).map_err(io("create", folder))?;
    let (bag, fresh) = (folder.join("frames"), folder.join(".new"));
    remove(&fresh).map_err(io("remove", &fresh))?;
    let made = fresh.join("frames");

    let mut writer = Writer::create(&made).map_err(bag_error)?;
    for frame in frames {
        if cancel.load(Ordering::Relaxed) {
            drop(writer);
            return Err(BufferError::Cancelled);
        }
        let header = Header {
            stamp: frame.stamp,
            frame_id: frame.frame_id.clone(),
        };
        let cloud = cloud::encode(&frame.points, header, true);
        writer
            .write(TOPIC, frame.stamp.0, &cloud)
            .map_err(bag_error)?;
    }
    writer.finish().map_err(bag_error)?;
    remove(&bag).map_err(io("remove", &bag))?;
    std::fs::rename(&made, &bag).map_err(io("rename", &made))?;
    remove(&fresh).map_err(io("remove", &fresh))?;
    Ok(bag)
}

fn remove(folder: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bag::msg::PointCloud2;
    use crate::cloud::frames::{FrameAssembler, Frames, InputOptions};
    use crate::cloud::{Point, Points};

    const MS: i64 = 1_000_000;

    fn frame(ms: i64) -> Arc<Frame> {
        let points = Points(vec![
            Point {
                x: ms as f32,
                intensity: 7.0,
                ring: 3,
                ..Default::default()
            },
            Point {
                y: -1.5,
                time_lag: 0.1,
                ..Default::default()
            },
        ]);
        let header = Header {
            stamp: Stamp(ms * MS),
            frame_id: "base_link".into(),
        };
        let cloud: PointCloud2 = cloud::encode(&points, header, true);
        let frame = FrameAssembler::new(InputOptions::default()).push_cloud(&cloud);
        Arc::new(frame.unwrap())
    }

    fn buffer(max_frames: usize, min_period_s: f64) -> CalibrationBuffer {
        CalibrationBuffer::new(BufferPolicy {
            max_frames,
            min_period_s,
        })
    }

    fn stamps(buffer: &CalibrationBuffer) -> Vec<i64> {
        let frames = buffer.snapshot();
        frames.iter().map(|frame| frame.stamp.0 / MS).collect()
    }

    #[test]
    fn frames_too_close_in_time_are_left_out_and_the_oldest_leave_first() {
        let mut buffer = buffer(3, 0.2);
        for ms in (0..1000).step_by(100) {
            buffer.offer(&frame(ms));
        }
        assert_eq!(stamps(&buffer), [400, 600, 800]);
    }

    #[test]
    fn a_recording_that_starts_over_goes_on_filling_the_buffer() {
        let mut buffer = buffer(9, 0.2);
        assert!(buffer.offer(&frame(900)));
        assert!(buffer.offer(&frame(100)));
        assert!(!buffer.offer(&frame(200)));
        assert_eq!(stamps(&buffer), [900, 100]);
    }

    #[test]
    fn a_smaller_limit_takes_effect_at_once() {
        let mut buffer = buffer(5, 0.0);
        for ms in 0..5 {
            buffer.offer(&frame(ms));
        }
        buffer.set_policy(BufferPolicy {
            max_frames: 2,
            min_period_s: 0.0,
        });
        assert_eq!(stamps(&buffer), [3, 4]);
    }

    #[test]
    fn a_written_buffer_reads_back_as_the_same_frames_and_replaces_the_one_before() {
        let folder = tempfile::tempdir().unwrap();
        let keep_going = AtomicBool::new(false);
        std::fs::write(folder.path().join("note"), "not ours").unwrap();
        for count in [3, 2] {
            let frames: Vec<_> = (1..=count).map(|i| frame(i * 100)).collect();
            let bag = write(&frames, folder.path(), &keep_going).unwrap();
            let options = InputOptions {
                model_frame: Some("base_link".into()),
                sweeps: 2,
                ..Default::default()
            };
            let read: Vec<_> = Frames::open(&bag, &options)
                .unwrap()
                .map(Result::unwrap)
                .collect();
            assert_eq!(read.len(), frames.len());
            for (read, written) in read.iter().zip(&frames) {
                assert_eq!(read.stamp, written.stamp);
                assert_eq!(read.points, written.points);
            }
        }
        let mut left: Vec<_> = std::fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        left.sort();
        assert_eq!(left, ["frames", "note"]);
    }

    #[test]
    fn a_cancelled_write_leaves_the_bag_before_it_alone() {
        let folder = tempfile::tempdir().unwrap();
        let bag = write(&[frame(1)], folder.path(), &AtomicBool::new(false)).unwrap();
        let cancelled = write(&[frame(2), frame(3)], folder.path(), &AtomicBool::new(true));
        assert!(matches!(cancelled, Err(BufferError::Cancelled)));
        let read = Frames::open(&bag, &InputOptions::default()).unwrap();
        let stamps: Vec<_> = read.map(|frame| frame.unwrap().stamp).collect();
        assert_eq!(stamps, [Stamp(MS)]);
    }
}
