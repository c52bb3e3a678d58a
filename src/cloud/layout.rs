//! The byte layout of PointCloud2.
//!
//! Fields are found by name; their offset and datatype, `point_step`, `row_step` and
//! `is_bigendian` are honoured, so nothing depends on a driver's struct. `is_dense` is not
//! believed: every point whose position is not finite is dropped (REP-117).

use crate::bag::msg::{Header, PointCloud2, PointField};

use crate::text::{quoted_all, shown};

use super::tf::LONGEST_NAME;
use super::{Point, Points};

/// Names that drivers give to the reflectance, best first.
const INTENSITY_NAMES: [&str; 3] = ["intensity", "reflectivity", "i"];
/// Names that drivers give to the laser channel.
const RING_NAMES: [&str; 3] = ["ring", "channel", "line"];
/// The age of a point's sweep, in clouds that [`encode`] made of several sweeps.
const TIME_LAG: &str = "time_lag";

/// Which fields to read where the usual names do not do.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DecodeOptions {
    /// Field to take as intensity; by default the first there is of `intensity`,
    /// `reflectivity`, `i`.
    pub intensity: Option<String>,
    /// Field to take as ring; by default the first there is of `ring`, `channel`, `line`.
    pub ring: Option<String>,
}

/// What was found in a cloud.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DecodeStats {
    /// Points in the message.
    pub total: usize,
    /// Points dropped because x, y or z was NaN or infinite.
    pub non_finite: usize,
    /// Points kept whose intensity was NaN or infinite and became 0.
    pub bad_intensity: usize,
    /// The field read as intensity; without one all intensities are 0.
    pub intensity: Option<String>,
    /// The field read as ring; without one all rings are 0.
    pub ring: Option<String>,
    /// Whether the cloud carries `time_lag`, that is, holds several sweeps already.
    pub has_time_lag: bool,
    /// The bytes were read in the other order than `is_bigendian` says: in the one that it says, the
    /// positions make no sense.
    pub other_byte_order: bool,
}

/// Why a message is no cloud that can be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CloudError {
    #[error("the cloud has no field \"{field}\"; its fields are {found}")]
    MissingField { field: String, found: String },
    #[error("field \"{field}\" has datatype {datatype}, which PointField does not define (1 to 8)")]
    Datatype { field: String, datatype: u8 },
    #[error(
        "field \"{field}\" of {count} elements takes bytes {offset} to {end} of a point, but point_step is \
         {point_step}"
    )]
    FieldOutside {
        field: String,
        count: u32,
        offset: u32,
        end: u64,
        point_step: u32,
    },
    #[error(
        "fields \"{first}\" and \"{second}\" overlap: they begin at bytes {first_offset} and \
         {second_offset} of a point"
    )]
    Overlap {
        first: String,
        first_offset: u32,
        second: String,
        second_offset: u32,
    },
    #[error("the frame_id has {bytes} bytes; names of frames have {LONGEST_NAME} at most")]
    FrameName { bytes: usize },
    #[error("row_step is {row_step}, but {width} points of {point_step} bytes take {needed}")]
    RowStep {
        row_step: u32,
        width: u32,
        point_step: u32,
        needed: u64,
    },
    #[error(
        "{width} x {height} points of {point_step} bytes take {needed} bytes, but the cloud has \
         {actual}"
    )]
    Truncated {
        width: u32,
        height: u32,
        point_step: u32,
        needed: u128,
        actual: usize,
    },
}

/// A number type of PointField.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    I8,
    U8,
    I16,
    U16,
    I32,
    U32,
    F32,
    F64,
}

impl Kind {
    fn of(field: &PointField) -> Result<Self, CloudError> {
        Ok(match field.datatype {
            PointField::INT8 => Kind::I8,
            PointField::UINT8 => Kind::U8,
            PointField::INT16 => Kind::I16,
            PointField::UINT16 => Kind::U16,
            PointField::INT32 => Kind::I32,
            PointField::UINT32 => Kind::U32,
            PointField::FLOAT32 => Kind::F32,
            PointField::FLOAT64 => Kind::F64,
            datatype => {
                return Err(CloudError::Datatype {
                    field: shown(&field.name),
                    datatype,
                });
            }
        })
    }

