//! Casts the rays of one sweep.
//!
//! Objects are sorted into the columns of the sensor they can appear in; within a column a ray
//! meets the ground's profile and the few objects left, nearest first. Everything happens in the
//! sensor's frame in `f32`; only the ground is looked up in the world.

use std::borrow::Cow;
use std::f32::consts::{PI, TAU};

use nalgebra::Matrix3;
use rayon::prelude::*;

use super::models::Model;
use super::rng::Rng;
use super::sensor::Sensor;
use super::shape::{Bounds, Hit, Ray, V3};
use super::terrain::Terrain;
use crate::cloud::Point;
use crate::geometry::Pose;

/// An object placed around the sensor.
pub(crate) struct Instance<'a> {
    model: Cow<'a, Model>,
    object_from_lidar: Matrix3<f32>,
    /// The sensor in the object's frame.
    origin: V3,
    owner: Option<u32>,
    /// Least distance on the ground, metres.
    near: f32,
    /// Bounds of the tangent of the elevation.
    slopes: (f32, f32),
    /// Azimuth of the middle and half of the range around it, radians.
    azimuth: (f32, f32),
}

impl<'a> Instance<'a> {
    pub fn new(model: Cow<'a, Model>, lidar_from_object: &Pose, owner: Option<u32>) -> Self {
        let inverse = lidar_from_object.inverse();
        let object_from_lidar: Matrix3<f32> = inverse.rotation.to_rotation_matrix().matrix().cast();
        let origin: V3 = inverse.translation.vector.cast();
        let lidar_from: Matrix3<f32> = object_from_lidar.transpose();
        let bounds = model.bounds;
        let corners = bounds.corners().map(|c| lidar_from * (c - origin));
        let middle = lidar_from * ((bounds.low + bounds.high) / 2.0 - origin);
        // Tilt against the object moves things by little: 2 % and 10 cm of slack.
        let outside = |axis: usize| {
            (bounds.low[axis] - origin[axis])
                .max(origin[axis] - bounds.high[axis])
                .max(0.0)
        };
        let near = (outside(0).hypot(outside(1)) * 0.98 - 0.1).max(0.0);
        let far = corners.iter().fold(0f32, |m, c| m.max(c.x.hypot(c.y)));
        let (low, high) = corners
            .iter()
            .fold((f32::INFINITY, f32::NEG_INFINITY), |(a, b), c| {
                (a.min(c.z), b.max(c.z))
            });
        let slope = |z: f32, over: f32| {
            if over > 0.05 {
                z / over
            } else {
                z.signum() * 1e6
            }
        };
        let slopes = (
            slope(low, if low < 0.0 { near } else { far }),
            slope(high, if high > 0.0 { near } else { far }),
        );
        let azimuth = if near < 0.3 {
            (0.0, PI)
        } else {
            let center = middle.y.atan2(middle.x);
            let half = corners.iter().fold(0f32, |m, c| {
                let turn = (c.y.atan2(c.x) - center + PI).rem_euclid(TAU) - PI;
                m.max(turn.abs())
            });
            (center, half)
        };
        Self {
            model,
            object_from_lidar,
            origin,
            owner,
            near,
            slopes,
            azimuth,
        }
    }
}

/// A measured point in the sensor's frame and the truth it belongs to.
pub(crate) struct Return {
    pub point: Point,
    pub owner: Option<u32>,
}

/// For every column the objects it can meet, nearest first, as ranges of one list.
fn sort_into_columns(instances: &[Instance], columns: usize) -> (Vec<u32>, Vec<u32>) {
    let per_radian = columns as f32 / TAU;
    let spans: Vec<(usize, usize)> = instances
        .iter()
        .map(|instance| {
            let (center, half) = instance.azimuth;
            let width = ((2.0 * half * per_radian) as usize + 4).min(columns);
            if width == columns {
                return (0, columns);
            }
            let first = ((center - half + PI) * per_radian).floor() as i64 - 1;
            (first.rem_euclid(columns as i64) as usize, width)
        })
        .collect();
    let mut starts = vec![0u32; columns + 1];
    for &(first, width) in &spans {
        for i in 0..width {
            starts[(first + i) % columns + 1] += 1;
        }
    }
    for i in 0..columns {
        starts[i + 1] += starts[i];
    }
    let mut fill = starts.clone();
    let mut members = vec![0u32; starts[columns] as usize];
    for (index, &(first, width)) in spans.iter().enumerate() {
        for i in 0..width {
            let slot = &mut fill[(first + i) % columns];
            members[*slot as usize] = index as u32;
            *slot += 1;
        }
    }
    (starts, members)
}

