//! From points to pillars: the encoder's input, and the scatter of its output.
//!
//! A pillar is a column of the bird's-eye-view grid. Everything here is deterministic: pillars are
//! numbered in the order of their first point, a pillar keeps its first `max_points` points in
//! input order, and pillars that start after `max_pillars` others are dropped and counted.

use ndarray::{ArrayView2, ArrayView3, ArrayViewMut3};

use crate::cloud::{Point, Points};
use crate::detector::description::{Decoration, ModelDescription, PointFeature};

/// The grid of pillars, in the model's frame.
#[derive(Debug, Clone, PartialEq)]
pub struct Grid {
    /// Lower bounds x, y, z in metres, inclusive.
    pub min: [f32; 3],
    /// Upper bounds x, y, z in metres, exclusive.
    pub max: [f32; 3],
    /// Extent of a pillar along x and y in metres.
    pub pillar: [f32; 2],
    /// Pillars along x and y.
    pub size: [usize; 2],
}

impl Grid {
    pub fn new(model: &ModelDescription) -> Self {
        Grid {
            min: model.grid.min,
            max: model.grid.max,
            pillar: model.grid.pillar,
            size: model.grid_size(),
        }
    }

    /// Cells in all.
    pub fn cells(&self) -> usize {
        self.size[0] * self.size[1]
    }

    /// The cell `y * size_x + x` of a point, or `None` outside the grid (NaN is outside).
    ///
    /// The index is clamped: just below the upper bound the division can round up to the size.
    #[inline]
    pub fn cell(&self, p: &Point) -> Option<usize> {
        let inside = p.x >= self.min[0]
            && p.x < self.max[0]
            && p.y >= self.min[1]
            && p.y < self.max[1]
            && p.z >= self.min[2]
            && p.z < self.max[2];
        if !inside {
            return None;
        }
        let x = (((p.x - self.min[0]) / self.pillar[0]) as usize).min(self.size[0] - 1);
        let y = (((p.y - self.min[1]) / self.pillar[1]) as usize).min(self.size[1] - 1);
        Some(y * self.size[0] + x)
    }

    /// Centre of a cell: x, y and the middle of the z range, metres.
    #[inline]
    pub fn centre(&self, cell: usize) -> [f32; 3] {
        let (x, y) = (cell % self.size[0], cell / self.size[0]);
        [
            (x as f32 + 0.5) * self.pillar[0] + self.min[0],
            (y as f32 + 0.5) * self.pillar[1] + self.min[1],
            (self.min[2] + self.max[2]) / 2.0,
        ]
    }
}

/// No pillar has been started in this cell.
const EMPTY: u32 = u32::MAX;
/// A pillar would have started here, but `max_pillars` were there already.
const DROPPED: u32 = u32::MAX - 1;

/// Builds the encoder's input, frame after frame, in buffers that are kept.
///
/// After [`build`](Self::build), [`features`](Self::features), [`cells`](Self::cells) and
/// [`counts`](Self::counts) hold one entry per pillar, in the same order.
#[derive(Debug, Clone)]
pub struct Pillarizer {
    grid: Grid,
    point_features: Vec<PointFeature>,
    intensity_scale: f32,
    decorations: Vec<Decoration>,
    max_pillars: usize,
    max_points: usize,
    width: usize,
    /// Pillar of each cell, or [`EMPTY`] or [`DROPPED`].
    pillar_of_cell: Vec<u32>,
    cells: Vec<u32>,
    dropped_cells: Vec<u32>,
    counts: Vec<u32>,
    /// Sums of x, y, z over the kept points.
    sums: Vec<[f32; 3]>,
    features: Vec<f32>,
    points_outside: usize,
}

impl Pillarizer {
    pub fn new(model: &ModelDescription) -> Self {
        let grid = Grid::new(model);
        Pillarizer {
            pillar_of_cell: vec![EMPTY; grid.cells()],
            grid,
            point_features: model.points.features.clone(),
            intensity_scale: model.points.intensity_scale,
            decorations: model.grid.decorations.clone(),
            max_pillars: model.grid.max_pillars,
            max_points: model.grid.max_points,
            width: model.feature_count(),
            cells: Vec::new(),
            dropped_cells: Vec::new(),
            counts: Vec::new(),
            sums: Vec::new(),
            features: Vec::new(),
            points_outside: 0,
        }
    }

    pub fn grid(&self) -> &Grid {
        &self.grid
    }