    fn size(self) -> usize {
        match self {
            Kind::I8 | Kind::U8 => 1,
            Kind::I16 | Kind::U16 => 2,
            Kind::I32 | Kind::U32 | Kind::F32 => 4,
            Kind::F64 => 8,
        }
    }
}

/// A field that is read: the first element where it has several.
#[derive(Debug, Clone, Copy)]
struct Access {
    offset: usize,
    kind: Kind,
    big_endian: bool,
}

impl Access {
    /// Every number type fits into an f64 without loss.
    #[inline]
    fn read(self, point: &[u8]) -> f64 {
        macro_rules! number {
            ($type:ty) => {{
                let mut raw = [0; size_of::<$type>()];
                raw.copy_from_slice(&point[self.offset..self.offset + size_of::<$type>()]);
                if self.big_endian {
                    <$type>::from_be_bytes(raw) as f64
                } else {
                    <$type>::from_le_bytes(raw) as f64
                }
            }};
        }
        match self.kind {
            Kind::I8 => number!(i8),
            Kind::U8 => number!(u8),
            Kind::I16 => number!(i16),
            Kind::U16 => number!(u16),
            Kind::I32 => number!(i32),
            Kind::U32 => number!(u32),
            Kind::F32 => number!(f32),
            Kind::F64 => number!(f64),
        }
    }

    /// A little-endian f32, which nearly all drivers send.
    #[inline]
    fn read_f32(self, point: &[u8]) -> f32 {
        let mut raw = [0; 4];
        raw.copy_from_slice(&point[self.offset..self.offset + 4]);
        f32::from_le_bytes(raw)
    }

    fn is_plain_f32(self) -> bool {
        self.kind == Kind::F32 && !self.big_endian
    }
}

/// The fields of a cloud that matter here.
struct Layout {
    position: [Access; 3],
    intensity: Option<Access>,
    ring: Option<Access>,
    time_lag: Option<Access>,
}

impl Layout {
    fn turn_byte_order(&mut self) {
        let others = [&mut self.intensity, &mut self.ring, &mut self.time_lag];
        let others = others.into_iter().flatten();
        for access in self.position.iter_mut().chain(others) {
            access.big_endian = !access.big_endian;
        }
    }
}

/// Whether the positions make no sense in the byte order that the cloud states, but do in the other
/// one: some simulators set `is_bigendian` on data that is not.
///
/// In the wrong order a float's last byte becomes part of its exponent, so values are spread over 76
/// orders of magnitude. Integers are not looked at: they make sense either way.
fn wants_other_byte_order(cloud: &PointCloud2, row_step: usize, layout: &Layout) -> bool {
    const SAMPLES: usize = 256;
    /// Of fewer points nothing can be said.
    const LEAST: u32 = 8;
    /// A share of sensible points below this is nonsense, above [`SENSE`] it is sense.
    const NONSENSE: f64 = 0.5;
    const SENSE: f64 = 0.9;
    let is_float = |access: &Access| matches!(access.kind, Kind::F32 | Kind::F64);
    if !layout.position.iter().all(is_float) {
        return false;
    }
    let turned = layout.position.map(|access| Access {
        big_endian: !access.big_endian,
        ..access
    });
    let is_sensible = |v: &f64| *v == 0.0 || (1e-5..1e5).contains(&v.abs());
    let (width, step) = (cloud.width as usize, cloud.point_step as usize);
    let total = width * cloud.height as usize;
    let (mut seen, mut stated, mut other) = (0u32, 0u32, 0u32);
    for index in (0..total).step_by((total / SAMPLES).max(1)) {
        let at = index / width * row_step + index % width * step;
        let bytes = &cloud.data[at..][..step];
        let as_stated = layout.position.map(|access| access.read(bytes));
        let as_other = turned.map(|access| access.read(bytes));
        // Missing returns are not finite or the origin; they say nothing.
        let is_missing = |point: &[f64; 3]| {
            point.iter().any(|v| !v.is_finite()) || point.iter().all(|v| *v == 0.0)
        };
        if is_missing(&as_stated) || is_missing(&as_other) {
            continue;
        }
        seen += 1;
        stated += u32::from(as_stated.iter().all(is_sensible));
        other += u32::from(as_other.iter().all(is_sensible));
    }
    let share = |count: u32| f64::from(count) / f64::from(seen.max(1));
    seen >= LEAST && share(stated) < NONSENSE && share(other) > SENSE
}

