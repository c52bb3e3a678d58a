//! Between r2r's generated messages and the crate's own types.

use nalgebra::Vector3;
use r2r::builtin_interfaces::msg::Time;
use r2r::{geometry_msgs, sensor_msgs, std_msgs, tf2_msgs, vision_msgs};

use crate::bag::Stamp;
use crate::bag::msg::{Header, PointCloud2, PointField, TfMessage, Transform, TransformStamped};
use crate::geometry::Pose;
use crate::node::Output;

pub fn time(stamp: Stamp) -> Time {
    Time {
        sec: stamp.sec(),
        nanosec: stamp.nanosec(),
    }
}

fn stamp(time: &Time) -> Stamp {
    Stamp::from_sec_nanosec(time.sec, time.nanosec)
}

pub fn header(header: &Header) -> std_msgs::msg::Header {
    std_msgs::msg::Header {
        stamp: time(header.stamp),
        frame_id: header.frame_id.clone(),
    }
}

/// Takes the message apart; the point data moves, it is not copied.
pub fn cloud(message: sensor_msgs::msg::PointCloud2) -> PointCloud2 {
    PointCloud2 {
        header: Header {
            stamp: stamp(&message.header.stamp),
            frame_id: message.header.frame_id,
        },
        height: message.height,
        width: message.width,
        fields: message
            .fields
            .into_iter()
            .map(|field| PointField {
                name: field.name,
                offset: field.offset,
                datatype: field.datatype,
                count: field.count,
            })
            .collect(),
        is_bigendian: message.is_bigendian,
        point_step: message.point_step,
        row_step: message.row_step,
        data: message.data,
        is_dense: message.is_dense,
    }
}

pub fn transforms(message: tf2_msgs::msg::TFMessage) -> TfMessage {
    let transforms = message
        .transforms
        .into_iter()
        .map(|stamped| {
            let (t, r) = (stamped.transform.translation, stamped.transform.rotation);
            TransformStamped {
                header: Header {
                    stamp: stamp(&stamped.header.stamp),
                    frame_id: stamped.header.frame_id,
                },
                child_frame_id: stamped.child_frame_id,
                transform: Transform {
                    translation: [t.x, t.y, t.z],
                    rotation: [r.x, r.y, r.z, r.w],
                },
            }
        })
        .collect();
    TfMessage { transforms }
}

pub fn vector(v: Vector3<f64>) -> geometry_msgs::msg::Vector3 {
    geometry_msgs::msg::Vector3 {
        x: v.x,
        y: v.y,
        z: v.z,
    }
}

pub fn point(v: Vector3<f64>) -> geometry_msgs::msg::Point {
    geometry_msgs::msg::Point {
        x: v.x,
        y: v.y,
        z: v.z,
    }
}

pub fn pose(pose: &Pose) -> geometry_msgs::msg::Pose {
    let q = pose.rotation.coords;
    geometry_msgs::msg::Pose {
        position: point(pose.translation.vector),
        orientation: geometry_msgs::msg::Quaternion {
            x: q.x,
            y: q.y,
            z: q.z,
            w: q.w,
        },
    }
}

/// Header and frame are the cloud's; `class_id` is the class name.
pub fn detections(output: &Output) -> vision_msgs::msg::Detection3DArray {
    let header = header(&output.header);
    vision_msgs::msg::Detection3DArray {
        detections: output
            .objects
            .iter()
            .map(|object| {
                let pose = pose(&object.pose);
                vision_msgs::msg::Detection3D {
                    header: header.clone(),
                    results: vec![vision_msgs::msg::ObjectHypothesisWithPose {
                        hypothesis: vision_msgs::msg::ObjectHypothesis {
                            class_id: output.class_name(object.class).to_owned(),
                            score: object.score,
                        },
                        pose: geometry_msgs::msg::PoseWithCovariance {
                            pose: pose.clone(),
                            ..Default::default()
                        },
                    }],
                    bbox: vision_msgs::msg::BoundingBox3D {
                        center: pose,
                        size: vector(object.size),
                    },
                    id: String::new(),
                }
            })
            .collect(),
        header,
    }
}
