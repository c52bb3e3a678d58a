//! Which kernels a model's backbone runs as, and where, by ONNX Runtime's own profile.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Detector, DetectorError, Graph, ModelDescription, RuntimeOptions};
use crate::cloud::{Point, Points};

/// Which kernels ran, by ONNX Runtime's own profile.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Kernels {
    /// Convolutions that ran as integer kernels.
    pub integer_convolutions: usize,
    /// Convolutions that ran in float.
    pub float_convolutions: usize,
    /// Share of the convolutions' multiplications that ran on integers; absent where a kernel could not be
    /// traced back to its layer.
    pub integer_multiplications: Option<f64>,
    /// Share of the time in kernels that give integers (conversions not counted).
    pub integer_time: f64,
    /// Names of layers that ran on integers.
    pub integer_layers: Vec<String>,
    /// Kernels by operator.
    pub operators: Vec<Operator>,
}

/// All kernels of one operator and element type.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Operator {
    pub name: String,
    /// Element type of the first output.
    pub gives: String,
    pub provider: String,
    /// Nodes in the graph as the runtime rewrote it.
    pub nodes: usize,
    /// Time in one run, milliseconds.
    pub milliseconds: f64,
}

/// One entry of ONNX Runtime's profile; the fields used here.
#[derive(Deserialize)]
struct Event {
    cat: Option<String>,
    name: Option<String>,
    dur: Option<f64>,
    #[serde(default)]
    args: EventArgs,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct EventArgs {
    op_name: Option<String>,
    provider: Option<String>,
    output_type_shape: Vec<BTreeMap<String, serde_json::Value>>,
}

/// A convolution of the written graph.
#[derive(Debug, Clone, PartialEq)]
pub struct Convolution {
    pub name: String,
    /// The tensor it gives, before any activation.
    pub output: String,
    /// Multiplications per frame.
    pub multiplications: u64,
}

impl Convolution {
    /// Whether a kernel is this layer: the runtime calls a rewritten node after the node or after its output, with
    /// something behind it (`_token_7`, `_nchwc`).
    fn is_kernel(&self, kernel: &str) -> bool {
        [&self.name, &self.output].into_iter().any(|name| {
            let mut rest = match kernel.strip_prefix(name.as_str()) {
                Some(rest) => rest,
                None => return false,
            };
            while !rest.is_empty() {
                let next = rest.strip_prefix("_nchwc").or_else(|| {
                    let number = rest.strip_prefix("_token_")?;
                    Some(number.trim_start_matches(|c: char| c.is_ascii_digit()))
                });
                match next {
                    Some(next) => rest = next,
                    None => return false,
                }
            }
            true
        })
    }
}

/// Reads a profile of the runtime, made with a graph that has these convolutions.
pub fn read_profile(json: &str, layers: &[Convolution]) -> Result<Kernels, String> {
    let events: Vec<Event> = serde_json::from_str(json).map_err(|e| e.to_string())?;
    // Per kernel: operator, type, provider, times it ran, total microseconds.
    let mut kernels: BTreeMap<String, (String, String, String, u64, f64)> = BTreeMap::new();
    for event in events {
        let (Some(name), Some(op)) = (event.name, event.args.op_name) else {
            continue;
        };
        let Some(node) = name.strip_suffix("_kernel_time") else {
            continue;
        };
        if event.cat.as_deref() != Some("Node") {
            continue;
        }
        let gives = event
            .args
            .output_type_shape
            .first()
            .and_then(|t| t.keys().next().cloned());
        let kernel = kernels.entry(node.to_owned()).or_insert_with(|| {
            (
                op,
                gives.unwrap_or_default(),
                event.args.provider.unwrap_or_default(),
                0,
                0.0,
            )
        });
        kernel.3 += 1;
        kernel.4 += event.dur.unwrap_or(0.0);
    }
    if kernels.is_empty() {
        return Err("it lists no kernel".into());
    }
    let mut result = Kernels {
        integer_convolutions: 0,
        float_convolutions: 0,
        integer_multiplications: None,
        integer_time: 0.0,
        integer_layers: Vec::new(),
        operators: Vec::new(),
    };
    let mut by_operator: BTreeMap<(String, String, String), (usize, f64)> = BTreeMap::new();
    let (mut total_time, mut integer_time) = (0.0, 0.0);
    let (mut multiplications, mut integer, mut traced) = (0u64, 0u64, 0usize);
    for (node, (op, gives, provider, runs, time)) in kernels {
        let time = time / runs as f64 / 1e3;
        total_time += time;
        let integers = matches!(gives.as_str(), "uint8" | "int8");
        if integers && !op.contains("QuantizeLinear") {
            integer_time += time;
        }
        if op.contains("Conv") {
            let integer_kernel = op.contains("QLinearConv") || op.contains("ConvInteger");
            if integer_kernel {
                result.integer_convolutions += 1;
            } else {
                result.float_convolutions += 1;
            }
            if let Some(layer) = layers.iter().find(|l| l.is_kernel(&node)) {
                traced += 1;
                multiplications += layer.multiplications;
                if integer_kernel {
                    integer += layer.multiplications;
                    result.integer_layers.push(layer.name.clone());
                }
            }
        }
        let entry = by_operator.entry((op, gives, provider)).or_default();
        entry.0 += 1;
        entry.1 += time;
    }
    let convolutions = result.integer_convolutions + result.float_convolutions;
    if traced == convolutions && traced == layers.len() && multiplications > 0 {
        result.integer_multiplications = Some(integer as f64 / multiplications as f64);
    }
    if total_time > 0.0 {
        result.integer_time = integer_time / total_time;
    }
    result.operators = by_operator
        .into_iter()
        .map(
            |((name, gives, provider), (nodes, milliseconds))| Operator {
                name,
                gives,
                provider,
                nodes,
                milliseconds,
            },
        )
        .collect();
    Ok(result)
}

impl Kernels {
    /// Kernels by execution provider, the names as ONNX Runtime has them.
    pub fn providers(&self) -> BTreeMap<&str, usize> {
        let mut providers = BTreeMap::new();
        for operator in &self.operators {
            *providers.entry(operator.provider.as_str()).or_default() += operator.nodes;
        }
        providers
    }
}

impl Detector {
    /// Loads a model, and runs it a few times to learn what its backbone runs as. The profiler is off again when this
    /// returns. That the profile cannot be had is no reason against the model.
    pub fn load_with_kernels(
        model: &ModelDescription,
        options: &RuntimeOptions,
    ) -> Result<(Self, Result<Kernels, DetectorError>), DetectorError> {
        let Ok(scratch) = tempfile::tempdir() else {
            // No room for a profile; the model needs none.
            let failed = DetectorError::Profile {
                file: std::env::temp_dir(),
                message: "no folder can be made there".into(),
            };
            return Ok((Self::load(model, options)?, Err(failed)));
        };
        let options = RuntimeOptions {
            profile_to: Some(scratch.path().join("profile")),
            ..options.clone()
        };
        let mut detector = Self::load(model, &options)?;
        // The backbone does the same work whatever there is to see.
        let anything = Points(vec![Point::default()]);
        for _ in 0..2 {
            detector.detect(&anything)?;
        }
        detector.forget_frames();
        let kernels = detector.kernels(&[]);
        Ok((detector, kernels))
    }

