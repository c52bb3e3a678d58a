//! A scene and its sweeps.

use std::borrow::Cow;

use nalgebra::{Isometry3, Matrix3, Rotation3, Translation3, UnitQuaternion, Vector2, Vector3};
use serde::{Deserialize, Serialize};

use super::SimError;
use super::layout;
use super::models::{Model, ObjectClass, Person};
use super::path::{Motion, Planar};
use super::rng::Rng;
use super::sensor::Sensor;
use super::terrain::Terrain;
use super::trace;
use crate::bag::Stamp;
use crate::cloud::Points;
use crate::geometry::{Box3d, Pose, pose_from_xyz_rpy};

/// What kind of place a scene shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum SceneKind {
    /// Two to four lanes each way, crash barriers, lorries, no people.
    Highway,
    /// Town street with shops, parked cars, cyclists, people; straight or curved.
    Urban,
    /// Narrow street with dense parked cars, houses, hedges, driveways.
    Residential,
    /// Two streets that cross; the vehicle goes straight, turns or waits.
    Junction,
    CarPark,
    /// Paved square with many people and cyclists.
    Plaza,
    /// Winding road between trees and fields.
    Rural,
}

impl SceneKind {
    pub const ALL: [Self; 7] = [
        Self::Highway,
        Self::Urban,
        Self::Residential,
        Self::Junction,
        Self::CarPark,
        Self::Plaza,
        Self::Rural,
    ];
}

/// What to simulate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SceneConfig {
    pub sensor: Sensor,
    /// Drawn from the seed when `None`.
    pub kind: Option<SceneKind>,
    /// Sweeps the scene is made for; it ends after the last.
    pub sweeps: usize,
    /// Sweeps per second.
    pub rate: f64,
    /// Sensor in the vehicle, `base_link` from sensor: x, y, z, roll, pitch, yaw. Drawn from the
    /// seed when `None` (1.5 to 2.2 m above the ground, tilted by up to a degree).
    pub mount: Option<[f64; 6]>,
    /// Objects whose box centre lies within this distance along x and along y are labelled, metres.
    pub label_range: f32,
}

impl SceneConfig {
    pub fn new(sensor: Sensor) -> Self {
        Self {
            sensor,
            kind: None,
            sweeps: 20,
            rate: 10.0,
            mount: None,
            label_range: 60.0,
        }
    }

    /// Longest scene, seconds: the world is laid out at once along the whole drive.
    pub const MAX_DURATION: f64 = 120.0;

    pub(crate) fn check(&self) -> Result<(), SimError> {
        self.sensor.check()?;
        let refuse = |what: String| Err(SimError::BadPlan(what));
        if !(self.rate > 0.0 && self.rate <= 1000.0) {
            return refuse(format!(
                "{} sweeps per second; 0 to 1000 are possible",
                self.rate
            ));
        }
        if self.sweeps == 0 || self.duration() > Self::MAX_DURATION {
            return refuse(format!(
                "{} sweeps at {} Hz in one scene: a scene has at least one sweep and lasts at most {} s; \
                 split the frames over more scenes",
                self.sweeps,
                self.rate,
                Self::MAX_DURATION
            ));
        }
        if let Some(mount) = self.mount
            && !(mount.iter().all(|v| v.is_finite()) && (0.3..=6.0).contains(&mount[2]))
        {
            return refuse(format!(
                "sensor pose {mount:?}; its z must be 0.3 to 6 m above the ground"
            ));
        }
        Ok(())
    }

    fn duration(&self) -> f64 {
        self.sweeps.saturating_sub(1) as f64 / self.rate
    }
}

/// The solids of an actor.
#[derive(Debug, Clone)]
pub(crate) enum Body {
    Rigid(Box<Model>),
    /// A person; `size` holds all of the gait.
    Walker {
        person: Box<Person>,
        size: Vector3<f32>,
        speed: f32,
        gait: f32,
    },
}

