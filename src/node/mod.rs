//! The ROS 2 node: detection on live clouds, calibration from them, and the swap to INT8.
//!
//! Everything but [`ros`] knows nothing of ROS:
//!
//! | module | what it does |
//! | --- | --- |
//! | [`settings`] | parameters: names, defaults, checks |
//! | [`engine`] | a loaded model; boxes placed in the cloud's frame |
//! | [`pipeline`] | clouds to detections on two threads, engine swaps, counters |
//! | [`shadow`] | the float model beside the running INT8 one, now and then |
//! | [`calibrator`] | the quantization as a child process |
//! | [`supervisor`] | a calibration from request to swap; models loaded, rolled back and listed on request |
//! | [`troubles`] | what is wrong at the moment |
//! | [`usage`] | `--help` and `--version` of the ROS programs |
//! | [`status`] | what there is to say about all that |
//! | `ros` | topics, services, parameters, diagnostics (feature `ros2`) |

pub mod calibrator;
pub mod engine;
pub mod latency;
pub mod latest;
pub mod pipeline;
pub mod reach;
pub mod settings;
pub mod shadow;
pub mod status;
pub mod supervisor;
pub mod throttle;
pub mod troubles;
pub mod usage;
mod waiting;

#[cfg(feature = "ros2")]
pub mod ros;

pub use engine::{Engine, ModelInfo, Object};
pub use pipeline::{Output, Pipeline};
pub use settings::Settings;
pub use supervisor::Supervisor;
