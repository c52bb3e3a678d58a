//! CDR, the wire format of ROS 2 messages: the little part of it that fixed structs need.
//!
//! A serialized message opens with four bytes of encapsulation; the low bit of the second one
//! says little-endian. Everything after is aligned to its own size, counted from the byte after
//! those four. Strings carry their length with a closing NUL, sequences their count.
//! (OMG DDS-RTPS 10.2 and DDS-XTypes 7.4.3, encoding version 1 "plain CDR".)
//!
//! The decoder believes no length before it has checked it against the bytes that are left, so
//! what it allocates is bounded by the length of its input.

/// Why bytes are not the message that was asked for. Offsets count from the first byte of the
/// message, encapsulation included.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CdrError {
    #[error(
        "{field}: {wanted} bytes are needed at byte {offset}, but the message ends after {len}; \
         it is truncated or of another type"
    )]
    Truncated {
        field: &'static str,
        offset: usize,
        wanted: usize,
        len: usize,
    },
    #[error(
        "encapsulation {0:#06x} is not plain CDR (0x0000 or 0x0001); parameter lists and \
         XCDR2 are not supported"
    )]
    Encapsulation(u16),
    #[error(
        "{field}: {count} elements at byte {offset} cannot fit into the {left} bytes that are left"
    )]
    Sequence {
        field: &'static str,
        offset: usize,
        count: usize,
        left: usize,
    },
    #[error("{field}: {count} elements at byte {offset}; {most} are the most that are read")]
    TooMany {
        field: &'static str,
        offset: usize,
        count: usize,
        most: usize,
    },
    #[error("{field}: the string at byte {offset} is not UTF-8")]
    Utf8 { field: &'static str, offset: usize },
}

/// Reads primitive values out of one serialized message.
pub struct Decoder<'a> {
    bytes: &'a [u8],
    position: usize,
    big_endian: bool,
}

/// Length of the encapsulation header, where alignment starts to count.
const HEADER: usize = 4;

macro_rules! read_number {
    ($name:ident, $type:ty) => {
        pub fn $name(&mut self, field: &'static str) -> Result<$type, CdrError> {
            const SIZE: usize = size_of::<$type>();
            self.align(SIZE);
            let mut raw = [0; SIZE];
            raw.copy_from_slice(self.take(SIZE, field)?);
            Ok(if self.big_endian {
                <$type>::from_be_bytes(raw)
            } else {
                <$type>::from_le_bytes(raw)
            })
        }
    };
}

impl<'a> Decoder<'a> {
    /// Reads the encapsulation header; both byte orders are accepted.
    pub fn new(bytes: &'a [u8]) -> Result<Self, CdrError> {
        let mut decoder = Decoder {
            bytes,
            position: 0,
            big_endian: false,
        };
        let header = decoder.take(HEADER, "encapsulation")?;
        match u16::from_be_bytes([header[0], header[1]]) {
            0 => decoder.big_endian = true,
            1 => {}
            other => return Err(CdrError::Encapsulation(other)),
        }
        Ok(decoder)
    }

    fn align(&mut self, size: usize) {
        self.position = HEADER + (self.position - HEADER).next_multiple_of(size);
    }

    fn left(&self) -> usize {
        self.bytes.len().saturating_sub(self.position)
    }

    fn take(&mut self, count: usize, field: &'static str) -> Result<&'a [u8], CdrError> {
        if count > self.left() {
            return Err(CdrError::Truncated {
                field,
                offset: self.position,
                wanted: count,
                len: self.bytes.len(),
            });
        }
        let taken = &self.bytes[self.position..self.position + count];
        self.position += count;
        Ok(taken)
    }

    read_number!(u8, u8);
    read_number!(u16, u16);
    read_number!(u32, u32);
    read_number!(i32, i32);
    read_number!(f32, f32);
    read_number!(f64, f64);

    pub fn bool(&mut self, field: &'static str) -> Result<bool, CdrError> {
        Ok(self.u8(field)? != 0)
    }

    pub fn string(&mut self, field: &'static str) -> Result<String, CdrError> {
        let length = self.u32(field)? as usize;
        let offset = self.position;
        let raw = self.take(length, field)?;
        // A missing NUL is what some writers do; an empty string may have length 0.
        let raw = raw.strip_suffix(&[0]).unwrap_or(raw);
        match std::str::from_utf8(raw) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(CdrError::Utf8 { field, offset }),
        }
    }

