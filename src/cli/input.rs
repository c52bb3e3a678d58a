//! Arguments of the subcommands that read clouds from a bag.

use std::path::PathBuf;

use anyhow::Context;

use crate::cloud::frames::{Frame, Frames, InputOptions};
use crate::detector::ModelDescription;

/// Which clouds of a bag are read, and how they come into the model's frame.
#[derive(clap::Args, Clone, Default)]
pub struct InputArgs {
    /// Topic of the clouds; may be left out where the bag holds one only
    #[arg(long)]
    pub topic: Option<String>,
    /// Pose of the sensor in the model's frame, instead of /tf: "x y z roll pitch yaw" in metres
    /// and radians
    #[arg(long, value_name = "POSE", value_parser = parse_pose, allow_hyphen_values = true)]
    pub sensor_pose: Option<SensorPose>,
    /// Frame that the model looks from, instead of the one that its description names
    #[arg(long, value_name = "FRAME")]
    pub model_frame: Option<String>,
    /// Frame that does not move, to join sweeps; by default odom or map, whichever /tf has
    #[arg(long, value_name = "FRAME")]
    pub fixed_frame: Option<String>,
}

impl InputArgs {
    /// How frames for this model are put together.
    pub fn options(&self, model: &ModelDescription) -> InputOptions {
        let of_model = model.input_options();
        InputOptions {
            topic: self.topic.clone(),
            model_frame: self.model_frame.clone().or(of_model.model_frame),
            sensor_pose: self.sensor_pose.map(|pose| pose.0),
            fixed_frame: self.fixed_frame.clone(),
            ..of_model
        }
    }

    /// How frames of a topic of a node's calibration buffer are read, which are in the model's frame.
    pub fn buffered(&self, model: &ModelDescription, topic: &str) -> InputOptions {
        let own = Self {
            topic: Some(topic.into()),
            model_frame: self.model_frame.clone(),
            ..Self::default()
        };
        own.options(model)
    }
}

/// Where clouds come from.
#[derive(clap::Args, Clone)]
pub struct FrameArgs {
    /// rosbag2 folder, .mcap or .db3 file
    #[arg(long)]
    pub bag: PathBuf,
    #[command(flatten)]
    pub input: InputArgs,
    /// Read at most this many frames
    #[arg(long)]
    pub limit: Option<usize>,
}

impl FrameArgs {
    /// The frames, with `limit` applied.
    pub fn open(
        &self,
        model: &ModelDescription,
    ) -> anyhow::Result<impl Iterator<Item = anyhow::Result<Frame>> + use<>> {
        let frames = Frames::open(&self.bag, &self.input.options(model))
            .with_context(|| format!("cannot read clouds from {}", self.bag.display()))?;
        let bag = self.bag.display().to_string();
        Ok(frames
            .take(self.limit.unwrap_or(usize::MAX))
            .map(move |frame| frame.with_context(|| format!("in {bag}"))))
    }
}

/// x, y, z, roll, pitch, yaw.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SensorPose(pub [f64; 6]);

/// Reads six numbers separated by blanks or commas.
pub fn parse_pose(text: &str) -> Result<SensorPose, String> {
    let numbers: Vec<f64> = text
        .split([' ', ',', '\t'])
        .filter(|part| !part.is_empty())
        .map(|part| {
            part.parse()
                .ok()
                .filter(|n: &f64| n.is_finite())
                .ok_or_else(|| format!("`{part}` is not a number"))
        })
        .collect::<Result<_, _>>()?;
    <[f64; 6]>::try_from(numbers)
        .map(SensorPose)
        .map_err(|numbers| {
            format!(
                "six numbers are needed (x y z roll pitch yaw), got {}",
                numbers.len()
            )
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pose_is_six_finite_numbers() {
        assert_eq!(
            parse_pose("1 -2.5,3  0 0 0.1"),
            Ok(SensorPose([1.0, -2.5, 3.0, 0.0, 0.0, 0.1]))
        );
        assert!(parse_pose("1 2 3").unwrap_err().contains("got 3"));
        assert!(parse_pose("1 2 3 0 0 up").unwrap_err().contains("`up`"));
        assert!(parse_pose("1 2 3 0 0 nan").is_err());
    }
}
