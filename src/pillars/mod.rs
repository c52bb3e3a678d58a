//! From points to pillars: the encoder's input, and the scatter of its output.
//!
//! A pillar is a column of the bird's-eye-view grid. Everything here is deterministic: pillars are
//! numbered in the order of their first point, a pillar keeps its first `max_points` points in
//! input order, and pillars that start after `max_pillars` others are dropped and counted.

use ndarray::{Array3, ArrayView2, ArrayView3, ArrayViewMut3, s};

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
/// Most pillars hold few points: on a KITTI sweep three quarters have at most 8 of 32. An encoder
/// that takes the maximum over the points gives the same for a pillar whatever the number of zero
/// rows after them, as long as there is one, so pillars can be sorted into
/// [batches](Self::batches) with fewer rows; see [`set_batch_rows`](Self::set_batch_rows).
#[derive(Debug, Clone)]
pub struct Pillarizer {
    grid: Grid,
    point_features: Vec<PointFeature>,
    intensity_scale: f32,
    decorations: Vec<Decoration>,
    max_pillars: usize,
    max_points: usize,
    width: usize,
    /// Rows of each batch, rising; the last is `max_points`.
    batch_rows: Vec<usize>,

    /// Pillar of each cell, or [`EMPTY`] or [`DROPPED`].
    pillar_of_cell: Vec<u32>,
    cells: Vec<u32>,
    dropped_cells: Vec<u32>,
    counts: Vec<u32>,
    /// Sums of x, y, z over the kept points.
    sums: Vec<[f32; 3]>,
    /// Indices of the kept points, `max_points` places for each pillar.
    members: Vec<u32>,
    points_outside: usize,

    /// Pillars of each batch.
    batch_sizes: Vec<usize>,
    /// Pillar at each place of the batches, one batch after the other.
    order: Vec<u32>,
    /// Cell at each place of the batches.
    ordered_cells: Vec<u32>,
    features: Vec<f32>,
}

