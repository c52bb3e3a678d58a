//! Curves that roads and vehicles follow, and motion along them.

use std::sync::Arc;

/// A planar position and heading in the world, metres and radians.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Planar {
    pub x: f64,
    pub y: f64,
    pub yaw: f64,
}

impl Planar {
    /// The pose this far ahead, to the left, and turned.
    pub fn ahead(&self, along: f64, left: f64, turn: f64) -> Self {
        let (sin, cos) = self.yaw.sin_cos();
        Self {
            x: self.x + along * cos - left * sin,
            y: self.y + along * sin + left * cos,
            yaw: self.yaw + turn,
        }
    }
}

/// A curve given by its heading at each arc length; straight beyond its ends.
#[derive(Debug)]
pub(crate) struct Curve {
    start: f64,
    samples: Vec<Planar>,
}

/// Spacing of the samples, metres. A chord of a 10 m circle is 3 mm off its arc.
const STEP: f64 = 0.5;

impl Curve {
    /// Starts at `origin` (its heading included) where the arc length is 0.
    pub fn new(origin: Planar, from: f64, to: f64, heading: impl Fn(f64) -> f64) -> Self {
        let back = (-from / STEP).ceil().max(0.0) as usize;
        let ahead = (to / STEP).ceil().max(1.0) as usize;
        let base = heading(0.0);
        let yaw_at = |s: f64| origin.yaw + heading(s) - base;
        let mut samples = Vec::with_capacity(back + ahead + 1);
        let mut at = origin;
        for i in 0..back {
            let middle = yaw_at(-(i as f64 + 0.5) * STEP);
            at = Planar {
                x: at.x - STEP * middle.cos(),
                y: at.y - STEP * middle.sin(),
                yaw: yaw_at(-(i as f64 + 1.0) * STEP),
            };
            samples.push(at);
        }
        samples.reverse();
        samples.push(origin);
        at = origin;
        for i in 0..ahead {
            let middle = yaw_at((i as f64 + 0.5) * STEP);
            at = Planar {
                x: at.x + STEP * middle.cos(),
                y: at.y + STEP * middle.sin(),
                yaw: yaw_at((i as f64 + 1.0) * STEP),
            };
            samples.push(at);
        }
        Self {
            start: -(back as f64) * STEP,
            samples,
        }
    }

    /// The point at arc length `s`, moved `left` across the heading.
    pub fn at(&self, s: f64, left: f64) -> Planar {
        let position = (s - self.start) / STEP;
        let last = self.samples.len() - 1;
        let on = if position <= 0.0 {
            self.samples[0].ahead(position * STEP, 0.0, 0.0)
        } else if position >= last as f64 {
            self.samples[last].ahead((position - last as f64) * STEP, 0.0, 0.0)
        } else {
            let i = (position as usize).min(last - 1);
            let (a, b, f) = (&self.samples[i], &self.samples[i + 1], position - i as f64);
            Planar {
                x: a.x + (b.x - a.x) * f,
                y: a.y + (b.y - a.y) * f,
                yaw: a.yaw + (b.yaw - a.yaw) * f,
            }
        };
        on.ahead(0.0, left, 0.0)
    }
}

/// Speed that swings about a mean, never backwards: `mean + swing * cos(rate t + phase)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Speed {
    pub mean: f64,
    pub swing: f64,
    pub rate: f64,
    pub phase: f64,
}

impl Speed {
    pub const ZERO: Self = Self::steady(0.0);

    pub const fn steady(mean: f64) -> Self {
        Self {
            mean,
            swing: 0.0,
            rate: 1.0,
            phase: 0.0,
        }
    }

    /// Metres covered after `t` seconds.
    pub fn distance(&self, t: f64) -> f64 {
        self.mean * t
            + self.swing / self.rate * ((self.rate * t + self.phase).sin() - self.phase.sin())
    }
}

/// Where something is at any time of the scene.
#[derive(Debug, Clone)]
pub(crate) enum Motion {
    Fixed(Planar),
    /// Along a curve at a lateral offset, in its direction (1) or against it (-1).
    Lane {
        curve: Arc<Curve>,
        start: f64,
        left: f64,
        direction: f64,
        speed: Speed,
    },
    /// To and fro between two points, starting `start` metres into the round trip.
    Patrol {
        from: (f64, f64),
        to: (f64, f64),
        start: f64,
        speed: f64,
    },
}

impl Motion {
    pub fn at(&self, t: f64) -> Planar {
        match self {
            Motion::Fixed(pose) => *pose,
            Motion::Lane {
                curve,
                start,
                left,
                direction,
                speed,
            } => {
                let pose = curve.at(start + direction * speed.distance(t), *left);
                let turn = if *direction < 0.0 {
                    std::f64::consts::PI
                } else {
                    0.0
                };
                pose.ahead(0.0, 0.0, turn)
            }
            Motion::Patrol {
                from,
                to,
                start,
                speed,
            } => {
                let (dx, dy) = (to.0 - from.0, to.1 - from.1);
                let length = dx.hypot(dy);
                let trip = (start + speed * t).rem_euclid(2.0 * length);
                let yaw = dy.atan2(dx);
                let (done, yaw) = if trip <= length {
                    (trip, yaw)
                } else {
                    (2.0 * length - trip, yaw + std::f64::consts::PI)
                };
                Planar {
                    x: from.0 + dx * done / length,
                    y: from.1 + dy * done / length,
                    yaw,
                }
            }
        }
    }

