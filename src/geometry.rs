//! The vocabulary of the crate: poses, oriented boxes, detections.

use nalgebra::{Isometry3, Translation3, UnitQuaternion, Vector2, Vector3};
use serde::{Deserialize, Serialize};

/// A rigid transform. `Pose` named `a_from_b` maps coordinates in frame `b` to frame `a`.
pub type Pose = Isometry3<f64>;

/// Builds a pose from a translation in metres and roll, pitch, yaw in radians
/// (rotation about fixed x, then y, then z, as URDF and `static_transform_publisher` have it).
pub fn pose_from_xyz_rpy(xyz: [f64; 3], rpy: [f64; 3]) -> Pose {
    Pose::from_parts(
        Translation3::new(xyz[0], xyz[1], xyz[2]),
        UnitQuaternion::from_euler_angles(rpy[0], rpy[1], rpy[2]),
    )
}

/// Wraps an angle to (-pi, pi].
pub fn wrap_angle(angle: f32) -> f32 {
    use std::f32::consts::{PI, TAU};
    let wrapped = (angle + PI).rem_euclid(TAU) - PI;
    if wrapped <= -PI { PI } else { wrapped }
}

/// A box that stands upright: rotated about z only.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Box3d {
    /// Geometric centre in metres.
    pub center: Vector3<f32>,
    /// Full extents in metres: length along the heading, width across it, height.
    #[serde(rename = "size_lwh")]
    pub size: Vector3<f32>,
    /// Heading in radians, counter-clockwise about +z from +x.
    pub yaw: f32,
}

impl Box3d {
    pub fn length(&self) -> f32 {
        self.size.x
    }
    pub fn width(&self) -> f32 {
        self.size.y
    }
    pub fn height(&self) -> f32 {
        self.size.z
    }

    /// Corners on the ground plane, counter-clockwise from front left.
    pub fn bev_corners(&self) -> [Vector2<f32>; 4] {
        let (sin, cos) = self.yaw.sin_cos();
        let (l, w) = (self.size.x / 2.0, self.size.y / 2.0);
        [(l, w), (-l, w), (-l, -w), (l, -w)].map(|(x, y)| {
            Vector2::new(
                self.center.x + x * cos - y * sin,
                self.center.y + x * sin + y * cos,
            )
        })
    }

    /// Whether a point lies in the box (bounds included).
    pub fn contains(&self, point: &Vector3<f32>) -> bool {
        let d = point - self.center;
        let (sin, cos) = self.yaw.sin_cos();
        let along = d.x * cos + d.y * sin;
        let across = -d.x * sin + d.y * cos;
        along.abs() <= self.size.x / 2.0
            && across.abs() <= self.size.y / 2.0
            && d.z.abs() <= self.size.z / 2.0
    }

    /// Distance of the centre from the origin on the ground plane, metres.
    pub fn range(&self) -> f32 {
        self.center.xy().norm()
    }

    /// Area of the footprint that two boxes share, in square metres
    /// (the first polygon clipped by each edge of the second, after Sutherland and Hodgman).
    pub fn bev_intersection(&self, other: &Box3d) -> f32 {
        let reach = (self.size.xy().norm() + other.size.xy().norm()) / 2.0;
        if (self.center - other.center).xy().norm() > reach {
            return 0.0;
        }
        let mut polygon: Vec<Vector2<f32>> = self.bev_corners().to_vec();
        let clip = other.bev_corners();
        for i in 0..4 {
            let (a, b) = (clip[i], clip[(i + 1) % 4]);
            let side = |p: &Vector2<f32>| (b - a).perp(&(p - a));
            let mut kept = Vec::with_capacity(polygon.len() + 2);
            for (j, p) in polygon.iter().enumerate() {
                let q = &polygon[(j + 1) % polygon.len()];
                let (sp, sq) = (side(p), side(q));
                if sp >= 0.0 {
                    kept.push(*p);
                }
                if (sp > 0.0 && sq < 0.0) || (sp < 0.0 && sq > 0.0) {
                    kept.push(p + (q - p) * (sp / (sp - sq)));
                }
            }
            polygon = kept;
            if polygon.len() < 3 {
                return 0.0;
            }
        }
        let doubled: f32 = (0..polygon.len())
            .map(|i| polygon[i].perp(&polygon[(i + 1) % polygon.len()]))
            .sum();
        (doubled / 2.0).max(0.0)
    }

    /// Intersection over union of the two footprints, 0 to 1.
    pub fn bev_iou(&self, other: &Box3d) -> f32 {
        let shared = self.bev_intersection(other);
        let union = self.size.x * self.size.y + other.size.x * other.size.y - shared;
        if union > 0.0 { shared / union } else { 0.0 }
    }
}

/// One detected object.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Detection {
    #[serde(flatten)]
    pub bbox: Box3d,
    /// Index into the model's class names.
    pub class: usize,
    /// Confidence, 0 to 1.
    pub score: f32,
    /// Velocity over ground in the frame of the box, m/s; `None` when the model has no such head.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub velocity: Option<Vector2<f32>>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_relative_eq;
    use std::f32::consts::{FRAC_PI_2, FRAC_PI_4, PI};

    fn unit_box(x: f32, y: f32, size: [f32; 3], yaw: f32) -> Box3d {
        Box3d {
            center: Vector3::new(x, y, 0.0),
            size: Vector3::from(size),
            yaw,
        }
    }

    #[test]
    fn angles_wrap_to_half_open_interval() {
        assert_relative_eq!(wrap_angle(3.0 * PI), PI, epsilon = 1e-5);
        assert_relative_eq!(wrap_angle(-PI - 0.1), PI - 0.1, epsilon = 1e-5);
        assert_eq!(wrap_angle(0.25), 0.25);
    }

    #[test]
    fn iou_of_a_box_with_itself_is_one_at_any_yaw() {
        for i in 0..16 {
            let b = unit_box(10.0, -4.0, [4.5, 1.9, 1.6], i as f32 * 0.4);
            assert_relative_eq!(b.bev_iou(&b), 1.0, epsilon = 1e-4);
        }
    }

    #[test]
    fn a_square_turned_by_45_degrees_shares_a_regular_octagon() {
        let a = unit_box(0.0, 0.0, [2.0, 2.0, 1.0], 0.0);
        let b = unit_box(0.0, 0.0, [2.0, 2.0, 1.0], FRAC_PI_4);
        // Octagon with inradius 1: area 8 (sqrt(2) - 1).
        let octagon = 8.0 * (2f32.sqrt() - 1.0);
        assert_relative_eq!(a.bev_intersection(&b), octagon, epsilon = 1e-4);
    }

    #[test]
    fn boxes_that_touch_or_lie_apart_share_nothing() {
        let a = unit_box(0.0, 0.0, [2.0, 2.0, 1.0], 0.0);
        assert_eq!(
            a.bev_intersection(&unit_box(5.0, 0.0, [2.0, 2.0, 1.0], 0.3)),
            0.0
        );
        assert!(a.bev_intersection(&unit_box(2.0, 0.0, [2.0, 2.0, 1.0], 0.0)) < 1e-6);
    }

    #[test]
    fn contains_honours_the_heading() {
        let b = unit_box(0.0, 0.0, [4.0, 1.0, 1.0], FRAC_PI_2);
        assert!(b.contains(&Vector3::new(0.0, 1.9, 0.0)));
        assert!(!b.contains(&Vector3::new(1.9, 0.0, 0.0)));
    }
}