/// Checks a field against `point_step` and against those checked before it.
fn access<'a>(
    cloud: &'a PointCloud2,
    name: &str,
    used: &mut Vec<(&'a PointField, u64)>,
) -> Result<Option<Access>, CloudError> {
    let Some(field) = cloud.fields.iter().find(|field| field.name == name) else {
        return Ok(None);
    };
    let kind = Kind::of(field)?;
    let end_of = |count: u64| u64::from(field.offset) + count * kind.size() as u64;
    let count = u64::from(field.count.max(1));
    // Some simulators write the number of points where the number of elements in a point belongs.
    // Only the first element is read, so that does no harm.
    let points = u64::from(cloud.width) * u64::from(cloud.height);
    let is_points = count > 1 && [points, u64::from(cloud.width)].contains(&count);
    let end = end_of(if is_points { 1 } else { count });
    if end > u64::from(cloud.point_step) {
        return Err(CloudError::FieldOutside {
            field: shown(&field.name),
            count: field.count,
            offset: field.offset,
            end,
            point_step: cloud.point_step,
        });
    }
    for &(other, other_end) in used.iter() {
        if u64::from(field.offset) < other_end && u64::from(other.offset) < end {
            return Err(CloudError::Overlap {
                first: shown(&other.name),
                first_offset: other.offset,
                second: shown(&field.name),
                second_offset: field.offset,
            });
        }
    }
    used.push((field, end));
    Ok(Some(Access {
        offset: field.offset as usize,
        kind,
        big_endian: cloud.is_bigendian,
    }))
}

fn missing(cloud: &PointCloud2, field: &str) -> CloudError {
    CloudError::MissingField {
        field: shown(field),
        found: quoted_all(cloud.fields.iter().map(|field| &field.name)),
    }
}

/// The field asked for by name, or the first there is of the usual ones.
fn choose<'a>(
    cloud: &PointCloud2,
    asked: Option<&'a str>,
    usual: &[&'a str],
) -> Result<Option<&'a str>, CloudError> {
    let has = |name: &str| cloud.fields.iter().any(|field| field.name == name);
    match asked {
        Some(name) if has(name) => Ok(Some(name)),
        Some(name) => Err(missing(cloud, name)),
        None => Ok(usual.iter().copied().find(|name| has(name))),
    }
}

/// Bytes from one row to the next, after checking that all rows are there.
fn check_size(cloud: &PointCloud2) -> Result<usize, CloudError> {
    let row = u64::from(cloud.width) * u64::from(cloud.point_step);
    let without_padding = u128::from(row) * u128::from(cloud.height);
    let step = if cloud.height <= 1 || cloud.data.len() as u128 == without_padding {
        // With one row row_step says nothing, and where the data are just as long as the points
        // take, there is no padding, whatever it says: some drivers leave it 0, others write the
        // length of all rows.
        row
    } else if u64::from(cloud.row_step) < row {
        return Err(CloudError::RowStep {
            row_step: cloud.row_step,
            width: cloud.width,
            point_step: cloud.point_step,
            needed: row,
        });
    } else {
        u64::from(cloud.row_step)
    };
    // The padding behind the last row may be left out.
    let needed = u128::from(step) * u128::from(cloud.height - 1) + u128::from(row);
    if needed > cloud.data.len() as u128 {
        return Err(CloudError::Truncated {
            width: cloud.width,
            height: cloud.height,
            point_step: cloud.point_step,
            needed,
            actual: cloud.data.len(),
        });
    }
    Ok(step as usize)
}

