//! What a model wants to be fed with, in the words of [`cloud`](crate::cloud).

use super::ModelDescription;
use super::description::PointFeature;
use crate::cloud::frames::InputOptions;
use crate::cloud::plausibility::Expectations;

impl ModelDescription {
    /// How clouds become frames for this model: its frame, its sweeps, and what it expects of a cloud.
    /// Topic, sensor pose and fixed frame are the reader's to fill in.
    pub fn input_options(&self) -> InputOptions {
        InputOptions {
            model_frame: Some(self.frame.clone()),
            sweeps: self.points.sweeps,
            sweep_period: f64::from(self.points.sweep_period),
            expect: Some(self.expectations()),
            ..InputOptions::default()
        }
    }

    /// What a cloud of the kind that the model was trained on looks like.
    pub fn expectations(&self) -> Expectations {
        Expectations {
            min: self.grid.min,
            max: self.grid.max,
            pillar: self.grid.pillar,
            reads_intensity: self.points.features.contains(&PointFeature::Intensity),
            intensity_max: self.points.intensity_max,
            ground: self.grid.ground,
        }
    }
}
