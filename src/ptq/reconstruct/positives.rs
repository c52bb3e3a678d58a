//! The Task-guided Global Positive Loss of LiDAR-PTQ: what the heads say at the objects.
//!
//! The float model's own peaks are the positives; no labels are needed. The loss compares heads there with the float
//! model's, as the heads emit them:
//!
//! `1/N sum over positives [ sum over classes (p - p_float)^2 + box weight sum over channels c |b - b_float| ]`
//!
//! with `p` the heatmap's probability and `c` the code weights of CenterPoint (1, but 0.2 for velocity).

use std::collections::HashMap;

use burn_tensor::activation::sigmoid;
use burn_tensor::{Int, Tensor, TensorData, backend::Backend};
use serde::{Deserialize, Serialize};

use super::rounding::values;
use super::{Device, Inner};
use crate::detector::description::{Head, HeatmapScale};

/// Which cells are positives.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PositiveSettings {
    /// Peaks of the float heatmap with a score above this (gamma).
    pub threshold: f32,
    /// At most this many a crop, the best first (K).
    pub max: usize,
    /// Cells around a peak that count too, with the weight of a Gaussian; 0 is the peak alone.
    #[serde(default)]
    pub radius: usize,
}

/// Weights of the loss.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TgplSettings {
    /// Weight beside the local loss; 0 switches it off.
    pub weight: f64,
    /// It is computed every so many steps (and weighs as much more), because it runs through the whole network.
    pub every: usize,
    /// Weight of the box terms.
    pub boxes: f64,
    /// Weight of velocity among the box terms.
    pub velocity: f64,
}

/// Positives and what the float model says there, for all crops.
pub struct Positives {
    /// Head and tensor, in the order of the description.
    heads: Vec<(Head, String)>,
    scale: HeatmapScale,
    /// Rows and columns of the heads' maps.
    size: [usize; 2],
    /// Per crop: flat cells and their weights.
    cells: Vec<Vec<(usize, f32)>>,
    /// The float model's maps, per tensor `[crops, channels, y, x]`.
    float: HashMap<String, Tensor<Inner, 4>>,
}

impl Positives {
    /// Finds the peaks of float maps. `margin`: cells at the edge of the maps that do not count.
    ///
    /// The maps must all have the heatmap's rows and columns.
    pub fn find(
        heads: Vec<(Head, String)>,
        scale: HeatmapScale,
        float: HashMap<String, Tensor<Inner, 4>>,
        settings: &PositiveSettings,
        margin: usize,
    ) -> Result<Self, String> {
        let heatmap = heads
            .iter()
            .find(|(head, _)| *head == Head::Heatmap)
            .and_then(|(_, name)| float.get(name))
            .ok_or("the network has no heatmap")?;
        let [crops, classes, rows, columns] = heatmap.dims();
        for (_, name) in &heads {
            let dims = float.get(name).map(Tensor::dims);
            if dims.is_none_or(|d| d[0] != crops || d[2..] != [rows, columns]) {
                return Err(format!(
                    "output {name} has shape {dims:?}, not the heatmap's cells"
                ));
            }
        }
        let scores = probability(heatmap.clone(), scale);
        let scores = values(&scores);
        let cells = scores
            .chunks(classes * rows * columns)
            .map(|map| {
                let mut peaks = peaks(map, [rows, columns], settings.threshold, margin);
                peaks.truncate(settings.max);
                spread(&peaks, [rows, columns], settings.radius)
            })
            .collect();
        Ok(Positives {
            heads,
            scale,
            size: [rows, columns],
            cells,
            float,
        })
    }

    /// Positives in all crops; the cells around them not counted twice, but counted.
    pub fn count(&self) -> usize {
        self.cells.iter().map(Vec::len).sum()
    }

