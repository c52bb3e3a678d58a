//! Removing boxes that describe the same object twice.

use super::description::{IouNms, ModelDescription, Suppressors};
use crate::geometry::Detection;

/// Runs the circle suppression, then the overlap suppression, as the description states them, and
/// returns at most `max_detections`, best first.
///
/// `candidates` must be sorted by falling score. Both suppressions look only at better boxes, so
/// they run in one pass that ends as soon as enough boxes are found; the result is the same as
/// that of two full passes.
pub fn suppress(candidates: Vec<Detection>, model: &ModelDescription) -> Vec<Detection> {
    let post = &model.post;
    let separate = model.separate_classes();
    let circle = post.circle_nms.map(|c| c.squared_metres());
    let mut kept: Vec<Detection> = Vec::new();
    // Survivors of the circle suppression; whether they were kept in the end.
    let mut survivors: Vec<(Detection, bool)> = Vec::new();
    for candidate in candidates {
        if kept.len() == post.max_detections {
            break;
        }
        let too_close = circle.is_some_and(|limit| {
            survivors
                .iter()
                .any(|(other, _)| squared_distance(&candidate, other) < limit)
        });
        if too_close {
            continue;
        }
        let overlaps = post.iou_nms.as_ref().is_some_and(|nms| {
            survivors
                .iter()
                .filter(|(_, stays)| *stays || nms.suppressors == Suppressors::All)
                .any(|(other, _)| overlap(&candidate, other, nms, &separate))
        });
        if !overlaps {
            kept.push(candidate.clone());
        }
        survivors.push((candidate, !overlaps));
    }
    kept
}

fn squared_distance(a: &Detection, b: &Detection) -> f32 {
    let dx = a.bbox.center.x - b.bbox.center.x;
    let dy = a.bbox.center.y - b.bbox.center.y;
    dx * dx + dy * dy
}