/// Distances along the ground at which its profile is sampled: finer than the spacing of beams.
fn profile_ranges(max_range: f32) -> Vec<f32> {
    let mut ranges = vec![0.3];
    let mut r = 0.3f32;
    while r < max_range {
        r += (0.012 * r).max(0.12);
        ranges.push(r);
    }
    ranges
}

/// The part of the vehicle's roof that shades the sensor, around and below it, metres. Drivers cut
/// these returns away, so nothing is seen there.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Roof {
    pub below: f32,
    pub ahead: f32,
    pub behind: f32,
    pub half_width: f32,
}

impl Roof {
    /// Half of the sensors stand high enough on their rack to look past the roof.
    pub fn draw(rng: &mut Rng) -> Option<Self> {
        let roof = Self {
            below: rng.range(0.2, 0.6),
            ahead: rng.range(0.3, 1.8),
            behind: rng.range(0.3, 2.2),
            half_width: rng.range(0.4, 0.85),
        };
        rng.chance(0.5).then_some(roof)
    }

    /// Whether a ray in this direction meets the roof.
    pub fn shades(&self, dir: &V3) -> bool {
        if dir.z >= 0.0 {
            return false;
        }
        let reach = self.below / -dir.z;
        let x = dir.x * reach;
        x < self.ahead && x > -self.behind && (dir.y * reach).abs() < self.half_width
    }
}

/// Casts all rays of a sweep; returns them column by column, beams ascending.
pub(crate) fn cast(
    sensor: &Sensor,
    terrain: &Terrain,
    world_from_lidar: &Pose,
    roof: Option<Roof>,
    mut instances: Vec<Instance>,
    key: [u64; 2],
) -> Vec<Return> {
    instances.retain(|i| i.near < sensor.max_range);
    instances.sort_by(|a, b| a.near.total_cmp(&b.near));
    let columns = sensor.azimuth_steps;
    let (starts, members) = sort_into_columns(&instances, columns);
    let caster = Caster {
        sensor,
        terrain,
        elevations: sensor
            .elevations
            .iter()
            .map(|e| e.to_radians().sin_cos())
            .collect(),
        ranges: profile_ranges(sensor.max_range),
        rotation: world_from_lidar
            .rotation
            .to_rotation_matrix()
            .matrix()
            .cast(),
        position: world_from_lidar.translation.vector.into(),
        roof,
        instances: &instances,
        key,
    };
    (0..columns)
        .into_par_iter()
        .with_min_len(16)
        .map_init(Vec::new, |profile, column| {
            let members = &members[starts[column] as usize..starts[column + 1] as usize];
            caster.column(column, members, profile)
        })
        .collect::<Vec<_>>()
        .into_iter()
        .flatten()
        .collect()
}

struct Caster<'a> {
    sensor: &'a Sensor,
    terrain: &'a Terrain,
    /// Sine and cosine of each beam.
    elevations: Vec<(f32, f32)>,
    ranges: Vec<f32>,
    rotation: Matrix3<f32>,
    position: [f64; 3],
    roof: Option<Roof>,
    instances: &'a [Instance<'a>],
    key: [u64; 2],
}

