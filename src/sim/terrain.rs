//! The ground: a rolling height field with roads, kerbs and markings painted on a grid.
//!
//! Pavements rise away from the road; what lies beyond them has a relief of its own, which sets in
//! with the distance from the road.

use std::f64::consts::TAU;

use rayon::prelude::*;

use super::path::{Curve, Planar};
use super::rng::Rng;

/// Kinds of ground, later ones painted over earlier ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Ground {
    Grass,
    Gravel,
    Pavement,
    Road,
    Marking,
}

impl Ground {
    pub fn reflectance(self) -> f32 {
        match self {
            Self::Grass => 0.35,
            Self::Gravel => 0.25,
            Self::Pavement => 0.25,
            Self::Road => 0.14,
            Self::Marking => 0.7,
        }
    }
}

/// One sine wave of the rolling ground.
#[derive(Debug, Clone, Copy)]
struct Wave {
    kx: f64,
    ky: f64,
    phase: f64,
    height: f64,
}

impl Wave {
    fn draw(rng: &mut Rng, length: f64, height: f64) -> Self {
        let k = TAU / length;
        let turn = rng.range64(0.0, TAU);
        Self {
            kx: k * turn.cos(),
            ky: k * turn.sin(),
            phase: rng.range64(0.0, TAU),
            height,
        }
    }
}

/// How a scene's ground departs from the road, metres.
#[derive(Debug, Clone, Copy)]
struct Surface {
    kerb: f32,
    lawn: f32,
    /// Amplitude of the roughness of grass.
    tufts: f32,
    /// Of pavements and what follows them, away from the road.
    slope: f32,
    /// Distance from the road over which the relief of open ground sets in.
    verge: f32,
    /// Of open ground, on the average.
    bank: f32,
}

impl Surface {
    fn draw(rng: &mut Rng) -> Self {
        Self {
            kerb: rng.range(0.04, 0.17),
            lawn: rng.range(0.0, 0.2),
            tufts: rng.range(0.02, 0.1),
            slope: rng.range(0.005, 0.035),
            verge: rng.range(4.0, 11.0),
            bank: 0.35 * rng.normal().clamp(-2.0, 2.0),
        }
    }

    /// Above the road next to it.
    fn rise(&self, ground: Ground) -> f32 {
        match ground {
            Ground::Grass => self.lawn,
            Ground::Gravel => 0.02,
            Ground::Pavement => self.kerb,
            Ground::Road | Ground::Marking => 0.0,
        }
    }

    fn roughness(&self, ground: Ground) -> f32 {
        match ground {
            Ground::Grass => self.tufts,
            Ground::Gravel => 0.025,
            Ground::Pavement => 0.006,
            Ground::Road | Ground::Marking => 0.004,
        }
    }
}

/// Edge of a grid cell, metres.
const CELL: f64 = 0.2;

/// Farthest distance from the road that is told apart, metres.
const AWAY: f32 = 12.0;

#[derive(Debug)]
pub(crate) struct Terrain {
    x0: f64,
    y0: f64,
    columns: usize,
    rows: usize,
    ground: Vec<Ground>,
    heights: Vec<f32>,
    waves: Vec<Wave>,
    /// Relief of open ground, over that of the road.
    banks: Vec<Wave>,
    surface: Surface,
    seed: u64,
}

impl Terrain {
    /// Grass over the rectangle, in metres.
    pub fn new(seed: u64, low: (f64, f64), high: (f64, f64)) -> Self {
        let mut rng = Rng::new(&[seed, 0x7e77]);
        // From flat to hilly; slopes of at most some 8 % in sum.
        let relief = rng.range64(0.2, 1.5);
        let waves = [(350.0, 0.026), (120.0, 0.016), (45.0, 0.009)]
            .map(|(length, slope)| {
                let length = length * rng.range64(0.8, 1.2);
                let height = slope * relief * rng.range64(0.3, 1.0) * length / TAU;
                Wave::draw(&mut rng, length, height)
            })
            .to_vec();
        let banks = [(110.0, 0.5), (24.0, 0.2), (7.0, 0.08)]
            .map(|(length, height)| {
                let (length, height) = (
                    length * rng.range64(0.6, 1.4),
                    height * rng.range64(0.1, 1.0),
                );
                Wave::draw(&mut rng, length, height)
            })
            .to_vec();
        let columns = ((high.0 - low.0) / CELL).ceil().max(2.0) as usize + 1;
        let rows = ((high.1 - low.1) / CELL).ceil().max(2.0) as usize + 1;
        Self {
            x0: low.0,
            y0: low.1,
            columns,
            rows,
            ground: vec![Ground::Grass; columns * rows],
            heights: Vec::new(),
            waves,
            banks,
            surface: Surface::draw(&mut rng),
            seed,
        }
    }

