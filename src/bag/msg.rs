//! The ROS 2 messages that are read or written here, as plain structs with their CDR encoding.
//!
//! Field names and order are those of `std_msgs`, `sensor_msgs`, `geometry_msgs`, `tf2_msgs` and
//! `vision_msgs` 4; units SI, frames as the header says.

use super::Stamp;
use super::cdr::{CdrError, Decoder, Encoder};

/// A message type that can stand alone in a bag.
pub trait Message: Sized {
    /// As in `sensor_msgs/msg/PointCloud2`.
    const TYPE: &'static str;
    /// The definition and those of all nested types, in the `ros2msg` form MCAP stores.
    const SCHEMA: &'static str;
    /// REP-2011 type hash, empty where it is not known (readers accept that).
    const TYPE_HASH: &'static str = "";

    fn write(&self, out: &mut Encoder);
    fn read(input: &mut Decoder<'_>) -> Result<Self, CdrError>;

    /// Serializes to little-endian CDR.
    fn encode(&self) -> Vec<u8> {
        let mut encoder = Encoder::default();
        self.write(&mut encoder);
        encoder.finish()
    }

    /// Reads CDR of either byte order. Bytes after the message are ignored, as ROS does.
    fn decode(bytes: &[u8]) -> Result<Self, CdrError> {
        Self::read(&mut Decoder::new(bytes)?)
    }
}

const SEPARATOR: &str =
    "================================================================================\n";

/// Joins a definition and the definitions it needs at compile time.
macro_rules! schema {
    ($main:expr $(, $name:literal => $text:expr)* $(,)?) => {{
        const PARTS: &[&str] = &[$main $(, SEPARATOR, "MSG: ", $name, "\n", $text)*];
        const LENGTH: usize = total(PARTS);
        const BYTES: [u8; LENGTH] = concat(PARTS);
        match std::str::from_utf8(&BYTES) {
            Ok(text) => text,
            Err(_) => panic!("joined from UTF-8 strings"),
        }
    }};
}

const fn total(parts: &[&str]) -> usize {
    let (mut sum, mut i) = (0, 0);
    while i < parts.len() {
        sum += parts[i].len();
        i += 1;
    }
    sum
}

const fn concat<const N: usize>(parts: &[&str]) -> [u8; N] {
    let mut out = [0; N];
    let (mut at, mut i) = (0, 0);
    while i < parts.len() {
        let part = parts[i].as_bytes();
        let mut j = 0;
        while j < part.len() {
            out[at] = part[j];
            at += 1;
            j += 1;
        }
        i += 1;
    }
    out
}

const TIME: &str = "int32 sec\nuint32 nanosec\n";
const HEADER: &str = "builtin_interfaces/Time stamp\nstring frame_id\n";
const VECTOR3: &str = "float64 x\nfloat64 y\nfloat64 z\n";
const QUATERNION: &str = "float64 x 0\nfloat64 y 0\nfloat64 z 0\nfloat64 w 1\n";
const POSE: &str = "Point position\nQuaternion orientation\n";

/// `std_msgs/msg/Header`
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Header {
    pub stamp: Stamp,
    pub frame_id: String,
}

impl Header {
    fn write(&self, out: &mut Encoder) {
        out.i32(self.stamp.sec());
        out.u32(self.stamp.nanosec());
        out.string(&self.frame_id);
    }

    fn read(input: &mut Decoder<'_>) -> Result<Self, CdrError> {
        let sec = input.i32("header.stamp.sec")?;
        let nanosec = input.u32("header.stamp.nanosec")?;
        Ok(Header {
            stamp: Stamp::from_sec_nanosec(sec, nanosec),
            frame_id: input.string("header.frame_id")?,
        })
    }
}

/// `std_msgs/msg/String`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Text {
    pub data: String,
}

impl Message for Text {
    const TYPE: &'static str = "std_msgs/msg/String";
    const SCHEMA: &'static str = "string data\n";

    fn write(&self, out: &mut Encoder) {
        out.string(&self.data);
    }

    fn read(input: &mut Decoder<'_>) -> Result<Self, CdrError> {
        Ok(Text {
            data: input.string("data")?,
        })
    }
}

/// `sensor_msgs/msg/PointField`: where a value lies in each point of a cloud.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PointField {
    pub name: String,
    /// Bytes from the start of a point.
    pub offset: u32,
    /// One of the constants below; others are carried along but cannot be decoded.
    pub datatype: u8,
    /// Number of elements; 0 is met in the wild and taken as 1.
    pub count: u32,
}

