//! The ground: a gently rolling height field with roads, kerbs and markings painted on a grid.

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
    /// Height above the road, metres; the step is the kerb.
    fn rise(self) -> f32 {
        match self {
            Self::Grass => 0.1,
            Self::Gravel => 0.02,
            Self::Pavement => 0.13,
            Self::Road | Self::Marking => 0.0,
        }
    }

    /// Amplitude of the roughness, metres.
    fn roughness(self) -> f32 {
        match self {
            Self::Grass => 0.05,
            Self::Gravel => 0.02,
            Self::Pavement => 0.004,
            Self::Road | Self::Marking => 0.003,
        }
    }

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

/// Edge of a grid cell, metres.
const CELL: f64 = 0.2;

#[derive(Debug)]
pub(crate) struct Terrain {
    x0: f64,
    y0: f64,
    columns: usize,
    rows: usize,
    ground: Vec<Ground>,
    heights: Vec<f32>,
    waves: Vec<Wave>,
    seed: u64,
}

impl Terrain {
    /// Grass over the rectangle, in metres.
    pub fn new(seed: u64, low: (f64, f64), high: (f64, f64)) -> Self {
        let mut rng = Rng::new(&[seed, 0x7e77]);
        let mut waves = Vec::new();
        // From flat to hilly; slopes of at most some 5 % in sum.
        let relief = rng.range64(0.1, 1.0);
        for (length, slope) in [(350.0, 0.026), (120.0, 0.016), (45.0, 0.007)] {
            let k = std::f64::consts::TAU / (length * rng.range64(0.8, 1.2));
            let turn = rng.range64(0.0, std::f64::consts::TAU);
            waves.push(Wave {
                kx: k * turn.cos(),
                ky: k * turn.sin(),
                phase: rng.range64(0.0, std::f64::consts::TAU),
                height: slope * relief * rng.range64(0.2, 1.0) / k,
            });
        }
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
            seed,
        }
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
        let (columns, seed) = (self.columns, self.seed);
        heights
            .par_chunks_mut(columns)
            .enumerate()
            .for_each(|(row, line)| {
                let y = self.y0 + row as f64 * CELL;
                let mut rng = Rng::new(&[seed, 0x6e77, row as u64]);
                for wave in &self.waves {
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
                }
                let grounds = &self.ground[row * columns..(row + 1) * columns];
                let mut bits = 0u64;
                for (i, (height, ground)) in line.iter_mut().zip(grounds).enumerate() {
                    if i % 8 == 0 {
                        bits = rng.next_u64();
                    }
                    let unit = (bits & 0xff) as f32 / 255.0 - 0.5;
                    bits >>= 8;
                    *height += ground.rise() + 2.0 * ground.roughness() * unit;
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

    /// Height of the road surface plus the rise of the ground that is there.
    pub fn standing_height(&self, x: f64, y: f64) -> f64 {
        self.road(x, y).0 + f64::from(self.ground(x, y).rise())
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
            assert!((step(&path) - 0.13).abs() < 0.01);
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
    fn slopes_are_gentle_and_match_the_heights() {
        for seed in 0..20 {
            let terrain = Terrain::new(seed, (0.0, 0.0), (1.0, 1.0));
            for i in 0..50 {
                let (x, y) = (i as f64 * 7.3, i as f64 * -3.1);
                let (z, sx, sy) = terrain.road(x, y);
                assert!(sx.hypot(sy) < 0.05);
                let dz = terrain.road(x + 0.01, y).0 - z;
                assert!((dz / 0.01 - sx).abs() < 1e-4);
            }
        }
    }
}