/// Pillars with at most as many points as there are rows.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'a> {
    /// `[pillars, rows, features]`; rows without a point are zero.
    pub features: ArrayView3<'a, f32>,
    /// Cell `y * size_x + x` of each pillar.
    pub cells: &'a [u32],
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
            batch_rows: vec![model.grid.max_points],
            cells: Vec::new(),
            dropped_cells: Vec::new(),
            counts: Vec::new(),
            sums: Vec::new(),
            members: Vec::new(),
            points_outside: 0,
            batch_sizes: vec![0],
            order: Vec::new(),
            ordered_cells: Vec::new(),
            features: Vec::new(),
        }
    }

    pub fn grid(&self) -> &Grid {
        &self.grid
    }

    /// Sets the rows of the batches from the next cloud on; `max_points` is always among them.
    ///
    /// A pillar goes to the smallest batch that leaves it a row of zeros, or to the last.
    pub fn set_batch_rows(&mut self, rows: &[usize]) {
        self.batch_rows = rows
            .iter()
            .copied()
            .filter(|r| (1..self.max_points).contains(r))
            .collect();
        self.batch_rows.sort_unstable();
        self.batch_rows.dedup();
        self.batch_rows.push(self.max_points);
    }

    /// Sorts a cloud into pillars, replacing the previous one.
    pub fn build(&mut self, points: &Points) {
        self.collect(points);
        self.lay_out();
        self.write_features(points);
    }

    /// Finds each point's pillar.
    fn collect(&mut self, points: &Points) {
        for cell in self.cells.iter().chain(&self.dropped_cells) {
            self.pillar_of_cell[*cell as usize] = EMPTY;
        }
        self.cells.clear();
        self.dropped_cells.clear();
        self.counts.clear();
        self.sums.clear();
        self.points_outside = 0;

        for (index, point) in points.0.iter().enumerate() {
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
                grow(&mut self.members, self.cells.len() * self.max_points);
            }
            let pillar = pillar as usize;
            let count = self.counts[pillar] as usize;
            if count == self.max_points {
                continue;
            }
            self.counts[pillar] += 1;
            self.members[pillar * self.max_points + count] = index as u32;
            let sum = &mut self.sums[pillar];
            sum[0] += point.x;
            sum[1] += point.y;
            sum[2] += point.z;
        }
    }

    /// Gives each pillar its place in a batch; within a batch the order stays.
    fn lay_out(&mut self) {
        self.order.clear();
        self.ordered_cells.clear();
        self.batch_sizes.clear();
        let mut least = 0;
        for rows in &self.batch_rows {
            // The last batch takes full pillars as well.
            let most = if *rows == self.max_points {
                *rows + 1
            } else {
                *rows
            };
            let before = self.order.len();
            for (pillar, count) in self.counts.iter().enumerate() {
                if (least..most).contains(&(*count as usize)) {
                    self.order.push(pillar as u32);
                    self.ordered_cells.push(self.cells[pillar]);
                }
            }
            self.batch_sizes.push(self.order.len() - before);
            least = most;
        }
    }

    fn write_features(&mut self, points: &Points) {
        let rows_in_all: usize = std::iter::zip(&self.batch_sizes, &self.batch_rows)
            .map(|(size, rows)| size * rows)
            .sum();
        grow(&mut self.features, rows_in_all * self.width);
        let mut order = self.order.as_slice();
        let mut rest = self.features.as_mut_slice();
        for (size, rows) in std::iter::zip(&self.batch_sizes, &self.batch_rows) {
            let (pillars, after) = order.split_at(*size);
            order = after;
            let (features, after) = rest.split_at_mut(size * rows * self.width);
            rest = after;
            for (out, pillar) in features.chunks_exact_mut(rows * self.width).zip(pillars) {
                let pillar = *pillar as usize;
                let count = self.counts[pillar] as usize;
                let mean = self.sums[pillar].map(|s| s / count as f32);
                let centre = self.grid.centre(self.cells[pillar] as usize);
                let first = pillar * self.max_points;
                let (kept, padding) = out.split_at_mut(count * self.width);
                for (row, member) in kept
                    .chunks_exact_mut(self.width)
                    .zip(&self.members[first..first + count])
                {
                    let point = &points.0[*member as usize];
                    let (raw, mut offsets) = row.split_at_mut(self.point_features.len());
                    for (value, feature) in raw.iter_mut().zip(&self.point_features) {
                        *value = match feature {
                            PointFeature::X => point.x,
                            PointFeature::Y => point.y,
                            PointFeature::Z => point.z,
                            PointFeature::Intensity => point.intensity * self.intensity_scale,
                            PointFeature::Ring => f32::from(point.ring),
                            PointFeature::TimeLag => point.time_lag,
                        };
                    }
                    let xyz = [point.x, point.y, point.z];
                    for decoration in &self.decorations {
                        let origin = match decoration {
                            Decoration::ClusterXyz => &mean,
                            Decoration::CentreXy | Decoration::CentreXyz => &centre,
                        };
                        let (values, after) = offsets.split_at_mut(decoration.width());
                        for (value, (p, o)) in values.iter_mut().zip(xyz.iter().zip(origin)) {
                            *value = p - o;
                        }
                        offsets = after;
                    }
                }
                padding.fill(0.0);
            }
        }
    }

    /// Pillars of the last cloud.
    pub fn len(&self) -> usize {
        self.cells.len()
    }

    pub fn is_empty(&self) -> bool {
        self.cells.is_empty()
    }

    /// The encoder's input, in parts that differ in their number of rows; empty ones are left out.
    pub fn batches(&self) -> impl Iterator<Item = Batch<'_>> {
        let mut first_pillar = 0;
        let mut first_value = 0;
        std::iter::zip(&self.batch_sizes, &self.batch_rows)
            .map(move |(size, rows)| {
                let values = size * rows * self.width;
                let features = &self.features[first_value..first_value + values];
                let cells = &self.ordered_cells[first_pillar..first_pillar + size];
                first_pillar += size;
                first_value += values;
                Batch {
                    features: ArrayView3::from_shape((*size, *rows, self.width), features)
                        .expect("the slice was cut to the shape's length"),
                    cells,
                }
            })
            .filter(|batch| !batch.cells.is_empty())
    }

    /// The encoder's whole input, `[pillars, max_points, features]`, pillars in the order of their
    /// first point. Copied together from the batches.
    pub fn features(&self) -> Array3<f32> {
        let mut all = Array3::zeros((self.len(), self.max_points, self.width));
        let mut places = self.order.iter();
        for batch in self.batches() {
            for (part, pillar) in batch.features.outer_iter().zip(&mut places) {
                all.slice_mut(s![*pillar as usize, ..part.dim().0, ..])
                    .assign(&part);
            }
        }
        all
    }

    /// Cell `y * size_x + x` of each pillar, in the order of their first point.
    pub fn cells(&self) -> &[u32] {
        &self.cells
    }

    /// Points kept in each pillar, in the order of their first point.
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

/// Makes room for `length` values, and then some, so that steady traffic allocates nothing.
fn grow<T: Clone + Default>(buffer: &mut Vec<T>, length: usize) {
    if buffer.len() < length {
        buffer.resize(length.max(buffer.len() * 3 / 2), T::default());
    }
}