impl PointField {
    pub const INT8: u8 = 1;
    pub const UINT8: u8 = 2;
    pub const INT16: u8 = 3;
    pub const UINT16: u8 = 4;
    pub const INT32: u8 = 5;
    pub const UINT32: u8 = 6;
    pub const FLOAT32: u8 = 7;
    pub const FLOAT64: u8 = 8;

    /// A field of one element.
    pub fn new(name: &str, offset: u32, datatype: u8) -> Self {
        PointField {
            name: name.to_owned(),
            offset,
            datatype,
            count: 1,
        }
    }
}

/// Fields of a point that are read: sensors have some ten.
const MOST_FIELDS: usize = 1024;

/// `sensor_msgs/msg/PointCloud2`; [`crate::cloud::decode`] turns it into points.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PointCloud2 {
    pub header: Header,
    pub height: u32,
    pub width: u32,
    pub fields: Vec<PointField>,
    pub is_bigendian: bool,
    /// Bytes of one point.
    pub point_step: u32,
    /// Bytes of one row, padding included.
    pub row_step: u32,
    pub data: Vec<u8>,
    pub is_dense: bool,
}

impl Message for PointCloud2 {
    const TYPE: &'static str = "sensor_msgs/msg/PointCloud2";
    const TYPE_HASH: &'static str =
        "RIHS01_9198cabf7da3796ae6fe19c4cb3bdd3525492988c70522628af5daa124bae2b5";
    const SCHEMA: &'static str = schema!(
        "std_msgs/Header header\nuint32 height\nuint32 width\nPointField[] fields\n\
         bool is_bigendian\nuint32 point_step\nuint32 row_step\nuint8[] data\nbool is_dense\n",
        "std_msgs/Header" => HEADER,
        "builtin_interfaces/Time" => TIME,
        "sensor_msgs/PointField" =>
            "uint8 INT8=1\nuint8 UINT8=2\nuint8 INT16=3\nuint8 UINT16=4\nuint8 INT32=5\n\
             uint8 UINT32=6\nuint8 FLOAT32=7\nuint8 FLOAT64=8\n\
             string name\nuint32 offset\nuint8 datatype\nuint32 count\n",
    );

    fn write(&self, out: &mut Encoder) {
        self.header.write(out);
        out.u32(self.height);
        out.u32(self.width);
        out.sequence(&self.fields, |out, field| {
            out.string(&field.name);
            out.u32(field.offset);
            out.u8(field.datatype);
            out.u32(field.count);
        });
        out.bool(self.is_bigendian);
        out.u32(self.point_step);
        out.u32(self.row_step);
        out.bytes(&self.data);
        out.bool(self.is_dense);
    }

    fn read(input: &mut Decoder<'_>) -> Result<Self, CdrError> {
        Ok(PointCloud2 {
            header: Header::read(input)?,
            height: input.u32("height")?,
            width: input.u32("width")?,
            fields: input.short_sequence("fields", 13, MOST_FIELDS, |input| {
                Ok(PointField {
                    name: input.string("fields.name")?,
                    offset: input.u32("fields.offset")?,
                    datatype: input.u8("fields.datatype")?,
                    count: input.u32("fields.count")?,
                })
            })?,
            is_bigendian: input.bool("is_bigendian")?,
            point_step: input.u32("point_step")?,
            row_step: input.u32("row_step")?,
            data: input.bytes("data")?.to_vec(),
            is_dense: input.bool("is_dense")?,
        })
    }
}

/// `geometry_msgs/msg/Transform`
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Transform {
    pub translation: [f64; 3],
    /// Quaternion x, y, z, w.
    pub rotation: [f64; 4],
}

impl Default for Transform {
    fn default() -> Self {
        Transform {
            translation: [0.0; 3],
            rotation: [0.0, 0.0, 0.0, 1.0],
        }
    }
}

impl From<&crate::geometry::Pose> for Transform {
    fn from(pose: &crate::geometry::Pose) -> Self {
        let (t, q) = (pose.translation.vector, pose.rotation.coords);
        Transform {
            translation: [t.x, t.y, t.z],
            rotation: [q.x, q.y, q.z, q.w],
        }
    }
}

/// `geometry_msgs/msg/TransformStamped`: the pose of `child_frame_id` in `header.frame_id`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TransformStamped {
    pub header: Header,
    pub child_frame_id: String,
    pub transform: Transform,
}

