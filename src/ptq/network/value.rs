//! Tensors whose rank is known only when a graph is read.

use std::collections::HashMap;

use burn_tensor::{Tensor, TensorData, backend::Backend};

/// A tensor of rank 1 to 6, or a constant list of integers. A scalar is a tensor of shape `[1]`.
#[derive(Debug, Clone)]
pub enum Value<B: Backend> {
    R1(Tensor<B, 1>),
    R2(Tensor<B, 2>),
    R3(Tensor<B, 3>),
    R4(Tensor<B, 4>),
    R5(Tensor<B, 5>),
    R6(Tensor<B, 6>),
    /// Shapes, axes and the like.
    Ints(Vec<i64>),
}

/// Evaluates an expression with the tensor inside a value, whatever its rank; `None` for integers.
macro_rules! with_tensor {
    ($value:expr, $t:ident => $e:expr) => {
        match $value {
            $crate::ptq::network::Value::R1($t) => Some($e),
            $crate::ptq::network::Value::R2($t) => Some($e),
            $crate::ptq::network::Value::R3($t) => Some($e),
            $crate::ptq::network::Value::R4($t) => Some($e),
            $crate::ptq::network::Value::R5($t) => Some($e),
            $crate::ptq::network::Value::R6($t) => Some($e),
            $crate::ptq::network::Value::Ints(_) => None,
        }
    };
}
pub(super) use with_tensor;

macro_rules! from_rank {
    ($($variant:ident $rank:literal),*) => {$(
        impl<B: Backend> From<Tensor<B, $rank>> for Value<B> {
            fn from(tensor: Tensor<B, $rank>) -> Self {
                Value::$variant(tensor)
            }
        }
    )*};
}
from_rank!(R1 1, R2 2, R3 3, R4 4, R5 5, R6 6);

impl<B: Backend> Value<B> {
    /// A tensor from row-major values; `None` where they do not fill the shape, or its rank is above 6.
    pub fn from_f32(dims: &[usize], data: Vec<f32>, device: &B::Device) -> Option<Self> {
        let count: usize = dims.iter().product();
        if count != data.len() || count == 0 {
            return None;
        }
        let flat: Tensor<B, 1> = Tensor::from_data(TensorData::new(data, [count]), device);
        Value::R1(flat).reshape(dims)
    }

    /// The shape; that of a list for integers.
    pub fn dims(&self) -> Vec<usize> {
        match self {
            Value::Ints(list) => vec![list.len()],
            tensor => with_tensor!(tensor, t => t.dims().to_vec()).unwrap_or_default(),
        }
    }

    /// The tensor, if it is one of rank 4.
    pub fn rank4(&self) -> Option<Tensor<B, 4>> {
        match self {
            Value::R4(tensor) => Some(tensor.clone()),
            _ => None,
        }
    }

    /// The values, row-major.
    pub fn to_vec(&self) -> Vec<f32> {
        match self {
            Value::Ints(list) => list.iter().map(|&i| i as f32).collect(),
            tensor => {
                with_tensor!(tensor, t => t.to_data().iter::<f32>().collect()).unwrap_or_default()
            }
        }
    }

    /// The same elements in another shape of rank up to 6 (a shape of rank 0 gives `[1]`); `None` where they do not
    /// fill it.
    pub fn reshape(&self, dims: &[usize]) -> Option<Self> {
        if self.dims().iter().product::<usize>() != dims.iter().product::<usize>() {
            return None;
        }
        fn to<const D: usize>(dims: &[usize]) -> [usize; D] {
            let mut array = [1; D];
            array.copy_from_slice(dims);
            array
        }
        with_tensor!(self, t => {
            let t = t.clone();
            match dims.len() {
                0 => Some(Value::R1(t.reshape([1]))),
                1 => Some(Value::R1(t.reshape(to::<1>(dims)))),
                2 => Some(Value::R2(t.reshape(to::<2>(dims)))),
                3 => Some(Value::R3(t.reshape(to::<3>(dims)))),
                4 => Some(Value::R4(t.reshape(to::<4>(dims)))),
                5 => Some(Value::R5(t.reshape(to::<5>(dims)))),
                6 => Some(Value::R6(t.reshape(to::<6>(dims)))),
                _ => None,
            }
        })
        .flatten()
    }
}

/// Named values while a graph runs.
#[derive(Debug, Clone)]
pub struct Values<B: Backend>(HashMap<String, Value<B>>);

impl<B: Backend> Default for Values<B> {
    fn default() -> Self {
        Values(HashMap::new())
    }
}

impl<B: Backend> Values<B> {
    pub fn insert(&mut self, name: String, value: Value<B>) {
        self.0.insert(name, value);
    }

    pub fn get(&self, name: &str) -> Option<&Value<B>> {
        self.0.get(name)
    }

    pub fn remove(&mut self, name: &str) -> Option<Value<B>> {
        self.0.remove(name)
    }
}
