//! The float model beside the running INT8 one: now and then it sees the same frame, and if both go on seeing different
//! things, INT8 is given up.
//!
//! The gate compares the two on the frames of the calibration; the road may lead elsewhere. The check runs on a thread of
//! its own at low priority, with a session of its own of one thread, and takes no more than its share of the time.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use serde::Serialize;

use super::engine::{Engine, LoadError, ModelInfo};
use crate::cloud::frames::Frame;
use crate::eval::{AgreementOptions, agreement};
use crate::geometry::Detection;

/// How often the thread looks up from an empty queue.
const IDLE: Duration = Duration::from_millis(200);
/// Niceness of the thread.
const NICE: i32 = 10;

/// When to look, and when to give up.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ShadowSettings {
    /// Every so many INT8 frames the float model runs, too; 0: never.
    pub every: usize,
    /// Share of one core's time that this may take, 0 to 1.
    pub budget: f64,
    /// Frames judged together; one bad frame is not a bad model.
    pub window: usize,
    /// INT8 is given up where the F1 of its boxes against float's, over a window, is below.
    pub min_f1: f64,
}

/// What the check found so far.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct ShadowState {
    /// Frames that both models saw, since the start.
    pub checked: u64,
    /// Frames that were due and left out, for the budget's sake.
    pub skipped: u64,
    /// F1 over the window of the model that runs; absent until that is full, and where neither model found anything.
    pub f1: Option<f64>,
    /// Boxes of both models that it rests on, pairs counted once.
    pub boxes: Option<usize>,
    /// Why there is no check.
    pub problem: Option<String>,
}

/// A frame that INT8 saw, and what it saw in it.
pub struct Seen {
    frame: Arc<Frame>,
    detections: Vec<Detection>,
    model: Arc<ModelInfo>,
}

/// The inference thread's side.
pub struct Offers {
    settings: ShadowSettings,
    sender: SyncSender<Seen>,
    count: std::sync::atomic::AtomicUsize,
}

impl Offers {
    /// Both ends of the check.
    pub fn new(settings: ShadowSettings) -> (Self, Receiver<Seen>) {
        // One waits while one is under way; what comes then is left out.
        let (sender, seen) = sync_channel(1);
        let offers = Self {
            settings,
            sender,
            count: Default::default(),
        };
        (offers, seen)
    }

    /// Hands a frame over if it is due. Never waits.
    pub fn offer(&self, frame: &Arc<Frame>, detections: &[Detection], model: &Arc<ModelInfo>) {
        let count = self
            .count
            .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        if self.settings.every > 0 && count.is_multiple_of(self.settings.every) {
            let seen = Seen {
                frame: frame.clone(),
                detections: detections.to_vec(),
                model: model.clone(),
            };
            drop(self.sender.try_send(seen));
        }
    }
}

/// Boxes of both models on one frame.
type Pair = (Vec<Detection>, Vec<Detection>);

/// The thread's side.
pub struct Check {
    settings: ShadowSettings,
    float: Option<Engine>,
    window: VecDeque<Pair>,
    /// The model that the window is of.
    model: Option<Arc<ModelInfo>>,
    begin: Instant,
    busy: Duration,
    state: ShadowState,
}

impl Check {
    pub fn new(settings: ShadowSettings) -> Self {
        Self {
            settings,
            float: None,
            window: VecDeque::new(),
            model: None,
            begin: Instant::now(),
            busy: Duration::ZERO,
            state: ShadowState::default(),
        }
    }

