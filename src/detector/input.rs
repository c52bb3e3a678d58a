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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_of_a_description_that_is_about_clouds_changes_how_they_are_read() {
        let model = ModelDescription::load("models/demo".as_ref()).unwrap();
        let reads = |change: &dyn Fn(&mut ModelDescription)| {
            let mut model = model.clone();
            change(&mut model);
            model.input_options()
        };
        let as_it_is = reads(&|_| ());
        let changes: [&dyn Fn(&mut ModelDescription); 8] = [
            &|m| m.frame = "lidar".into(),
            &|m| m.points.sweeps = 10,
            &|m| m.points.sweep_period = 0.05,
            &|m| m.points.intensity_max = Some(255.0),
            &|m| m.points.features.push(PointFeature::Intensity),
            &|m| m.grid.ground = None,
            &|m| m.grid.max[2] += 1.0,
            &|m| m.grid.pillar[0] *= 2.0,
        ];
        for (i, change) in changes.into_iter().enumerate() {
            assert_ne!(reads(change), as_it_is, "change {i}");
        }
    }
}