    /// The loss of heads `maps` computed for `crops` (those that are there; others are left out), or `None` where
    /// these crops hold no positive.
    pub fn loss<B: Backend<Device = Device>>(
        &self,
        crops: &[usize],
        maps: &HashMap<String, Tensor<B, 4>>,
        settings: &TgplSettings,
        from_inner: impl Fn(Tensor<Inner, 4>) -> Tensor<B, 4>,
        device: &Device,
    ) -> Option<Tensor<B, 1>> {
        let area = self.size[0] * self.size[1];
        let chosen: Vec<(usize, f32)> = crops
            .iter()
            .enumerate()
            .flat_map(|(slot, &crop)| {
                self.cells[crop]
                    .iter()
                    .map(move |&(cell, w)| (slot * area + cell, w))
            })
            .collect();
        if chosen.is_empty() {
            return None;
        }
        let n = chosen.len();
        let rows = |i: &[(usize, f32)]| -> Vec<i64> { i.iter().map(|c| c.0 as i64).collect() };
        let index: Tensor<B, 1, Int> =
            Tensor::from_data(TensorData::new(rows(&chosen), [n]), device);
        let total: f32 = chosen.iter().map(|c| c.1).sum();
        let weight: Tensor<B, 2> = Tensor::from_data(
            TensorData::new(chosen.iter().map(|c| c.1 / total).collect(), [n, 1]),
            device,
        );
        let which: Vec<i64> = crops.iter().map(|&c| c as i64).collect();
        let which: Tensor<Inner, 1, Int> =
            Tensor::from_data(TensorData::new(which, [crops.len()]), device);
        let pick = |map: Tensor<B, 4>| -> Tensor<B, 2> {
            let channels = map.dims()[1];
            map.permute([0, 2, 3, 1])
                .reshape([crops.len() * area, channels])
                .select(0, index.clone())
        };
        let mut loss: Option<Tensor<B, 1>> = None;
        for (head, name) in &self.heads {
            let (Some(map), Some(float)) = (maps.get(name), self.float.get(name)) else {
                continue;
            };
            let float = from_inner(float.clone().select(0, which.clone()));
            let term = if *head == Head::Heatmap {
                let p = probability(pick(map.clone()), self.scale);
                (p - probability(pick(float), self.scale)).square()
            } else {
                let code = match head {
                    Head::Vel => settings.velocity,
                    _ => 1.0,
                };
                (pick(map.clone()) - pick(float)).abs() * (code * settings.boxes)
            };
            let term = (term * weight.clone()).sum();
            loss = Some(match loss {
                Some(loss) => loss + term,
                None => term,
            });
        }
        loss
    }
}

fn probability<B: Backend, const D: usize>(map: Tensor<B, D>, scale: HeatmapScale) -> Tensor<B, D> {
    match scale {
        HeatmapScale::Logit => sigmoid(map),
        HeatmapScale::Sigmoid => map,
    }
}

/// Cells of a map `[classes, y, x]` of probabilities that are the largest of their class within one cell around and
/// above the threshold, best first.
pub(crate) fn peaks(
    map: &[f32],
    [rows, columns]: [usize; 2],
    threshold: f32,
    margin: usize,
) -> Vec<usize> {
    let mut found: Vec<(f32, usize)> = Vec::new();
    for class in map.chunks(rows * columns) {
        for y in margin..rows.saturating_sub(margin) {
            for x in margin..columns.saturating_sub(margin) {
                let score = class[y * columns + x];
                let around = (y.saturating_sub(1)..(y + 2).min(rows))
                    .flat_map(|v| (x.saturating_sub(1)..(x + 2).min(columns)).map(move |u| (v, u)));
                if score > threshold
                    && around
                        .into_iter()
                        .all(|(v, u)| class[v * columns + u] <= score)
                {
                    found.push((score, y * columns + x));
                }
            }
        }
    }
    found.sort_by(|a, b| b.0.total_cmp(&a.0));
    let mut cells: Vec<usize> = Vec::new();
    for (_, cell) in found {
        if !cells.contains(&cell) {
            cells.push(cell);
        }
    }
    cells
}

/// The cells within `radius` of any peak, each with its largest Gaussian weight (as CenterPoint draws its targets).
fn spread(peaks: &[usize], [rows, columns]: [usize; 2], radius: usize) -> Vec<(usize, f32)> {
    let sigma = (2 * radius + 1) as f32 / 6.0;
    let mut weights: std::collections::BTreeMap<usize, f32> = Default::default();
    for &cell in peaks {
        let (y, x) = (cell / columns, cell % columns);
        for v in y.saturating_sub(radius)..(y + radius + 1).min(rows) {
            for u in x.saturating_sub(radius)..(x + radius + 1).min(columns) {
                let distance = (v.abs_diff(y).pow(2) + u.abs_diff(x).pow(2)) as f32;
                let weight = (-distance / (2.0 * sigma * sigma)).exp();
                let entry = weights.entry(v * columns + u).or_default();
                *entry = entry.max(weight);
            }
        }
    }
    weights.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peaks_are_sorted_by_score_and_lie_inside_the_margin() {
        let mut map = vec![0.0; 2 * 36];
        map[14] = 0.5; // (2, 2) of class 0
        map[15] = 0.4; // its neighbour
        map[36 + 28] = 0.9; // (4, 4) of class 1
        map[0] = 0.99; // a corner
        assert_eq!(peaks(&map, [6, 6], 0.1, 1), [28, 14]);
        assert_eq!(peaks(&map, [6, 6], 0.1, 0), [0, 28, 14]);
        assert!(peaks(&map, [6, 6], 0.1, 3).is_empty());
    }

    #[test]
    fn the_disc_is_widest_at_the_peak_and_stays_on_the_map() {
        let cells = spread(&[0], [4, 4], 1);
        assert_eq!(cells.iter().map(|c| c.0).collect::<Vec<_>>(), [0, 1, 4, 5]);
        assert_eq!(cells[0].1, 1.0);
        assert!(cells[3].1 < cells[1].1 && cells[1].1 < 1.0);
        assert_eq!(spread(&[5], [4, 4], 0), [(5, 1.0)]);
    }
}