    /// Distance of each cell from the nearest road in cells, as far as it matters.
    fn distances(&self) -> Vec<u8> {
        let far = (AWAY / CELL as f32) as u8;
        let columns = self.columns;
        let mut away: Vec<u8> = self
            .ground
            .iter()
            .map(|g| if *g >= Ground::Road { 0 } else { far })
            .collect();
        // City blocks, forth and back; the detour round corners is smoothed by the verge.
        for i in 0..away.len() {
            let left = if i % columns > 0 { away[i - 1] } else { far };
            let below = if i >= columns { away[i - columns] } else { far };
            away[i] = away[i]
                .min(left.saturating_add(1))
                .min(below.saturating_add(1));
        }
        for i in (0..away.len()).rev() {
            let right = if (i + 1) % columns > 0 {
                away.get(i + 1).copied().unwrap_or(far)
            } else {
                far
            };
            let above = away.get(i + columns).copied().unwrap_or(far);
            away[i] = away[i]
                .min(right.saturating_add(1))
                .min(above.saturating_add(1));
        }
        away
    }

    fn paint_at(&mut self, at: &Planar, ground: Ground) {
        let column = ((at.x - self.x0) / CELL).round();
        let row = ((at.y - self.y0) / CELL).round();
        if column >= 0.0 && row >= 0.0 {
            let (column, row) = (column as usize, row as usize);
            if column < self.columns && row < self.rows {
                let cell = &mut self.ground[row * self.columns + column];
                *cell = (*cell).max(ground);
            }
        }
    }

    /// Paints the strip from `right` to `left` of the curve between two arc lengths.
    pub fn paint_strip(
        &mut self,
        curve: &Curve,
        along: (f64, f64),
        across: (f64, f64),
        ground: Ground,
    ) {
        // Finer than the cells: on the outside of a curve the samples spread.
        let step = CELL * 0.6;
        let steps = ((along.1 - along.0) / step).ceil().max(0.0) as usize;
        let lanes = ((across.1 - across.0) / step).ceil().max(1.0) as usize;
        for i in 0..=steps {
            let middle = curve.at(along.0 + i as f64 * step, 0.0);
            for j in 0..=lanes {
                let left = across.0 + (across.1 - across.0) * j as f64 / lanes as f64;
                self.paint_at(&middle.ahead(0.0, left, 0.0), ground);
            }
        }
    }

    /// Works the heights out; paint before.
    pub fn finish(&mut self) {
        let mut heights = vec![0f32; self.columns * self.rows];
        let (columns, seed, surface) = (self.columns, self.seed, self.surface);
        let distances = self.distances();
        heights
            .par_chunks_mut(columns)
            .enumerate()
            .for_each(|(row, line)| {
                let y = self.y0 + row as f64 * CELL;
                let mut rng = Rng::new(&[seed, 0x6e77, row as u64]);
                let grounds = &self.ground[row * columns..(row + 1) * columns];
                let away = &distances[row * columns..(row + 1) * columns];
                let add = |wave: &Wave, line: &mut [f32]| {
                    // sin(a + n b) by turning a unit vector.
                    let (mut sin, mut cos) =
                        (wave.kx * self.x0 + wave.ky * y + wave.phase).sin_cos();
                    let (turn_sin, turn_cos) = (wave.kx * CELL).sin_cos();
                    for height in line.iter_mut() {
                        *height += (wave.height * sin) as f32;
                        (sin, cos) = (
                            sin * turn_cos + cos * turn_sin,
                            cos * turn_cos - sin * turn_sin,
                        );
                    }
                };
                line.fill(surface.bank);
                for wave in &self.banks {
                    add(wave, line);
                }
                for ((height, ground), away) in line.iter_mut().zip(grounds).zip(away) {
                    let metres = f32::from(*away) * CELL as f32;
                    let share = (metres / surface.verge).min(1.0);
                    let share = if *ground <= Ground::Gravel {
                        share * share * (3.0 - 2.0 * share)
                    } else {
                        0.0
                    };
                    *height = *height * share + surface.slope * metres.min(6.0);
                }
                for wave in &self.waves {
                    add(wave, line);
                }
                let mut bits = 0u64;
                for (i, (height, ground)) in line.iter_mut().zip(grounds).enumerate() {
                    if i % 8 == 0 {
                        bits = rng.next_u64();
                    }
                    let unit = (bits & 0xff) as f32 / 255.0 - 0.5;
                    bits >>= 8;
                    *height += surface.rise(*ground) + 2.0 * surface.roughness(*ground) * unit;
                }
            });
        self.heights = heights;
    }

    /// Height of the ground; beyond the grid that of its edge.
    #[inline]
    pub fn height(&self, x: f64, y: f64) -> f32 {
        let u = ((x - self.x0) / CELL).clamp(0.0, (self.columns - 1) as f64 - 1e-6) as f32;
        let v = ((y - self.y0) / CELL).clamp(0.0, (self.rows - 1) as f64 - 1e-6) as f32;
        let (i, j) = (
            (u as usize).min(self.columns - 2),
            (v as usize).min(self.rows - 2),
        );
        let (f, g) = (u - i as f32, v - j as f32);
        let low = &self.heights[j * self.columns + i..];
        let (a, b) = (low[0], low[1]);
        let (c, d) = (low[self.columns], low[self.columns + 1]);
        let (near, far) = (a + (b - a) * f, c + (d - c) * f);
        near + (far - near) * g
    }

