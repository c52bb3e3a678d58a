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

/// Which sweeps are joined.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SweepSettings {
    /// Sweeps in a joined cloud, the newest one included.
    pub count: usize,
    /// Seconds between two of them that the model was trained with.
    pub period: f64,
    /// Sweeps older than this are never joined, seconds.
    pub max_age: f64,
}

impl SweepSettings {
    /// How far a sweep's age may be from the one that the model was trained with to count as that
    /// one, in periods.
    const TOLERANCE: f64 = 0.25;

    /// Age of the `index`-th older sweep, seconds; the first one's index is 0.
    fn target(&self, index: usize) -> f64 {
        (index + 1) as f64 * self.period
    }

    /// No sweep is joined that is older than the oldest one that the model was trained with and a
    /// period more: a sweep may have been lost.
    fn horizon(&self) -> f64 {
        self.target(self.count.saturating_sub(1)).min(self.max_age)
    }

    /// Whether an age is about the one that the model was trained with.
    fn fits(&self, index: usize, age: f64) -> bool {
        (age - self.target(index)).abs() <= Self::TOLERANCE * self.period
    }
}

/// How a cloud was joined.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Joined {
    /// Ages of the older sweeps in it, seconds, growing.
    pub ages: Vec<f64>,
    /// Sweeps are missing although there was time for them.
    pub is_short: bool,
    /// An older sweep is not of the age that the model was trained with.
    pub is_off_period: bool,
}

impl Joined {
    /// Sweeps in the cloud.
    pub fn sweeps(&self) -> usize {
        self.ages.len() + 1
    }
}

/// Keeps the last sweeps of one sensor and joins them. Without the vehicle's pose a sweep stands
/// alone: joined with the wrong motion, old points are worse than none.
pub struct Densifier {
    settings: SweepSettings,
    /// Newest first.
    history: VecDeque<Sweep>,
    /// Stamp of the first sweep since the last [`reset`](Self::reset) or the last pause.
    first: Option<Stamp>,
    last: Option<Stamp>,
    /// The last sweep was the first one, or came after a pause.
    after_pause: bool,
}

impl Densifier {
    /// Sweeps kept for each one that is joined: enough for a sensor of that many times the rate.
    const KEPT: usize = 16;

    pub fn new(settings: SweepSettings) -> Self {
        Densifier {
            settings,
            history: VecDeque::new(),
            first: None,
            last: None,
            after_pause: true,
        }
    }

    /// Forgets all sweeps.
    pub fn reset(&mut self) {
        self.history.clear();
        self.first = None;
        self.last = None;
        self.after_pause = true;
    }

    /// Takes in the newest sweep, in the model's frame at `stamp`, and the pose of that frame in
    /// a frame that does not move. Gives the newest sweep's points first (time lag 0), then those
    /// of the older ones, moved into the model's frame at `stamp`, their time lag in seconds.
    ///
    /// The older sweeps are those whose ages come nearest to the ones that the model was trained
    /// with; of a sensor at twice the rate it is every other one. Where there are too few of them,
    /// others that are not too old stand in.
    ///
    /// A stamp before the last one means that time was set back: all sweeps are forgotten. The
    /// same stamp again replaces the sweep.
    pub fn push(
        &mut self,
        stamp: Stamp,
        mut points: Points,
        fixed_from_model: Option<Pose>,
    ) -> (Points, Joined) {
        if self.last.is_some_and(|last| stamp < last) {
            self.reset();
        }
        let settings = self.settings;
        // Half a tolerance more than the horizon, so that a sweep of just that age is there.
        let slack = 0.5 * SweepSettings::TOLERANCE * settings.period;
        let horizon = settings.horizon();
        // Behind a pause all begins anew; a sensor that pauses after every sweep is too slow.
        if let Some(last) = self.last.replace(stamp) {
            let pauses = stamp.seconds_since(last) > horizon + slack;
            if pauses && !self.after_pause {
                self.first = None;
            }
            self.after_pause = pauses;
        }
        let first = *self.first.get_or_insert(stamp);
        for point in &mut points.0 {
            point.time_lag = 0.0;
        }
        let older = settings.count.saturating_sub(1);
        if older == 0 {
            return (points, Joined::default());
        }
        let Some(fixed_from_model) = fixed_from_model else {
            return (points, Joined::default());
        };
        self.history.retain(|sweep| {
            sweep.stamp < stamp && stamp.seconds_since(sweep.stamp) <= horizon + slack
        });
        self.history.truncate(older * Self::KEPT);

        let chosen = self.choose(stamp);
        let model_from_fixed = fixed_from_model.inverse();
        let total: usize = chosen.iter().map(|&i| self.history[i].points.len()).sum();
        let mut joined = Points(Vec::with_capacity(points.len() + total));
        joined.0.extend_from_slice(&points.0);
        let mut ages = Vec::with_capacity(chosen.len());
        for &index in &chosen {
            let sweep = &self.history[index];
            let start = joined.len();
            let age = stamp.seconds_since(sweep.stamp);
            let mut older = sweep.points.clone();
            older.transform(&(model_from_fixed * sweep.fixed_from_model));
            joined.0.append(&mut older.0);
            for point in &mut joined.0[start..] {
                point.time_lag = age as f32;
            }
            ages.push(age);
        }
        // Sweeps of the time before the first one cannot be there.
        let running = stamp.seconds_since(first) + slack;
        let due = (0..older).filter(|&i| settings.target(i) <= running);
        let is_short = ages.len() < due.count();
        let is_off_period = ages.iter().enumerate().any(|(i, &age)| {
            // Where one is missing, the next one is in its place.
            (i..older).all(|i| !settings.fits(i, age))
        });
        self.history.push_front(Sweep {
            stamp,
            points,
            fixed_from_model,
        });
        let joint = Joined {
            ages,
            is_short,
            is_off_period,
        };
        (joined, joint)
    }