    /// Looks at frames until `stopping` or the other end is gone. `tell` gets the state after each, `give_up` a model that
    /// goes on disagreeing, and why.
    pub fn run(
        mut self,
        seen: &Receiver<Seen>,
        mut load: impl FnMut() -> Result<Engine, LoadError>,
        stopping: impl Fn() -> bool,
        mut tell: impl FnMut(ShadowState),
        mut give_up: impl FnMut(Arc<ModelInfo>, String),
    ) {
        let thread = rustix::thread::gettid();
        if let Err(error) = rustix::process::setpriority_process(Some(thread), NICE) {
            tracing::debug!("the shadow check keeps its priority: {error}");
        }
        while !stopping() {
            match seen.recv_timeout(IDLE) {
                Ok(seen) => {
                    if let Some(reason) = self.look(&seen, &mut load) {
                        give_up(seen.model, reason);
                    }
                    tell(self.state.clone());
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Runs float on a frame; the reason, where INT8 is to be given up.
    fn look(
        &mut self,
        seen: &Seen,
        load: &mut impl FnMut() -> Result<Engine, LoadError>,
    ) -> Option<String> {
        if self.busy.as_secs_f64() > self.settings.budget * self.begin.elapsed().as_secs_f64() {
            self.state.skipped += 1;
            return None;
        }
        let start = Instant::now();
        if self.model.as_ref() != Some(&seen.model) {
            self.model = Some(seen.model.clone());
            self.window.clear();
            (self.state.f1, self.state.boxes) = (None, None);
        }
        let reason = self.compare(seen, load);
        self.busy += start.elapsed();
        reason
    }

    fn compare(
        &mut self,
        seen: &Seen,
        load: &mut impl FnMut() -> Result<Engine, LoadError>,
    ) -> Option<String> {
        let float = match &mut self.float {
            Some(float) => float,
            none => match load() {
                Ok(engine) => none.insert(engine),
                Err(error) => {
                    self.state.problem = Some(error.to_string());
                    return None;
                }
            },
        };
        match float.detect(&seen.frame.points) {
            Ok(inference) => {
                self.state.problem = None;
                self.state.checked += 1;
                let pair = (inference.detections, seen.detections.clone());
                self.window.push_back(pair);
            }
            Err(error) => {
                self.state.problem = Some(error.to_string());
                return None;
            }
        }
        if self.window.len() < self.settings.window.max(1) {
            return None;
        }
        self.window.truncate(self.settings.window.max(1));
        let (float, int8): (Vec<_>, Vec<_>) = self.window.iter().cloned().unzip();
        self.window.pop_front();
        let classes = &seen.model.classes;
        let total = agreement(&float, &int8, classes, &AgreementOptions::default()).total;
        self.state.f1 = total.f1;
        self.state.boxes = Some(total.matched + total.missed + total.extra);
        // Where neither sees anything there is nothing to judge, and nothing to give up for.
        let f1 = total.f1?;
        if f1 >= self.settings.min_f1 {
            return None;
        }
        self.window.clear();
        Some(format!(
            "over {} frames its boxes agree with float's by F1 {f1:.3} only, {} is wanted ({} matched, {} missed, {} extra)",
            self.settings.window, self.settings.min_f1, total.matched, total.missed, total.extra
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bag::msg::Header;
    use crate::cloud::frames::{FrameAssembler, InputOptions};
    use crate::cloud::{self, Point, Points};
    use crate::detector::Precision;
    use crate::geometry::Box3d;
    use crate::node::pipeline::tests::engine;
    use nalgebra::Vector3;

    fn found(x: f32) -> Vec<Detection> {
        vec![Detection {
            bbox: Box3d {
                center: Vector3::new(x, 0.0, 0.0),
                size: Vector3::new(4.0, 2.0, 1.5),
                yaw: 0.0,
            },
            class: 0,
            score: 0.5,
            velocity: None,
        }]
    }

    fn seen(x: f32, model: &Arc<ModelInfo>) -> Seen {
        let cloud = cloud::encode(
            &Points(vec![Point::default()]),
            Header {
                frame_id: "base_link".into(),
                ..Default::default()
            },
            false,
        );
        let frame = FrameAssembler::new(InputOptions::default()).push_cloud(&cloud);
        Seen {
            frame: Arc::new(frame.unwrap()),
            detections: found(x),
            model: model.clone(),
        }
    }

    fn int8() -> Arc<ModelInfo> {
        engine("i", Precision::Int8, |_| Ok(Vec::new())).info
    }

    fn load() -> Result<Engine, LoadError> {
        Ok(engine("f", Precision::Float, |_| Ok(found(7.0))))
    }

    const SETTINGS: ShadowSettings = ShadowSettings {
        every: 1,
        budget: 1.0,
        window: 4,
        min_f1: 0.6,
    };

    #[test]
    fn a_bad_frame_is_forgiven_and_a_bad_window_is_not() {
        let model = int8();
        let mut check = Check::new(SETTINGS);
        for x in [7.0, 7.0, 90.0, 7.0, 7.0, 7.0] {
            assert_eq!(check.look(&seen(x, &model), &mut load), None);
        }
        assert_eq!((check.state.f1, check.state.boxes), (Some(0.75), Some(5)));
        assert_eq!(check.look(&seen(90.0, &model), &mut load), None);
        let reason = check.look(&seen(90.0, &model), &mut load).unwrap();
        assert!(
            reason.contains("F1 0.500") && reason.contains("2 missed"),
            "{reason}"
        );
        assert_eq!(check.state.checked, 8);
    }

    #[test]
    fn each_model_is_judged_by_its_own_frames() {
        let (bad, good) = (
            int8(),
            engine("i2", Precision::Int8, |_| Ok(Vec::new())).info,
        );
        let mut check = Check::new(SETTINGS);
        for _ in 0..3 {
            assert_eq!(check.look(&seen(90.0, &bad), &mut load), None);
        }
        for _ in 0..4 {
            assert_eq!(check.look(&seen(7.0, &good), &mut load), None);
        }
        assert_eq!(check.state.f1, Some(1.0));
    }

    #[test]
    fn where_neither_model_sees_anything_nothing_is_judged() {
        let nothing = || Ok(engine("f", Precision::Float, |_| Ok(Vec::new())));
        let model = int8();
        let mut check = Check::new(SETTINGS);
        for _ in 0..6 {
            let mut seen = seen(7.0, &model);
            seen.detections.clear();
            assert_eq!(check.look(&seen, &mut { nothing }), None);
        }
        assert_eq!((check.state.f1, check.state.boxes), (None, Some(0)));
    }

    #[test]
    fn the_budget_is_kept() {
        let slow = || {
            Ok(engine("f", Precision::Float, |_| {
                std::thread::sleep(Duration::from_millis(5));
                Ok(found(7.0))
            }))
        };
        let begin = Instant::now();
        let mut check = Check::new(ShadowSettings {
            budget: 0.1,
            ..SETTINGS
        });
        let model = int8();
        while check.state.checked < 6 {
            check.look(&seen(7.0, &model), &mut { slow });
            std::thread::sleep(Duration::from_millis(1));
        }
        // Five were paid for before the sixth was let through.
        assert!(begin.elapsed() >= Duration::from_millis(5 * 5 * 10));
        assert!(check.state.skipped > 0);
    }

    #[test]
    fn a_float_model_that_does_not_load_is_a_problem_and_no_verdict() {
        let mut check = Check::new(SETTINGS);
        let mut fail = || Engine::load(std::path::Path::new("absent.yaml"), &Default::default());
        for _ in 0..9 {
            assert_eq!(check.look(&seen(90.0, &int8()), &mut fail), None);
        }
        assert!(check.state.problem.unwrap().contains("absent.yaml"));
    }

    #[test]
    fn one_frame_in_so_many_is_due_and_a_busy_check_is_not_waited_for() {
        let (offers, due) = Offers::new(ShadowSettings {
            every: 3,
            ..SETTINGS
        });
        let model = int8();
        let Seen {
            frame, detections, ..
        } = seen(7.0, &model);
        let mut taken = 0;
        for _ in 0..9 {
            offers.offer(&frame, &detections, &model);
            taken += due.try_iter().count();
        }
        assert_eq!(taken, 3);
        for _ in 0..9 {
            offers.offer(&frame, &detections, &model);
        }
        assert_eq!(due.try_iter().count(), 1);
    }
}