/// `tf2_msgs/msg/TFMessage`
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TfMessage {
    pub transforms: Vec<TransformStamped>,
}

fn write_array<const N: usize>(out: &mut Encoder, values: &[f64; N]) {
    for &value in values {
        out.f64(value);
    }
}

fn read_array<const N: usize>(
    input: &mut Decoder<'_>,
    field: &'static str,
) -> Result<[f64; N], CdrError> {
    let mut values = [0.0; N];
    for value in &mut values {
        *value = input.f64(field)?;
    }
    Ok(values)
}

impl Message for TfMessage {
    const TYPE: &'static str = "tf2_msgs/msg/TFMessage";
    const TYPE_HASH: &'static str =
        "RIHS01_e369d0f05a23ae52508854b66f6aa0437f3449d652e8cbf22d5abe85d020f087";
    const SCHEMA: &'static str = schema!(
        "geometry_msgs/TransformStamped[] transforms\n",
        "geometry_msgs/TransformStamped" =>
            "std_msgs/Header header\nstring child_frame_id\nTransform transform\n",
        "std_msgs/Header" => HEADER,
        "builtin_interfaces/Time" => TIME,
        "geometry_msgs/Transform" => "Vector3 translation\nQuaternion rotation\n",
        "geometry_msgs/Vector3" => VECTOR3,
        "geometry_msgs/Quaternion" => QUATERNION,
    );

    fn write(&self, out: &mut Encoder) {
        out.sequence(&self.transforms, |out, transform| {
            transform.header.write(out);
            out.string(&transform.child_frame_id);
            write_array(out, &transform.transform.translation);
            write_array(out, &transform.transform.rotation);
        });
    }

    fn read(input: &mut Decoder<'_>) -> Result<Self, CdrError> {
        Ok(TfMessage {
            transforms: input.sequence("transforms", 72, |input| {
                Ok(TransformStamped {
                    header: Header::read(input)?,
                    child_frame_id: input.string("transforms.child_frame_id")?,
                    transform: Transform {
                        translation: read_array(input, "transforms.transform.translation")?,
                        rotation: read_array(input, "transforms.transform.rotation")?,
                    },
                })
            })?,
        })
    }
}

/// `geometry_msgs/msg/Pose`
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PoseMsg {
    pub position: [f64; 3],
    /// Quaternion x, y, z, w.
    pub orientation: [f64; 4],
}

impl Default for PoseMsg {
    fn default() -> Self {
        PoseMsg {
            position: [0.0; 3],
            orientation: [0.0, 0.0, 0.0, 1.0],
        }
    }
}

impl PoseMsg {
    fn write(&self, out: &mut Encoder) {
        write_array(out, &self.position);
        write_array(out, &self.orientation);
    }

    fn read(input: &mut Decoder<'_>, field: &'static str) -> Result<Self, CdrError> {
        Ok(PoseMsg {
            position: read_array(input, field)?,
            orientation: read_array(input, field)?,
        })
    }
}

/// `vision_msgs/msg/ObjectHypothesisWithPose`
#[derive(Debug, Clone, PartialEq)]
pub struct ObjectHypothesisWithPose {
    pub class_id: String,
    pub score: f64,
    pub pose: PoseMsg,
    /// Row-major 6 x 6 about x, y, z and the three axes.
    pub covariance: [f64; 36],
}

impl Default for ObjectHypothesisWithPose {
    fn default() -> Self {
        ObjectHypothesisWithPose {
            class_id: String::new(),
            score: 0.0,
            pose: PoseMsg::default(),
            covariance: [0.0; 36],
        }
    }
}

/// `vision_msgs/msg/BoundingBox3D`: geometric centre and full extents.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct BoundingBox3D {
    pub center: PoseMsg,
    /// Length along x of the box, width along y, height along z, metres.
    pub size: [f64; 3],
}

/// `vision_msgs/msg/Detection3D`
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Detection3D {
    pub header: Header,
    pub results: Vec<ObjectHypothesisWithPose>,
    pub bbox: BoundingBox3D,
    pub id: String,
}

/// `vision_msgs/msg/Detection3DArray`
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Detection3DArray {
    pub header: Header,
    pub detections: Vec<Detection3D>,
}

