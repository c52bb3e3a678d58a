//! From head maps to boxes.
//!
//! A cell `(x, y)` of the maps with offsets `reg` stands for a box centred at
//! `((x, y) + reg) * pillar * downsample + min` on the ground plane and at `height` above it.

use std::f32::consts::FRAC_PI_2;

use nalgebra::{Vector2, Vector3};
use ndarray::{Array4, ArrayView4};

use super::description::{
    DimOrder, DimScale, Head, HeatmapScale, ModelDescription, RotOrder, VelocityFrame,
    YawConvention,
};
use super::nms;
use crate::geometry::{Box3d, Detection, wrap_angle};

/// The backbone's raw outputs, each `[1, channels, y, x]`.
#[derive(Debug, Clone, PartialEq)]
pub struct HeadMaps {
    pub heatmap: Array4<f32>,
    pub reg: Array4<f32>,
    pub height: Array4<f32>,
    pub dim: Array4<f32>,
    pub rot: Array4<f32>,
    pub vel: Option<Array4<f32>>,
}

impl HeadMaps {
    pub fn view(&self) -> HeadViews<'_> {
        HeadViews {
            heatmap: self.heatmap.view(),
            reg: self.reg.view(),
            height: self.height.view(),
            dim: self.dim.view(),
            rot: self.rot.view(),
            vel: self.vel.as_ref().map(|v| v.view()),
        }
    }

    /// The maps that are there, in a fixed order.
    pub fn iter(&self) -> impl Iterator<Item = (Head, &Array4<f32>)> {
        [
            (Head::Heatmap, Some(&self.heatmap)),
            (Head::Reg, Some(&self.reg)),
            (Head::Height, Some(&self.height)),
            (Head::Dim, Some(&self.dim)),
            (Head::Rot, Some(&self.rot)),
            (Head::Vel, self.vel.as_ref()),
        ]
        .into_iter()
        .filter_map(|(head, map)| map.map(|m| (head, m)))
    }
}

/// [`HeadMaps`] that lie elsewhere.
#[derive(Debug, Clone)]
pub struct HeadViews<'a> {
    pub heatmap: ArrayView4<'a, f32>,
    pub reg: ArrayView4<'a, f32>,
    pub height: ArrayView4<'a, f32>,
    pub dim: ArrayView4<'a, f32>,
    pub rot: ArrayView4<'a, f32>,
    pub vel: Option<ArrayView4<'a, f32>>,
}

impl HeadViews<'_> {
    pub fn to_owned(&self) -> HeadMaps {
        HeadMaps {
            heatmap: self.heatmap.to_owned(),
            reg: self.reg.to_owned(),
            height: self.height.to_owned(),
            dim: self.dim.to_owned(),
            rot: self.rot.to_owned(),
            vel: self.vel.as_ref().map(|v| v.to_owned()),
        }
    }

    /// The first map that holds a NaN or an infinity, or sizes too large for a float.
    pub fn non_finite(&self, model: &ModelDescription) -> Option<Head> {
        // Largest x with a finite exp(x) in f32, rounded down.
        let largest = match model.head.dim_scale {
            DimScale::Log => 88.7,
            DimScale::Linear => f32::MAX,
        };
        let bad = |map: &ArrayView4<'_, f32>| map.iter().any(|v| !v.is_finite());
        if bad(&self.heatmap) {
            Some(Head::Heatmap)
        } else if bad(&self.reg) {
            Some(Head::Reg)
        } else if bad(&self.height) {
            Some(Head::Height)
        } else if self.dim.iter().any(|v| !v.is_finite() || *v > largest) {
            Some(Head::Dim)
        } else if bad(&self.rot) {
            Some(Head::Rot)
        } else if self.vel.as_ref().is_some_and(bad) {
            Some(Head::Vel)
        } else {
            None
        }
    }
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

