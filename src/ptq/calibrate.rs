//! Sparsity-based calibration, the first stage of the method: steps of the weights, then steps of the activations.
//!
//! In: a prepared graph, a plan and frames. Out: a quantization rounded to the nearest, and what it was chosen from.

use rayon::prelude::*;

use super::export::{self, Quantization};
use super::frames::{Role, Spool};
use super::observe::Observer;
use super::plan::Plan;
use super::progress::{Progress, Stage};
use super::quantizer::Levels;
use super::ranges::{self, Choice, Extremes, Histogram};
use super::recipe::{Recipe, TargetSettings};
use super::reconstruct::sensitivity::{self, Promoted, Sensitivity, SensitivitySettings};
use super::weights::LayerWeights;
use super::{Clock, PtqError, go_on};
use crate::detector::Detector;
use crate::detector::runtime::RuntimeOptions;
use crate::onnx::Model;

/// All that a calibration needs but the plan.
pub(super) struct Calibrator<'a> {
    pub detector: &'a mut Detector,
    pub spool: &'a mut Spool,
    pub pool: &'a rayon::ThreadPool,
    /// The prepared float graph.
    pub graph: &'a Model,
    pub input: &'a str,
    pub options: &'a RuntimeOptions,
    pub recipe: &'a Recipe,
    pub target: &'a TargetSettings,
}

/// What a calibration gives.
pub(super) struct Calibrated {
    pub quantization: Quantization,
    /// Per group of the plan.
    pub extremes: Vec<Extremes>,
    /// Per frame, of the quantized, then the float layers.
    pub multiplications: Vec<u64>,
    /// Per group of the plan.
    pub histograms: Vec<Histogram>,
    pub choices: Vec<Choice>,
}

impl Calibrated {
    /// The layers that a recipe's budget gives higher precision.
    pub fn promote(&self, ranking: &[Sensitivity], wish: &SensitivitySettings) -> Vec<Promoted> {
        let layers = &self.quantization.plan.layers;
        let work = |name: &str| {
            let at = layers.iter().position(|l| l.name == name);
            at.and_then(|at| self.multiplications.get(at))
                .copied()
                .unwrap_or(0)
        };
        let total = self.multiplications.iter().sum();
        sensitivity::promoted(ranking, wish, work, total)
    }
}

impl Calibrator<'_> {
    pub fn calibrate(
        &mut self,
        plan: Plan,
        clock: &mut Clock,
        progress: &mut dyn Progress,
    ) -> Result<Calibrated, PtqError> {
        let (graph, recipe, pool) = (self.graph, self.recipe, self.pool);
        // Weights: no data needed.
        progress.update(
            Stage::Weights,
            Stage::Weights.overall(0.0),
            "steps of the weights",
        );
        go_on(progress)?;
        let reduced_range = self.target.reduce_range.applies();
        let weights = pool.install(|| {
            plan.layers
                .par_iter()
                .map(|layer| {
                    let weight = graph.initializer_f32(&layer.weight)?;
                    // Weights of fewer than 8 bits cannot saturate the sums anyhow.
                    let bits = if reduced_range {
                        layer.weight_bits.min(7)
                    } else {
                        layer.weight_bits
                    };
                    let levels = Levels::symmetric(bits);
                    LayerWeights::calibrate(&weight, layer.axis, levels, &recipe.weights.search)
                        .map_err(|reason| graph.tensor_error(&layer.weight, reason))
                })
                .collect::<Result<Vec<_>, _>>()
        })?;
        clock.lap("weights");

        // Activations: two passes over the frames through the graph with quantized weights.
        let rounded = export::with_quantized_weights(graph, &plan, &weights);
        let mut passes = Passes {
            detector: &mut *self.detector,
            spool: &mut *self.spool,
            pool,
            plan: &plan,
            graph: &rounded,
            float_graph: graph,
            input: self.input,
            options: self.options,
        };
        let (extremes, multiplications) = passes.extremes(progress)?;
        clock.lap("ranges");
        let histograms = passes.histograms(&extremes, recipe.activations.bins, progress)?;
        let choices: Vec<_> = pool.install(|| {
            plan.groups
                .par_iter()
                .zip(&extremes)
                .zip(&histograms)
                .map(|((group, extremes), histogram)| {
                    ranges::activation(
                        extremes,
                        histogram,
                        self.target.activations,
                        group.bits,
                        &recipe.activations.search,
                    )
                })
                .collect()
        });
        clock.lap("search");
        let activations = choices.iter().map(|c| c.chosen).collect();
        Ok(Calibrated {
            quantization: Quantization {
                plan,
                weights,
                activations,
            },
            extremes,
            multiplications,
            histograms,
            choices,
        })
    }
}

/// The passes over the calibration frames.
struct Passes<'a> {
    detector: &'a mut Detector,
    spool: &'a mut Spool,
    pool: &'a rayon::ThreadPool,
    plan: &'a Plan,
    /// The graph with quantized weights, which is observed.
    graph: &'a Model,
    /// The graph with its own weights.
    float_graph: &'a Model,
    input: &'a str,
    options: &'a RuntimeOptions,
}