    /// Sorts a cloud into pillars, replacing the previous one.
    pub fn build(&mut self, points: &Points) {
        for cell in self.cells.iter().chain(&self.dropped_cells) {
            self.pillar_of_cell[*cell as usize] = EMPTY;
        }
        self.cells.clear();
        self.dropped_cells.clear();
        self.counts.clear();
        self.sums.clear();
        self.points_outside = 0;

        let row = self.max_points * self.width;
        for point in &points.0 {
            let Some(cell) = self.grid.cell(point) else {
                self.points_outside += 1;
                continue;
            };
            let mut pillar = self.pillar_of_cell[cell];
            if pillar == DROPPED {
                continue;
            }
            if pillar == EMPTY {
                if self.cells.len() == self.max_pillars {
                    self.pillar_of_cell[cell] = DROPPED;
                    self.dropped_cells.push(cell as u32);
                    continue;
                }
                pillar = self.cells.len() as u32;
                self.pillar_of_cell[cell] = pillar;
                self.cells.push(cell as u32);
                self.counts.push(0);
                self.sums.push([0.0; 3]);
                let needed = self.cells.len() * row;
                if self.features.len() < needed {
                    let most = self.max_pillars.saturating_mul(row);
                    self.features.resize((needed * 2).min(most), 0.0);
                }
            }
            let pillar = pillar as usize;
            let count = self.counts[pillar] as usize;
            if count == self.max_points {
                continue;
            }
            self.counts[pillar] += 1;
            let sum = &mut self.sums[pillar];
            sum[0] += point.x;
            sum[1] += point.y;
            sum[2] += point.z;
            let at = pillar * row + count * self.width;
            let out = &mut self.features[at..at + self.point_features.len()];
            for (value, feature) in out.iter_mut().zip(&self.point_features) {
                *value = match feature {
                    PointFeature::X => point.x,
                    PointFeature::Y => point.y,
                    PointFeature::Z => point.z,
                    PointFeature::Intensity => point.intensity * self.intensity_scale,
                    PointFeature::Ring => f32::from(point.ring),
                    PointFeature::TimeLag => point.time_lag,
                };
            }
            // The decorations need the mean, which is known only at the end; until then their
            // place holds the position, which need not be among the features.
            self.stash(at, [point.x, point.y, point.z]);
        }
        self.decorate();
    }

    #[inline]
    fn stash(&mut self, at: usize, xyz: [f32; 3]) {
        let mut at = at + self.point_features.len();
        for decoration in &self.decorations {
            let width = decoration.width();
            self.features[at..at + width].copy_from_slice(&xyz[..width]);
            at += width;
        }
    }

    /// Turns the stashed positions into offsets and clears the rows that hold no point.
    fn decorate(&mut self) {
        let raw = self.point_features.len();
        let pillars = self
            .features
            .chunks_exact_mut(self.max_points * self.width)
            .zip(self.cells.iter().zip(self.counts.iter().zip(&self.sums)));
        for (rows, (cell, (count, sum))) in pillars {
            let mean = sum.map(|s| s / *count as f32);
            let centre = self.grid.centre(*cell as usize);
            let (kept, padding) = rows.split_at_mut(*count as usize * self.width);
            for point in kept.chunks_exact_mut(self.width) {
                let mut rest = &mut point[raw..];
                for decoration in &self.decorations {
                    let origin = match decoration {
                        Decoration::ClusterXyz => &mean,
                        Decoration::CentreXy | Decoration::CentreXyz => &centre,
                    };
                    let (values, after) = rest.split_at_mut(decoration.width());
                    for (value, origin) in values.iter_mut().zip(origin) {
                        *value -= origin;
                    }
                    rest = after;
                }
            }
            padding.fill(0.0);
        }
    }

    /// Pillars of the last cloud.
    pub fn len(&self) -> usize {
        self.cells.len()
    }

    pub fn is_empty(&self) -> bool {
        self.cells.is_empty()
    }

    /// The encoder's input, `[pillars, max_points, features]`; rows without a point are zero.
    pub fn features(&self) -> ArrayView3<'_, f32> {
        let shape = (self.len(), self.max_points, self.width);
        let values = &self.features[..shape.0 * shape.1 * shape.2];
        ArrayView3::from_shape(shape, values).expect("the slice was cut to the shape's length")
    }

    /// Cell `y * size_x + x` of each pillar.
    pub fn cells(&self) -> &[u32] {
        &self.cells
    }

    /// Points kept in each pillar.
    pub fn counts(&self) -> &[u32] {
        &self.counts
    }

    /// Pillars lost because there were more than `max_pillars`.
    pub fn dropped_pillars(&self) -> usize {
        self.dropped_cells.len()
    }

    /// Points outside the grid.
    pub fn points_outside(&self) -> usize {
        self.points_outside
    }
}

/// Writes one row of `encoded` (`[pillars, channels]`) into the column of each cell of
/// `map` (`[channels, y, x]`), and zeros everywhere else.
///
/// `cells` must be below `y * x` of the map, as those of a [`Pillarizer`] of the same grid are.
pub fn scatter(encoded: ArrayView2<'_, f32>, cells: &[u32], mut map: ArrayViewMut3<'_, f32>) {
    map.fill(0.0);
    let plane = map.dim().1 * map.dim().2;
    let values = map
        .as_slice_mut()
        .expect("the map is a whole array in standard layout");
    for (row, cell) in encoded.outer_iter().zip(cells) {
        for (channel, value) in row.iter().enumerate() {
            values[channel * plane + *cell as usize] = *value;
        }
    }
}
