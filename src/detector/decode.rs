//! From head maps to boxes.
//!
//! A cell `(x, y)` of the maps with offsets `reg` stands for a box centred at
//! `((x, y) + reg) * pillar * downsample + min` on the ground plane and at `height` above it.

use std::f32::consts::FRAC_PI_2;

use nalgebra::{Vector2, Vector3};
use ndarray::{Array4, ArrayView4};

use super::description::{
    DimOrder, DimScale, Head, ModelDescription, RotOrder, VelocityFrame, YawConvention,
};
use super::nms;
use super::plausibility::Figures;
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
            DimScale::Linear => 1e30,
        };
        // Larger values are nothing that a network means, and their sums and products need not be finite.
        let bad = |map: &ArrayView4<'_, f32>| map.iter().any(|v| !v.is_finite() || v.abs() > 1e30);
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

/// Boxes before any suppression, by falling score; ties by cell, so the order is reproducible.
///
/// Per cell, the best class alone is considered (of equal ones the first), as in Autoware. With a
/// peak kernel the cell must also be the maximum of that class in the square around it; equal
/// neighbours are all peaks.
pub fn candidates(maps: &HeadViews<'_>, model: &ModelDescription) -> Vec<Detection> {
    candidates_with_figures(maps, model).0
}

fn candidates_with_figures(
    maps: &HeadViews<'_>,
    model: &ModelDescription,
) -> (Vec<Detection>, Figures) {
    let mut figures = Figures::default();
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
            let score = model.head.heatmap.probability(evidence);
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
            let norm = sin.hypot(cos);
            let dim = [0, 1, 2].map(|i| {
                let value = maps.dim[[0, i, y, x]];
                match model.head.dim_scale {
                    DimScale::Log => value.exp(),
                    DimScale::Linear => value,
                }
            });
            let offset = [0, 1].map(|i| maps.reg[[0, i, y, x]]);
            figures.add(dim, offset, norm);
            let least_norm = model.post.yaw_norm_thresholds.get(class);
            if least_norm.is_some_and(|least| norm < *least) {
                continue;
            }
            let theta = sin.atan2(cos);
            let yaw = match model.head.yaw {
                YawConvention::Legacy => wrap_angle(-theta - FRAC_PI_2),
                YawConvention::Direct => wrap_angle(theta),
            };
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
                (x as f32 + offset[0]) * cell[0] + grid.min[0],
                (y as f32 + offset[1]) * cell[1] + grid.min[1],
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
    let found = found.into_iter().map(|(_, detection)| detection).collect();
    (found, figures)
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
    decode_with_figures(maps, model).0
}

