//! Constant tensors of a graph as plain vectors, and back.

use super::proto::{TensorProto, data_type};

/// Shape and values of a constant that is read as `f32` or `i64`.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor<T> {
    /// Extent per axis; empty for a scalar.
    pub dims: Vec<usize>,
    /// Row-major values, as many as the product of `dims`.
    pub data: Vec<T>,
}

impl TensorProto {
    /// A float constant.
    pub fn f32(name: &str, dims: &[usize], data: &[f32]) -> Self {
        let raw = data.iter().flat_map(|v| v.to_le_bytes()).collect();
        Self::raw(name, dims, data_type::FLOAT, raw)
    }

    /// An `int64` constant.
    pub fn i64(name: &str, dims: &[usize], data: &[i64]) -> Self {
        let raw = data.iter().flat_map(|v| v.to_le_bytes()).collect();
        Self::raw(name, dims, data_type::INT64, raw)
    }

    /// An `int32` constant.
    pub fn i32(name: &str, dims: &[usize], data: &[i32]) -> Self {
        let raw = data.iter().flat_map(|v| v.to_le_bytes()).collect();
        Self::raw(name, dims, data_type::INT32, raw)
    }

    /// An `int8` constant.
    pub fn i8(name: &str, dims: &[usize], data: &[i8]) -> Self {
        let raw = data.iter().map(|v| v.cast_unsigned()).collect();
        Self::raw(name, dims, data_type::INT8, raw)
    }

    /// A `uint8` constant.
    pub fn u8(name: &str, dims: &[usize], data: &[u8]) -> Self {
        Self::raw(name, dims, data_type::UINT8, data.to_vec())
    }

    fn raw(name: &str, dims: &[usize], data_type: i32, raw: Vec<u8>) -> Self {
        TensorProto {
            name: Some(name.to_owned()),
            dims: dims.iter().map(|&d| d as i64).collect(),
            data_type: Some(data_type),
            raw_data: Some(raw),
            ..Default::default()
        }
    }

    /// The shape with a check that its product does not overflow.
    pub fn shape(&self) -> Result<(Vec<usize>, usize), String> {
        let mut count = 1usize;
        let mut dims = Vec::with_capacity(self.dims.len());
        for &d in &self.dims {
            let d =
                usize::try_from(d).map_err(|_| format!("extent {d} in shape {:?}", self.dims))?;
            count = count
                .checked_mul(d)
                .filter(|&n| n <= isize::MAX as usize / 8)
                .ok_or_else(|| format!("shape {:?} is too large", self.dims))?;
            dims.push(d);
        }
        Ok((dims, count))
    }

    /// Bytes that the values take as raw data; `None` where the size of the type is not known here.
    pub(super) fn bytes(&self) -> Result<Option<u64>, String> {
        let (_, count) = self.shape()?;
        let each = bytes_each(self.data_type.unwrap_or(0));
        Ok(each.map(|each| (count as u64).saturating_mul(each)))
    }

    /// Values as `f32`, from float, double or half data.
    pub fn to_f32(&self) -> Result<Tensor<f32>, String> {
        let (dims, count) = self.shape()?;
        let data = match (self.data_type.unwrap_or(0), &self.raw_data) {
            (data_type::FLOAT, Some(raw)) => chunks::<4>(raw)?.map(f32::from_le_bytes).collect(),
            (data_type::FLOAT, None) => self.float_data.clone(),
            (data_type::DOUBLE, Some(raw)) => chunks::<8>(raw)?
                .map(|b| f64::from_le_bytes(b) as f32)
                .collect(),
            (data_type::DOUBLE, None) => self.double_data.iter().map(|&v| v as f32).collect(),
            (data_type::FLOAT16, Some(raw)) => chunks::<2>(raw)?
                .map(|b| half::f16::from_le_bytes(b).to_f32())
                .collect(),
            (data_type::FLOAT16, None) => self
                .int32_data
                .iter()
                .map(|&v| half::f16::from_bits(v as u16).to_f32())
                .collect(),
            (data_type::BFLOAT16, Some(raw)) => chunks::<2>(raw)?
                .map(|b| half::bf16::from_le_bytes(b).to_f32())
                .collect(),
            (data_type::BFLOAT16, None) => self
                .int32_data
                .iter()
                .map(|&v| half::bf16::from_bits(v as u16).to_f32())
                .collect(),
            (other, _) => return Err(format!("element type {other}, expected a float type")),
        };
        Self::checked(dims, count, data)
    }