    /// Indices into the history of the sweeps to join, newest first.
    fn choose(&self, stamp: Stamp) -> Vec<usize> {
        /// In periods; below a half, so that a sweep between two of them is neither.
        const NEAR: f64 = 0.45;
        let settings = self.settings;
        let older = settings.count.saturating_sub(1);
        let age = |index: usize| stamp.seconds_since(self.history[index].stamp);
        let mut chosen: Vec<usize> = Vec::with_capacity(older);
        for target in (0..older).map(|i| settings.target(i)) {
            let off = |index: &usize| (age(*index) - target).abs();
            let nearest = (0..self.history.len())
                .filter(|index| !chosen.contains(index))
                .min_by(|a, b| off(a).total_cmp(&off(b)));
            if let Some(index) = nearest
                && off(&index) < NEAR * settings.period
            {
                chosen.push(index);
            }
        }
        // One that is not of the right age tells more about motion than none, unless it is one of
        // those that a faster sensor takes between two.
        let spare =
            (0..self.history.len()).filter(|&index| age(index) > (1.0 - NEAR) * settings.period);
        let missing = older - chosen.len();
        let spare: Vec<usize> = spare
            .filter(|i| !chosen.contains(i))
            .take(missing)
            .collect();
        chosen.extend(spare);
        chosen.sort_unstable();
        chosen
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

    fn densifier(count: usize) -> Densifier {
        Densifier::new(SweepSettings {
            count,
            period: 0.1,
            max_age: 1.0,
        })
    }

    /// What is joined to the last of sweeps at these times, from a vehicle that stands.
    fn joined(count: usize, times: impl IntoIterator<Item = f64>) -> Joined {
        let mut densifier = densifier(count);
        let sweep = post_seen_from(&pose(0));
        let joined = times.into_iter().map(|time| {
            let (points, joined) = densifier.push(stamp(time), sweep.clone(), Some(pose(0)));
            assert_eq!(points.len(), joined.sweeps());
            joined
        });
        joined.last().unwrap()
    }

    fn assert_ages(joined: &Joined, ages: &[f64]) {
        assert_eq!(joined.ages.len(), ages.len(), "{joined:?}");
        for (age, expected) in joined.ages.iter().zip(ages) {
            assert_relative_eq!(*age, *expected, epsilon = 1e-6);
        }
    }

    #[test]
    fn what_stands_still_falls_together_and_lags_count_back_from_the_newest() {
        let mut densifier = densifier(3);
        for i in 0..5 {
            let now = post_seen_from(&pose(i));
            let (points, joined) =
                densifier.push(stamp(0.1 * i as f64), now.clone(), Some(pose(i)));
            assert_eq!(points.len(), (i as usize + 1).min(3));
            assert_eq!(joined.sweeps(), points.len());
            assert!(!joined.is_short && !joined.is_off_period);
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
    fn of_a_faster_sensor_the_sweeps_of_the_models_period_are_joined() {
        let at = |hertz: f64, count: i32| (0..count).map(move |i| f64::from(i) / hertz);
        assert_ages(&joined(2, at(20.0, 9)), &[0.1]);
        assert_ages(&joined(3, at(20.0, 9)), &[0.1, 0.2]);
        assert_ages(&joined(3, at(50.0, 40)), &[0.1, 0.2]);
        // Before one of the right age is there, none is.
        assert_ages(&joined(2, at(20.0, 2)), &[]);
        assert!(!joined(2, at(20.0, 2)).is_short);
        for rate in [10.0, 20.0, 40.0] {
            let last = joined(4, at(rate, 50));
            assert!(!last.is_off_period && !last.is_short, "{rate} Hz: {last:?}");
        }
    }

    #[test]
    fn a_rate_that_does_not_fit_is_said() {
        let at = |hertz: f64, count: i32| (0..count).map(move |i| f64::from(i) / hertz);
        let fourteen = joined(2, at(14.0, 9));
        assert_ages(&fourteen, &[1.0 / 14.0]);
        assert!(fourteen.is_off_period);
        let five = joined(2, at(5.0, 9));
        assert_ages(&five, &[0.2]);
        assert!(five.is_off_period);
        // The next one would be older than any that the model has seen.
        let two = joined(2, at(2.0, 9));
        assert_ages(&two, &[]);
        assert!(two.is_short);
    }

    #[test]
    fn a_lost_sweep_is_made_up_for_by_the_one_before_and_said() {
        let last = joined(3, [0.0, 0.1, 0.2, 0.3, 0.5]);
        assert_ages(&last, &[0.2, 0.3]);
        assert!(!last.is_short && last.is_off_period);
        let last = joined(3, [0.0, 0.2]);
        assert_ages(&last, &[0.2]);
        assert!(last.is_short && !last.is_off_period);
    }

    #[test]
    fn behind_a_pause_all_begins_anew() {
        let scenes = |n: usize| [0.0, 0.1, 0.2, 9.0, 9.1, 9.2, 20.0].into_iter().take(n);
        assert!((1..=7).all(|n| !joined(2, scenes(n)).is_short));
        assert_ages(&joined(2, scenes(4)), &[]);
        // One sweep every other second is no pause.
        assert!(joined(2, [0.0, 2.0]).is_short);
    }

    #[test]
    fn without_a_pose_a_sweep_stands_alone() {
        let mut densifier = densifier(3);
        densifier.push(stamp(0.0), post_seen_from(&pose(0)), Some(pose(0)));
        let (alone, joined) = densifier.push(stamp(0.1), post_seen_from(&pose(1)), None);
        assert_eq!((alone.len(), joined.sweeps()), (1, 1));
        let (next, joined) = densifier.push(stamp(0.2), post_seen_from(&pose(2)), Some(pose(2)));
        assert_eq!(next.len(), 2, "the sweep with a pose is still there");
        assert_relative_eq!(next.0[1].time_lag, 0.2, epsilon = 1e-6);
        assert!(joined.is_short);
    }

    #[test]
    fn time_set_back_starts_over_and_a_repeated_stamp_replaces() {
        assert_ages(&joined(4, [5.0, 5.0]), &[]);
        assert_ages(&joined(4, [5.0, 5.0, 5.1]), &[0.1]);
        assert_ages(&joined(4, [5.0, 5.1, 1.0]), &[]);
        assert_ages(&joined(4, [5.0, 5.1, 1.0, 1.1]), &[0.1]);
    }

    #[test]
    fn one_sweep_is_passed_through_unchanged() {
        let mut densifier = densifier(1);
        let sweep = post_seen_from(&pose(3));
        for i in 0..3 {
            let (points, joined) = densifier.push(stamp(i as f64), sweep.clone(), Some(pose(i)));
            assert_eq!(points, sweep);
            assert_eq!(joined, Joined::default());
        }
    }

    #[test]
    fn what_is_kept_is_bounded_whatever_the_rate() {
        let mut densifier = densifier(2);
        for i in 0..2000 {
            densifier.push(stamp(f64::from(i) * 1e-4), Points::default(), Some(pose(0)));
        }
        assert!(densifier.history.len() <= Densifier::KEPT + 1);
    }
}
