//! What a calibration is made from: the frames that the running node saw.

mod buffer;

pub use buffer::{BufferError, BufferPolicy, CalibrationBuffer, TOPIC, write};