impl Body {
    pub fn size(&self) -> Vector3<f32> {
        match self {
            Body::Rigid(model) => model.size,
            Body::Walker { size, .. } => *size,
        }
    }

    fn at(&self, t: f64) -> Cow<'_, Model> {
        match self {
            Body::Rigid(model) => Cow::Borrowed(model),
            Body::Walker {
                person,
                speed,
                gait,
                ..
            } => {
                let phase = f64::from(*gait) + t * f64::from(*speed / person.cycle());
                Cow::Owned(person.model(phase.fract() as f32, *speed > 0.0))
            }
        }
    }
}

/// Something that stands or moves in the scene.
#[derive(Debug, Clone)]
pub(crate) struct Actor {
    pub body: Body,
    pub motion: Motion,
    pub class: Option<ObjectClass>,
    /// Follows the slope of the ground; people and buildings stand upright.
    pub tilts: bool,
}

/// A labelled object as one sweep sees it.
#[derive(Debug, Clone, PartialEq)]
pub struct SimTruth {
    /// In `base_link`: tight around the object whether seen or not.
    pub bbox: Box3d,
    pub class: ObjectClass,
    /// The same object keeps its number through the scene.
    pub track: u32,
    /// Velocity over ground along the axes of `base_link`, m/s.
    pub velocity: Vector2<f32>,
    /// Returns of this sweep that stem from the object.
    pub points: u32,
}

/// One turn of the sensor.
#[derive(Debug, Clone)]
pub struct SimSweep {
    /// Since the scene began.
    pub stamp: Stamp,
    /// In the frame of the sensor, `ring` and `intensity` (0 to 255) set.
    pub points: Points,
    /// Index into `truths` of the object each point stems from.
    pub owners: Vec<Option<u32>>,
    pub odom_from_base: Pose,
    pub base_from_lidar: Pose,
    pub truths: Vec<SimTruth>,
}

/// A world, a drive through it and a sensor.
#[derive(Debug)]
pub struct Scene {
    pub(crate) seed: u64,
    pub(crate) config: SceneConfig,
    pub(crate) kind: SceneKind,
    pub(crate) terrain: Terrain,
    pub(crate) actors: Vec<Actor>,
    pub(crate) ego: Motion,
    base_from_lidar: Pose,
}

/// A pose on the ground, standing upright or along the slope.
fn standing(terrain: &Terrain, at: &Planar, height: f64, tilts: bool) -> Pose {
    let yaw = Rotation3::from_axis_angle(&Vector3::z_axis(), at.yaw);
    let rotation = if tilts {
        let (_, sx, sy) = terrain.road(at.x, at.y);
        let up = Vector3::new(-sx, -sy, 1.0).normalize();
        let heading = yaw * Vector3::x();
        let left = up.cross(&heading).normalize();
        let forward = left.cross(&up);
        Rotation3::from_matrix_unchecked(Matrix3::from_columns(&[forward, left, up]))
    } else {
        yaw
    };
    Isometry3::from_parts(
        Translation3::new(at.x, at.y, height),
        UnitQuaternion::from_rotation_matrix(&rotation),
    )
}

impl Scene {
    /// Lays a scene out. The same seed and configuration give the same scene.
    pub fn generate(seed: u64, config: &SceneConfig) -> Result<Self, SimError> {
        config.check()?;
        let mut rng = Rng::new(&[seed, 0x5ce7e]);
        let drawn = SceneKind::ALL[rng.weighted(&[0.1, 0.26, 0.19, 0.2, 0.07, 0.12, 0.06])];
        let kind = config.kind.unwrap_or(drawn);
        let mount = [
            rng.range64(0.0, 1.4),
            rng.range64(-0.05, 0.05),
            rng.range64(1.5, 2.2),
            rng.range64(-0.015, 0.015),
            rng.range64(-0.018, 0.018),
            rng.range64(-0.02, 0.02),
        ];
        let [x, y, z, roll, pitch, yaw] = config.mount.unwrap_or(mount);
        let world = layout::lay_out(
            seed,
            kind,
            config.duration(),
            f64::from(config.sensor.max_range),
        );
        Ok(Self {
            seed,
            config: config.clone(),
            kind,
            terrain: world.terrain,
            actors: world.actors,
            ego: world.ego,
            base_from_lidar: pose_from_xyz_rpy([x, y, z], [roll, pitch, yaw]),
        })
    }

