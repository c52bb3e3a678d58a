//! Whether a cloud looks like what the model was trained on.
//!
//! A sensor that is mounted elsewhere than tf says, millimetres in place of metres, or an intensity of
//! another scale give a detector that runs and finds nothing. None of it can be told for certain, so
//! nothing is refused here: what is odd becomes a [`Condition`] with the figure and the likely cause.
//!
//! A few thousand points of each cloud are looked at, in the model's frame, before sweeps are joined.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::condition::{Condition, ConditionKind};
use super::{DecodeStats, Point, Points};

/// What a model expects of a cloud.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expectations {
    /// Bounds of the model's grid: x, y, z in metres.
    pub min: [f32; 3],
    pub max: [f32; 3],
    /// Extent of a pillar along x and y in metres.
    pub pillar: [f32; 2],
    /// Whether the model reads the intensity at all.
    pub reads_intensity: bool,
    /// Largest intensity that the model was trained with, as the sensor gives it, where it is known.
    pub intensity_max: Option<f32>,
    /// Height of the ground in the model's frame, metres, where it is known.
    pub ground: Option<f32>,
}

/// Points that are looked at, at the most.
const SAMPLES: usize = 4096;
/// Of fewer points nothing can be said.
const LEAST: usize = 100;
/// Share of the points outside the grid from which on it is odd. A sensor sees far beyond the grid of
/// many models, and in the open little that is near.
const OUTSIDE: f32 = 0.95;
/// Share of the points in one pillar from which on it is odd.
const CROWDED: f32 = 0.3;
/// Share of points without a finite position from which on it is odd. In an organised cloud, those are
/// all the beams that met nothing.
const NOT_FINITE: f32 = 0.95;
/// How far the ground may be from where the model knows it, metres: slopes, kerbs, a sensor that sees
/// no ground nearby.
const GROUND: f32 = 1.0;
/// Where the ground is looked for, metres from the origin.
const NEAR: f32 = 30.0;
/// Factor between an intensity and the one expected from which on it is odd.
const INTENSITY: f32 = 8.0;
/// Factor by which a cloud has more points than those before it.
const DENSER: f32 = 10.0;
/// Clouds after which it is known how many points are usual.
const USUAL: u32 = 10;

/// Holds clouds of one sensor against what is expected.
#[derive(Debug, Clone)]
pub struct Plausibility {
    expect: Option<Expectations>,
    clouds: u32,
    /// Mean number of points, recent clouds counting more.
    usual: f32,
}

impl Plausibility {
    /// Without expectations, only what needs none is looked at.
    pub fn new(expect: Option<Expectations>) -> Self {
        Plausibility {
            expect,
            clouds: 0,
            usual: 0.0,
        }
    }

    /// What is odd about a cloud; its points are in the model's frame.
    pub fn check(&mut self, points: &Points, stats: &DecodeStats) -> Vec<Condition> {
        let mut found = Vec::new();
        found.extend(byte_order(stats));
        found.extend(self.density(points.len()));
        found.extend(finite(points.len(), stats));
        if points.len() >= LEAST
            && let Some(expect) = &self.expect
        {
            let step = points.len().div_ceil(SAMPLES);
            let sample: Vec<Point> = points.iter().step_by(step).copied().collect();
            found.extend(outside(expect, &sample));
            found.extend(one_pillar(expect, &sample));
            found.extend(ground(expect, &sample));
            found.extend(intensity(expect, &sample, stats));
        }
        found
    }

    fn density(&mut self, points: usize) -> Option<Condition> {
        let points = points as f32;
        let usual = self.usual;
        let is_denser = self.clouds >= USUAL && points > DENSER * usual.max(1.0);
        // What stays becomes usual, but not at once.
        let weight = match (self.clouds < USUAL, is_denser) {
            (true, _) => 1.0 / (self.clouds + 1) as f32,
            (false, true) => 0.002,
            (false, false) => 0.05,
        };
        self.clouds = self.clouds.saturating_add(1);
        self.usual += weight * (points - usual);
        is_denser.then(|| {
            let text = format!(
                "the cloud has {points:.0} points, {:.0} times as many as those before it ({usual:.0}); \
                 does it hold several sweeps, or those of several sensors?",
                points / usual.max(1.0)
            );
            Condition::new(ConditionKind::Denser, text)
        })
    }
}

fn percent(share: f32) -> String {
    match share {
        1.0 => "all".into(),
        share => format!("{:.1} %", (share * 100.0).min(99.9)),
    }
}

