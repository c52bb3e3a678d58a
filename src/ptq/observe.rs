//! Watching tensors inside a graph: they become additional outputs of an ONNX Runtime session.

use std::collections::HashMap;

use ndarray::Array4;
use ort::session::Session;
use ort::value::TensorRef;

use super::PtqError;
use crate::detector::runtime::{self, RuntimeOptions};
use crate::onnx::Model;
use crate::onnx::proto::{TensorType, TypeProto, TypeValue, ValueInfoProto, data_type};

/// A session that gives inner tensors of a graph with one input.
pub struct Observer {
    session: Session,
    input: String,
    /// What messages call the graph.
    name: String,
    /// Per watched tensor its name, or `None` for the graph input itself.
    taps: Vec<Option<String>>,
}

/// What a watched tensor held for one frame.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    pub shape: &'a [i64],
    pub values: &'a [f32],
}

impl Observer {
    /// A session over `model` that watches `tensors`.
    pub fn new(
        model: &Model,
        input: &str,
        tensors: &[String],
        options: &RuntimeOptions,
    ) -> Result<Self, PtqError> {
        let mut watched = model.clone();
        let mut present: Vec<String> = watched.output_names();
        let mut taps = Vec::with_capacity(tensors.len());
        for tensor in tensors {
            if tensor == input {
                taps.push(None);
                continue;
            }
            if !present.contains(tensor) {
                present.push(tensor.clone());
                // Type only: the runtime works the shape out.
                watched.graph_mut().output.push(ValueInfoProto {
                    name: Some(tensor.clone()),
                    r#type: Some(TypeProto {
                        value: Some(TypeValue::Tensor(TensorType {
                            elem_type: Some(data_type::FLOAT),
                            shape: None,
                        })),
                        denotation: None,
                    }),
                    ..Default::default()
                });
            }
            taps.push(Some(tensor.clone()));
        }
        // A tensor with a declared shape must not be declared a second time without one.
        let graph = watched.graph_mut();
        graph
            .value_info
            .retain(|v| !present.iter().any(|p| v.name.as_ref() == Some(p)));
        watched.validate()?;
        // Not that file itself: what is wrong here is wrong with what was made of it.
        let name = format!(
            "the graph that quantization made of {}",
            model.file().display()
        );
        let session = runtime::session_from_bytes(&watched.encode(), &name, options)?;
        Ok(Observer {
            session,
            input: input.to_owned(),
            name,
            taps,
        })
    }

    /// Runs one frame and hands out the watched tensors in the order they were asked for.
    pub fn run<T>(
        &mut self,
        spatial: &Array4<f32>,
        use_views: impl FnOnce(&[View<'_>]) -> T,
    ) -> Result<T, PtqError> {
        let fail = |e: &dyn std::fmt::Display| PtqError::Run {
            graph: self.name.clone(),
            message: e.to_string(),
        };
        let input = TensorRef::from_array_view(spatial.view()).map_err(|e| fail(&e))?;
        let values: HashMap<_, _> = HashMap::from([(self.input.as_str(), input)]);
        let outputs = self.session.run(values).map_err(|e| fail(&e))?;
        let own_shape: Vec<i64> = spatial.shape().iter().map(|&d| d as i64).collect();
        let own = spatial
            .as_slice()
            .ok_or_else(|| fail(&"the input is not contiguous"))?;
        let mut views = Vec::with_capacity(self.taps.len());
        for tap in &self.taps {
            views.push(match tap {
                None => View {
                    shape: &own_shape,
                    values: own,
                },
                Some(name) => {
                    let (shape, values) = outputs[name.as_str()]
                        .try_extract_tensor::<f32>()
                        .map_err(|e| fail(&e))?;
                    View { shape, values }
                }
            });
        }
        Ok(use_views(&views))
    }
}