    /// Values as `i64`, from any of the integer types that graphs use for shapes and quantized data.
    pub fn to_i64(&self) -> Result<Tensor<i64>, String> {
        let (dims, count) = self.shape()?;
        let data = match (self.data_type.unwrap_or(0), &self.raw_data) {
            (data_type::INT64, Some(raw)) => chunks::<8>(raw)?.map(i64::from_le_bytes).collect(),
            (data_type::INT64, None) => self.int64_data.clone(),
            (data_type::INT32, Some(raw)) => chunks::<4>(raw)?
                .map(|b| i64::from(i32::from_le_bytes(b)))
                .collect(),
            (data_type::INT8, Some(raw)) => {
                raw.iter().map(|&b| i64::from(b.cast_signed())).collect()
            }
            (data_type::UINT8, Some(raw)) => raw.iter().map(|&b| i64::from(b)).collect(),
            (data_type::INT32 | data_type::INT8 | data_type::UINT8, None) => {
                self.int32_data.iter().map(|&v| i64::from(v)).collect()
            }
            (other, _) => return Err(format!("element type {other}, expected an integer type")),
        };
        Self::checked(dims, count, data)
    }

    fn checked<T>(dims: Vec<usize>, count: usize, data: Vec<T>) -> Result<Tensor<T>, String> {
        if data.len() != count {
            return Err(format!(
                "{} values for shape {dims:?}, which needs {count}",
                data.len()
            ));
        }
        Ok(Tensor { dims, data })
    }
}

fn chunks<const N: usize>(raw: &[u8]) -> Result<impl Iterator<Item = [u8; N]>, String> {
    let (whole, rest) = raw.as_chunks::<N>();
    if !rest.is_empty() {
        return Err(format!(
            "{} bytes of data are no multiple of the element size {N}",
            raw.len()
        ));
    }
    Ok(whole.iter().copied())
}

/// Bytes of one value of an element type as raw data, where that is known here.
pub(super) fn bytes_each(element_type: i32) -> Option<u64> {
    match element_type {
        data_type::UINT8 | data_type::INT8 | data_type::BOOL => Some(1),
        data_type::FLOAT16 | data_type::BFLOAT16 => Some(2),
        data_type::FLOAT | data_type::INT32 => Some(4),
        data_type::INT64 | data_type::DOUBLE => Some(8),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_survive_raw_and_typed_storage() {
        let raw = TensorProto::f32("w", &[2, 2], &[1.0, -2.5, 0.0, 3.0]);
        let typed = TensorProto {
            raw_data: None,
            float_data: vec![1.0, -2.5, 0.0, 3.0],
            ..raw.clone()
        };
        assert_eq!(raw.to_f32().unwrap(), typed.to_f32().unwrap());
        let ints = TensorProto::i8("q", &[3], &[-128, 0, 127]);
        assert_eq!(ints.to_i64().unwrap().data, [-128, 0, 127]);
    }

    #[test]
    fn a_shape_that_does_not_fit_the_data_is_refused() {
        let mut t = TensorProto::f32("w", &[2, 2], &[1.0; 4]);
        t.dims = vec![i64::MAX, i64::MAX];
        assert!(t.to_f32().is_err());
        t.dims = vec![-1];
        assert!(t.to_f32().is_err());
        t.dims = vec![5];
        assert!(t.to_f32().is_err());
        t.raw_data = Some(vec![0; 7]);
        assert!(t.to_f32().is_err());
    }
}
