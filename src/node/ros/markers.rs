//! Detections as markers: what RViz, Foxglove and Lichtblick draw without a plug-in.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use nalgebra::{Point3, Vector3};
use r2r::std_msgs::msg::ColorRGBA;
use r2r::visualization_msgs::msg::{Marker, MarkerArray};

use super::messages;
use crate::node::{Object, Output};

/// Colours that stay apart from each other and from grey clouds; a class keeps its own.
const COLOURS: [[f32; 3]; 8] = [
    [0.16, 0.68, 0.98],
    [0.98, 0.62, 0.12],
    [0.93, 0.87, 0.22],
    [0.36, 0.86, 0.44],
    [0.97, 0.32, 0.52],
    [0.72, 0.48, 0.98],
    [0.24, 0.88, 0.82],
    [0.86, 0.86, 0.86],
];
const LINE_WIDTH: f64 = 0.08;
const TEXT_HEIGHT: f64 = 0.6;
/// Length of a velocity arrow: the way covered in this many seconds.
const VELOCITY_SECONDS: f64 = 1.0;
/// Below this speed (m/s) an arrow would only show noise.
const MIN_SPEED: f64 = 0.5;

/// What the time between clouds is taken as before there were two.
const FIRST_PERIOD: Duration = Duration::from_millis(100);
/// How much longer than until the next cloud markers stay.
const GRACE: Duration = Duration::from_millis(500);
/// Times between clouds that are remembered.
const PERIODS: usize = 9;

/// How long markers stay: a little longer than until the next cloud.
#[derive(Default)]
pub struct Lifetime {
    last: Option<Instant>,
    periods: VecDeque<Duration>,
}

impl Lifetime {
    /// Counts a cloud whose markers are published now. What is `given` is taken; a lifetime of zero is without end.
    pub fn of(&mut self, now: Instant, given: Option<f64>) -> Duration {
        if let Some(last) = self.last.replace(now) {
            if self.periods.len() == PERIODS {
                self.periods.pop_front();
            }
            self.periods.push_back(now.saturating_duration_since(last));
        }
        match given {
            Some(seconds) => Duration::try_from_secs_f64(seconds).unwrap_or_default(),
            None => self.period() + GRACE,
        }
    }

    /// The median, which a pause of the sensor does not change.
    fn period(&self) -> Duration {
        let mut sorted: Vec<_> = self.periods.iter().copied().collect();
        sorted.sort();
        sorted
            .get(sorted.len() / 2)
            .copied()
            .unwrap_or(FIRST_PERIOD)
    }
}

