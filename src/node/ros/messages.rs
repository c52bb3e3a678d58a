//! Between r2r's generated messages and the crate's own types.

use nalgebra::Vector3;
use r2r::builtin_interfaces::msg::Time;
use r2r::centerpoint_ptq_msgs::msg::{CalibrationStatus, Model};
use r2r::{geometry_msgs, sensor_msgs, std_msgs, tf2_msgs, vision_msgs};

use crate::bag::Stamp;
use crate::bag::msg::{Header, PointCloud2, PointField, TfMessage, Transform, TransformStamped};
use crate::calibration::store::{Selection, Version};
use crate::geometry::Pose;
use crate::node::Output;
use crate::node::status::{Outcome, Status};

pub fn time(stamp: Stamp) -> Time {
    Time {
        sec: stamp.sec(),
        nanosec: stamp.nanosec(),
    }
}

pub fn stamp(time: &Time) -> Stamp {
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

/// The status with a type of its own; the stamp is left to the caller.
pub fn calibration_status(status: &Status) -> CalibrationStatus {
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let path = |path: Option<&std::path::PathBuf>| {
        path.map_or(String::new(), |path| path.display().to_string())
    };
    let mut message = CalibrationStatus {
        state: match status.state {
            "idle" => CalibrationStatus::IDLE as u8,
            _ => CalibrationStatus::CALIBRATING as u8,
        },
        calibration: status.calibration,
        stage: text(&status.stage),
        fraction: status.fraction.unwrap_or(0.0) as f32,
        eta_s: status.eta_s.map_or(f32::NAN, |eta| eta as f32),
        detail: text(&status.detail),
        bag: path(status.bag.as_ref()),
        frames: status.frames.unwrap_or(0) as u32,
        pid: status.pid.unwrap_or(0),
        model_id: status.model_id.clone(),
        stored_id: text(&status.stored_id),
        model_path: path(Some(&status.model_path)),
        precision: status.precision.to_string(),
        int8_model_id: text(&status.int8_model_id),
        fallback: text(&status.fallback),
        ..Default::default()
    };
    if let Some(last) = &status.last {
        message.last_calibration = last.calibration;
        message.last_outcome = outcome(last.outcome);
        message.last_reasons = last.told();
        message.last_frames = last.frames.unwrap_or(0) as u32;
        message.last_seconds = last.seconds;
        message.last_stored_id = text(&last.stored_id);
        message.last_model_path = path(last.model.as_ref());
        message.last_report = path(last.report.as_ref());
    }
    message
}

pub fn outcome(outcome: Outcome) -> u8 {
    match outcome {
        Outcome::Swapped => CalibrationStatus::SWAPPED as u8,
        Outcome::Refused => CalibrationStatus::REFUSED as u8,
        Outcome::Failed => CalibrationStatus::FAILED as u8,
        Outcome::Cancelled => CalibrationStatus::CANCELLED as u8,
    }
}

/// A stored model, as the node of this selection sees it.
pub fn model(version: &Version, selection: &Selection) -> Model {
    let measured = |x: Option<f64>| x.map_or(f32::NAN, |x| x as f32);
    Model {
        id: version.id.clone(),
        number: version.number,
        created: Time {
            sec: i32::try_from(version.created).unwrap_or(i32::MAX),
            nanosec: 0,
        },
        node: version.node.clone().unwrap_or_default(),
        target: version.target.to_string(),
        recipe: version.recipe.clone(),
        calibration_frames: version.calibration_frames as u32,
        held_out_frames: version.held_out_frames as u32,
        bytes: version.bytes(),
        accepted: version.verdict.accepted,
        reasons: (version.verdict.reasons.iter().cloned())
            .chain(version.verdict.notes())
            .collect(),
        f1: measured(version.f1),
        speedup: measured(version.speedup),
        running: selection.runs.as_ref() == Some(&version.id),
        given_up: selection
            .given_up
            .get(&version.id)
            .cloned()
            .unwrap_or_default(),
    }
}
