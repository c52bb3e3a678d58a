//! provisional
use std::collections::HashMap;
use burn_tensor::{Tensor, TensorData, backend::Backend, module::{conv2d, conv_transpose2d, max_pool2d}, ops::{ConvOptions, ConvTransposeOptions}};
use crate::onnx::{Model, OnnxError, proto::NodeProto};

#[derive(Debug, Clone)]
pub enum Value<B: Backend> { R4(Tensor<B, 4>), Flat(Vec<f32>) }
impl<B: Backend> Value<B> {
    pub fn rank4(&self) -> Option<Tensor<B, 4>> { match self { Value::R4(t) => Some(t.clone()), _ => None } }
}
impl<B: Backend> From<Tensor<B, 4>> for Value<B> { fn from(t: Tensor<B, 4>) -> Self { Value::R4(t) } }
#[derive(Debug, Clone)]
pub struct Values<B: Backend>(HashMap<String, Value<B>>);
impl<B: Backend> Default for Values<B> { fn default() -> Self { Values(HashMap::new()) } }
impl<B: Backend> Values<B> {
    pub fn insert(&mut self, name: String, value: Value<B>) { self.0.insert(name, value); }
    pub fn get(&self, name: &str) -> Option<&Value<B>> { self.0.get(name) }
    pub fn remove(&mut self, name: &str) -> Option<Value<B>> { self.0.remove(name) }
}
pub struct Node { pub name: String, pub op: String, pub inputs: Vec<String>, pub outputs: Vec<String>, proto: NodeProto }
pub struct Network<B: Backend> { nodes: Vec<Node>, outputs: Vec<String>, constants: HashMap<String, Value<B>>, model: Model, device: B::Device }
impl<B: Backend> Network<B> {
    pub fn new(model: &Model, device: &B::Device) -> Result<Self, OnnxError> {
        let mut constants = HashMap::new();
        for t in &model.graph().initializer {
            let name = t.name.clone().unwrap_or_default();
            if let Ok(t) = t.to_f32() {
                let v = match <[usize; 4]>::try_from(t.dims.as_slice()) {
                    Ok(d) => Value::R4(Tensor::from_data(TensorData::new(t.data, d), device)),
                    Err(_) => Value::Flat(t.data),
                };
                constants.insert(name, v);
            }
        }
        let nodes = model.graph().node.iter().map(|n| Node { name: n.label(), op: n.op_type().to_owned(), inputs: n.input.clone(), outputs: n.output.clone(), proto: n.clone() }).collect();
        Ok(Network { nodes, outputs: model.output_names(), constants, model: model.clone(), device: device.clone() })
    }
    pub fn nodes(&self) -> &[Node] { &self.nodes }
    pub fn outputs(&self) -> &[String] { &self.outputs }
    pub fn run(&self, values: &mut Values<B>) -> Result<(), OnnxError> { for i in 0..self.nodes.len() { self.step(i, values)?; } Ok(()) }
    pub fn step(&self, index: usize, values: &mut Values<B>) -> Result<(), OnnxError> {
        let node = &self.nodes[index];
        let p = &node.proto;
        let fail = |m: &str| self.model.node_error(p, m);
        let get = |i: usize| node.inputs.get(i).filter(|n| !n.is_empty()).and_then(|n| values.get(n).or_else(|| self.constants.get(n)));
        let r4 = |i: usize| get(i).and_then(Value::rank4).ok_or_else(|| fail("input"));
        let pair = |name: &str, d: usize| { let v = p.ints(name); if v.len() >= 2 { [v[0] as usize, v[1] as usize] } else { [d, d] } };
        let out = match node.op.as_str() {
            "Conv" | "ConvTranspose" => {
                let (x, w) = (r4(0)?, r4(1)?);
                let bias = match get(2) { Some(Value::Flat(b)) => Some(Tensor::<B, 1>::from_floats(b.as_slice(), &self.device)), _ => None };
                let g = p.int("group", 1) as usize;
                if node.op == "Conv" {
                    let pads = p.ints("pads");
                    let pads = if pads.len() == 4 { [pads[0] as usize, pads[1] as usize] } else { [0, 0] };
                    conv2d(x, w, bias, ConvOptions::new(pair("strides", 1), pads, pair("dilations", 1), g))
                } else {
                    conv_transpose2d(x, w, bias, ConvTransposeOptions::new(pair("strides", 1), [0, 0], [0, 0], pair("dilations", 1), g))
                }
            }
            "Relu" => burn_tensor::activation::relu(r4(0)?),
            "Sigmoid" => burn_tensor::activation::sigmoid(r4(0)?),
            "Identity" => r4(0)?,
            "Add" => r4(0)? + r4(1)?,
            "MaxPool" => max_pool2d(r4(0)?, pair("kernel_shape", 1), pair("strides", 1), [p.ints("pads").first().copied().unwrap_or(0) as usize; 2], [1, 1], false),
            "Concat" => { let mut v = vec![]; for i in 0..node.inputs.len() { v.push(r4(i)?); } Tensor::cat(v, 1) }
            "DepthToSpace" => {
                let x = r4(0)?; let [n, c, h, w] = x.dims(); let b = p.int("blocksize", 1) as usize; let k = c / b / b;
                if p.string("mode") == b"CRD" { x.reshape([n, k, b, b, h, w]).permute([0, 1, 4, 2, 5, 3]).reshape([n, k, h * b, w * b]) }
                else { x.reshape([n, b, b, k, h, w]).permute([0, 3, 4, 1, 5, 2]).reshape([n, k, h * b, w * b]) }
            }
            other => return Err(fail(&format!("operator {other}"))),
        };
        values.insert(node.outputs[0].clone(), out.into());
        Ok(())
    }
}
