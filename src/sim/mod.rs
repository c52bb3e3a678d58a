//! Labelled LiDAR sweeps of road scenes, from a seed.
//!
//! A [`Scene`] is a piece of world (ground, kerbs, buildings, vegetation, furniture, road users)
//! through which a vehicle drives with a [`Sensor`] on its roof. [`Scene::sweep`] casts the
//! sensor's rays into it at one instant; [`write_bag`] puts sweeps, transforms and ground truth
//! into a rosbag2 folder.
//!
//! ```text
//! layout (seed, kind) ─► terrain + actors ─► trace (rays, parts, noise) ─► SimSweep ─► write_bag
//! ```
//!
//! What is simplified: a sweep is taken at one instant, as if the driver had already removed the
//! motion during the turn; one return per ray; the sensor does not see its own vehicle, whose roof
//! may shade it. How clouds compare with recordings: `docs/simulator.md`.
//!
//! The same seed and configuration give the same points on any number of threads: every random
//! draw is keyed by seed, sweep, column and beam.

mod layout;
mod models;
mod path;
mod rng;
mod scene;
mod sensor;
mod shape;
mod terrain;
mod trace;
mod write;

pub use models::ObjectClass;
pub use scene::{Scene, SceneConfig, SceneKind, SimSweep, SimTruth};
pub use sensor::Sensor;
pub use write::{BASE_FRAME, LIDAR_FRAME, ODOM_FRAME, Plan, Summary, scene_seed, write_bag};

/// Why nothing was simulated.
#[derive(Debug, thiserror::Error)]
pub enum SimError {
    #[error("no sensor is called {name:?}; there are {} and mixed", Sensor::PRESETS.join(", "))]
    UnknownSensor { name: String },
    #[error("sensor {name}: {what}")]
    BadSensor { name: String, what: String },
    #[error("{0}")]
    BadPlan(String),
    #[error(transparent)]
    Write(#[from] crate::bag::WriteError),
    #[error("cannot write {path}: {source}")]
    Labels {
        path: std::path::PathBuf,
        source: std::io::Error,
    },
    #[error("stopped on request; no bag was written")]
    Stopped,
}