impl Caster<'_> {
    fn column(&self, column: usize, members: &[u32], profile: &mut Vec<f32>) -> Vec<Return> {
        let sensor = self.sensor;
        let azimuth = (column as f64 + 0.5) / sensor.azimuth_steps as f64 * std::f64::consts::TAU
            - std::f64::consts::PI;
        let (sin, cos) = (azimuth.sin() as f32, azimuth.cos() as f32);
        let level = (self.rotation * V3::new(cos, sin, 0.0)).xy().normalize();
        let [px, py, pz] = self.position;
        // Heights over the sensor, filled as far as the rays need them.
        profile.clear();
        let height_at = |r: f32| {
            self.terrain.height(
                px + f64::from(level.x) * f64::from(r),
                py + f64::from(level.y) * f64::from(r),
            ) - pz as f32
        };
        let mut reached = 0;
        let mut returns = Vec::with_capacity(self.elevations.len());
        for (beam, &(beam_sin, beam_cos)) in self.elevations.iter().enumerate() {
            let dir = V3::new(beam_cos * cos, beam_cos * sin, beam_sin);
            let world = self.rotation * dir;
            let flat = world.xy().norm();
            let slope = world.z / flat;
            // Beams ascend, so each meets the ground no nearer than the one below it.
            while reached < self.ranges.len() {
                if reached == profile.len() {
                    profile.push(height_at(self.ranges[reached]));
                }
                if profile[reached] >= slope * self.ranges[reached] {
                    break;
                }
                reached += 1;
            }
            let mut best: Option<(Hit, Option<u32>)> = None;
            let mut limit = sensor.max_range;
            if (1..self.ranges.len()).contains(&reached) {
                let (r0, r1) = (self.ranges[reached - 1], self.ranges[reached]);
                let (h0, h1) = (profile[reached - 1], profile[reached]);
                let (above, below) = (slope * r0 - h0, h1 - slope * r1);
                let r = r0 + (r1 - r0) * above / (above + below).max(1e-6);
                let t = r / flat;
                if t < limit {
                    let rise = (h1 - h0) / (r1 - r0);
                    let cos = (world.z - rise * flat).abs() / rise.hypot(1.0);
                    let ground = self.terrain.ground(
                        px + f64::from(world.x) * f64::from(t),
                        py + f64::from(world.y) * f64::from(t),
                    );
                    limit = t;
                    best = Some((
                        Hit {
                            t,
                            cos,
                            reflectance: ground.reflectance(),
                        },
                        None,
                    ));
                }
            }
            let ray_number = (column * self.elevations.len() + beam) as u64;
            let mut rng = Rng::new(&[self.key[0], self.key[1], ray_number]);
            let tangent = beam_sin / beam_cos;
            for &member in members {
                let instance = &self.instances[member as usize];
                if instance.near > limit {
                    break;
                }
                if tangent < instance.slopes.0 || tangent > instance.slopes.1 {
                    continue;
                }
                let ray = Ray {
                    origin: instance.origin,
                    dir: instance.object_from_lidar * dir,
                };
                let inverse = ray.dir.map(|v| 1.0 / v);
                let meets = |bounds: &Bounds, limit: f32| {
                    bounds
                        .entry(&ray.origin, &inverse)
                        .is_some_and(|t| t < limit)
                };
                if !meets(&instance.model.bounds, limit) {
                    continue;
                }
                for (part, bounds) in instance.model.parts.iter().zip(&instance.model.part_bounds) {
                    if meets(bounds, limit)
                        && let Some(hit) = part.hit(&ray, limit, &mut rng)
                    {
                        limit = hit.t;
                        best = Some((hit, instance.owner));
                    }
                }
            }
            if self.roof.is_some_and(|roof| roof.shades(&dir)) {
                continue;
            }
            if let Some((point, owner)) = self.measure(best, &mut rng) {
                returns.push(Return {
                    point: Point {
                        x: dir.x * point.0,
                        y: dir.y * point.0,
                        z: dir.z * point.0,
                        intensity: point.1,
                        time_lag: 0.0,
                        ring: beam as u16,
                    },
                    owner,
                });
            }
        }
        returns
    }

    /// What the detector reports: range and intensity, or nothing.
    fn measure(
        &self,
        hit: Option<(Hit, Option<u32>)>,
        rng: &mut Rng,
    ) -> Option<((f32, f32), Option<u32>)> {
        let sensor = self.sensor;
        if rng.chance(sensor.spurious) {
            let end = hit.map_or(sensor.max_range, |(hit, _)| hit.t);
            let range = rng.range(sensor.min_range, end.max(sensor.min_range));
            return Some(((range, rng.range(0.0, 10.0).round()), None));
        }
        let (hit, owner) = hit?;
        if hit.reflectance <= 0.0 || rng.chance(sensor.dropout) {
            return None;
        }
        // Rough surfaces return more at grazing angles than Lambert's cosine says.
        let facing = hit.cos.max(0.002).powf(0.35);
        let strength = 10.0 * hit.reflectance * facing * (sensor.reach / hit.t.max(0.1)).powi(2);
        if strength < 6.0 && strength * (0.5 * rng.normal()).exp() < 1.0 {
            return None;
        }
        let range = hit.t + sensor.range_noise * rng.normal();
        if !(sensor.min_range..=sensor.max_range).contains(&range) {
            return None;
        }
        let speckle = 1.0 + 0.1 * rng.normal();
        let intensity = 160.0 * hit.reflectance * (0.3 + 0.7 * hit.cos) * speckle;
        Some(((range, intensity.round().clamp(0.0, 255.0)), owner))
    }
}
