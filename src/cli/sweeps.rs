//! Frames that lack sweeps which the model was trained with.
//!
//! A calibration must see what the network will see, and a model of several sweeps sees single ones only where
//! something is amiss: no tf, or none of the vehicle's motion. The first frames of a recording, and those behind a gap,
//! cannot have more; they are left out and counted. Where others lack sweeps, too, it is for a person to say that they
//! are meant.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use crate::cloud::condition::{ConditionKind, Conditions};
use crate::cloud::frames::Frame;
use crate::detector::ModelDescription;
use crate::ptq::report::by_sweeps;

/// Whether frames that lack sweeps are used.
#[derive(clap::Args, Clone, Copy, Default)]
pub struct SweepArgs {
    /// Also use frames with fewer sweeps than the model was trained with
    #[arg(long)]
    pub allow_few_sweeps: bool,
}

/// Of all frames, so many may lack sweeps for want of the vehicle's motion: odometry that starts late or fails for a
/// moment.
const FEW: f64 = 0.1;

/// Counts the frames of one bag by their sweeps, and keeps those that lack some from being used. Clones count together.
#[derive(Clone)]
pub struct Sweeps {
    bag: PathBuf,
    wanted: usize,
    allowed: bool,
    seen: Rc<RefCell<Seen>>,
}

#[derive(Default)]
struct Seen {
    frames: BTreeMap<usize, usize>,
    /// Frames that lack sweeps though the recording goes on: the vehicle's motion is not known.
    motionless: usize,
    why: Conditions,
}

/// Why the frames of a bag are not used.
#[derive(Debug, thiserror::Error)]
#[error(
    "{} of {all} frames of {} have fewer sweeps than the {wanted} that the model was trained with ({counts}): {why}; \
     calibrated on them, the network would not know what it is to see. Give a recording with tf of the vehicle's motion \
     (--fixed-frame names the frame that stands still), or --allow-few-sweeps where they are meant",
    .few, bag.display()
)]
pub struct FewSweeps {
    bag: PathBuf,
    wanted: usize,
    few: usize,
    all: usize,
    counts: String,
    why: String,
}

impl Sweeps {
    pub fn new(args: SweepArgs, model: &ModelDescription, bag: &Path) -> Self {
        Sweeps {
            bag: bag.to_owned(),
            wanted: model.points.sweeps,
            allowed: args.allow_few_sweeps,
            seen: Rc::default(),
        }
    }

    /// Counts a frame; says whether it may be used.
    pub fn admits(&self, frame: &Frame) -> bool {
        let mut seen = self.seen.borrow_mut();
        *seen.frames.entry(frame.sweeps).or_default() += 1;
        if frame.sweeps >= self.wanted {
            return true;
        }
        seen.why.add(&frame.conditions);
        seen.motionless += usize::from(frame.fixed_from_model.is_none());
        self.allowed
    }

    /// Those of some frames that may be used. All are counted.
    pub fn of<E, I: Iterator<Item = Result<Frame, E>>>(
        &self,
        frames: I,
    ) -> impl Iterator<Item = Result<Frame, E>> + use<E, I> {
        let own = self.clone();
        frames.filter(move |frame| frame.as_ref().map_or(true, |frame| own.admits(frame)))
    }

    /// Frames left out so far, by their sweeps.
    pub fn left_out(&self) -> BTreeMap<usize, usize> {
        match self.allowed {
            true => BTreeMap::new(),
            false => {
                let seen = self.seen.borrow();
                let few = seen.frames.range(..self.wanted);
                few.map(|(sweeps, frames)| (*sweeps, *frames)).collect()
            }
        }
    }

    /// Whether what was read so far may be used: an error where too many frames lack sweeps.
    pub fn check(&self) -> Result<(), FewSweeps> {
        let few: usize = self.left_out().values().sum();
        let seen = self.seen.borrow();
        let all: usize = seen.frames.values().sum();
        if few == 0 || (few < all && seen.motionless as f64 <= FEW * all as f64) {
            return Ok(());
        }
        let told: Vec<String> = seen
            .why
            .counts()
            .into_iter()
            .filter(|c| {
                matches!(
                    c.kind,
                    ConditionKind::AssumedPlace
                        | ConditionKind::NoEgoMotion
                        | ConditionKind::FewSweeps
                        | ConditionKind::SweepAge
                        | ConditionKind::SeveralSensors
                )
            })
            .map(|c| c.text)
            .collect();
        let why = match (told.is_empty(), seen.motionless) {
            (false, _) => told.join("; "),
            (true, 0) => "their clouds are too far apart".into(),
            (true, _) => "the vehicle's motion is not known".into(),
        };
        Err(FewSweeps {
            bag: self.bag.clone(),
            wanted: self.wanted,
            few,
            all,
            counts: by_sweeps(&seen.frames),
            why,
        })
    }