impl Message for Detection3DArray {
    const TYPE: &'static str = "vision_msgs/msg/Detection3DArray";
    const SCHEMA: &'static str = schema!(
        "std_msgs/Header header\nDetection3D[] detections\n",
        "std_msgs/Header" => HEADER,
        "builtin_interfaces/Time" => TIME,
        "vision_msgs/Detection3D" =>
            "std_msgs/Header header\nObjectHypothesisWithPose[] results\n\
             BoundingBox3D bbox\nstring id\n",
        "vision_msgs/ObjectHypothesisWithPose" =>
            "ObjectHypothesis hypothesis\ngeometry_msgs/PoseWithCovariance pose\n",
        "vision_msgs/ObjectHypothesis" => "string class_id\nfloat64 score\n",
        "geometry_msgs/PoseWithCovariance" => "Pose pose\nfloat64[36] covariance\n",
        "geometry_msgs/Pose" => POSE,
        "geometry_msgs/Point" => VECTOR3,
        "geometry_msgs/Quaternion" => QUATERNION,
        "vision_msgs/BoundingBox3D" => "geometry_msgs/Pose center\ngeometry_msgs/Vector3 size\n",
        "geometry_msgs/Vector3" => VECTOR3,
    );

    fn write(&self, out: &mut Encoder) {
        self.header.write(out);
        out.sequence(&self.detections, |out, detection| {
            detection.header.write(out);
            out.sequence(&detection.results, |out, result| {
                out.string(&result.class_id);
                out.f64(result.score);
                result.pose.write(out);
                write_array(out, &result.covariance);
            });
            detection.bbox.center.write(out);
            write_array(out, &detection.bbox.size);
            out.string(&detection.id);
        });
    }

    fn read(input: &mut Decoder<'_>) -> Result<Self, CdrError> {
        Ok(Detection3DArray {
            header: Header::read(input)?,
            detections: input.sequence("detections", 100, |input| {
                Ok(Detection3D {
                    header: Header::read(input)?,
                    results: input.sequence("detections.results", 352, |input| {
                        Ok(ObjectHypothesisWithPose {
                            class_id: input.string("detections.results.hypothesis.class_id")?,
                            score: input.f64("detections.results.hypothesis.score")?,
                            pose: PoseMsg::read(input, "detections.results.pose")?,
                            covariance: read_array(input, "detections.results.pose.covariance")?,
                        })
                    })?,
                    bbox: BoundingBox3D {
                        center: PoseMsg::read(input, "detections.bbox.center")?,
                        size: read_array(input, "detections.bbox.size")?,
                    },
                    id: input.string("detections.id")?,
                })
            })?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cloud() -> PointCloud2 {
        PointCloud2 {
            header: Header {
                stamp: Stamp(1_700_000_000_123_456_789),
                frame_id: "lidar_top".into(),
            },
            height: 1,
            width: 2,
            fields: vec![
                PointField::new("x", 0, PointField::FLOAT32),
                PointField::new("ring", 4, PointField::UINT16),
            ],
            is_bigendian: false,
            point_step: 6,
            row_step: 12,
            data: (0..12).collect(),
            is_dense: true,
        }
    }

    fn truth() -> Detection3DArray {
        let header = Header {
            stamp: Stamp(5),
            frame_id: "base_link".into(),
        };
        Detection3DArray {
            header: header.clone(),
            detections: vec![Detection3D {
                header,
                results: vec![ObjectHypothesisWithPose {
                    class_id: "CAR".into(),
                    score: 0.75,
                    ..Default::default()
                }],
                bbox: BoundingBox3D {
                    size: [4.5, 1.9, 1.6],
                    ..Default::default()
                },
                id: "17".into(),
            }],
        }
    }

    fn transforms() -> TfMessage {
        TfMessage {
            transforms: vec![TransformStamped {
                header: Header {
                    stamp: Stamp(77),
                    frame_id: "odom".into(),
                },
                child_frame_id: "base_link".into(),
                transform: Transform::default(),
            }],
        }
    }

    #[test]
    fn messages_survive_encoding() {
        assert_eq!(PointCloud2::decode(&cloud().encode()), Ok(cloud()));
        assert_eq!(Detection3DArray::decode(&truth().encode()), Ok(truth()));
        assert_eq!(TfMessage::decode(&transforms().encode()), Ok(transforms()));
    }

    #[test]
    fn point_cloud_layout_matches_bytes_written_out_by_hand() {
        let message = PointCloud2 {
            header: Header {
                stamp: Stamp::from_sec_nanosec(1, 2),
                frame_id: "ab".into(),
            },
            height: 3,
            width: 4,
            fields: vec![],
            is_bigendian: true,
            point_step: 5,
            row_step: 6,
            data: vec![9],
            is_dense: true,
        };
        #[rustfmt::skip]
        let expected = [
            0, 1, 0, 0,             // little-endian CDR
            1, 0, 0, 0, 2, 0, 0, 0, // stamp
            3, 0, 0, 0, b'a', b'b', 0, 0, // frame_id and one byte of padding
            3, 0, 0, 0, 4, 0, 0, 0, // height, width
            0, 0, 0, 0,             // no fields
            1, 0, 0, 0,             // is_bigendian and padding
            5, 0, 0, 0, 6, 0, 0, 0, // point_step, row_step
            1, 0, 0, 0, 9,          // data
            1,                      // is_dense
        ];
        assert_eq!(message.encode(), expected);
    }

    #[test]
    fn schemas_define_every_type_they_name() {
        for schema in [
            PointCloud2::SCHEMA,
            TfMessage::SCHEMA,
            Detection3DArray::SCHEMA,
        ] {
            let defined: Vec<&str> = schema
                .lines()
                .filter_map(|line| line.strip_prefix("MSG: "))
                .map(|name| name.rsplit('/').next().unwrap())
                .collect();
            for line in schema.lines().filter(|l| !l.starts_with(['=', 'M'])) {
                let kind = line.split([' ', '[']).next().unwrap();
                let name = kind.rsplit('/').next().unwrap();
                if name.starts_with(char::is_uppercase) {
                    assert!(defined.contains(&name), "{name} is not defined:\n{schema}");
                }
            }
        }
    }

    #[test]
    fn a_cut_message_is_an_error_at_every_length() {
        let whole = cloud().encode();
        for length in 0..whole.len() {
            assert!(PointCloud2::decode(&whole[..length]).is_err(), "{length}");
        }
        let whole = truth().encode();
        for length in 0..whole.len() {
            assert!(Detection3DArray::decode(&whole[..length]).is_err());
        }
    }

    #[test]
    fn a_length_beyond_the_message_is_an_error_wherever_it_stands() {
        for (own, whole, frame_id) in [
            (0, cloud().encode(), 12),
            (1, transforms().encode(), 16),
            (2, truth().encode(), 12),
        ] {
            let claim = |at: usize, length: u32| {
                let mut bytes = whole.clone();
                bytes[at..at + 4].copy_from_slice(&length.to_le_bytes());
                [
                    PointCloud2::decode(&bytes).is_err(),
                    TfMessage::decode(&bytes).is_err(),
                    Detection3DArray::decode(&bytes).is_err(),
                ]
            };
            assert!(claim(frame_id, u32::MAX)[own]);
            for at in 4..whole.len() - 4 {
                for length in [u32::MAX, u32::MAX / 13, whole.len() as u32] {
                    claim(at, length);
                }
            }
        }
    }

    #[test]
    fn a_cloud_has_no_more_fields_than_a_point_can_use() {
        let with = |fields| PointCloud2 {
            fields: vec![PointField::new("x", 0, PointField::FLOAT32); fields],
            ..cloud()
        };
        let most = with(MOST_FIELDS);
        assert_eq!(PointCloud2::decode(&most.encode()), Ok(most));
        let error = PointCloud2::decode(&with(1_000_000).encode()).unwrap_err();
        assert!(matches!(
            error,
            CdrError::TooMany {
                field: "fields",
                count: 1_000_000,
                ..
            }
        ));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let mut framed = vec![0, 1, 0, 0];
            framed.extend_from_slice(&bytes);
            for bytes in [&bytes, &framed] {
                if let Ok(cloud) = PointCloud2::decode(bytes) {
                    prop_assert!(cloud.data.len() <= bytes.len());
                }
                let _ = TfMessage::decode(bytes);
                let _ = Detection3DArray::decode(bytes);
            }
        }

        #[test]
        fn mutated_messages_never_panic(
            edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8)
        ) {
            for mut bytes in [cloud().encode(), truth().encode(), transforms().encode()] {
                for (at, value) in &edits {
                    let at = at.index(bytes.len());
                    bytes[at] = *value;
                }
                let _ = PointCloud2::decode(&bytes);
                let _ = TfMessage::decode(&bytes);
                let _ = Detection3DArray::decode(&bytes);
            }
        }
    }
}
