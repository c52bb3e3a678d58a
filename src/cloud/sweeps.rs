//! Joins the last sweeps into one denser cloud.
//!
//! Models that were trained on several sweeps see the older ones moved into the frame of the
//! newest, each point with the age of its sweep. Moving objects leave a trail, which is where
//! such a model reads their velocity from.

use std::collections::VecDeque;

use crate::bag::Stamp;
use crate::geometry::Pose;

use super::Points;

struct Sweep {
    stamp: Stamp,
    points: Points,
    fixed_from_model: Pose,
}

/// Keeps the last sweeps and joins them. Without the vehicle's pose a sweep stands alone: joined
/// with the wrong motion, old points are worse than none.
pub struct Densifier {
    sweeps: usize,
    max_age: f64,
    /// Newest first.
    history: VecDeque<Sweep>,
    last: Option<Stamp>,
    joined: usize,
}

impl Densifier {
    /// Joins up to `sweeps` sweeps (the newest one included), none older than `max_age` seconds.
    pub fn new(sweeps: usize, max_age: f64) -> Self {
        Densifier {
            sweeps: sweeps.max(1),
            max_age,
            history: VecDeque::new(),
            last: None,
            joined: 0,
        }
    }

    /// Sweeps in the cloud that [`push`](Self::push) gave out last.
    pub fn joined(&self) -> usize {
        self.joined
    }

    /// Forgets all sweeps.
    pub fn reset(&mut self) {
        self.history.clear();
        self.last = None;
    }

    /// Takes in the newest sweep, in the model's frame at `stamp`, and the pose of that frame in
    /// a frame that does not move. Gives the newest sweep's points first (time lag 0), then those
    /// of the older ones, moved into the model's frame at `stamp`, their time lag in seconds.
    ///
    /// A stamp before the last one means that time was set back: all sweeps are forgotten. The
    /// same stamp again replaces the sweep.
    pub fn push(
        &mut self,
        stamp: Stamp,
        mut points: Points,
        fixed_from_model: Option<Pose>,
    ) -> Points {
        if self.last.is_some_and(|last| stamp < last) {
            self.reset();
        }
        self.last = Some(stamp);
        for point in &mut points.0 {
            point.time_lag = 0.0;
        }
        self.joined = 1;
        let Some(fixed_from_model) = fixed_from_model else {
            return points;
        };
        if self.sweeps == 1 {
            return points;
        }
        let max_age = self.max_age;
        self.history
            .retain(|sweep| sweep.stamp < stamp && stamp.seconds_since(sweep.stamp) <= max_age);
        self.history.truncate(self.sweeps - 1);

        let model_from_fixed = fixed_from_model.inverse();
        let total: usize = self.history.iter().map(|sweep| sweep.points.len()).sum();
        let mut joined = Points(Vec::with_capacity(points.len() + total));
        joined.0.extend_from_slice(&points.0);
        for sweep in &self.history {
            let start = joined.len();
            let lag = stamp.seconds_since(sweep.stamp) as f32;
            let mut older = sweep.points.clone();
            older.transform(&(model_from_fixed * sweep.fixed_from_model));
            joined.0.append(&mut older.0);
            for point in &mut joined.0[start..] {
                point.time_lag = lag;
            }
        }
        self.joined += self.history.len();
        self.history.push_front(Sweep {
            stamp,
            points,
            fixed_from_model,
        });
        joined
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cloud::Point;
    use crate::geometry::pose_from_xyz_rpy;
    use approx::assert_relative_eq;

    fn stamp(seconds: f64) -> Stamp {
        Stamp((seconds * 1e9) as i64)
    }

    /// A post that stands at (20, 5, 1) in the fixed frame, seen from a pose.
    fn post_seen_from(pose: &Pose) -> Points {
        let p = pose.inverse() * nalgebra::Point3::new(20.0, 5.0, 1.0);
        Points(vec![Point {
            x: p.x as f32,
            y: p.y as f32,
            z: p.z as f32,
            intensity: 9.0,
            ..Default::default()
        }])
    }

    fn pose(i: i32) -> Pose {
        pose_from_xyz_rpy(
            [i as f64 * 1.5, 0.1 * i as f64, 0.0],
            [0.0, 0.01, 0.05 * i as f64],
        )
    }

    #[test]
    fn what_stands_still_falls_together_and_lags_count_back_from_the_newest() {
        let mut densifier = Densifier::new(3, 1.0);
        for i in 0..5 {
            let now = post_seen_from(&pose(i));
            let points = densifier.push(stamp(0.1 * i as f64), now.clone(), Some(pose(i)));
            assert_eq!(points.len(), (i as usize + 1).min(3));
            assert_eq!(densifier.joined(), points.len());
            for (age, point) in points.iter().enumerate() {
                assert_relative_eq!(point.time_lag, 0.1 * age as f32, epsilon = 1e-6);
                assert_relative_eq!(point.x, now.0[0].x, epsilon = 1e-4);
                assert_relative_eq!(point.y, now.0[0].y, epsilon = 1e-4);
                assert_relative_eq!(point.z, now.0[0].z, epsilon = 1e-4);
                assert_eq!(point.intensity, 9.0);
            }
        }
    }

    #[test]
    fn without_a_pose_a_sweep_stands_alone() {
        let mut densifier = Densifier::new(3, 1.0);
        densifier.push(stamp(0.0), post_seen_from(&pose(0)), Some(pose(0)));
        let alone = densifier.push(stamp(0.1), post_seen_from(&pose(1)), None);
        assert_eq!(alone.len(), 1);
        let next = densifier.push(stamp(0.2), post_seen_from(&pose(2)), Some(pose(2)));
        assert_eq!(next.len(), 2, "the sweep with a pose is still there");
        assert_relative_eq!(next.0[1].time_lag, 0.2, epsilon = 1e-6);
    }

    #[test]
    fn old_sweeps_are_left_out() {
        let mut densifier = Densifier::new(3, 0.5);
        densifier.push(stamp(0.0), post_seen_from(&pose(0)), Some(pose(0)));
        assert_eq!(
            densifier
                .push(stamp(0.6), post_seen_from(&pose(0)), Some(pose(0)))
                .len(),
            1
        );
        assert_eq!(
            densifier
                .push(stamp(0.7), post_seen_from(&pose(0)), Some(pose(0)))
                .len(),
            2
        );
    }

    #[test]
    fn time_set_back_starts_over_and_a_repeated_stamp_replaces() {
        let mut densifier = Densifier::new(4, 10.0);
        let sweep = || post_seen_from(&pose(0));
        densifier.push(stamp(5.0), sweep(), Some(pose(0)));
        assert_eq!(densifier.push(stamp(5.0), sweep(), Some(pose(0))).len(), 1);
        assert_eq!(densifier.push(stamp(5.1), sweep(), Some(pose(0))).len(), 2);
        assert_eq!(densifier.push(stamp(1.0), sweep(), Some(pose(0))).len(), 1);
        assert_eq!(densifier.push(stamp(1.1), sweep(), Some(pose(0))).len(), 2);
    }

    #[test]
    fn one_sweep_is_passed_through_unchanged() {
        let mut densifier = Densifier::new(1, 1.0);
        let sweep = post_seen_from(&pose(3));
        for i in 0..3 {
            assert_eq!(
                densifier.push(stamp(i as f64), sweep.clone(), Some(pose(i))),
                sweep
            );
        }
    }
}