/// The value that this share of the values lie below. Sorts them.
fn quantile(values: &mut [f32], share: f32) -> Option<f32> {
    let last = values.len().checked_sub(1)?;
    let rank = (share * last as f32).round() as usize;
    let (_, value, _) = values.select_nth_unstable_by(rank.min(last), f32::total_cmp);
    Some(*value)
}

fn byte_order(stats: &DecodeStats) -> Option<Condition> {
    stats.other_byte_order.then(|| {
        let text = "the positions make no sense in the byte order that the cloud states (is_bigendian) and \
                    do in the other one, in which they are read; correct the flag where the cloud is made";
        Condition::new(ConditionKind::ByteOrder, text)
    })
}

fn finite(kept: usize, stats: &DecodeStats) -> Option<Condition> {
    if stats.total == 0 {
        let text =
            "the cloud holds no point; does the sensor send, or does a filter before it take all?";
        return Some(Condition::new(ConditionKind::Empty, text));
    }
    let share = stats.non_finite as f32 / stats.total as f32;
    (kept == 0 || (stats.total >= LEAST && share > NOT_FINITE)).then(|| {
        let text = format!(
            "{} of the {} points have no finite position; is the sensor covered, or are its returns \
             filtered before?",
            percent(share),
            stats.total
        );
        Condition::new(ConditionKind::NotFinite, text)
    })
}

impl Expectations {
    fn holds(&self, position: [f32; 3]) -> bool {
        (0..3).all(|axis| (self.min[axis]..self.max[axis]).contains(&position[axis]))
    }
}

fn position(point: &Point) -> [f32; 3] {
    [point.x, point.y, point.z]
}

/// Share of the points that lie in the grid when they are scaled.
fn inside(expect: &Expectations, sample: &[Point], scale: f32) -> f32 {
    let count = sample
        .iter()
        .filter(|p| expect.holds(position(p).map(|v| v * scale)))
        .count();
    count as f32 / sample.len() as f32
}

fn outside(expect: &Expectations, sample: &[Point]) -> Option<Condition> {
    let share = 1.0 - inside(expect, sample, 1.0);
    if share < OUTSIDE {
        return None;
    }
    let axis_outside = |axis: usize| {
        let range = expect.min[axis]..expect.max[axis];
        let count = sample
            .iter()
            .filter(|p| !range.contains(&position(p)[axis]));
        count.count() as f32 / sample.len() as f32
    };
    let mut ranges: Vec<f32> = sample.iter().map(|p| p.x.hypot(p.y)).collect();
    let range = quantile(&mut ranges, 0.5).unwrap_or(0.0);
    let likely = [
        (0.001, "millimetres"),
        (0.01, "centimetres"),
        (0.3048, "feet"),
    ]
    .into_iter()
    .find(|(scale, _)| inside(expect, sample, *scale) > 0.5 && range * scale > 2.0);
    let cause = if let Some((_, unit)) = likely {
        format!("the positions look like {unit}, but must be metres (REP-103)")
    } else if axis_outside(2) >= OUTSIDE && axis_outside(0).max(axis_outside(1)) < OUTSIDE {
        let mut heights: Vec<f32> = sample.iter().map(|p| p.z).collect();
        let height = quantile(&mut heights, 0.5).unwrap_or(0.0);
        format!(
            "half of them lie above z = {height:.1} m: is the sensor's height in the model's frame right, \
             in tf or as the sensor's pose?"
        )
    } else {
        "is the cloud in the frame that its frame_id names, and not in a map's?".into()
    };
    let [[x0, y0, z0], [x1, y1, z1]] = [expect.min, expect.max];
    let text = format!(
        "{} of the points lie outside the model's grid (x {x0} to {x1}, y {y0} to {y1}, z {z0} to {z1} m; \
         half of the points are farther away than {range:.0} m); {cause}",
        percent(share)
    );
    Some(Condition::new(ConditionKind::OutsideGrid, text))
}

