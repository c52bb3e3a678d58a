//! The frames of one quantization: spooled once to disk, then read as often as the passes need.
//!
//! A bag is decoded and densified only once, and memory holds one frame at a time.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::bag::Stamp;
use crate::cloud::condition::{Condition, Conditions};
use crate::cloud::{Point, Points};
use crate::files::hex;

/// One frame: what the network sees, in the model's frame, sweeps joined.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    pub stamp: Stamp,
    pub points: Points,
    /// Sweeps in `points`.
    pub sweeps: usize,
    /// What makes it worth less than it could be.
    pub conditions: Vec<Condition>,
    /// What it is for, where that was decided when it was taken; else the recipe decides.
    pub role: Option<Role>,
}

impl From<crate::cloud::frames::Frame> for Sample {
    fn from(frame: crate::cloud::frames::Frame) -> Self {
        Sample {
            stamp: frame.stamp,
            points: frame.points,
            sweeps: frame.sweeps,
            conditions: frame.conditions,
            role: None,
        }
    }
}

/// What a frame was used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    Calibration,
    HeldOut,
}

/// A frame in the report.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FrameRecord {
    /// Nanoseconds since the epoch.
    pub stamp: i64,
    pub role: Role,
    pub points: usize,
    /// Sweeps in it; absent in older reports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sweeps: Option<usize>,
    /// SHA-256 of the points as stored: x, y, z, intensity, time lag (f32) and ring (u16), little-endian.
    pub sha256: String,
}

/// Frames in an unnamed temporary file, which goes with the process however it ends.
#[derive(Debug)]
pub struct Spool {
    file: BufWriter<File>,
    records: Vec<FrameRecord>,
    conditions: Conditions,
}

const POINT_BYTES: usize = 5 * 4 + 2;

impl Spool {
    /// An empty spool on the disk of `folder`.
    pub fn new(folder: &Path) -> std::io::Result<Self> {
        Ok(Spool {
            file: BufWriter::new(tempfile::tempfile_in(folder)?),
            records: Vec::new(),
            conditions: Conditions::default(),
        })
    }

    pub fn push(&mut self, sample: &Sample, role: Role) -> std::io::Result<()> {
        let mut bytes = Vec::with_capacity(sample.points.0.len() * POINT_BYTES);
        for p in &sample.points.0 {
            for v in [p.x, p.y, p.z, p.intensity, p.time_lag] {
                bytes.extend(v.to_le_bytes());
            }
            bytes.extend(p.ring.to_le_bytes());
        }
        self.file.write_all(&bytes)?;
        self.records.push(FrameRecord {
            stamp: sample.stamp.0,
            role,
            points: sample.points.0.len(),
            sweeps: Some(sample.sweeps),
            sha256: hex(&Sha256::digest(&bytes)),
        });
        self.conditions.add(&sample.conditions);
        Ok(())
    }

    /// The conditions of all frames.
    pub fn conditions(&self) -> &Conditions {
        &self.conditions
    }

    pub fn records(&self) -> &[FrameRecord] {
        &self.records
    }

    pub fn count(&self, role: Role) -> usize {
        self.records.iter().filter(|r| r.role == role).count()
    }

    /// One hash over all frames and their roles.
    pub fn hash(&self) -> String {
        let mut hash = Sha256::new();
        for record in &self.records {
            hash.update(record.sha256.as_bytes());
            hash.update([u8::from(record.role == Role::HeldOut)]);
        }
        hex(&hash.finalize())
    }

    /// Calls `each` with every frame of a role, in order. Their conditions are not kept: those are summed up in
    /// [`conditions`](Self::conditions).
    pub fn for_each<E: From<std::io::Error>>(
        &mut self,
        role: Role,
        mut each: impl FnMut(usize, Sample) -> Result<(), E>,
    ) -> Result<(), E> {
        self.file.flush()?;
        let mut file = self.file.get_ref().try_clone()?;
        file.seek(SeekFrom::Start(0))?;
        let mut file = BufReader::new(file);
        let mut index = 0;
        for record in &self.records {
            let length = record.points * POINT_BYTES;
            if record.role != role {
                file.seek_relative(length as i64)?;
                continue;
            }
            let mut bytes = vec![0; length];
            file.read_exact(&mut bytes)?;
            let (points, _) = bytes.as_chunks::<POINT_BYTES>();
            let float = |b: &[u8; POINT_BYTES], i: usize| {
                f32::from_le_bytes([b[i * 4], b[i * 4 + 1], b[i * 4 + 2], b[i * 4 + 3]])
            };
            let points = points
                .iter()
                .map(|b| Point {
                    x: float(b, 0),
                    y: float(b, 1),
                    z: float(b, 2),
                    intensity: float(b, 3),
                    time_lag: float(b, 4),
                    ring: u16::from_le_bytes([b[20], b[21]]),
                })
                .collect();
            let stamp = Stamp(record.stamp);
            each(
                index,
                Sample {
                    stamp,
                    points: Points(points),
                    sweeps: record.sweeps.unwrap_or(1),
                    conditions: Vec::new(),
                    role: Some(role),
                },
            )?;
            index += 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back_as_they_went_in_by_role() {
        let folder = tempfile::tempdir().unwrap();
        let mut spool = Spool::new(folder.path()).unwrap();
        let role_of = |n: usize| match n % 3 {
            2 => Role::HeldOut,
            _ => Role::Calibration,
        };
        let sample = |n: usize| Sample {
            stamp: Stamp(n as i64 * 1_000_000_000),
            points: Points(
                (0..n)
                    .map(|i| Point {
                        x: i as f32,
                        y: -0.5,
                        z: n as f32,
                        intensity: 7.0,
                        time_lag: 0.1,
                        ring: i as u16,
                    })
                    .collect(),
            ),
            sweeps: 1 + n % 2,
            conditions: Vec::new(),
            role: Some(role_of(n)),
        };
        for n in 0..9 {
            spool.push(&sample(n), role_of(n)).unwrap();
        }
        assert_eq!(
            (spool.count(Role::Calibration), spool.count(Role::HeldOut)),
            (6, 3)
        );
        for (role, expected) in [
            (Role::HeldOut, vec![2, 5, 8]),
            (Role::Calibration, vec![0, 1, 3, 4, 6, 7]),
        ] {
            for _pass in 0..2 {
                let mut seen = Vec::new();
                spool
                    .for_each(role, |_, s| {
                        assert_eq!(s, sample(s.points.0.len()));
                        seen.push(s.points.0.len());
                        Ok::<_, std::io::Error>(())
                    })
                    .unwrap();
                assert_eq!(seen, expected);
            }
        }
        assert_eq!(
            std::fs::read_dir(folder.path()).unwrap().count(),
            0,
            "the file has no name"
        );
    }
}