/// Boxes before any suppression, by falling score; ties by cell, so the order is reproducible.
///
/// Per cell, the best class alone is considered (of equal ones the first), as in Autoware. With a
/// peak kernel the cell must also be the maximum of that class in the square around it; equal
/// neighbours are all peaks.
pub fn candidates(maps: &HeadViews<'_>, model: &ModelDescription) -> Vec<Detection> {
    let (_, classes, rows, columns) = maps.heatmap.dim();
    let grid = &model.grid;
    let cell = grid.pillar.map(|p| p * grid.downsample as f32);
    let mut found: Vec<(usize, Detection)> = Vec::new();
    for y in 0..rows {
        for x in 0..columns {
            let mut class = 0;
            let mut evidence = maps.heatmap[[0, 0, y, x]];
            for other in 1..classes {
                let value = maps.heatmap[[0, other, y, x]];
                if value > evidence {
                    (class, evidence) = (other, value);
                }
            }
            let score = match model.head.heatmap {
                HeatmapScale::Logit => sigmoid(evidence),
                HeatmapScale::Sigmoid => evidence,
            };
            if score < model.post.score_thresholds[class] {
                continue;
            }
            if model.post.peak_kernel == 3 && !is_peak(maps, class, y, x) {
                continue;
            }
            let rot = [maps.rot[[0, 0, y, x]], maps.rot[[0, 1, y, x]]];
            let (sin, cos) = match model.head.rot_order {
                RotOrder::SinCos => (rot[0], rot[1]),
                RotOrder::CosSin => (rot[1], rot[0]),
            };
            let least_norm = model.post.yaw_norm_thresholds.get(class);
            if least_norm.is_some_and(|least| (sin * sin + cos * cos).sqrt() < *least) {
                continue;
            }
            let theta = sin.atan2(cos);
            let yaw = match model.head.yaw {
                YawConvention::Legacy => wrap_angle(-theta - FRAC_PI_2),
                YawConvention::Direct => wrap_angle(theta),
            };
            let dim = [0, 1, 2].map(|i| {
                let value = maps.dim[[0, i, y, x]];
                match model.head.dim_scale {
                    DimScale::Log => value.exp(),
                    DimScale::Linear => value,
                }
            });
            let size = match model.head.dim_order {
                DimOrder::Wlh => Vector3::new(dim[1], dim[0], dim[2]),
                DimOrder::Lwh => Vector3::new(dim[0], dim[1], dim[2]),
            };
            // A box without extent is no object; only linear sizes can do this.
            if size.iter().any(|s| *s <= 0.0) {
                continue;
            }
            let velocity = maps.vel.as_ref().map(|vel| {
                let v = Vector2::new(vel[[0, 0, y, x]], vel[[0, 1, y, x]]);
                match model.head.velocity_frame {
                    VelocityFrame::Ego => v,
                    VelocityFrame::Object => nalgebra::Rotation2::new(yaw) * v,
                }
            });
            let center = Vector3::new(
                (x as f32 + maps.reg[[0, 0, y, x]]) * cell[0] + grid.min[0],
                (y as f32 + maps.reg[[0, 1, y, x]]) * cell[1] + grid.min[1],
                maps.height[[0, 0, y, x]],
            );
            found.push((
                y * columns + x,
                Detection {
                    bbox: Box3d { center, size, yaw },
                    class,
                    score,
                    velocity,
                },
            ));
        }
    }
    found.sort_by(|(i, a), (j, b)| b.score.total_cmp(&a.score).then(i.cmp(j)));
    found.into_iter().map(|(_, detection)| detection).collect()
}

fn is_peak(maps: &HeadViews<'_>, class: usize, y: usize, x: usize) -> bool {
    let (_, _, rows, columns) = maps.heatmap.dim();
    let centre = maps.heatmap[[0, class, y, x]];
    for ny in y.saturating_sub(1)..(y + 2).min(rows) {
        for nx in x.saturating_sub(1)..(x + 2).min(columns) {
            if maps.heatmap[[0, class, ny, nx]] > centre {
                return false;
            }
        }
    }
    true
}

/// Boxes after suppression, by falling score. The maps' shapes must be those that
/// [`Detector::load`](super::Detector::load) has checked.
pub fn decode(maps: &HeadViews<'_>, model: &ModelDescription) -> Vec<Detection> {
    nms::suppress(candidates(maps, model), model)
}
