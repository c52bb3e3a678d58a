//! A loaded model as the inference thread holds it.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nalgebra::{Translation3, UnitQuaternion, Vector3};
use serde::Serialize;
use thiserror::Error;

use crate::cloud::Points;
use crate::detector::kernels::Kernels;
use crate::detector::{
    Detector, DetectorError, FileRecord, Inference, ModelDescription, ModelError, Precision,
    RuntimeOptions,
};
use crate::geometry::{Detection, Pose};
use crate::ptq::report::ReportError;

/// What the rest of the node knows of a model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ModelInfo {
    /// Name of the model and digest of its weights.
    pub id: String,
    pub precision: Precision,
    /// The description it was loaded from.
    pub path: PathBuf,
    #[serde(skip)]
    pub classes: Vec<String>,
    /// Size of its ONNX files, bytes.
    pub bytes: u64,
    /// These files, as they were when it was loaded.
    #[serde(skip)]
    pub files: Vec<FileRecord>,
    /// What its backbone runs as, where that is known.
    #[serde(skip)]
    pub kernels: Option<Kernels>,
}

/// Points in, detections out. Implemented by [`Detector`]; the pipeline needs no more of it.
pub trait Detect: Send {
    fn detect(&mut self, points: &Points) -> Result<Inference, Box<dyn Error + Send + Sync>>;
}

impl Detect for Detector {
    fn detect(&mut self, points: &Points) -> Result<Inference, Box<dyn Error + Send + Sync>> {
        Ok(Detector::detect(self, points)?)
    }
}

/// A model that can run, and what is known of it.
pub struct Engine {
    pub info: Arc<ModelInfo>,
    detector: Box<dyn Detect>,
}

/// Why an engine gave no detections.
#[derive(Debug, Error)]
pub enum EngineError {
    #[error("{model}: {source}")]
    Detect {
        model: String,
        source: Box<dyn Error + Send + Sync>,
    },
    #[error("{model}: detection {index} of {count} is not finite: {detection:?}")]
    NotFinite {
        model: String,
        index: usize,
        count: usize,
        detection: Box<Detection>,
    },
    #[error("{model}: detection {index} has class {class}, the model has {classes}")]
    NoSuchClass {
        model: String,
        index: usize,
        class: usize,
        classes: usize,
    },
}