    /// Velocity over ground in the world, m/s.
    pub fn velocity(&self, t: f64) -> (f64, f64) {
        match self {
            Motion::Fixed(_) => (0.0, 0.0),
            Motion::Patrol { speed, .. } => {
                let yaw = self.at(t).yaw;
                (speed * yaw.cos(), speed * yaw.sin())
            }
            Motion::Lane { .. } => {
                // Central difference: short against any curve, long against round-off.
                const H: f64 = 0.01;
                let (a, b) = (self.at(t - H), self.at(t + H));
                ((b.x - a.x) / (2.0 * H), (b.y - a.y) / (2.0 * H))
            }
        }
    }

    pub fn is_fixed(&self) -> bool {
        match self {
            Motion::Fixed(_) => true,
            Motion::Lane { speed, .. } => *speed == Speed::ZERO,
            Motion::Patrol { .. } => false,
        }
    }
}

/// A rectangle on the ground that something takes up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Footprint {
    pub pose: Planar,
    pub half_length: f64,
    pub half_width: f64,
}

impl Footprint {
    pub fn new(pose: Planar, length: f64, width: f64, margin: f64) -> Self {
        Self {
            pose,
            half_length: length / 2.0 + margin,
            half_width: width / 2.0 + margin,
        }
    }

    pub fn radius(&self) -> f64 {
        self.half_length.hypot(self.half_width)
    }

    pub fn overlaps(&self, other: &Self) -> bool {
        let (dx, dy) = (other.pose.x - self.pose.x, other.pose.y - self.pose.y);
        let reach = self.radius() + other.radius();
        if dx * dx + dy * dy > reach * reach {
            return false;
        }
        // Separating axis: both directions of both rectangles.
        let turn = other.pose.yaw - self.pose.yaw;
        let (sin, cos) = (turn.sin().abs(), turn.cos().abs());
        let apart = |a: &Self, b: &Self| {
            let (s, c) = a.pose.yaw.sin_cos();
            let (along, across) = ((dx * c + dy * s).abs(), (dy * c - dx * s).abs());
            along > a.half_length + b.half_length * cos + b.half_width * sin
                || across > a.half_width + b.half_length * sin + b.half_width * cos
        };
        !(apart(self, other) || apart(other, self))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_relative_eq;
    use std::f64::consts::{FRAC_PI_2, FRAC_PI_4};

    const ORIGIN: Planar = Planar {
        x: 0.0,
        y: 0.0,
        yaw: 0.0,
    };

    #[test]
    fn a_constant_turn_gives_a_circle() {
        let curve = Curve::new(ORIGIN, -10.0, 50.0, |s| s / 10.0);
        let quarter = curve.at(10.0 * FRAC_PI_2, 0.0);
        assert_relative_eq!(quarter.x, 10.0, epsilon = 0.01);
        assert_relative_eq!(quarter.y, 10.0, epsilon = 0.01);
        assert_relative_eq!(quarter.yaw, FRAC_PI_2, epsilon = 1e-6);
        let centre = curve.at(3.0, 10.0);
        assert_relative_eq!(centre.x, 0.0, epsilon = 0.02);
        assert_relative_eq!(centre.y, 10.0, epsilon = 0.02);
        assert!(curve.at(-5.0, 0.0).x < -4.5);
        // Straight beyond the end.
        let (a, b) = (curve.at(60.0, 0.0), curve.at(70.0, 0.0));
        assert_relative_eq!((b.x - a.x).hypot(b.y - a.y), 10.0, epsilon = 1e-6);
    }

    #[test]
    fn velocity_is_the_rate_of_the_position() {
        let curve = Arc::new(Curve::new(ORIGIN, -50.0, 200.0, |s| 0.4 * (s / 20.0).sin()));
        let speed = Speed {
            mean: 8.0,
            swing: 2.0,
            rate: 0.7,
            phase: 1.0,
        };
        for motion in [
            Motion::Lane {
                curve,
                start: 3.0,
                left: 2.0,
                direction: 1.0,
                speed,
            },
            Motion::Patrol {
                from: (0.0, 0.0),
                to: (30.0, 10.0),
                start: 2.0,
                speed: 1.4,
            },
        ] {
            for i in 0..20 {
                let t = i as f64 * 0.37;
                let (a, b) = (motion.at(t - 0.05), motion.at(t + 0.05));
                let (vx, vy) = motion.velocity(t);
                assert_relative_eq!(vx, (b.x - a.x) / 0.1, epsilon = 0.05);
                assert_relative_eq!(vy, (b.y - a.y) / 0.1, epsilon = 0.05);
            }
        }
    }

    #[test]
    fn footprints_overlap_only_where_they_share_ground() {
        let at = |x: f64, y: f64, yaw: f64| Footprint::new(Planar { x, y, yaw }, 4.0, 2.0, 0.0);
        assert!(at(0.0, 0.0, 0.0).overlaps(&at(3.9, 1.9, 0.0)));
        assert!(!at(0.0, 0.0, 0.0).overlaps(&at(4.1, 0.0, 0.0)));
        assert!(!at(0.0, 0.0, 0.0).overlaps(&at(0.0, 2.1, 0.0)));
        // Within the sum of the radii, apart for the turned axis only.
        assert!(!at(0.0, 0.0, 0.0).overlaps(&at(3.4, 2.5, FRAC_PI_4)));
        assert!(at(0.0, 0.0, 0.0).overlaps(&at(2.4, 1.5, FRAC_PI_4)));
    }

    #[test]
    fn walkers_turn_around_at_the_ends() {
        let walk = Motion::Patrol {
            from: (0.0, 0.0),
            to: (10.0, 0.0),
            start: 0.0,
            speed: 1.0,
        };
        assert_relative_eq!(walk.at(4.0).x, 4.0);
        assert_relative_eq!(walk.at(12.0).x, 8.0);
        assert!(walk.velocity(12.0).0 < 0.0);
    }
}
