//! rosbag2 without ROS: folders and files in, messages as plain structs out, and back.
//!
//! [`Reader`] opens a rosbag2 folder (metadata versions 4 to 9, split, compressed by file or by
//! message), a single `.mcap` or a single `.db3`. [`Writer`] makes a rosbag2 folder with one MCAP
//! file that `ros2 bag` and Foxglove open. [`msg`] holds the few message types that matter here,
//! [`cdr`] their wire format. Messages come in order of log time, however they lie in the files, in
//! bounded memory (see [`Reader::messages`]).
//!
//! ```
//! use centerpoint_ptq::bag::{Reader, Stamp, Writer, msg::{Header, Message, TfMessage}};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let folder = tempfile::tempdir()?;
//! let path = folder.path().join("drive");
//! let mut writer = Writer::create(&path)?;
//! let stamp = Stamp::from_sec_nanosec(12, 500);
//! writer.write("/tf", stamp.0, &TfMessage::default())?;
//! writer.finish()?;
//!
//! let reader = Reader::open(&path)?;
//! assert_eq!(reader.topics()[0].name, "/tf");
//! for message in reader.messages(&["/tf"]) {
//!     let message = message?;
//!     assert_eq!(message.log_time, stamp.0);
//!     let tf = TfMessage::decode(&message.data)?;
//!     assert!(tf.transforms.is_empty());
//! }
//! # Ok(())
//! # }
//! ```

pub mod cdr;
pub mod msg;

mod budget;
mod error;
mod limits;
mod mcap_file;
mod messages;
mod metadata;
mod reader;
mod records;
mod sqlite_file;
mod sqlite_pages;
mod writer;

use serde::{Deserialize, Serialize};

pub use cdr::CdrError;
pub use error::BagError;
pub use limits::{Excess, Limit, Limits};
pub use messages::Messages;
pub use reader::{RawMessage, Reader, Topic};
pub use writer::{Part, PartTopic, WriteError, Writer, write_metadata};

/// A moment as ROS has it: nanoseconds since the epoch of the clock in use. Shown as
/// `seconds.nanoseconds`.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Stamp(pub i64);

impl Stamp {
    const SECOND: i64 = 1_000_000_000;

    /// From the two parts of `builtin_interfaces/msg/Time`.
    pub fn from_sec_nanosec(sec: i32, nanosec: u32) -> Self {
        Stamp(i64::from(sec) * Self::SECOND + i64::from(nanosec))
    }

    pub fn sec(self) -> i32 {
        let whole = self.0.div_euclid(Self::SECOND);
        whole.clamp(i32::MIN.into(), i32::MAX.into()) as i32
    }

    pub fn nanosec(self) -> u32 {
        self.0.rem_euclid(Self::SECOND) as u32
    }

    /// Seconds from `earlier` to `self`, negative when `self` is the earlier one.
    pub fn seconds_since(self, earlier: Stamp) -> f64 {
        (i128::from(self.0) - i128::from(earlier.0)) as f64 * 1e-9
    }
}

impl std::fmt::Display for Stamp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{}.{:09}",
            self.0.div_euclid(Self::SECOND),
            self.nanosec()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_split_and_join_without_loss() {
        for ns in [0, 1, 999_999_999, 1_700_000_000_123_456_789, -1] {
            let stamp = Stamp(ns);
            assert_eq!(
                Stamp::from_sec_nanosec(stamp.sec(), stamp.nanosec()),
                stamp,
                "{ns}"
            );
        }
        assert_eq!(Stamp(12_000_000_034).to_string(), "12.000000034");
        assert_eq!(Stamp(3).seconds_since(Stamp(1_000_000_003)), -1.0);
    }
}