/// One array that replaces everything drawn before: outline, heading, label and velocity of each
/// object, in the cloud's frame. They go by themselves after `lifetime`, so that none stay when clouds cease.
pub fn markers(output: &Output, lifetime: Duration) -> MarkerArray {
    let mut markers = vec![Marker {
        header: messages::header(&output.header),
        action: Marker::DELETEALL as i32,
        ..Default::default()
    }];
    for (id, object) in output.objects.iter().enumerate() {
        let id = id as i32;
        let colour = COLOURS[object.class % COLOURS.len()];
        let base = |ns: &str, kind: i32, alpha: f32| Marker {
            header: messages::header(&output.header),
            ns: ns.into(),
            id,
            type_: kind,
            action: Marker::ADD as i32,
            pose: messages::pose(&object.pose),
            color: rgba(colour, alpha),
            lifetime: r2r::builtin_interfaces::msg::Duration {
                sec: lifetime.as_secs() as i32,
                nanosec: lifetime.subsec_nanos(),
            },
            ..Default::default()
        };
        markers.push(Marker {
            scale: messages::vector(Vector3::new(LINE_WIDTH, 0.0, 0.0)),
            points: outline(&object.size).map(messages::point).into(),
            ..base("box", Marker::LINE_LIST as i32, 0.9)
        });
        markers.push(Marker {
            // Shaft diameter, head diameter, head length.
            scale: messages::vector(Vector3::new(LINE_WIDTH, 3.0 * LINE_WIDTH, 3.0 * LINE_WIDTH)),
            points: [0.0, object.size.x / 2.0 + 0.6]
                .map(|x| messages::point(Vector3::new(x, 0.0, 0.0)))
                .into(),
            ..base("heading", Marker::ARROW as i32, 0.9)
        });
        markers.push(Marker {
            pose: messages::pose(&above(object)),
            scale: messages::vector(Vector3::new(0.0, 0.0, TEXT_HEIGHT)),
            text: format!("{} {:.2}", output.class_name(object.class), object.score),
            ..base("label", Marker::TEXT_VIEW_FACING as i32, 1.0)
        });
        if let Some(velocity) = object.velocity.filter(|v| v.norm() >= MIN_SPEED) {
            let start = object.pose.translation.vector;
            markers.push(Marker {
                pose: messages::pose(&nalgebra::Isometry3::identity()),
                scale: messages::vector(Vector3::new(0.15, 0.35, 0.4)),
                points: [start, start + velocity * VELOCITY_SECONDS]
                    .map(messages::point)
                    .into(),
                color: rgba([1.0, 1.0, 1.0], 0.8),
                ..base("velocity", Marker::ARROW as i32, 0.8)
            });
        }
    }
    MarkerArray { markers }
}

fn rgba([r, g, b]: [f32; 3], a: f32) -> ColorRGBA {
    ColorRGBA { r, g, b, a }
}

/// A pose above the top of the box, whatever way the cloud's frame is tilted.
fn above(object: &Object) -> nalgebra::Isometry3<f64> {
    let top = object.pose * Point3::new(0.0, 0.0, object.size.z / 2.0 + TEXT_HEIGHT);
    nalgebra::Isometry3::from_parts(top.coords.into(), object.pose.rotation)
}

/// The twelve edges of a box about the origin, as pairs of points.
fn outline(size: &Vector3<f64>) -> [Vector3<f64>; 24] {
    let mut points = [Vector3::zeros(); 24];
    let mut at = 0;
    for corner in 0..8_usize {
        for axis in 0..3 {
            // Each edge once, from its lower corner along its axis.
            if corner >> axis & 1 == 0 {
                for end in [corner, corner | 1 << axis] {
                    points[at] = Vector3::from_fn(|i, _| {
                        size[i] * if end >> i & 1 == 1 { 0.5 } else { -0.5 }
                    });
                    at += 1;
                }
            }
        }
    }
    points
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_stay_half_a_second_longer_than_until_the_next_cloud() {
        let start = Instant::now();
        let mut lifetime = Lifetime::default();
        let mut at = |ms: u64, given| lifetime.of(start + Duration::from_millis(ms), given);
        assert_eq!(at(0, None), Duration::from_millis(600));
        for i in 1..10 {
            assert_eq!(at(200 * i, None), Duration::from_millis(700));
        }
        // A pause is no period.
        assert_eq!(at(60_000, None), Duration::from_millis(700));
        assert_eq!(at(60_200, Some(0.25)), Duration::from_millis(250));
        assert_eq!(at(60_400, Some(0.0)), Duration::ZERO);
        for i in 1..10 {
            at(60_400 + 2000 * i, None);
        }
        assert_eq!(at(80_400, None), Duration::from_millis(2500));
    }

    #[test]
    fn an_outline_has_four_edges_of_each_extent() {
        let size = Vector3::new(4.0, 2.0, 1.5);
        let points = outline(&size);
        for axis in 0..3 {
            let edges = points
                .chunks(2)
                .filter(|pair| (pair[1] - pair[0])[axis].abs() > 0.0)
                .inspect(|pair| assert_eq!((pair[1] - pair[0]).norm(), size[axis]));
            assert_eq!(edges.count(), 4);
        }
    }
}