    pub fn kind(&self) -> SceneKind {
        self.kind
    }

    pub fn sweeps(&self) -> usize {
        self.config.sweeps
    }

    pub fn sensor(&self) -> &Sensor {
        &self.config.sensor
    }

    /// Nanoseconds since the scene began at which a sweep is taken.
    pub fn stamp(&self, index: usize) -> Stamp {
        Stamp((index as f64 / self.config.rate * 1e9).round() as i64)
    }

    fn time(&self, index: usize) -> f64 {
        index as f64 / self.config.rate
    }

    /// The vehicle in the world at a time, seconds.
    fn ego_pose(&self, t: f64) -> Pose {
        let at = self.ego.at(t);
        standing(&self.terrain, &at, self.terrain.road(at.x, at.y).0, true)
    }

    /// Takes sweep `index` of [`Self::sweeps`].
    pub fn sweep(&self, index: usize) -> SimSweep {
        let t = self.time(index);
        let world_from_base = self.ego_pose(t);
        let base_from_world = world_from_base.inverse();
        let world_from_lidar = world_from_base * self.base_from_lidar;
        let lidar_from_world = world_from_lidar.inverse();

        let reach = f64::from(self.config.sensor.max_range);
        let mut instances = Vec::new();
        let mut truths = Vec::new();
        for (track, actor) in self.actors.iter().enumerate() {
            let at = actor.motion.at(t);
            let (dx, dy) = (
                at.x - world_from_lidar.translation.x,
                at.y - world_from_lidar.translation.y,
            );
            let distance = dx.hypot(dy);
            // The bounding radius of nothing in a scene exceeds 40 m.
            if distance > reach + 40.0 {
                continue;
            }
            let height = self.terrain.standing_height(at.x, at.y);
            let pose = standing(&self.terrain, &at, height, actor.tilts);
            let mut owner = None;
            if let Some(class) = actor.class {
                let size = actor.body.size();
                let base_from_object = base_from_world * pose;
                let center =
                    base_from_object * nalgebra::Point3::new(0.0, 0.0, f64::from(size.z) / 2.0);
                let range = f64::from(self.config.label_range);
                if center.x.abs() <= range && center.y.abs() <= range {
                    let heading = base_from_object.rotation * Vector3::x();
                    let (vx, vy) = actor.motion.velocity(t);
                    let velocity = base_from_world.rotation * Vector3::new(vx, vy, 0.0);
                    owner = Some(truths.len() as u32);
                    truths.push(SimTruth {
                        bbox: Box3d {
                            center: center.coords.cast(),
                            size,
                            yaw: heading.y.atan2(heading.x) as f32,
                        },
                        class,
                        track: track as u32,
                        velocity: velocity.xy().cast(),
                        points: 0,
                    });
                }
            }
            instances.push(trace::Instance::new(
                actor.body.at(t),
                &(lidar_from_world * pose),
                owner,
            ));
        }

        let key = [self.seed, index as u64];
        let returns = trace::cast(
            &self.config.sensor,
            &self.terrain,
            &world_from_lidar,
            instances,
            key,
        );
        for owner in returns.iter().filter_map(|r| r.owner) {
            truths[owner as usize].points += 1;
        }
        let (points, owners) = returns.into_iter().map(|r| (r.point, r.owner)).unzip();
        SimSweep {
            stamp: self.stamp(index),
            points: Points(points),
            owners,
            odom_from_base: world_from_base,
            base_from_lidar: self.base_from_lidar,
            truths,
        }
    }
}
