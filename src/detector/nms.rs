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