fn one_pillar(expect: &Expectations, sample: &[Point]) -> Option<Condition> {
    let cell = |v: f32, axis: usize| ((v - expect.min[axis]) / expect.pillar[axis]).floor() as i64;
    let mut counts: HashMap<[i64; 2], usize> = HashMap::new();
    for point in sample {
        *counts
            .entry([cell(point.x, 0), cell(point.y, 1)])
            .or_default() += 1;
    }
    let ([x, y], count) = counts.into_iter().max_by_key(|(at, count)| (*count, *at))?;
    let share = count as f32 / sample.len() as f32;
    (share > CROWDED).then(|| {
        let centre =
            |index: i64, axis: usize| expect.min[axis] + (index as f32 + 0.5) * expect.pillar[axis];
        let in_it = |p: &&Point| [cell(p.x, 0), cell(p.y, 1)] == [x, y];
        let mut first = None;
        let is_one_place = sample
            .iter()
            .filter(in_it)
            .all(|p| *first.get_or_insert(position(p)) == position(p));
        let cause = match is_one_place {
            true => "all of them at one place: are missing returns filled with zeros?",
            false => "are the positions in metres, and is the sensor free?",
        };
        let text = format!(
            "{} of the points lie in one pillar of {} x {} m, at x {:.1}, y {:.1}; {cause}",
            percent(share),
            expect.pillar[0],
            expect.pillar[1],
            centre(x, 0),
            centre(y, 1)
        );
        Condition::new(ConditionKind::OnePillar, text)
    })
}

fn ground(expect: &Expectations, sample: &[Point]) -> Option<Condition> {
    let known = expect.ground?;
    let near = sample.iter().filter(|p| p.x.hypot(p.y) < NEAR);
    let mut heights: Vec<f32> = near.map(|p| p.z).collect();
    if heights.len() < LEAST {
        return None;
    }
    // Low enough for what stands on the ground, high enough for reflections from below it.
    let lowest = quantile(&mut heights, 0.1)?;
    ((lowest - known).abs() > GROUND).then(|| {
        let text = format!(
            "the ground seems to be at z = {lowest:.1} m (a tenth of the points within {NEAR:.0} m lie below), \
             where the model knows it at {known:.1} m; is the sensor's height right, in tf or as the \
             sensor's pose?"
        );
        Condition::new(ConditionKind::GroundHeight, text)
    })
}