    /// Ends the profiling that [`RuntimeOptions::profile_to`] started, and reads what was written of the backbone, whose
    /// convolutions these are. The files are removed.
    pub fn kernels(&mut self, layers: &[Convolution]) -> Result<Kernels, DetectorError> {
        let [_, backbone] = [&mut self.encoder, &mut self.backbone].map(|graph| {
            let file = graph.session.end_profiling().map(PathBuf::from);
            let file = file.map_err(|error| Graph::run_error(&graph.path, error))?;
            let text = std::fs::read_to_string(&file);
            // It is of no use to anybody else.
            let _ = std::fs::remove_file(&file);
            match text {
                Ok(text) => Ok((file, text)),
                Err(error) => Err(DetectorError::Profile {
                    file,
                    message: error.to_string(),
                }),
            }
        });
        let (file, text) = backbone?;
        read_profile(&text, layers).map_err(|message| DetectorError::Profile { file, message })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_read_per_kernel_and_layer() {
        let event = |name: &str, op: &str, gives: &str, us: u32| {
            format!(
                r#"{{"cat":"Node","name":"{name}_kernel_time","dur":{us},"args":{{"op_name":"{op}","provider":"CPUExecutionProvider","output_type_shape":[{{"{gives}":[1,2]}}]}}}}"#
            )
        };
        let mut all = vec![r#"{"cat":"Session","name":"model_run","dur":9}"#.to_string()];
        for _run in 0..2 {
            all.push(event("/a/Conv_token_3", "QLinearConv", "uint8", 3000));
            all.push(event("/a/Conv2_nchwc", "Conv", "float", 1000));
        }
        let layer = |name: &str, output: &str, multiplications| Convolution {
            name: name.into(),
            output: output.into(),
            multiplications,
        };
        let layers = [layer("/a/Conv", "a", 90), layer("/a/Last", "/a/Conv2", 10)];
        let kernels = read_profile(&format!("[{}]", all.join(",")), &layers).unwrap();
        assert_eq!(
            (kernels.integer_convolutions, kernels.float_convolutions),
            (1, 1)
        );
        assert_eq!(kernels.integer_multiplications, Some(0.9));
        assert_eq!(kernels.integer_time, 0.75);
        assert_eq!(kernels.integer_layers, ["/a/Conv"]);
        assert_eq!(kernels.operators[1].milliseconds, 3.0);
        assert!(read_profile("[]", &layers).is_err());
        assert!(read_profile("{", &layers).is_err());
    }

    #[test]
    fn a_loaded_model_says_what_it_runs_as_and_leaves_no_profile() {
        let model = ModelDescription::load("models/demo/model.yaml".as_ref()).unwrap();
        let (mut detector, kernels) =
            Detector::load_with_kernels(&model, &RuntimeOptions::default()).unwrap();
        let kernels = kernels.unwrap();
        let total: usize = kernels
            .operators
            .iter()
            .map(|operator| operator.nodes)
            .sum();
        assert_eq!(
            kernels.providers(),
            BTreeMap::from([("CPUExecutionProvider", total)])
        );
        assert_eq!(kernels.integer_convolutions, 0);
        assert!(kernels.float_convolutions > 10, "{kernels:?}");
        // And goes on as any other.
        detector.detect(&Points::default()).unwrap();
    }
}