fn overlap(a: &Detection, b: &Detection, nms: &IouNms, separate: &[bool]) -> bool {
    if a.class != b.class && (separate[a.class] || separate[b.class]) {
        return false;
    }
    squared_distance(a, b) <= nms.search_distance * nms.search_distance
        && a.bbox.bev_iou(&b.bbox) > nms.threshold
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detector::description::{CircleNms, DistanceUnit};
    use crate::geometry::Box3d;
    use nalgebra::Vector3;
    use proptest::prelude::*;
    use std::path::Path;

    fn model(circle: Option<CircleNms>, iou: Option<f32>) -> ModelDescription {
        let path = Path::new("tests/fixtures/tiny/model.yaml");
        let text = include_str!("../../tests/fixtures/tiny/model.yaml");
        let mut model = ModelDescription::parse(text, path).unwrap();
        model.post.circle_nms = circle;
        model.post.iou_nms = iou.map(|threshold| IouNms {
            threshold,
            search_distance: 10.0,
            separate_classes: None,
            suppressors: Suppressors::Kept,
        });
        model.post.max_detections = 500;
        model
    }

    fn at(x: f32, class: usize, score: f32) -> Detection {
        Detection {
            bbox: Box3d {
                center: Vector3::new(x, 0.0, 0.0),
                size: Vector3::new(4.0, 2.0, 1.5),
                yaw: 0.0,
            },
            class,
            score,
            velocity: None,
        }
    }

    fn positions(found: &[Detection]) -> Vec<f32> {
        found.iter().map(|d| d.bbox.center.x).collect()
    }

    #[test]
    fn circle_distance_is_metres_or_squared_metres_as_stated() {
        let boxes = vec![at(0.0, 0, 0.9), at(1.5, 0, 0.8), at(3.0, 1, 0.7)];
        let circle = |unit| {
            Some(CircleNms {
                distance: 2.0,
                unit,
            })
        };
        let metres = suppress(boxes.clone(), &model(circle(DistanceUnit::Metres), None));
        assert_eq!(positions(&metres), [0.0, 3.0]);
        // A squared radius of 2 is 1.41 m: nothing is that close.
        let squared = suppress(boxes, &model(circle(DistanceUnit::SquaredMetres), None));
        assert_eq!(positions(&squared), [0.0, 1.5, 3.0]);
    }

    #[test]
    fn circle_suppression_does_not_care_for_the_class() {
        let circle = Some(CircleNms {
            distance: 0.5,
            unit: DistanceUnit::Metres,
        });
        let found = suppress(vec![at(0.0, 0, 0.9), at(0.1, 1, 0.8)], &model(circle, None));
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].class, 0);
    }

    #[test]
    fn the_better_of_two_overlapping_boxes_stays() {
        // 4 m boxes 1 m apart: intersection 3, union 5.
        let boxes = vec![at(0.0, 0, 0.9), at(1.0, 0, 0.8)];
        assert_eq!(suppress(boxes.clone(), &model(None, Some(0.59))).len(), 1);
        assert_eq!(suppress(boxes, &model(None, Some(0.61))).len(), 2);
    }

    #[test]
    fn pedestrians_and_other_classes_do_not_suppress_each_other() {
        let pair = |a, b| vec![at(0.0, a, 0.9), at(0.2, b, 0.8)];
        let standard = model(None, Some(0.1));
        assert_eq!(suppress(pair(0, 1), &standard).len(), 2);
        assert_eq!(suppress(pair(1, 0), &standard).len(), 2);
        assert_eq!(suppress(pair(1, 1), &standard).len(), 1);
        let mut none = standard.clone();
        none.post.iou_nms.as_mut().unwrap().separate_classes = Some(vec![]);
        assert_eq!(suppress(pair(0, 1), &none).len(), 1);
    }

    #[test]
    fn pairs_beyond_the_search_distance_are_not_compared() {
        let boxes = vec![at(0.0, 0, 0.9), at(1.0, 0, 0.8)];
        let mut model = model(None, Some(0.1));
        model.post.iou_nms.as_mut().unwrap().search_distance = 0.9;
        assert_eq!(suppress(boxes, &model).len(), 2);
    }

    #[test]
    fn a_suppressed_box_suppresses_others_only_in_autowares_way() {
        // Each overlaps the next; the first and the last do not touch.
        let chain = vec![at(0.0, 0, 0.9), at(3.0, 0, 0.8), at(6.0, 0, 0.7)];
        let mut model = model(None, Some(0.1));
        assert_eq!(positions(&suppress(chain.clone(), &model)), [0.0, 6.0]);
        model.post.iou_nms.as_mut().unwrap().suppressors = Suppressors::All;
        assert_eq!(positions(&suppress(chain, &model)), [0.0]);
    }

    #[test]
    fn the_best_boxes_fill_the_limit() {
        let boxes: Vec<Detection> = (0..9)
            .map(|i| at(20.0 * i as f32, 0, 0.9 - 0.1 * i as f32))
            .collect();
        let mut model = model(None, Some(0.1));
        model.post.max_detections = 4;
        let found = suppress(boxes.clone(), &model);
        assert_eq!(found, &boxes[..4]);
    }

    proptest! {
        /// One pass with an early end gives what two full passes and a cut would.
        #[test]
        fn one_pass_equals_circle_then_overlap_then_cut(
            xs in prop::collection::vec((-12.0f32..12.0, 0usize..2), 0..40),
            limit in 1usize..12,
            all in any::<bool>(),
        ) {
            let circle = CircleNms { distance: 0.7, unit: DistanceUnit::Metres };
            let mut both = model(Some(circle), Some(0.2));
            both.post.max_detections = limit;
            let suppressors = if all { Suppressors::All } else { Suppressors::Kept };
            both.post.iou_nms.as_mut().unwrap().suppressors = suppressors;
            let mut second = both.clone();
            second.post.circle_nms = None;
            second.post.max_detections = usize::MAX;
            let first = model(Some(circle), None);

            let boxes: Vec<Detection> = xs
                .iter()
                .enumerate()
                .map(|(i, (x, class))| at(*x, *class, 1.0 - i as f32 / 100.0))
                .collect();
            let mut expected = suppress(suppress(boxes.clone(), &first), &second);
            expected.truncate(limit);
            prop_assert_eq!(suppress(boxes, &both), expected);
        }
    }
}