/// [`decode`], and what shows whether the description is that of this network.
pub(super) fn decode_with_figures(
    maps: &HeadViews<'_>,
    model: &ModelDescription,
) -> (Vec<Detection>, Figures) {
    let (found, figures) = candidates_with_figures(maps, model);
    (nms::suppress(found, model), figures)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detector::description::HeatmapScale;
    use approx::assert_relative_eq;
    use std::f32::consts::PI;
    use std::path::Path;

    /// Two classes on a 4 x 4 map of 2 m cells from -4 m; no suppression.
    fn model() -> ModelDescription {
        let path = Path::new("tests/fixtures/tiny/model.yaml");
        let text = include_str!("../../tests/fixtures/tiny/model.yaml");
        let mut model = ModelDescription::parse(text, path).unwrap();
        model.post.peak_kernel = 0;
        model.post.circle_nms = None;
        model.post.iou_nms = None;
        model
    }

    fn maps() -> HeadMaps {
        let mut rot = Array4::zeros((1, 2, 4, 4));
        rot.index_axis_mut(ndarray::Axis(1), 1).fill(1.0);
        HeadMaps {
            heatmap: Array4::from_elem((1, 2, 4, 4), -5.0),
            reg: Array4::zeros((1, 2, 4, 4)),
            height: Array4::zeros((1, 1, 4, 4)),
            dim: Array4::zeros((1, 3, 4, 4)),
            rot,
            vel: Some(Array4::zeros((1, 2, 4, 4))),
        }
    }

    /// Maps with one object in row 1, column 2 of class 0.
    fn one_object() -> HeadMaps {
        let mut maps = maps();
        maps.heatmap[[0, 0, 1, 2]] = 2.0;
        maps.reg[[0, 0, 1, 2]] = 0.25;
        maps.reg[[0, 1, 1, 2]] = 0.75;
        maps.height[[0, 0, 1, 2]] = -0.5;
        for (i, dim) in [2.0f32, 4.5, 1.5].into_iter().enumerate() {
            maps.dim[[0, i, 1, 2]] = dim.ln();
        }
        maps.rot[[0, 0, 1, 2]] = 0.6;
        maps.rot[[0, 1, 1, 2]] = 0.8;
        maps
    }

    fn only(maps: &HeadMaps, model: &ModelDescription) -> Detection {
        let found = decode(&maps.view(), model);
        assert_eq!(found.len(), 1, "{found:?}");
        found[0].clone()
    }

    #[test]
    fn the_centre_is_the_cell_plus_the_offset_in_cells() {
        let found = only(&one_object(), &model());
        assert_relative_eq!(
            found.bbox.center,
            Vector3::new(2.25 * 2.0 - 4.0, 1.75 * 2.0 - 4.0, -0.5),
            epsilon = 1e-6
        );
        assert_eq!(found.class, 0);
        assert_relative_eq!(found.score, 0.880797, epsilon = 1e-6);
    }

    #[test]
    fn size_order_decides_which_number_is_the_length() {
        let mut model = model();
        let wlh = only(&one_object(), &model).bbox.size;
        assert_relative_eq!(wlh, Vector3::new(4.5, 2.0, 1.5), epsilon = 1e-5);
        model.head.dim_order = DimOrder::Lwh;
        let lwh = only(&one_object(), &model).bbox.size;
        assert_relative_eq!(lwh, Vector3::new(2.0, 4.5, 1.5), epsilon = 1e-5);
    }

    #[test]
    fn linear_sizes_are_taken_as_they_are_and_boxes_without_extent_left_out() {
        let mut model = model();
        model.head.dim_scale = DimScale::Linear;
        let mut maps = one_object();
        for (i, dim) in [2.0, 4.5, 1.5].into_iter().enumerate() {
            maps.dim[[0, i, 1, 2]] = dim;
        }
        let size = only(&maps, &model).bbox.size;
        assert_eq!(size, Vector3::new(4.5, 2.0, 1.5));
        maps.dim[[0, 2, 1, 2]] = 0.0;
        assert!(decode(&maps.view(), &model).is_empty());
    }

    #[test]
    fn yaw_follows_rotation_order_and_convention() {
        let theta = 0.6f32.atan2(0.8);
        let swapped = 0.8f32.atan2(0.6);
        let cases = [
            (RotOrder::SinCos, YawConvention::Direct, theta),
            (RotOrder::CosSin, YawConvention::Direct, swapped),
            (RotOrder::SinCos, YawConvention::Legacy, -theta - FRAC_PI_2),
            (
                RotOrder::CosSin,
                YawConvention::Legacy,
                wrap_angle(-swapped - FRAC_PI_2),
            ),
        ];
        for (order, convention, expected) in cases {
            let mut model = model();
            model.head.rot_order = order;
            model.head.yaw = convention;
            let yaw = only(&one_object(), &model).bbox.yaw;
            assert_relative_eq!(yaw, expected, epsilon = 1e-6);
            assert!(yaw.abs() <= PI);
        }
    }

    #[test]
    fn heatmap_scale_decides_whether_the_sigmoid_is_applied() {
        let mut model = model();
        model.head.heatmap = HeatmapScale::Sigmoid;
        let mut maps = maps();
        maps.heatmap.fill(0.1);
        maps.heatmap[[0, 1, 0, 0]] = 0.75;
        let found = only(&maps, &model);
        assert_eq!((found.class, found.score), (1, 0.75));
        model.head.heatmap = HeatmapScale::Logit;
        // As logits, all 16 cells are above one half.
        assert_eq!(candidates(&maps.view(), &model).len(), 16);
    }

    #[test]
    fn thresholds_are_per_class() {
        let mut model = model();
        model.post.score_thresholds = vec![0.95, 0.5];
        let mut maps = one_object();
        assert!(decode(&maps.view(), &model).is_empty());
        maps.heatmap[[0, 1, 3, 3]] = 0.1;
        assert_eq!(only(&maps, &model).class, 1);
    }

    #[test]
    fn a_short_rotation_vector_drops_the_box_unless_its_class_allows_it() {
        let mut model = model();
        let mut maps = one_object();
        maps.rot[[0, 0, 1, 2]] = 0.1;
        maps.rot[[0, 1, 1, 2]] = 0.2;
        assert!(decode(&maps.view(), &model).is_empty());
        model.post.yaw_norm_thresholds = vec![0.0, 0.0];
        only(&maps, &model);
        model.post.yaw_norm_thresholds = vec![];
        only(&maps, &model);
    }

    #[test]
    fn with_a_peak_kernel_only_maxima_of_the_class_remain() {
        let mut model = model();
        let mut maps = maps();
        // A ridge of class 0 along row 1 that peaks at column 2, and class 1 on its slope.
        for (x, value) in [1.0, 2.0, 3.0, 2.5].into_iter().enumerate() {
            maps.heatmap[[0, 0, 1, x]] = value;
        }
        maps.heatmap[[0, 1, 2, 2]] = 1.5;
        assert_eq!(candidates(&maps.view(), &model).len(), 5);
        model.post.peak_kernel = 3;
        let found = candidates(&maps.view(), &model);
        let cells: Vec<(usize, f32)> = found.iter().map(|d| (d.class, d.bbox.center.y)).collect();
        assert_eq!(cells, [(0, -2.0), (1, 0.0)]);
    }

    #[test]
    fn peaks_on_the_border_count_and_equal_neighbours_are_all_peaks() {
        let mut model = model();
        model.post.peak_kernel = 3;
        let mut maps = maps();
        for (y, x) in [(0, 0), (3, 3), (3, 2)] {
            maps.heatmap[[0, 0, y, x]] = 1.0;
        }
        assert_eq!(candidates(&maps.view(), &model).len(), 3);
    }

    #[test]
    fn candidates_come_by_falling_score_and_equal_ones_in_cell_order() {
        let mut maps = maps();
        for (y, x, value) in [(0, 1, 1.0), (0, 3, 2.0), (2, 0, 1.0), (3, 3, 2.0)] {
            maps.heatmap[[0, 0, y, x]] = value;
        }
        let found = candidates(&maps.view(), &model());
        let cells: Vec<(f32, f32)> = found
            .iter()
            .map(|d| ((d.bbox.center.x + 4.0) / 2.0, (d.bbox.center.y + 4.0) / 2.0))
            .collect();
        assert_eq!(cells, [(3.0, 0.0), (3.0, 3.0), (1.0, 0.0), (0.0, 2.0)]);
    }

    #[test]
    fn velocity_of_the_object_frame_is_turned_by_the_heading() {
        let mut model = model();
        model.head.yaw = YawConvention::Direct;
        let mut maps = one_object();
        maps.rot[[0, 0, 1, 2]] = 1.0;
        maps.rot[[0, 1, 1, 2]] = 0.0;
        maps.vel.as_mut().unwrap()[[0, 0, 1, 2]] = 3.0;
        let ego = only(&maps, &model).velocity.unwrap();
        assert_eq!(ego, Vector2::new(3.0, 0.0));
        model.head.velocity_frame = VelocityFrame::Object;
        let turned = only(&maps, &model).velocity.unwrap();
        assert_relative_eq!(turned, Vector2::new(0.0, 3.0), epsilon = 1e-6);
    }

    #[test]
    fn sizes_whose_exponential_overflows_are_not_finite() {
        let model = model();
        let mut maps = one_object();
        assert_eq!(maps.view().non_finite(&model), None);
        maps.dim[[0, 1, 3, 3]] = 89.0;
        assert_eq!(maps.view().non_finite(&model), Some(Head::Dim));
        maps.heatmap[[0, 1, 3, 3]] = f32::NAN;
        assert_eq!(maps.view().non_finite(&model), Some(Head::Heatmap));
    }
}