    pub fn ground(&self, x: f64, y: f64) -> Ground {
        let i = ((x - self.x0) / CELL)
            .round()
            .clamp(0.0, (self.columns - 1) as f64) as usize;
        let j = ((y - self.y0) / CELL)
            .round()
            .clamp(0.0, (self.rows - 1) as f64) as usize;
        self.ground[j * self.columns + i]
    }

    /// Height of the road surface without kerbs or roughness, and its slope along x and y.
    pub fn road(&self, x: f64, y: f64) -> (f64, f64, f64) {
        let mut sum = (0.0, 0.0, 0.0);
        for wave in &self.waves {
            let (sin, cos) = (wave.kx * x + wave.ky * y + wave.phase).sin_cos();
            sum.0 += wave.height * sin;
            sum.1 += wave.height * wave.kx * cos;
            sum.2 += wave.height * wave.ky * cos;
        }
        sum
    }

    /// Height at which things stand, roads without their roughness.
    pub fn standing_height(&self, x: f64, y: f64) -> f64 {
        if self.ground(x, y) >= Ground::Road {
            self.road(x, y).0
        } else {
            f64::from(self.height(x, y))
        }
    }

    #[cfg(test)]
    pub fn has(&self, ground: Ground) -> bool {
        self.ground.contains(&ground)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kerb_is_a_step_and_the_road_follows_the_rolling_ground() {
        let mut terrain = Terrain::new(4, (-40.0, -40.0), (40.0, 40.0));
        let origin = Planar {
            x: 0.0,
            y: 0.0,
            yaw: 0.3,
        };
        let curve = Curve::new(origin, -30.0, 30.0, |_| 0.0);
        terrain.paint_strip(&curve, (-20.0, 20.0), (-6.0, 6.0), Ground::Pavement);
        terrain.paint_strip(&curve, (-20.0, 20.0), (-4.0, 4.0), Ground::Road);
        terrain.finish();
        for s in [-15.0, 0.0, 12.0] {
            let (road, path) = (curve.at(s, 3.0), curve.at(s, 5.0));
            assert_eq!(terrain.ground(road.x, road.y), Ground::Road);
            assert_eq!(terrain.ground(path.x, path.y), Ground::Pavement);
            let step = |p: &Planar| f64::from(terrain.height(p.x, p.y)) - terrain.road(p.x, p.y).0;
            assert!(step(&road).abs() < 0.01);
            let kerb = step(&path);
            assert!((0.03..0.25).contains(&kerb), "{kerb}");
        }
        let mut painted = 0;
        for ground in [
            Ground::Grass,
            Ground::Gravel,
            Ground::Pavement,
            Ground::Road,
            Ground::Marking,
        ] {
            painted += usize::from(terrain.has(ground));
        }
        assert_eq!(painted, 3);
    }

    #[test]
    fn open_ground_departs_from_the_road_gradually_and_things_stand_on_it() {
        let mut departs = 0;
        for seed in 0..20 {
            let mut terrain = Terrain::new(seed, (-40.0, -40.0), (40.0, 40.0));
            let origin = Planar {
                x: 0.0,
                y: 0.0,
                yaw: 0.3,
            };
            let curve = Curve::new(origin, -60.0, 60.0, |_| 0.0);
            terrain.paint_strip(&curve, (-60.0, 60.0), (-4.0, 4.0), Ground::Road);
            terrain.finish();
            let over = |left: f64| {
                let at = curve.at(3.0, left);
                let stands = terrain.standing_height(at.x, at.y);
                assert!((stands - f64::from(terrain.height(at.x, at.y))).abs() < 0.02);
                stands - terrain.road(at.x, at.y).0
            };
            let profile: Vec<f64> = (0..50).map(|i| over(0.5 * f64::from(i))).collect();
            assert!(profile[..7].iter().all(|h| h.abs() < 0.01), "{profile:?}");
            for pair in profile[10..].windows(2) {
                assert!((pair[1] - pair[0]).abs() < 0.5, "{profile:?}");
            }
            departs += usize::from(profile[30..].iter().any(|h| h.abs() > 0.3));
        }
        assert!(departs > 8, "{departs}");
    }

    #[test]
    fn slopes_are_gentle_and_match_the_heights() {
        for seed in 0..20 {
            let terrain = Terrain::new(seed, (0.0, 0.0), (1.0, 1.0));
            for i in 0..50 {
                let (x, y) = (i as f64 * 7.3, i as f64 * -3.1);
                let (z, sx, sy) = terrain.road(x, y);
                assert!(sx.hypot(sy) < 0.08);
                let dz = terrain.road(x + 0.01, y).0 - z;
                assert!((dz / 0.01 - sx).abs() < 1e-4);
            }
        }
    }
}
