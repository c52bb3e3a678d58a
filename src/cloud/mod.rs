//! From `sensor_msgs/PointCloud2` of any layout to [`Points`], sweeps joined with ego motion.
//!
//! | module | does |
//! | --- | --- |
//! | [`decode()`], [`encode()`] | bytes to points and back, bytes in and values out |
//! | [`tf`] | the tree of frames over time |
//! | [`condition`] | what makes a frame's result worse than it could be |
//! | [`sweeps`] | joins the last sweeps in the frame of the newest |
//! | [`frames`] | all of it together: what a bag or a node feeds to the detector |
//! | [`summary`] | what a run over a recording read, and how well |
//!
//! ```
//! use centerpoint_ptq::bag::{Stamp, msg::Header};
//! use centerpoint_ptq::cloud::{self, DecodeOptions, Point, Points};
//! # fn main() -> Result<(), cloud::CloudError> {
//! let points = Points(vec![Point { x: 12.0, y: -3.5, z: 0.4, intensity: 17.0, ..Default::default() }]);
//! let header = Header { stamp: Stamp(0), frame_id: "base_link".into() };
//! let message = cloud::encode(&points, header, false);
//! assert_eq!(message.point_step, 20);
//! assert_eq!(cloud::decode(&message, &DecodeOptions::default())?, points);
//! # Ok(())
//! # }
//! ```

pub mod condition;
pub mod frames;
pub mod summary;
pub mod sweeps;
pub mod tf;

mod layout;

pub use layout::{CloudError, DecodeOptions, DecodeStats};
pub use layout::{decode, decode_with_stats, encode, encoded_len};

use crate::geometry::Pose;

/// One LiDAR return.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Point {
    /// Position in metres, in the frame that the owner of the points states.
    pub x: f32,
    pub y: f32,
    pub z: f32,
    /// Reflectance as the sensor reports it; its scale is the sensor's.
    pub intensity: f32,
    /// Age of the point's sweep against the newest sweep, seconds (0 for the newest).
    pub time_lag: f32,
    /// Laser channel, 0 where the sensor reports none.
    pub ring: u16,
}

/// A set of returns, all in one frame. All coordinates are finite.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Points(pub Vec<Point>);

impl Points {
    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn iter(&self) -> std::slice::Iter<'_, Point> {
        self.0.iter()
    }

    /// Moves all points from frame b to frame a, where `pose` is `a_from_b`.
    pub fn transform(&mut self, pose: &Pose) {
        if *pose == Pose::identity() {
            return;
        }
        let r = pose.rotation.to_rotation_matrix().matrix().cast::<f32>();
        let t = pose.translation.vector.cast::<f32>();
        for p in &mut self.0 {
            let v = r * nalgebra::Vector3::new(p.x, p.y, p.z) + t;
            (p.x, p.y, p.z) = (v.x, v.y, v.z);
        }
    }
}