impl Passes<'_> {
    /// First pass: extremes per group, and multiplications per frame of the quantized, then the float layers.
    fn extremes(
        &mut self,
        progress: &mut dyn Progress,
    ) -> Result<(Vec<Extremes>, Vec<u64>), PtqError> {
        let sources = self.sources();
        let mut names: Vec<String> = sources.iter().map(|(_, name)| name.clone()).collect();
        // Shapes of the outputs tell the multiplications.
        let layers: Vec<(&str, Option<&str>)> = self
            .plan
            .layers
            .iter()
            .map(|l| (l.output.as_str(), Some(l.weight.as_str())))
            .chain(
                self.plan
                    .float_layers
                    .iter()
                    .map(|l| (l.output.as_str(), l.weight.as_deref())),
            )
            .collect();
        names.extend(layers.iter().map(|(output, _)| (*output).to_owned()));
        let mut observer = Observer::new(self.graph, self.input, &names, self.options)?;
        let mut extremes = vec![Extremes::default(); self.plan.groups.len()];
        let mut shapes: Vec<Vec<i64>> = Vec::new();
        let mut occupied = 0usize;
        let total = self.spool.count(Role::Calibration);
        let (detector, pool) = (&mut *self.detector, self.pool);
        self.spool.for_each(Role::Calibration, |index, sample| {
            go_on(progress)?;
            let spatial = detector.spatial_features(&sample.points)?;
            occupied += usize::from(spatial.iter().any(|&v| v != 0.0));
            observer.run(&spatial, |views| {
                let parts: Vec<Extremes> = pool.install(|| {
                    views[..sources.len()]
                        .par_iter()
                        .map(|view| {
                            let mut part = Extremes::default();
                            part.add(view.values);
                            part
                        })
                        .collect()
                });
                for ((group, _), part) in sources.iter().zip(&parts) {
                    extremes[*group].merge(part);
                }
                if shapes.is_empty() {
                    shapes = views[sources.len()..]
                        .iter()
                        .map(|v| v.shape.to_vec())
                        .collect();
                }
            })?;
            let part = (index + 1) as f64 / total as f64;
            let detail = format!("extremes, frame {} of {total}", index + 1);
            progress.update(Stage::Ranges, Stage::Ranges.overall(part), &detail);
            Ok::<_, PtqError>(())
        })?;
        if occupied == 0 {
            return Err(PtqError::OnlyEmptyFrames { count: total });
        }
        for (group, found) in self.plan.groups.iter().zip(&extremes) {
            if found.not_finite > 0 {
                return Err(PtqError::NotFinite {
                    tensor: group.tensors[0].clone(),
                    count: found.not_finite,
                });
            }
        }
        let multiplications = layers
            .iter()
            .zip(&shapes)
            .map(|((output, weight), shape)| {
                let elements =
                    |dims: &[i64]| dims.iter().map(|&d| d.max(0) as u64).product::<u64>();
                let weight = weight.and_then(|w| self.float_graph.initializer(w));
                // Every output pixel takes all weights once; the channels are in the weights already.
                // A transposed convolution spreads each input pixel over stride x stride outputs.
                let node = self
                    .float_graph
                    .graph()
                    .node
                    .iter()
                    .find(|n| n.output.iter().any(|o| o == output));
                let spread = node
                    .filter(|n| n.is("ConvTranspose"))
                    .map_or(1, |n| elements(n.ints("strides")));
                let pixels = elements(shape.get(2..).unwrap_or(&[])) / spread.max(1);
                weight.map_or(0, |w| elements(&w.dims)) * pixels
            })
            .collect();
        Ok((extremes, multiplications))
    }

    /// Second pass: a histogram per group.
    fn histograms(
        &mut self,
        extremes: &[Extremes],
        bins: usize,
        progress: &mut dyn Progress,
    ) -> Result<Vec<Histogram>, PtqError> {
        let sources = self.sources();
        let names: Vec<String> = sources.iter().map(|(_, name)| name.clone()).collect();
        let mut observer = Observer::new(self.graph, self.input, &names, self.options)?;
        let mut histograms: Vec<Histogram> =
            extremes.iter().map(|e| Histogram::new(e, bins)).collect();
        let total = self.spool.count(Role::Calibration);
        let (detector, pool) = (&mut *self.detector, self.pool);
        self.spool.for_each(Role::Calibration, |index, sample| {
            go_on(progress)?;
            let spatial = detector.spatial_features(&sample.points)?;
            observer.run(&spatial, |views| {
                pool.install(|| {
                    histograms
                        .par_iter_mut()
                        .enumerate()
                        .for_each(|(group, histogram)| {
                            for ((_, _), view) in
                                sources.iter().zip(views).filter(|((g, _), _)| *g == group)
                            {
                                histogram.add(view.values);
                            }
                        });
                });
            })?;
            let part = (index + 1) as f64 / total as f64;
            let detail = format!("histograms, frame {} of {total}", index + 1);
            progress.update(Stage::Search, Stage::Search.overall(part), &detail);
            Ok::<_, PtqError>(())
        })?;
        Ok(histograms)
    }

    /// Every source tensor with its group.
    fn sources(&self) -> Vec<(usize, String)> {
        self.plan
            .groups
            .iter()
            .enumerate()
            .flat_map(|(i, g)| g.sources.iter().map(move |s| (i, s.clone())))
            .collect()
    }
}
