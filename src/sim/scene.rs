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
use super::trace::{self, Roof};
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

/// Half of the angle within which a beam still returns, radians.
const BEAM_HALF_ANGLE: f32 = 0.0007;

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

    /// The solids at a time, seen from this far away, metres.
    fn at(&self, t: f64, distance: f32) -> Cow<'_, Model> {
        match self {
            Body::Rigid(model) => Cow::Borrowed(model),
            Body::Walker {
                person,
                speed,
                gait,
                ..
            } => {
                let phase = f64::from(*gait) + t * f64::from(*speed / person.cycle());
                // A beam a few centimetres wide returns from limbs that its middle misses.
                let swell = BEAM_HALF_ANGLE * distance.min(40.0);
                Cow::Owned(person.model(phase.fract() as f32, *speed > 0.0, swell))
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
    /// In `base_link`: around the whole object, seen or not, a few centimetres wider at each side.
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
    sway: Sway,
    roof: Option<Roof>,
}

/// How the body leans on its springs against the road, radians: roll and pitch.
#[derive(Debug, Clone, Copy)]
struct Sway {
    lean: [f64; 2],
    swing: [f64; 2],
    rate: [f64; 2],
}

impl Sway {
    fn draw(rng: &mut Rng) -> Self {
        let mut pair = |low: f64, high: f64| [rng.range64(low, high), rng.range64(low, high)];
        Self {
            lean: pair(-0.013, 0.013),
            swing: pair(0.0, 0.003),
            rate: pair(2.0, 7.0),
        }
    }

    fn at(&self, t: f64) -> UnitQuaternion<f64> {
        let [roll, pitch] =
            [0, 1].map(|i| self.lean[i] + self.swing[i] * (self.rate[i] * t + i as f64).sin());
        UnitQuaternion::from_euler_angles(roll, pitch, 0.0)
    }
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
        let sway = Sway::draw(&mut rng);
        let roof = Roof::draw(&mut rng);
        let unit = config.sensor.unit(&mut rng);
        let world = layout::lay_out(
            seed,
            kind,
            config.duration(),
            f64::from(config.sensor.max_range),
        );
        Ok(Self {
            seed,
            config: SceneConfig {
                sensor: unit,
                ..config.clone()
            },
            kind,
            terrain: world.terrain,
            actors: world.actors,
            ego: world.ego,
            base_from_lidar: pose_from_xyz_rpy([x, y, z], [roll, pitch, yaw]),
            sway,
            roof,
        })
    }

    pub fn kind(&self) -> SceneKind {
        self.kind
    }

    pub fn sweeps(&self) -> usize {
        self.config.sweeps
    }

    /// The unit that this scene was given of the configured type.
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
        let mut pose = standing(&self.terrain, &at, self.terrain.road(at.x, at.y).0, true);
        pose.rotation *= self.sway.at(t);
        pose
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
                actor.body.at(t, distance as f32),
                &(lidar_from_world * pose),
                owner,
            ));
        }

        let key = [self.seed, index as u64];
        let returns = trace::cast(
            &self.config.sensor,
            &self.terrain,
            &world_from_lidar,
            self.roof,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::wrap_angle;
    use nalgebra::Point3;
    use std::collections::HashMap;

    fn config(sensor: &str, kind: SceneKind, sweeps: usize) -> SceneConfig {
        SceneConfig {
            kind: Some(kind),
            sweeps,
            ..SceneConfig::new(Sensor::preset(sensor).unwrap())
        }
    }

    fn coarse(kind: SceneKind, sweeps: usize) -> SceneConfig {
        let mut config = config("vlp16", kind, sweeps);
        config.sensor.azimuth_steps = 300;
        config
    }

    #[test]
    fn points_are_the_same_on_any_number_of_threads_and_differ_between_seeds() {
        let config = coarse(SceneKind::Junction, 3);
        let on = |threads: usize, seed: u64| {
            rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap()
                .install(|| Scene::generate(seed, &config).unwrap().sweep(2))
        };
        let (one, four) = (on(1, 9), on(4, 9));
        assert!(one.points == four.points);
        assert_eq!(one.truths, four.truths);
        assert!(one.points != on(1, 10).points);
    }

    #[test]
    fn points_lie_on_the_beams_and_within_range() {
        for name in Sensor::PRESETS {
            let mut config = config(name, SceneKind::Urban, 1);
            config.sensor.azimuth_steps = 200;
            let mut scene = Scene::generate(3, &config).unwrap();
            scene.roof = None;
            let sweep = scene.sweep(0);
            let mut rings = vec![0; config.sensor.beams()];
            for p in &sweep.points.0 {
                let flat = p.x.hypot(p.y);
                let elevation = p.z.atan2(flat).to_degrees();
                let beam = scene.sensor().elevations[usize::from(p.ring)];
                assert!((elevation - beam).abs() < 1e-2, "{name} {elevation} {beam}");
                let range = flat.hypot(p.z);
                assert!(range >= config.sensor.min_range - 1e-3);
                assert!(range <= config.sensor.max_range + 1e-3);
                assert!((0.0..=255.0).contains(&p.intensity));
                let column = (p.y.atan2(p.x) + std::f32::consts::PI) / std::f32::consts::TAU
                    * config.sensor.azimuth_steps as f32
                    - 0.5;
                assert!((column - column.round()).abs() < 0.02, "{column}");
                rings[usize::from(p.ring)] += 1;
            }
            // The lowest beam meets the ground nearly everywhere.
            assert!(rings[0] > 150, "{name} {}", rings[0]);
        }
    }

    #[test]
    fn every_return_of_an_object_lies_in_its_box_and_is_counted() {
        let mut counted = 0;
        for (seed, kind) in SceneKind::ALL.into_iter().enumerate() {
            let mut config = config("os32", kind, 12);
            config.sensor.spurious = 0.0;
            let scene = Scene::generate(seed as u64, &config).unwrap();
            for index in [0, 11] {
                let sweep = scene.sweep(index);
                assert_eq!(sweep.owners.len(), sweep.points.0.len());
                let mut counts = vec![0; sweep.truths.len()];
                for (p, owner) in sweep.points.0.iter().zip(&sweep.owners) {
                    let Some(owner) = owner else { continue };
                    counts[*owner as usize] += 1;
                    counted += 1;
                    let truth = &sweep.truths[*owner as usize];
                    let at =
                        sweep.base_from_lidar * Point3::new(p.x.into(), p.y.into(), p.z.into());
                    // Wing mirrors, noise of the range, and the slope of the ground, which the
                    // box does not follow.
                    let tilt = 0.08 * truth.bbox.size.x.max(truth.bbox.size.z);
                    let pad = 0.18 + 5.0 * config.sensor.range_noise + tilt;
                    let mut padded = truth.bbox;
                    padded.size += Vector3::repeat(2.0 * pad);
                    assert!(
                        padded.contains(&at.coords.cast()),
                        "{kind:?} {truth:?} {at}"
                    );
                }
                for (truth, count) in sweep.truths.iter().zip(counts) {
                    assert_eq!(truth.points, count);
                }
            }
        }
        assert!(counted > 10_000, "{counted}");
    }

    #[test]
    fn no_two_objects_share_ground_and_none_runs_into_the_vehicle() {
        let mut pairs = 0;
        for seed in 0..28 {
            let kind = SceneKind::ALL[seed as usize % 7];
            let scene = Scene::generate(seed, &coarse(kind, 40)).unwrap();
            for index in [0, 13, 27, 39] {
                let t = scene.time(index);
                let mut boxes = vec![Box3d {
                    center: {
                        let at = scene.ego.at(t);
                        Vector3::new(at.x as f32, at.y as f32, 0.0)
                    },
                    size: Vector3::new(4.6, 1.9, 1.5),
                    yaw: wrap_angle(scene.ego.at(t).yaw as f32),
                }];
                for actor in scene.actors.iter().filter(|a| a.class.is_some()) {
                    let at = actor.motion.at(t);
                    boxes.push(Box3d {
                        center: Vector3::new(at.x as f32, at.y as f32, 0.0),
                        size: actor.body.size(),
                        yaw: wrap_angle(at.yaw as f32),
                    });
                }
                for i in 0..boxes.len() {
                    for j in i + 1..boxes.len() {
                        let shared = boxes[i].bev_intersection(&boxes[j]);
                        assert!(
                            shared < 0.01,
                            "{kind:?} seed {seed}: {:?} {:?}",
                            boxes[i],
                            boxes[j]
                        );
                        pairs += 1;
                    }
                }
            }
        }
        assert!(pairs > 10_000, "{pairs}");
    }

    #[test]
    fn velocities_agree_with_the_boxes_of_the_next_sweep() {
        let (mut moving, mut off) = (0, 0);
        for kind in SceneKind::ALL {
            let mut config = coarse(kind, 2);
            config.rate = 20.0;
            let scene = Scene::generate(77, &config).unwrap();
            let (a, b) = (scene.sweep(0), scene.sweep(1));
            let later: HashMap<u32, &SimTruth> = b.truths.iter().map(|t| (t.track, t)).collect();
            let place = |sweep: &SimSweep, truth: &SimTruth| {
                sweep.odom_from_base * Point3::from(truth.bbox.center.cast::<f64>())
            };
            for truth in &a.truths {
                let Some(next) = later.get(&truth.track) else {
                    continue;
                };
                let moved = (place(&b, next) - place(&a, truth)) / 0.05;
                let velocity = a.odom_from_base.rotation
                    * Vector3::new(truth.velocity.x.into(), truth.velocity.y.into(), 0.0);
                moving += usize::from(velocity.norm() > 0.3);
                // Walkers who turn round within the 50 ms jump to the other sense.
                off += usize::from((moved.xy() - velocity.xy()).norm() > 0.15);
                assert_eq!(next.bbox.size, truth.bbox.size);
            }
        }
        assert!(moving > 40, "{moving}");
        assert!(off <= 1, "{off} of {moving}");
    }

    #[test]
    fn moving_objects_head_where_they_go() {
        for kind in SceneKind::ALL {
            let sweep = Scene::generate(5, &coarse(kind, 1)).unwrap().sweep(0);
            for truth in sweep.truths.iter().filter(|t| t.velocity.norm() > 0.5) {
                let course = truth.velocity.y.atan2(truth.velocity.x);
                assert!(
                    wrap_angle(course - truth.bbox.yaw).abs() < 0.1,
                    "{kind:?} {truth:?}"
                );
            }
        }
    }

    #[test]
    fn the_mixture_of_scenes_has_the_wanted_number_of_objects() {
        let (mut sums, scenes) = ([0usize; 5], 150);
        for seed in 0..scenes {
            let mut config = SceneConfig::new(Sensor::preset("vlp16").unwrap());
            config.sensor.azimuth_steps = 8;
            config.sweeps = 1;
            let sweep = Scene::generate(seed, &config).unwrap().sweep(0);
            for truth in &sweep.truths {
                assert!(truth.bbox.center.x.abs() <= 60.0 && truth.bbox.center.y.abs() <= 60.0);
                let i = ObjectClass::ALL.iter().position(|c| *c == truth.class);
                sums[i.unwrap()] += 1;
            }
        }
        let means = sums.map(|n| n as f32 / scenes as f32);
        for (mean, wanted) in
            means
                .iter()
                .zip([10.0..28.0, 1.0..3.0, 0.6..1.6, 2.0..5.0, 8.0..18.0])
        {
            assert!(wanted.contains(mean), "{means:?}");
        }
    }

    #[test]
    fn a_car_at_20_metres_returns_as_many_points_as_in_recordings() {
        // An HDL-64E gives unoccluded cars 18 to 25 m away some 250 points (KITTI, median of a
        // small sample).
        let mut counts = Vec::new();
        for seed in 0..12 {
            let scene = Scene::generate(seed, &config("hdl64", SceneKind::Urban, 1)).unwrap();
            for truth in scene.sweep(0).truths {
                if truth.class == ObjectClass::Car && (18.0..25.0).contains(&truth.bbox.range()) {
                    counts.push(truth.points);
                }
            }
        }
        counts.sort_unstable();
        let median = counts[counts.len() / 2];
        assert!(
            counts.len() > 15 && (130..500).contains(&median),
            "{counts:?}"
        );
    }

    #[test]
    fn without_noise_the_same_ray_meets_the_same_wall() {
        let mut config = coarse(SceneKind::CarPark, 1);
        config.sensor.range_noise = 0.0;
        config.sensor.dropout = 0.0;
        let sharp = Scene::generate(1, &config).unwrap().sweep(0);
        config.sensor.range_noise = 0.03;
        let noisy = Scene::generate(1, &config).unwrap().sweep(0);
        config.sensor.dropout = 0.5;
        let sparse = Scene::generate(1, &config).unwrap().sweep(0);
        let spread: f32 = sharp
            .points
            .0
            .iter()
            .zip(&noisy.points.0)
            .filter(|(a, b)| a.ring == b.ring)
            .map(|(a, b)| (a.x - b.x).hypot(a.y - b.y).hypot(a.z - b.z))
            .filter(|d| *d < 0.2)
            .map(|d| d * d)
            .sum();
        let count = noisy.points.0.len() as f32;
        let sigma = (spread / count).sqrt();
        assert!((0.02..0.04).contains(&sigma), "{sigma}");
        let kept = sparse.points.0.len() as f32 / count;
        assert!((0.45..0.55).contains(&kept), "{kept}");
    }

    #[test]
    fn scenes_that_cannot_be_are_refused() {
        let good = coarse(SceneKind::Urban, 5);
        for spoil in [
            (|c: &mut SceneConfig| c.sweeps = 0) as fn(&mut SceneConfig),
            |c| c.sweeps = 100_000,
            |c| c.rate = 0.0,
            |c| c.mount = Some([0.0, 0.0, 0.0, 0.0, 0.0, 0.0]),
            |c| c.mount = Some([f64::NAN, 0.0, 2.0, 0.0, 0.0, 0.0]),
            |c| c.sensor.elevations.clear(),
        ] {
            let mut config = good.clone();
            spoil(&mut config);
            assert!(Scene::generate(1, &config).is_err());
        }
    }
}