/// Reads the points of a cloud, in the frame and order of the message. Positions must be in
/// metres, as REP-103 has it.
///
/// An empty cloud gives no points, whatever its fields. What the output takes is bounded by the
/// length of the data.
pub fn decode(cloud: &PointCloud2, options: &DecodeOptions) -> Result<Points, CloudError> {
    decode_with_stats(cloud, options).map(|(points, _)| points)
}

/// Like [`decode`], and says what was found and dropped.
pub fn decode_with_stats(
    cloud: &PointCloud2,
    options: &DecodeOptions,
) -> Result<(Points, DecodeStats), CloudError> {
    if cloud.width == 0 || cloud.height == 0 {
        return Ok(Default::default());
    }
    let used = &mut Vec::new();
    let mut required = |name| access(cloud, name, used)?.ok_or_else(|| missing(cloud, name));
    let position = [required("x")?, required("y")?, required("z")?];
    let intensity = choose(cloud, options.intensity.as_deref(), &INTENSITY_NAMES)?;
    let ring = choose(cloud, options.ring.as_deref(), &RING_NAMES)?;
    let mut optional = |name: Option<&str>| match name {
        Some(name) => access(cloud, name, used),
        None => Ok(None),
    };
    let mut layout = Layout {
        position,
        intensity: optional(intensity)?,
        ring: optional(ring)?,
        time_lag: optional(Some(TIME_LAG))?,
    };
    let row_step = check_size(cloud)?;
    let other_byte_order = wants_other_byte_order(cloud, row_step, &layout);
    if other_byte_order {
        layout.turn_byte_order();
    }
    let position = layout.position;
    let mut stats = DecodeStats {
        total: cloud.width as usize * cloud.height as usize,
        intensity: intensity.map(str::to_owned),
        ring: ring.map(str::to_owned),
        has_time_lag: layout.time_lag.is_some(),
        other_byte_order,
        ..Default::default()
    };
    let points = if position.iter().all(|access| access.is_plain_f32()) {
        read_points::<true>(cloud, row_step, &layout, &mut stats)
    } else {
        read_points::<false>(cloud, row_step, &layout, &mut stats)
    };
    Ok((Points(points), stats))
}

/// `FAST`: the position is three little-endian f32. All bounds were checked by the caller.
fn read_points<const FAST: bool>(
    cloud: &PointCloud2,
    row_step: usize,
    layout: &Layout,
    stats: &mut DecodeStats,
) -> Vec<Point> {
    let (width, step) = (cloud.width as usize, cloud.point_step as usize);
    let mut points = Vec::with_capacity(stats.total);
    for row in 0..cloud.height as usize {
        let row = &cloud.data[row * row_step..][..width * step];
        for bytes in row.chunks_exact(step) {
            let [x, y, z] = layout.position.map(|access| match FAST {
                true => access.read_f32(bytes),
                false => access.read(bytes) as f32,
            });
            if !(x.is_finite() && y.is_finite() && z.is_finite()) {
                stats.non_finite += 1;
                continue;
            }
            let read = |access: Option<Access>| access.map_or(0.0, |a| a.read(bytes));
            let mut intensity = read(layout.intensity) as f32;
            if !intensity.is_finite() {
                stats.bad_intensity += 1;
                intensity = 0.0;
            }
            let time_lag = read(layout.time_lag) as f32;
            points.push(Point {
                x,
                y,
                z,
                intensity,
                time_lag: if time_lag.is_finite() { time_lag } else { 0.0 },
                ring: read(layout.ring) as u16,
            });
        }
    }
    points
}

/// Bytes of the data that [`encode`] gives.
pub fn encoded_len(points: &Points, with_time_lag: bool) -> usize {
    points.len() * if with_time_lag { 24 } else { 20 }
}