fn intensity(expect: &Expectations, sample: &[Point], stats: &DecodeStats) -> Option<Condition> {
    if !expect.reads_intensity {
        return None;
    }
    let none = |text: String| Some(Condition::new(ConditionKind::NoIntensity, text));
    let Some(field) = &stats.intensity else {
        return none(
            "the cloud has no field of intensity, which the model reads; it is taken as 0".into(),
        );
    };
    if sample.iter().all(|p| p.intensity == 0.0) {
        return none(format!(
            "the field \"{field}\", which the model reads as intensity, is 0 everywhere; is another field \
             the right one?"
        ));
    }
    let known = expect.intensity_max?;
    let mut values: Vec<f32> = sample.iter().map(|p| p.intensity).collect();
    let high = quantile(&mut values, 0.99)?;
    // Dark scenes have few bright returns, so the lower bound is the looser one.
    (high > INTENSITY * known || high < known / (4.0 * INTENSITY)).then(|| {
        let text = format!(
            "intensities reach {high:.3} (99 % lie below), where the model was trained on up to {known}; \
             sensors give 0 to 1, to 255 or to 65535: set points.intensity_scale for this one"
        );
        Condition::new(ConditionKind::IntensityScale, text)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expect() -> Expectations {
        Expectations {
            min: [-51.2, -51.2, -3.0],
            max: [51.2, 51.2, 5.0],
            pillar: [0.32, 0.32],
            reads_intensity: true,
            intensity_max: Some(255.0),
            ground: Some(0.0),
        }
    }

    fn stats(total: usize) -> DecodeStats {
        DecodeStats {
            total,
            intensity: Some("intensity".into()),
            ..Default::default()
        }
    }

    /// Flat ground from 2 to 42 m around the origin, and a wall.
    fn scene() -> Points {
        let ground = (0..8000).map(|i| {
            let (angle, range) = (i as f32 * 0.7, 2.0 + (i % 400) as f32 * 0.1);
            Point {
                x: range * angle.cos(),
                y: range * angle.sin(),
                z: (i % 7) as f32 * 0.02,
                intensity: (i % 100) as f32,
                ..Default::default()
            }
        });
        let wall = (0..2000).map(|i| Point {
            x: 15.0,
            y: (i % 100) as f32 * 0.2 - 10.0,
            z: (i / 100) as f32 * 0.15,
            intensity: 30.0,
            ..Default::default()
        });
        Points(ground.chain(wall).collect())
    }

    fn kinds_of(points: &Points, stats: &DecodeStats) -> Vec<ConditionKind> {
        let found = Plausibility::new(Some(expect())).check(points, stats);
        found.iter().map(|c| c.kind).collect()
    }

    fn kinds(change: impl FnMut(&mut Point)) -> Vec<ConditionKind> {
        let mut points = scene();
        points.0.iter_mut().for_each(change);
        kinds_of(&points, &stats(points.len()))
    }

    fn text(change: impl FnMut(&mut Point)) -> String {
        let mut points = scene();
        points.0.iter_mut().for_each(change);
        let found = Plausibility::new(Some(expect())).check(&points, &stats(points.len()));
        found.into_iter().map(|c| c.text + "\n").collect()
    }

    fn scaled(factor: f32) -> impl FnMut(&mut Point) {
        move |p| (p.x, p.y, p.z) = (p.x * factor, p.y * factor, p.z * factor)
    }

    #[test]
    fn a_usual_scene_is_not_odd() {
        assert_eq!(kinds(|_| ()), []);
        // Nor is one on a slope, or seen by a sensor that sees far.
        assert_eq!(kinds(|p| p.z += 0.02 * p.x), []);
        assert_eq!(kinds(scaled(3.0)), []);
    }

    #[test]
    fn units_other_than_metres_are_named() {
        for (factor, unit) in [(1000.0, "millimetres"), (100.0, "centimetres")] {
            assert!(kinds(scaled(factor)).contains(&ConditionKind::OutsideGrid));
            let text = text(scaled(factor));
            assert!(text.contains(unit), "{text}");
        }
        assert_eq!(kinds(scaled(0.001)), [ConditionKind::OnePillar]);
    }

    #[test]
    fn coordinates_of_a_map_are_outside_the_grid() {
        let text = text(|p| p.x += 4.5e5);
        assert!(
            text.contains("all of the points") && text.contains("map"),
            "{text}"
        );
    }

    #[test]
    fn a_sensor_at_another_height_is_seen_by_the_ground() {
        for height in [-1.8, 1.8] {
            assert_eq!(kinds(|p| p.z += height), [ConditionKind::GroundHeight]);
        }
        let text = text(|p| p.z -= 1.8);
        assert!(text.contains("z = -1.8 m"), "{text}");
        let far = kinds(|p| p.z += 40.0);
        assert_eq!(
            far,
            [ConditionKind::OutsideGrid, ConditionKind::GroundHeight]
        );
    }

    #[test]
    fn intensities_that_are_missing_or_of_another_scale_are_named() {
        use ConditionKind::{IntensityScale, NoIntensity};
        assert_eq!(kinds(|p| p.intensity = 0.0), [NoIntensity]);
        assert_eq!(kinds(|p| p.intensity /= 255.0), [IntensityScale]);
        assert_eq!(kinds(|p| p.intensity *= 256.0), [IntensityScale]);
        let without = DecodeStats {
            intensity: None,
            ..stats(1)
        };
        assert_eq!(kinds_of(&scene(), &without), [NoIntensity]);
        let mut blind = Plausibility::new(Some(Expectations {
            reads_intensity: false,
            ..expect()
        }));
        assert_eq!(blind.check(&scene(), &without), []);
    }

    #[test]
    fn missing_returns_at_the_origin_are_named() {
        let mut index = 0;
        let text = text(|p| {
            index += 1;
            if index % 2 == 0 {
                *p = Point::default();
            }
        });
        assert!(text.contains("filled with zeros"), "{text}");
    }

    #[test]
    fn a_cloud_many_times_as_dense_is_told_until_it_is_usual() {
        let mut plausibility = Plausibility::new(None);
        let cloud = |n: usize| Points(vec![Point::default(); n]);
        let mut kinds = |n: usize| {
            let found = plausibility.check(&cloud(n), &stats(n));
            found.iter().map(|c| c.kind).collect::<Vec<_>>()
        };
        for i in 0..20 {
            assert_eq!(kinds(100 + i), []);
        }
        assert_eq!(kinds(1500), [ConditionKind::Denser]);
        assert_eq!(kinds(100), []);
        let told = (0..1000).filter(|_| !kinds(1500).is_empty()).count();
        assert!((5..500).contains(&told), "{told}");
    }

    #[test]
    fn clouds_of_few_or_no_points_are_told() {
        let empty = Points::default();
        assert_eq!(kinds_of(&empty, &stats(0)), [ConditionKind::Empty]);
        let all_nan = DecodeStats {
            non_finite: 50,
            ..stats(50)
        };
        assert_eq!(kinds_of(&empty, &all_nan), [ConditionKind::NotFinite]);
        // An organised cloud under the open sky.
        let half = DecodeStats {
            non_finite: 9000,
            ..stats(19000)
        };
        assert_eq!(kinds_of(&scene(), &half), []);
    }
}
