//! CenterPoint 3D detection from LiDAR, quantized to INT8 by LiDAR-PTQ while it runs.
//!
//! Data flows one way through the modules:
//!
//! ```text
//! PointCloud2 ─► cloud ─► pillars ─► detector ─► boxes ─► node (ROS 2) / cli
//!                  │                    ▲
//!                  ▼                    │ swap after the check
//!            calibration buffer ─► ptq (ranges ─► QDQ model ─► report) over onnx graphs
//! ```
//!
//! | module | in | out |
//! | --- | --- | --- |
//! | [`geometry`] | – | poses, oriented boxes, detections: the vocabulary |
//! | [`bag`] | rosbag2 folders and files | messages as plain Rust structs, and back |
//! | [`cloud`] | `PointCloud2` bytes of any layout, `/tf` | [`cloud::Points`] in the model's frame |
//! | [`pillars`] | points | pillar features, BEV scatter |
//! | [`detector`] | points and a model description | detections |
//! | [`onnx`] | ONNX files | graphs that can be folded, rewritten and saved |
//! | [`ptq`] | a float model and frames | an INT8 QDQ model and its report |
//! | [`calibration`] | live frames | the buffer that quantization reads, the store of its models |
//! | [`eval`] | detections, truth | average precision, float/INT8 agreement |
//! | [`sim`] | a seed | labelled LiDAR sweeps of road scenes |
//! | [`render`] | points and boxes | bird's-eye-view pictures |
//!
//! Units are SI, angles radians, frames right-handed with x forward, y left, z up (REP-103).

pub mod bag;
pub mod calibration;
pub mod cloud;
pub mod detector;
pub mod eval;
mod files;
pub mod geometry;
pub mod node;
pub mod onnx;
pub mod pillars;
pub mod ptq;
pub mod render;
pub mod sim;
mod text;
mod yaml;

#[doc(hidden)]
pub mod cli;