/// Why a model could not be loaded.
#[derive(Debug, Error)]
pub enum LoadError {
    #[error(transparent)]
    Description(#[from] ModelError),
    #[error(transparent)]
    Detector(#[from] DetectorError),
    #[error(transparent)]
    Report(#[from] ReportError),
    #[error("{} is not the model any more that the node was started with", .0.display())]
    Changed(PathBuf),
}

impl Engine {
    pub fn new(info: ModelInfo, detector: Box<dyn Detect>) -> Self {
        Self {
            info: Arc::new(info),
            detector,
        }
    }

    /// Loads a model from its description.
    pub fn load(model_yaml: &Path, options: &RuntimeOptions) -> Result<Self, LoadError> {
        Self::open(ModelDescription::load(model_yaml)?, model_yaml, options)
    }

    /// As [`Engine::load`], if the files are still those that another was loaded from.
    pub fn load_again(
        model_yaml: &Path,
        options: &RuntimeOptions,
        before: &[FileRecord],
    ) -> Result<Self, LoadError> {
        let engine = Self::load(model_yaml, options)?;
        match engine.info.files == before {
            true => Ok(engine),
            false => Err(LoadError::Changed(model_yaml.to_owned())),
        }
    }

    /// As [`Engine::load`], with the description as it is given; `model_yaml` says where it came from.
    pub fn open(
        description: ModelDescription,
        model_yaml: &Path,
        options: &RuntimeOptions,
    ) -> Result<Self, LoadError> {
        let (detector, kernels) = Detector::load_with_kernels(&description, options)?;
        if let Err(problem) = &kernels {
            tracing::warn!("it is not known which kernels run: {problem}");
        }
        Ok(Self::new(
            ModelInfo {
                id: format!("{}@{}", description.name, detector.id()),
                precision: description.precision,
                path: model_yaml.to_owned(),
                classes: description.classes.clone(),
                bytes: detector.model_bytes(),
                files: detector.files().to_vec(),
                kernels: kernels.ok(),
            },
            Box::new(detector),
        ))
    }

    /// Runs the model. What comes back is finite and has known classes only.
    pub fn detect(&mut self, points: &Points) -> Result<Inference, EngineError> {
        let model = || self.info.id.clone();
        let inference = self
            .detector
            .detect(points)
            .map_err(|source| EngineError::Detect {
                model: model(),
                source,
            })?;
        let count = inference.detections.len();
        for (index, detection) in inference.detections.iter().enumerate() {
            if !is_finite(detection) {
                return Err(EngineError::NotFinite {
                    model: model(),
                    index,
                    count,
                    detection: Box::new(detection.clone()),
                });
            }
            if detection.class >= self.info.classes.len() {
                return Err(EngineError::NoSuchClass {
                    model: model(),
                    index,
                    class: detection.class,
                    classes: self.info.classes.len(),
                });
            }
        }
        Ok(inference)
    }
}

fn is_finite(detection: &Detection) -> bool {
    let Detection {
        bbox,
        score,
        velocity,
        ..
    } = detection;
    bbox.center.iter().all(|x| x.is_finite())
        && bbox.size.iter().all(|x| x.is_finite())
        && bbox.yaw.is_finite()
        && score.is_finite()
        && velocity.is_none_or(|v| v.iter().all(|x| x.is_finite()))
}

/// A detection placed in the frame of the cloud it came from.
#[derive(Debug, Clone, PartialEq)]
pub struct Object {
    /// Centre and orientation: x along the length, y along the width, z along the height.
    pub pose: Pose,
    /// Length, width, height, metres.
    pub size: Vector3<f64>,
    /// Index into the model's class names.
    pub class: usize,
    pub score: f64,
    /// Velocity over ground in the cloud's frame, m/s.
    pub velocity: Option<Vector3<f64>>,
}

impl Object {
    /// Moves a detection from the model's frame to the cloud's, with the full pose: the sensor
    /// may be tilted against the ground that the model's boxes stand on.
    pub fn place(detection: &Detection, model_from_cloud: &Pose) -> Self {
        let cloud_from_model = model_from_cloud.inverse();
        let center = detection.bbox.center.cast::<f64>();
        let in_model = Pose::from_parts(
            Translation3::from(center),
            UnitQuaternion::from_euler_angles(0.0, 0.0, f64::from(detection.bbox.yaw)),
        );
        Self {
            pose: cloud_from_model * in_model,
            size: detection.bbox.size.cast(),
            class: detection.class,
            score: f64::from(detection.score),
            velocity: detection
                .velocity
                .map(|v| cloud_from_model.rotation * Vector3::new(v.x.into(), v.y.into(), 0.0)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::{Box3d, pose_from_xyz_rpy};
    use approx::assert_relative_eq;
    use nalgebra::{Point3, Vector2};
    use std::f64::consts::FRAC_PI_2;

    #[test]
    fn a_model_is_loaded_again_only_if_it_is_the_same() {
        let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny");
        let folder = tempfile::tempdir().unwrap();
        for name in ["model.yaml", "encoder.onnx", "backbone.onnx"] {
            std::fs::copy(tiny.join(name), folder.path().join(name)).unwrap();
        }
        let (model, options) = (folder.path().join("model.yaml"), RuntimeOptions::default());
        let first = Engine::load(&model, &options).unwrap();
        let again = || Engine::load_again(&model, &options, &first.info.files).map(drop);
        again().unwrap();
        let graph = folder.path().join("encoder.onnx");
        let mut other = crate::onnx::Model::load(&graph).unwrap();
        other.set_metadata("trained", "more");
        other.save(&graph).unwrap();
        assert!(matches!(again(), Err(LoadError::Changed(_))));
    }

    #[test]
    fn a_placed_box_has_its_corners_where_the_cloud_sees_them() {
        let detection = Detection {
            bbox: Box3d {
                center: Vector3::new(10.0, 4.0, 0.8),
                size: Vector3::new(4.0, 2.0, 1.6),
                yaw: 0.7,
            },
            class: 0,
            score: 0.5,
            velocity: Some(Vector2::new(3.0, -1.0)),
        };
        let model_from_cloud = pose_from_xyz_rpy([1.0, -0.5, 1.8], [0.05, -0.1, FRAC_PI_2]);
        let object = Object::place(&detection, &model_from_cloud);

        let front_left = object.pose * Point3::new(2.0, 1.0, 0.0);
        let expected = detection.bbox.bev_corners()[0];
        let back = model_from_cloud * front_left;
        assert_relative_eq!(back.x, expected.x.into(), epsilon = 1e-5);
        assert_relative_eq!(back.y, expected.y.into(), epsilon = 1e-5);
        assert_relative_eq!(back.z, 0.8, epsilon = 1e-5);

        let velocity = model_from_cloud.rotation * object.velocity.unwrap();
        assert_relative_eq!(velocity, Vector3::new(3.0, -1.0, 0.0), epsilon = 1e-9);
    }
}
