//! The spinning sensor: beams, azimuth steps, noise.

use serde::{Deserialize, Serialize};

use super::SimError;
use super::rng::Rng;

/// A spinning LiDAR. One sweep is `elevations.len()` beams at each of `azimuth_steps` columns.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sensor {
    pub name: String,
    /// Beam elevations in degrees above the sensor's horizon, ascending; the index is the ring.
    pub elevations: Vec<f32>,
    /// Columns of one turn.
    pub azimuth_steps: usize,
    /// Metres; nearer returns are not reported.
    pub min_range: f32,
    /// Metres; farther returns are not reported.
    pub max_range: f32,
    /// Standard deviation of the range, metres.
    pub range_noise: f32,
    /// Share of the returns lost at random, besides those too weak to be detected.
    pub dropout: f32,
    /// Metres at which a surface of 10 % reflectance, met head on, is just detected.
    pub reach: f32,
    /// Share of the rays that report a range where nothing is.
    pub spurious: f32,
}

/// Evenly spaced values from `low` to `high`, both included.
fn even(count: usize, low: f32, high: f32) -> impl Iterator<Item = f32> {
    (0..count).map(move |i| low + (high - low) * i as f32 / (count - 1) as f32)
}

/// Beams of a VLP-32C: dense around the horizon.
const VLP32C: [f32; 32] = [
    -25.0, -15.639, -11.31, -8.843, -7.254, -6.148, -5.333, -4.667, -4.0, -3.667, -3.333, -3.0,
    -2.667, -2.333, -2.0, -1.667, -1.333, -1.0, -0.667, -0.333, 0.0, 0.333, 0.667, 1.0, 1.333,
    1.667, 2.333, 3.333, 4.667, 7.0, 10.333, 15.0,
];

impl Sensor {
    /// Names of the presets, in the order in which `mixed` cycles through them.
    pub const PRESETS: [&'static str; 10] = [
        "hdl32", "os64", "vlp16", "hdl64", "dual64", "os128", "pandar64", "os32", "vls128", "vlp32",
    ];

    /// A preset by name. Beam tables follow the data sheets; the non-uniform ones approximately.
    pub fn preset(name: &str) -> Result<Self, SimError> {
        // (elevations, columns, maximal range, range noise, reach)
        let (elevations, steps, max_range, noise, reach): (Vec<f32>, _, _, _, _) = match name {
            "vlp16" => (even(16, -15.0, 15.0).collect(), 1800, 100.0, 0.02, 60.0),
            "vlp32" => (VLP32C.to_vec(), 1800, 120.0, 0.02, 70.0),
            // Two of them, one upside down and a little tilted, taken as one.
            "dual64" => {
                let mut both: Vec<f32> = VLP32C.iter().flat_map(|e| [*e, 0.12 - *e]).collect();
                both.sort_by(f32::total_cmp);
                (both, 1800, 120.0, 0.02, 70.0)
            }
            "hdl32" => (even(32, -30.67, 10.67).collect(), 1084, 100.0, 0.02, 60.0),
            "hdl64" => (
                even(32, -24.8, -8.83).chain(even(32, -8.33, 2.0)).collect(),
                2048,
                120.0,
                0.02,
                70.0,
            ),
            "os32" => (even(32, -22.5, 22.5).collect(), 1024, 110.0, 0.02, 60.0),
            "os64" => (even(64, -22.5, 22.5).collect(), 1024, 120.0, 0.02, 70.0),
            "os128" => (even(128, -22.5, 22.5).collect(), 1024, 120.0, 0.02, 70.0),
            "pandar64" => (
                // Dense around the horizon, sparse above and below.
                even(5, -25.0, -15.0)
                    .chain(even(8, -14.0, -7.0))
                    .chain(even(46, -6.0, 1.5))
                    .chain(even(5, 3.0, 15.0))
                    .collect(),
                1800,
                120.0,
                0.02,
                90.0,
            ),
            "vls128" => (
                even(16, -25.0, -9.0)
                    .chain(even(96, -8.5, 4.0))
                    .chain(even(16, 4.5, 15.0))
                    .collect(),
                1800,
                120.0,
                0.015,
                110.0,
            ),
            _ => {
                return Err(SimError::UnknownSensor {
                    name: name.to_owned(),
                });
            }
        };
        Ok(Self {
            name: name.to_owned(),
            elevations,
            azimuth_steps: steps,
            min_range: 0.8,
            max_range,
            range_noise: noise,
            dropout: 0.01,
            reach,
            spurious: 5e-5,
        })
    }

