//! One-to-one pairing of boxes by the distance of their centres on the ground plane.

use std::cmp::Ordering;

use crate::geometry::{Box3d, Detection};

/// Distance of two centres on the ground plane, metres.
pub(super) fn centre_distance(a: &Box3d, b: &Box3d) -> f32 {
    (a.center - b.center).xy().norm()
}

/// Order of matching: the higher score first. Scores of an INT8 model tie often, so position
/// breaks ties: the outcome must not hang on the order in which a list happens to be written.
fn surer_first(a: &Detection, b: &Detection) -> Ordering {
    let position = |d: &Detection| [d.bbox.center.x, d.bbox.center.y, d.bbox.center.z];
    b.score.total_cmp(&a.score).then_with(|| {
        position(a)
            .into_iter()
            .zip(position(b))
            .map(|(p, q)| p.total_cmp(&q))
            .find(|o| o.is_ne())
            .unwrap_or(Ordering::Equal)
    })
}

/// Pairs boxes of two lists, treating both alike: all boxes in order of falling score, each takes
/// the nearest free box of the other list no farther than `reach(class_a, class_b)`.
///
/// `only_a`, `only_b` are the indices that take part. Returns index pairs.
pub(super) fn pair_both_ways(
    a: &[Detection],
    b: &[Detection],
    only_a: &[usize],
    only_b: &[usize],
    reach: impl Fn(usize, usize) -> f32,
) -> Vec<(usize, usize)> {
    // Side and position in the side's list of indices.
    let mut order: Vec<(bool, usize)> = (0..only_a.len())
        .map(|i| (true, i))
        .chain((0..only_b.len()).map(|i| (false, i)))
        .collect();
    let detection = |&(is_a, i): &(bool, usize)| {
        if is_a { &a[only_a[i]] } else { &b[only_b[i]] }
    };
    order.sort_by(|x, y| surer_first(detection(x), detection(y)));

    let mut partner_a: Vec<Option<usize>> = vec![None; only_a.len()];
    let mut taken_b = vec![false; only_b.len()];
    for (is_a, i) in order {
        if is_a && partner_a[i].is_none() {
            let this = &a[only_a[i]];
            let free = (0..only_b.len()).filter(|j| !taken_b[*j]);
            let nearest = nearest(this, free.map(|j| (j, &b[only_b[j]])), |other| {
                reach(this.class, other.class)
            });
            if let Some(j) = nearest {
                partner_a[i] = Some(j);
                taken_b[j] = true;
            }
        } else if !is_a && !taken_b[i] {
            let this = &b[only_b[i]];
            let free = (0..only_a.len()).filter(|j| partner_a[*j].is_none());
            let nearest = nearest(this, free.map(|j| (j, &a[only_a[j]])), |other| {
                reach(other.class, this.class)
            });
            if let Some(j) = nearest {
                partner_a[j] = Some(i);
                taken_b[i] = true;
            }
        }
    }
    partner_a
        .into_iter()
        .enumerate()
        .filter_map(|(i, partner)| partner.map(|j| (only_a[i], only_b[j])))
        .collect()
}

fn nearest<'a>(
    this: &Detection,
    others: impl Iterator<Item = (usize, &'a Detection)>,
    reach: impl Fn(&Detection) -> f32,
) -> Option<usize> {
    others
        .map(|(j, other)| (centre_distance(&this.bbox, &other.bbox), j, other))
        .filter(|(distance, _, other)| *distance <= reach(other))
        .min_by(|x, y| x.0.total_cmp(&y.0).then_with(|| surer_first(x.2, y.2)))
        .map(|(_, j, _)| j)
}