    /// What was left out, in words; `None` where nothing was.
    pub fn told(&self) -> Option<String> {
        let left_out = self.left_out();
        (!left_out.is_empty()).then(|| {
            format!(
                "left out, since the model wants {} sweeps: {}",
                self.wanted,
                by_sweeps(&left_out)
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bag::Stamp;
    use crate::cloud::condition::Condition;
    use crate::cloud::frames::{FrameError, Placement};
    use crate::cloud::{Point, Points};
    use crate::geometry::Pose;

    fn frame(sweeps: usize, moves: bool) -> Result<Frame, FrameError> {
        let conditions = match (sweeps, moves) {
            (1, false) => vec![Condition::new(ConditionKind::NoEgoMotion, "no odom in tf")],
            _ => Vec::new(),
        };
        Ok(Frame {
            stamp: Stamp(0),
            frame_id: "base_link".into(),
            points: Points(vec![Point::default()]),
            model_from_cloud: Pose::identity(),
            placement: Placement::SameFrame,
            fixed_from_model: moves.then(Pose::identity),
            sweeps,
            stats: Default::default(),
            conditions,
        })
    }

    /// Frames that came through, and what became of them.
    fn outcome(
        allow_few_sweeps: bool,
        frames: impl IntoIterator<Item = (usize, bool)>,
    ) -> (usize, Sweeps) {
        let model = ModelDescription::load("models/demo/model.yaml".as_ref()).unwrap();
        assert_eq!(model.points.sweeps, 2);
        let sweeps = Sweeps::new(SweepArgs { allow_few_sweeps }, &model, "drive".as_ref());
        let frames = frames.into_iter().map(|(n, moves)| frame(n, moves));
        let used = sweeps.of(frames).map(Result::unwrap).count();
        (used, sweeps)
    }

    #[test]
    fn what_cannot_have_more_sweeps_is_left_out_and_counted() {
        // A recording of three drives, each beginning with a single sweep.
        let drives = (0..3).flat_map(|_| (0..5).map(|i| (1 + usize::from(i > 0), true)));
        let (used, sweeps) = outcome(false, drives);
        assert_eq!((used, sweeps.left_out()), (12, [(1, 3)].into()));
        assert!(sweeps.check().is_ok());
        assert_eq!(
            sweeps.told().unwrap(),
            "left out, since the model wants 2 sweeps: 3 frames of 1 sweep"
        );
    }

    #[test]
    fn frames_that_lack_sweeps_for_want_of_tf_are_refused_with_what_to_do() {
        let (used, sweeps) = outcome(false, (0..32).map(|_| (1, false)));
        assert_eq!(used, 0);
        let error = sweeps.check().unwrap_err().to_string();
        for part in [
            "32 of 32 frames of drive",
            "fewer sweeps than the 2",
            "32 frames of 1 sweep",
            "no odom in tf",
            "--fixed-frame",
            "--allow-few-sweeps",
        ] {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn odometry_that_fails_for_a_moment_costs_those_frames_only_and_half_a_drive_costs_all() {
        let drive =
            |lost: usize| (0..40).map(move |i| if i < lost { (1, false) } else { (2, true) });
        let (used, sweeps) = outcome(false, drive(3));
        assert_eq!(used, 37);
        assert!(sweeps.check().is_ok());
        let (_, sweeps) = outcome(false, drive(20));
        let error = sweeps.check().unwrap_err().to_string();
        assert!(error.contains("20 frames of 2 sweeps, 20 of 1"), "{error}");
    }

    #[test]
    fn a_recording_without_one_whole_frame_is_refused() {
        let (_, sweeps) = outcome(false, (0..9).map(|_| (1, true)));
        let error = sweeps.check().unwrap_err().to_string();
        assert!(error.contains("too far apart"), "{error}");
    }

    #[test]
    fn frames_that_are_asked_for_are_used() {
        let (used, sweeps) = outcome(true, (0..9).map(|_| (1, false)));
        assert_eq!((used, sweeps.left_out().len(), sweeps.told()), (9, 0, None));
        assert!(sweeps.check().is_ok());
    }
}