    /// One unit of the type: no two are calibrated, mounted behind glass or worn alike. Beams are
    /// off by some hundredths of a degree; reach, noise and losses vary, the last two only where
    /// nobody set them to other values than the type's.
    pub(crate) fn unit(&self, rng: &mut Rng) -> Self {
        let mut unit = self.clone();
        let spread = rng.range(0.0, 0.06);
        for elevation in &mut unit.elevations {
            *elevation += spread * rng.normal().clamp(-2.0, 2.0);
        }
        unit.elevations.sort_by(f32::total_cmp);
        unit.reach *= rng.range(0.7, 1.3);
        let (noise, dropout) = (rng.range(0.7, 1.3), rng.range(0.0, 1.0).powi(2));
        if let Ok(kind) = Self::preset(&self.name) {
            if self.range_noise == kind.range_noise {
                unit.range_noise *= noise;
            }
            if self.dropout == kind.dropout {
                // Mostly a percent or two, up to 12 %.
                unit.dropout = 0.004 + 0.12 * dropout;
            }
        }
        unit
    }

    pub fn beams(&self) -> usize {
        self.elevations.len()
    }

    /// Refuses values that make no sensor.
    pub fn check(&self) -> Result<(), SimError> {
        let refuse = |what: String| {
            Err(SimError::BadSensor {
                name: self.name.clone(),
                what,
            })
        };
        if self.elevations.is_empty() || self.elevations.len() > 512 {
            return refuse(format!("{} beams; 1 to 512 are possible", self.beams()));
        }
        if self.elevations.iter().any(|e| !(-80.0..=80.0).contains(e))
            || !self.elevations.is_sorted()
        {
            return refuse("elevations must ascend within -80 to 80 degrees".into());
        }
        if !(8..=20_000).contains(&self.azimuth_steps) {
            return refuse(format!(
                "{} azimuth steps; 8 to 20000 are possible",
                self.azimuth_steps
            ));
        }
        if !(self.min_range > 0.0 && self.max_range > self.min_range && self.max_range <= 500.0) {
            return refuse(format!(
                "range {} to {} m; needs 0 < min < max <= 500",
                self.min_range, self.max_range
            ));
        }
        if !(0.0..=1.0).contains(&self.range_noise) {
            return refuse(format!(
                "range noise {} m; 0 to 1 is possible",
                self.range_noise
            ));
        }
        for (what, share) in [("drop-out", self.dropout), ("spurious", self.spurious)] {
            if !(0.0..=1.0).contains(&share) {
                return refuse(format!("{what} {share}; it is a share from 0 to 1"));
            }
        }
        if !(self.reach > 0.0 && self.reach.is_finite()) {
            return refuse(format!("reach {} m; needs a positive range", self.reach));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_preset_has_the_beams_its_name_says_and_passes_the_check() {
        for name in Sensor::PRESETS {
            let sensor = Sensor::preset(name).unwrap();
            sensor.check().unwrap();
            let digits: String = name.chars().filter(char::is_ascii_digit).collect();
            assert_eq!(sensor.beams().to_string(), digits, "{name}");
        }
    }

    #[test]
    fn units_of_a_type_differ_and_pass_the_check() {
        for name in Sensor::PRESETS {
            let sensor = Sensor::preset(name).unwrap();
            let [one, two] = [1, 2].map(|seed| sensor.unit(&mut Rng::new(&[seed])));
            one.check().unwrap();
            assert_ne!(one, two);
            assert_eq!(one.beams(), sensor.beams());
            for (a, b) in one.elevations.iter().zip(&sensor.elevations) {
                assert!((a - b).abs() < 0.2, "{name} {a} {b}");
            }
        }
        let mut set = Sensor::preset("os64").unwrap();
        set.range_noise = 0.03;
        set.dropout = 0.0;
        let unit = set.unit(&mut Rng::new(&[3]));
        assert_eq!((unit.range_noise, unit.dropout), (0.03, 0.0));
    }

    #[test]
    fn senseless_sensors_are_refused() {
        let good = Sensor::preset("os64").unwrap();
        for spoil in [
            (|s: &mut Sensor| s.elevations.clear()) as fn(&mut Sensor),
            |s| s.elevations.reverse(),
            |s| s.azimuth_steps = 0,
            |s| s.max_range = f32::NAN,
            |s| s.range_noise = -0.1,
            |s| s.dropout = 1.5,
            |s| s.reach = 0.0,
        ] {
            let mut sensor = good.clone();
            spoil(&mut sensor);
            assert!(sensor.check().is_err(), "{sensor:?}");
        }
        assert!(Sensor::preset("os65").is_err());
    }
}