/// Writes one row of `encoded` (`[pillars, channels]`) into the column of each cell of
/// `map` (`[channels, y, x]`). Other cells stay as they are.
///
/// `cells` must be below `y * x` of the map, as those of a [`Pillarizer`] of the same grid are.
pub fn scatter(encoded: ArrayView2<'_, f32>, cells: &[u32], mut map: ArrayViewMut3<'_, f32>) {
    // Plane by plane: a plane stays in the cache, a whole column never does.
    for (mut plane, values) in map.outer_iter_mut().zip(encoded.columns()) {
        let plane = plane
            .as_slice_mut()
            .expect("the map is a whole array in standard layout");
        for (value, cell) in values.iter().zip(cells) {
            plane[*cell as usize] = *value;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_relative_eq;
    use ndarray::{Array2, Array3};
    use proptest::prelude::*;
    use std::path::Path;

    /// 8 x 8 pillars of 1 m from -4 m, z from -2 to 2 m, at most 16 pillars of 4 points.
    fn model() -> ModelDescription {
        let path = Path::new("tests/fixtures/tiny/model.yaml");
        let text = include_str!("../../tests/fixtures/tiny/model.yaml");
        ModelDescription::parse(text, path).unwrap()
    }

    fn point(x: f32, y: f32, z: f32) -> Point {
        Point {
            x,
            y,
            z,
            intensity: 10.0 * x,
            time_lag: 0.1,
            ring: 7,
        }
    }

    fn build(model: &ModelDescription, points: &[Point]) -> Pillarizer {
        let mut pillars = Pillarizer::new(model);
        pillars.build(&Points(points.to_vec()));
        pillars
    }

    #[test]
    fn the_range_is_half_open() {
        let grid = Grid::new(&model());
        assert_eq!(grid.cell(&point(-4.0, -4.0, -2.0)), Some(0));
        assert_eq!(grid.cell(&point(3.9999, 3.9999, 1.9999)), Some(63));
        for outside in [
            point(4.0, 0.0, 0.0),
            point(0.0, 4.0, 0.0),
            point(0.0, 0.0, 2.0),
            point(-4.0001, 0.0, 0.0),
            point(0.0, -4.0001, 0.0),
            point(0.0, 0.0, -2.0001),
        ] {
            assert_eq!(grid.cell(&outside), None, "{outside:?}");
        }
    }

    #[test]
    fn a_point_just_below_the_upper_bound_stays_in_the_grid_where_division_rounds_up() {
        let mut model = model();
        model.grid.min = [-76.8, -76.8, -4.0];
        model.grid.max = [76.8, 76.8, 6.0];
        model.grid.pillar = [0.32, 0.32];
        let grid = Grid::new(&model);
        let edge = 76.8f32.next_down();
        // The case that this guards against does occur here.
        assert_eq!(((edge - grid.min[0]) / grid.pillar[0]) as usize, 480);
        assert_eq!(grid.cell(&point(edge, edge, 0.0)), Some(480 * 480 - 1));
    }

    #[test]
    fn features_are_those_of_the_description_in_its_order() {
        let points = [point(1.25, -2.5, 0.5), point(1.75, -2.25, 1.0)];
        let pillars = build(&model(), &points);
        assert_eq!(pillars.cells(), [8 + 5]);
        assert_eq!(pillars.counts(), [2]);
        let features = pillars.features();
        let expected = [
            [1.25, -2.5, 0.5, 0.1, -0.25, -0.125, -0.25, -0.25, 0.0],
            [1.75, -2.25, 1.0, 0.1, 0.25, 0.125, 0.25, 0.25, 0.25],
            [0.0; 9],
            [0.0; 9],
        ];
        for (row, expected) in features
            .index_axis(ndarray::Axis(0), 0)
            .outer_iter()
            .zip(expected)
        {
            assert_relative_eq!(row.as_slice().unwrap(), expected.as_slice(), epsilon = 1e-6);
        }

        let mut other = model();
        use PointFeature::*;
        other.points.features = vec![Ring, Intensity, Z];
        other.points.intensity_scale = 0.5;
        other.grid.decorations = vec![Decoration::CentreXyz, Decoration::ClusterXyz];
        other.grid.min[2] = -1.0;
        let pillars = build(&other, &points);
        let features = pillars.features();
        assert_relative_eq!(
            features.as_slice().unwrap()[..9],
            [7.0, 6.25, 0.5, -0.25, 0.0, 0.0, -0.25, -0.125, -0.25],
            epsilon = 1e-6
        );
    }

    #[test]
    fn the_mean_is_over_the_points_kept() {
        let mut points = vec![point(0.5, 0.5, 0.0); 4];
        points.push(point(0.5, 0.5, 1.9));
        let pillars = build(&model(), &points);
        assert_eq!(pillars.counts(), [4]);
        assert!(pillars.features().iter().all(|v| *v <= 0.5));
        // Offsets from a mean of equal points are zero: the fifth did not move it.
        assert_eq!(pillars.features()[[0, 0, 6]], 0.0);
    }

    #[test]
    fn rows_without_a_point_are_zero_also_where_an_earlier_cloud_had_points() {
        let mut pillars = Pillarizer::new(&model());
        pillars.build(&Points(vec![point(1.5, 1.5, 1.5); 4]));
        pillars.build(&Points(vec![point(-1.5, -1.5, -1.5)]));
        let features = pillars.features();
        assert_eq!(features.dim(), (1, 4, 9));
        assert!(features.iter().skip(9).all(|v| *v == 0.0));
    }

    #[test]
    fn pillars_beyond_the_limit_are_counted_once_each() {
        let mut model = model();
        model.grid.max_pillars = 1;
        let points = [
            point(0.5, 0.5, 0.0),
            point(1.5, 0.5, 0.0),
            point(1.5, 0.6, 0.0),
            point(2.5, 0.5, 0.0),
            point(0.6, 0.5, 0.0),
        ];
        let mut pillars = build(&model, &points);
        assert_eq!((pillars.len(), pillars.dropped_pillars()), (1, 2));
        assert_eq!(pillars.counts(), [2]);
        // And they are free again for the next cloud.
        pillars.build(&Points(vec![point(1.5, 0.5, 0.0)]));
        assert_eq!((pillars.len(), pillars.dropped_pillars()), (1, 0));
    }

    #[test]
    fn scatter_fills_each_column_and_leaves_the_rest() {
        let encoded = Array2::from_shape_vec((2, 2), vec![1.0, 2.0, 3.0, 4.0]).unwrap();
        let mut map = Array3::zeros((2, 2, 3));
        scatter(encoded.view(), &[4, 0], map.view_mut());
        let expected = [3.0, 0.0, 0.0, 0.0, 1.0, 0.0, 4.0, 0.0, 0.0, 0.0, 2.0, 0.0];
        assert_eq!(map.as_slice().unwrap(), expected);
    }

    #[test]
    fn batches_hold_the_same_pillars_with_fewer_rows() {
        let mut points = Vec::new();
        for (x, n) in [(0.5, 1), (1.5, 2), (2.5, 3), (3.5, 4), (-0.5, 9), (-1.5, 1)] {
            points.extend(vec![point(x, 0.5, x / 2.0); n]);
        }
        let whole = build(&model(), &points);
        let mut pillars = Pillarizer::new(&model());
        pillars.set_batch_rows(&[9, 3, 2, 0]);
        pillars.build(&Points(points));
        assert_eq!(pillars.features(), whole.features());
        let shapes: Vec<_> = pillars.batches().map(|b| b.features.dim()).collect();
        // One point in two rows, two in three; all others in four.
        assert_eq!(shapes, [(2, 2, 9), (1, 3, 9), (3, 4, 9)]);
        let cells: Vec<u32> = pillars.batches().flat_map(|b| b.cells.to_vec()).collect();
        assert_eq!(cells, [36, 34, 37, 38, 39, 35]);
    }

    proptest! {
        /// Against a direct reading of the definition, for any cloud.
        #[test]
        fn pillars_hold_the_first_points_of_each_cell_in_order(
            points in prop::collection::vec((-5.0f32..5.0, -5.0f32..5.0, -3.0f32..3.0), 0..300),
        ) {
            let model = model();
            let points: Vec<Point> = points.into_iter().map(|(x, y, z)| point(x, y, z)).collect();
            let pillars = build(&model, &points);

            let mut cells: Vec<(u32, Vec<Point>)> = Vec::new();
            let mut outside = 0;
            for p in &points {
                let inside = (-4.0..4.0).contains(&p.x)
                    && (-4.0..4.0).contains(&p.y)
                    && (-2.0..2.0).contains(&p.z);
                if !inside {
                    outside += 1;
                    continue;
                }
                let cell = (p.y + 4.0).floor() as u32 * 8 + (p.x + 4.0).floor() as u32;
                match cells.iter_mut().find(|(c, _)| *c == cell) {
                    Some((_, members)) => members.push(*p),
                    None => cells.push((cell, vec![*p])),
                }
            }
            prop_assert_eq!(pillars.points_outside(), outside);
            prop_assert_eq!(pillars.len(), cells.len().min(16));
            prop_assert_eq!(pillars.dropped_pillars(), cells.len().saturating_sub(16));
            let rows = pillars.features();
            for (i, (cell, members)) in cells.iter().take(16).enumerate() {
                prop_assert_eq!(pillars.cells()[i], *cell);
                let kept = members.len().min(4);
                prop_assert_eq!(pillars.counts()[i] as usize, kept);
                for (j, p) in members.iter().take(kept).enumerate() {
                    prop_assert_eq!(rows.slice(s![i, j, ..3]).to_vec(), [p.x, p.y, p.z]);
                }
                let sum: f32 = (0..kept).map(|j| rows[[i, j, 4]]).sum();
                prop_assert!(sum.abs() < 1e-4);
            }
        }
    }
}