    /// A sequence of bytes, borrowed from the message.
    pub fn bytes(&mut self, field: &'static str) -> Result<&'a [u8], CdrError> {
        let length = self.u32(field)? as usize;
        self.take(length, field)
    }

    /// A sequence of at most `most` elements: what holds memory by itself, a name for example, takes several times
    /// as much as its bytes in the message.
    pub fn short_sequence<T>(
        &mut self,
        field: &'static str,
        min_size: usize,
        most: usize,
        element: impl FnMut(&mut Self) -> Result<T, CdrError>,
    ) -> Result<Vec<T>, CdrError> {
        let offset = self.position;
        let count = self.u32(field)? as usize;
        self.position -= size_of::<u32>();
        match count > most {
            true => Err(CdrError::TooMany {
                field,
                offset,
                count,
                most,
            }),
            false => self.sequence(field, min_size, element),
        }
    }

    /// A sequence whose elements take at least `min_size` bytes each.
    pub fn sequence<T>(
        &mut self,
        field: &'static str,
        min_size: usize,
        mut element: impl FnMut(&mut Self) -> Result<T, CdrError>,
    ) -> Result<Vec<T>, CdrError> {
        let offset = self.position;
        let count = self.u32(field)? as usize;
        let left = self.left();
        if count.saturating_mul(min_size.max(1)) > left {
            return Err(CdrError::Sequence {
                field,
                offset,
                count,
                left,
            });
        }
        (0..count).map(|_| element(self)).collect()
    }
}

/// Builds one serialized message, little-endian.
pub struct Encoder {
    bytes: Vec<u8>,
}

macro_rules! write_number {
    ($name:ident, $type:ty) => {
        pub fn $name(&mut self, value: $type) {
            self.align(size_of::<$type>());
            self.bytes.extend_from_slice(&value.to_le_bytes());
        }
    };
}

impl Default for Encoder {
    fn default() -> Self {
        Encoder {
            bytes: vec![0, 1, 0, 0],
        }
    }
}

impl Encoder {
    fn align(&mut self, size: usize) {
        let padded = HEADER + (self.bytes.len() - HEADER).next_multiple_of(size);
        self.bytes.resize(padded, 0);
    }

    write_number!(u8, u8);
    write_number!(u16, u16);
    write_number!(u32, u32);
    write_number!(i32, i32);
    write_number!(f32, f32);
    write_number!(f64, f64);

    pub fn bool(&mut self, value: bool) {
        self.u8(value.into());
    }

    pub fn string(&mut self, value: &str) {
        self.count(value.len() + 1);
        self.bytes.extend_from_slice(value.as_bytes());
        self.bytes.push(0);
    }

    pub fn bytes(&mut self, value: &[u8]) {
        self.count(value.len());
        self.bytes.extend_from_slice(value);
    }

    pub fn sequence<T>(&mut self, values: &[T], mut element: impl FnMut(&mut Self, &T)) {
        self.count(values.len());
        for value in values {
            element(self, value);
        }
    }

    fn count(&mut self, count: usize) {
        self.u32(u32::try_from(count).expect("a message of 4 GiB was refused when it was built"));
    }

    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_aligned_from_after_the_encapsulation() {
        let mut encoder = Encoder::default();
        encoder.u8(7);
        encoder.f64(1.5);
        encoder.u16(9);
        encoder.u32(11);
        let bytes = encoder.finish();
        assert_eq!(bytes.len(), 4 + 8 + 8 + 2 + 2 + 4);
        assert_eq!(bytes[12..20], 1.5f64.to_le_bytes());
        let mut decoder = Decoder::new(&bytes).unwrap();
        assert_eq!(decoder.u8("a"), Ok(7));
        assert_eq!(decoder.f64("b"), Ok(1.5));
        assert_eq!(decoder.u16("c"), Ok(9));
        assert_eq!(decoder.u32("d"), Ok(11));
    }

    #[test]
    fn big_endian_encapsulation_is_honoured() {
        let bytes = [0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 3, b'h', b'i', 0];
        let mut decoder = Decoder::new(&bytes).unwrap();
        assert_eq!(decoder.u32("a"), Ok(5));
        assert_eq!(decoder.string("b").as_deref(), Ok("hi"));
    }

    #[test]
    fn other_encapsulations_are_refused_by_number() {
        assert_eq!(
            Decoder::new(&[0, 7, 0, 0]).err(),
            Some(CdrError::Encapsulation(7))
        );
    }

    #[test]
    fn lengths_beyond_the_input_are_errors_that_name_the_field() {
        let mut encoder = Encoder::default();
        encoder.u32(4_000_000_000);
        let bytes = encoder.finish();
        let error = Decoder::new(&bytes).unwrap().string("frame_id").err();
        assert!(matches!(
            error,
            Some(CdrError::Truncated {
                field: "frame_id",
                wanted: 4_000_000_000,
                ..
            })
        ));
        let error = Decoder::new(&bytes)
            .unwrap()
            .sequence("fields", 4, |d| d.u32("x"));
        assert!(matches!(error, Err(CdrError::Sequence { .. })));
    }
}