/// Makes a cloud of fields x, y, z, intensity (f32), ring (u16) and, if asked for, time_lag
/// (f32), which marks it as made of several sweeps.
pub fn encode(points: &Points, header: Header, with_time_lag: bool) -> PointCloud2 {
    let mut fields = vec![
        PointField::new("x", 0, PointField::FLOAT32),
        PointField::new("y", 4, PointField::FLOAT32),
        PointField::new("z", 8, PointField::FLOAT32),
        PointField::new("intensity", 12, PointField::FLOAT32),
        PointField::new("ring", 16, PointField::UINT16),
    ];
    let mut point_step = 20;
    if with_time_lag {
        fields.push(PointField::new(TIME_LAG, 20, PointField::FLOAT32));
        point_step = 24;
    }
    let mut data = Vec::with_capacity(encoded_len(points, with_time_lag));
    for p in points.iter() {
        for value in [p.x, p.y, p.z, p.intensity] {
            data.extend_from_slice(&value.to_le_bytes());
        }
        data.extend_from_slice(&p.ring.to_le_bytes());
        data.extend_from_slice(&[0; 2]);
        if with_time_lag {
            data.extend_from_slice(&p.time_lag.to_le_bytes());
        }
    }
    let width = points.len() as u32;
    PointCloud2 {
        header,
        height: 1,
        width,
        fields,
        is_bigendian: false,
        point_step,
        row_step: width.saturating_mul(point_step),
        data,
        is_dense: true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NUMBERS: [u8; 8] = [1, 2, 3, 4, 5, 6, 7, 8];

    fn size_of_datatype(datatype: u8) -> usize {
        [0, 1, 1, 2, 2, 4, 4, 4, 8][datatype as usize]
    }

    /// Writes one value at a place, the plain way: the reference the decoder is held against.
    fn put(data: &mut [u8], at: usize, datatype: u8, value: f64, big: bool) -> f64 {
        macro_rules! as_type {
            ($type:ty) => {{
                let value = value as $type;
                let bytes = if big {
                    value.to_be_bytes()
                } else {
                    value.to_le_bytes()
                };
                data[at..at + bytes.len()].copy_from_slice(&bytes);
                value as f64
            }};
        }
        match datatype {
            1 => as_type!(i8),
            2 => as_type!(u8),
            3 => as_type!(i16),
            4 => as_type!(u16),
            5 => as_type!(i32),
            6 => as_type!(u32),
            7 => as_type!(f32),
            _ => as_type!(f64),
        }
    }

    #[derive(Debug, Clone)]
    struct Case {
        cloud: PointCloud2,
        expected: Vec<Point>,
        non_finite: usize,
    }

    /// A cloud of random layout: order, datatypes, gaps, counts, padding, byte order.
    fn case() -> impl Strategy<Value = Case> {
        let field = (prop::sample::select(NUMBERS.to_vec()), 0..5usize, 1..4u32);
        (
            prop::collection::vec(field, 6),
            Just(vec!["x", "y", "z", "reflectivity", "line", "other"]).prop_shuffle(),
            1..4u32,
            0..9u32,
            0..7usize,
            0..9usize,
            any::<bool>(),
            any::<u64>(),
        )
            .prop_map(|(specs, names, height, width, tail, padding, big, seed)| {
                let mut offset = 0;
                let mut fields = Vec::new();
                for ((datatype, gap, count), name) in specs.into_iter().zip(names) {
                    offset += gap;
                    fields.push(PointField {
                        name: name.into(),
                        offset: offset as u32,
                        datatype,
                        count,
                    });
                    offset += size_of_datatype(datatype) * count as usize;
                }
                let point_step = offset + tail;
                let row_step = width as usize * point_step + padding;
                let mut data = vec![0xa5; row_step * height as usize];
                let mut state = seed;
                let mut random = move || {
                    state = state
                        .wrapping_mul(6364136223846793005)
                        .wrapping_add(1442695040888963407);
                    (state >> 40) as f64
                };
                let (mut expected, mut non_finite) = (Vec::new(), 0);
                for row in 0..height as usize {
                    for column in 0..width as usize {
                        let start = row * row_step + column * point_step;
                        let mut point = Point::default();
                        for field in &fields {
                            let value = match random() % 23.0 {
                                0.0 if field.datatype >= 7 => f64::NAN,
                                1.0 if field.datatype >= 7 => f64::NEG_INFINITY,
                                _ => {
                                    random() % 250.0 - if field.datatype == 1 { 120.0 } else { 0.0 }
                                }
                            };
                            let at = start + field.offset as usize;
                            let stored = put(&mut data, at, field.datatype, value, big);
                            match field.name.as_str() {
                                "x" => point.x = stored as f32,
                                "y" => point.y = stored as f32,
                                "z" => point.z = stored as f32,
                                "reflectivity" if stored.is_finite() => {
                                    point.intensity = stored as f32;
                                }
                                "line" => point.ring = stored as u16,
                                _ => {}
                            }
                        }
                        if [point.x, point.y, point.z].iter().all(|v| v.is_finite()) {
                            expected.push(point);
                        } else {
                            non_finite += 1;
                        }
                    }
                }
                let cloud = PointCloud2 {
                    header: Header::default(),
                    height,
                    width,
                    fields,
                    is_bigendian: big,
                    point_step: point_step as u32,
                    row_step: row_step as u32,
                    data,
                    is_dense: true,
                };
                Case {
                    cloud,
                    expected,
                    non_finite,
                }
            })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn any_layout_reads_as_a_plain_reference_wrote_it(case in case()) {
            let (points, stats) =
                decode_with_stats(&case.cloud, &DecodeOptions::default()).unwrap();
            prop_assert_eq!(&points.0, &case.expected);
            prop_assert_eq!(stats.non_finite, case.non_finite);
            prop_assert_eq!(stats.total, points.len() + stats.non_finite);
        }

        #[test]
        fn clouds_with_lying_headers_never_panic(
            case in case(),
            numbers in prop::array::uniform4(prop_oneof![0..40u32, any::<u32>()]),
            field in any::<prop::sample::Index>(),
            offset in prop_oneof![0..40u32, any::<u32>()],
            count in prop_oneof![0..4u32, any::<u32>()],
            datatype in 0..12u8,
            cut in any::<prop::sample::Index>(),
        ) {
            let mut cloud = case.cloud;
            [cloud.width, cloud.height, cloud.point_step, cloud.row_step] = numbers;
            let index = field.index(cloud.fields.len());
            let field = &mut cloud.fields[index];
            (field.offset, field.count, field.datatype) = (offset, count, datatype);
            cloud.data.truncate(cut.index(cloud.data.len() + 1));
            if let Ok(points) = decode(&cloud, &DecodeOptions::default()) {
                prop_assert!(points.len() <= cloud.data.len());
            }
        }

        #[test]
        fn encoded_points_decode_to_themselves(
            values in prop::collection::vec((-200.0..200f32, -200.0..200f32, -5.0..5f32, 0.0..255f32, 0.0..1f32, any::<u16>()), 0..50),
            with_time_lag in any::<bool>(),
        ) {
            let points = Points(values.into_iter().map(|(x, y, z, intensity, lag, ring)| Point {
                x, y, z, intensity, ring, time_lag: if with_time_lag { lag } else { 0.0 },
            }).collect());
            let cloud = encode(&points, Header::default(), with_time_lag);
            let (back, stats) = decode_with_stats(&cloud, &DecodeOptions::default()).unwrap();
            prop_assert_eq!(&back, &points);
            prop_assert_eq!(stats.has_time_lag, with_time_lag && !points.is_empty());
        }
    }

    fn xyz(step: u32, width: u32) -> PointCloud2 {
        PointCloud2 {
            height: 1,
            width,
            fields: ["x", "y", "z"]
                .iter()
                .zip([0, 4, 8])
                .map(|(name, offset)| PointField::new(name, offset, PointField::FLOAT32))
                .collect(),
            point_step: step,
            row_step: step * width,
            data: vec![0; (step * width) as usize],
            ..Default::default()
        }
    }

    fn error(cloud: &PointCloud2) -> CloudError {
        decode(cloud, &DecodeOptions::default()).unwrap_err()
    }

    #[test]
    fn the_fast_path_reads_what_the_general_path_reads() {
        let mut cloud = xyz(17, 50);
        cloud
            .fields
            .push(PointField::new("intensity", 12, PointField::UINT8));
        cloud
            .fields
            .push(PointField::new("ring", 13, PointField::UINT16));
        for (i, byte) in cloud.data.iter_mut().enumerate() {
            *byte = (i * 37 % 251) as u8;
        }
        let layout = Layout {
            position: [0, 4, 8].map(|offset| Access {
                offset,
                kind: Kind::F32,
                big_endian: false,
            }),
            intensity: Some(Access {
                offset: 12,
                kind: Kind::U8,
                big_endian: false,
            }),
            ring: Some(Access {
                offset: 13,
                kind: Kind::U16,
                big_endian: false,
            }),
            time_lag: None,
        };
        let (mut fast, mut slow) = (DecodeStats::default(), DecodeStats::default());
        let a = read_points::<true>(&cloud, 850, &layout, &mut fast);
        let b = read_points::<false>(&cloud, 850, &layout, &mut slow);
        assert_eq!(a, b);
        assert_eq!(fast, slow);
        assert!(a.iter().any(|p| p.ring != 0 && p.intensity != 0.0));
    }

    #[test]
    fn a_cloud_without_intensity_says_so_and_reads_zero() {
        let (points, stats) = decode_with_stats(&xyz(12, 2), &DecodeOptions::default()).unwrap();
        assert_eq!(points.0, [Point::default(); 2]);
        assert_eq!(stats.intensity, None);
        assert_eq!(stats.ring, None);
    }

    #[test]
    fn the_best_known_name_wins_and_a_named_field_beats_it() {
        let mut cloud = xyz(14, 1);
        cloud
            .fields
            .push(PointField::new("reflectivity", 12, PointField::UINT8));
        cloud
            .fields
            .push(PointField::new("intensity", 13, PointField::UINT8));
        cloud.data[12..].copy_from_slice(&[40, 50]);
        let plain = decode(&cloud, &DecodeOptions::default()).unwrap();
        assert_eq!(plain.0[0].intensity, 50.0);
        let options = DecodeOptions {
            intensity: Some("reflectivity".into()),
            ..Default::default()
        };
        assert_eq!(decode(&cloud, &options).unwrap().0[0].intensity, 40.0);
        let options = DecodeOptions {
            ring: Some("beam".into()),
            ..Default::default()
        };
        let error = decode(&cloud, &options).unwrap_err().to_string();
        assert!(
            error.contains("\"beam\"") && error.contains("\"z\""),
            "{error}"
        );
    }

    #[test]
    fn a_cloud_without_z_lists_its_fields() {
        let mut cloud = xyz(12, 1);
        cloud.fields.pop();
        let text = error(&cloud).to_string();
        assert!(
            text.contains("\"z\"") && text.contains("\"x\", \"y\""),
            "{text}"
        );
    }

    #[test]
    fn fields_outside_the_point_or_over_each_other_are_named() {
        let mut cloud = xyz(12, 1);
        cloud.fields[2].offset = 9;
        assert_eq!(
            error(&cloud),
            CloudError::FieldOutside {
                field: "z".into(),
                count: 1,
                offset: 9,
                end: 13,
                point_step: 12
            }
        );
        cloud.fields[2].offset = 6;
        assert!(matches!(error(&cloud), CloudError::Overlap { .. }));
        cloud.fields[2].datatype = 9;
        assert!(matches!(
            error(&cloud),
            CloudError::Datatype { datatype: 9, .. }
        ));
    }

    #[test]
    fn unread_fields_may_overlap() {
        let mut cloud = xyz(12, 1);
        cloud
            .fields
            .push(PointField::new("rgb", 8, PointField::FLOAT32));
        assert_eq!(decode(&cloud, &DecodeOptions::default()).unwrap().len(), 1);
    }

    #[test]
    fn missing_bytes_and_short_rows_are_counted() {
        let mut cloud = xyz(12, 3);
        cloud.data.pop();
        assert!(matches!(
            error(&cloud),
            CloudError::Truncated {
                needed: 36,
                actual: 35,
                ..
            }
        ));
        let mut cloud = xyz(12, 3);
        cloud.height = 2;
        cloud.row_step = 30;
        assert!(matches!(
            error(&cloud),
            CloudError::RowStep { needed: 36, .. }
        ));
        cloud.width = u32::MAX;
        cloud.height = 1;
        assert!(matches!(error(&cloud), CloudError::Truncated { .. }));
    }

    #[test]
    fn one_row_needs_no_row_step_and_the_last_row_no_padding() {
        let mut cloud = xyz(12, 3);
        cloud.row_step = 0;
        assert_eq!(decode(&cloud, &DecodeOptions::default()).unwrap().len(), 3);
        let mut cloud = xyz(12, 3);
        cloud.height = 2;
        cloud.row_step = 40;
        cloud.data = vec![0; 76];
        assert_eq!(decode(&cloud, &DecodeOptions::default()).unwrap().len(), 6);
    }

    #[test]
    fn rows_without_padding_need_no_row_step_that_is_right() {
        for row_step in [0, 1, 24, 72, u32::MAX] {
            let mut cloud = xyz(12, 3);
            cloud.height = 2;
            cloud.data = vec![0; 72];
            cloud.row_step = row_step;
            let points = decode(&cloud, &DecodeOptions::default()).unwrap();
            assert_eq!(points.len(), 6, "{row_step}");
            // With one byte more the length has several meanings.
            cloud.data.push(0);
            cloud.row_step = 0;
            assert!(matches!(error(&cloud), CloudError::RowStep { .. }));
        }
    }

    #[test]
    fn a_count_that_is_the_number_of_points_is_one_element() {
        for (width, height) in [(3, 1), (3, 2), (400, 1)] {
            let mut cloud = xyz(12, width * height);
            (cloud.width, cloud.height) = (width, height);
            for field in &mut cloud.fields {
                field.count = width * height;
            }
            let points = decode(&cloud, &DecodeOptions::default()).unwrap();
            assert_eq!(points.len(), (width * height) as usize);
            cloud.fields[1].count = width * height + 1;
            let text = error(&cloud).to_string();
            let named = text.contains("\"y\"");
            assert!(named, "{text}");
        }
    }

    /// Points on a spiral, as three floats each, in the given byte order.
    fn spiral(big_endian: bool) -> PointCloud2 {
        let mut cloud = xyz(12, 200);
        let values = (0..200).flat_map(|i| {
            let angle = i as f32 * 0.1;
            [angle * angle.cos(), angle * angle.sin(), -1.8]
        });
        cloud.data = values
            .flat_map(|v| match big_endian {
                true => v.to_be_bytes(),
                false => v.to_le_bytes(),
            })
            .collect();
        cloud
    }

    #[test]
    fn a_byte_order_that_makes_nonsense_is_turned_and_said() {
        let read = |cloud: &PointCloud2| decode_with_stats(cloud, &Default::default()).unwrap();
        let (expected, stats) = read(&spiral(false));
        assert!(!stats.other_byte_order);
        for data in [false, true] {
            let mut cloud = spiral(data);
            for flag in [false, true] {
                cloud.is_bigendian = flag;
                let (points, stats) = read(&cloud);
                assert_eq!(points, expected);
                assert_eq!(stats.other_byte_order, flag != data);
            }
        }
    }

    #[test]
    fn positions_that_are_far_or_missing_do_not_turn_the_byte_order() {
        let mut cloud = spiral(false);
        // As an organised cloud has them: most returns are missing.
        for point in cloud.data.chunks_exact_mut(12).skip(20) {
            point[..4].copy_from_slice(&f32::NAN.to_le_bytes());
        }
        let (points, stats) = decode_with_stats(&cloud, &Default::default()).unwrap();
        assert_eq!((points.len(), stats.other_byte_order), (20, false));
        // In metres from the origin of a map projection.
        for point in cloud.data.chunks_exact_mut(12) {
            point[..4].copy_from_slice(&4_512_345.5f32.to_le_bytes());
        }
        let (_, stats) = decode_with_stats(&cloud, &Default::default()).unwrap();
        assert!(!stats.other_byte_order);
    }

    #[test]
    fn an_empty_cloud_is_no_error() {
        let cloud = PointCloud2::default();
        assert!(
            decode(&cloud, &DecodeOptions::default())
                .unwrap()
                .is_empty()
        );
    }
}
