//! What a calibration is made from, and where its results stay: the frames that the running node saw, and the models.

pub mod buffer;
pub mod selection;
pub mod store;

pub use buffer::{BufferError, CalibrationBuffer};
pub use selection::Policy;
pub use store::ModelStore;
