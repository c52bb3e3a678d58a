//! `/diagnostics` once a second: input, detection, calibration.

use r2r::diagnostic_msgs::msg::{DiagnosticArray, DiagnosticStatus, KeyValue};

use crate::calibration::buffer::Fill;
use crate::detector::Precision;
use crate::node::latency::Summary;
use crate::node::pipeline::{Active, Counters, Drop, Statistics};
use crate::node::settings::Settings;
use crate::node::status::{Outcome, Work};

/// Seconds without a cloud after which the input counts as gone.
const SILENCE_S: f64 = 2.0;

/// Makes the status of each second; remembers the last one, to say what is new.
pub struct Diagnostics {
    node: String,
    hardware_id: String,
    before: Counters,
}

struct Task {
    level: u8,
    message: String,
    values: Vec<KeyValue>,
}

impl Task {
    fn new(message: &str) -> Self {
        Self {
            level: DiagnosticStatus::OK as u8,
            message: message.into(),
            values: Vec::new(),
        }
    }

    fn value(&mut self, key: impl Into<String>, value: impl ToString) {
        self.values.push(KeyValue {
            key: key.into(),
            value: value.to_string(),
        });
    }

    fn latency(&mut self, name: &str, summary: Option<Summary>) {
        let Some(summary) = summary else { return };
        for (part, ms) in [
            ("last", summary.last_ms),
            ("mean", summary.mean_ms),
            ("p50", summary.p50_ms),
            ("p95", summary.p95_ms),
            ("p99", summary.p99_ms),
            ("max", summary.max_ms),
        ] {
            self.value(format!("{name}_{part}_ms"), format!("{ms:.2}"));
        }
    }

    fn warn(&mut self, message: String) {
        self.raise(DiagnosticStatus::WARN as u8, message);
    }

    /// Of several troubles the gravest gives the message, of equal ones the first.
    fn raise(&mut self, level: u8, message: String) {
        if level > self.level {
            self.level = level;
            self.message = message;
        }
    }
}

impl Diagnostics {
    /// `node` without its leading slash, as REP-107 names statuses.
    pub fn new(node: &str, hardware_id: String) -> Self {
        Self {
            node: node.trim_start_matches('/').to_owned(),
            hardware_id,
            before: Counters::default(),
        }
    }

    /// The header's stamp is left to the caller.
    pub fn report(
        &mut self,
        statistics: &Statistics,
        active: &Active,
        work: &Work,
        settings: &Settings,
        fill: &Fill,
    ) -> DiagnosticArray {
        let tasks = [
            ("input", self.input(statistics)),
            ("detection", self.detection(statistics, active, settings)),
            ("calibration", calibration(active, work, settings, fill)),
        ];
        self.before = statistics.counters.clone();
        DiagnosticArray {
            status: tasks
                .into_iter()
                .map(|(name, task)| DiagnosticStatus {
                    level: task.level,
                    name: format!("{}: {name}", self.node),
                    message: task.message,
                    hardware_id: self.hardware_id.clone(),
                    values: task.values,
                })
                .collect(),
            ..Default::default()
        }
    }

    fn input(&self, statistics: &Statistics) -> Task {
        let now = &statistics.counters;
        let mut task = Task::new("clouds arrive");
        match statistics.last_cloud_s {
            None => task.message = "waiting for the first cloud".into(),
            Some(silent) if silent > SILENCE_S => {
                task.warn(format!("no cloud for {silent:.1} s"));
            }
            Some(_) => {}
        }
        for reason in [Drop::BadCloud, Drop::EmptyCloud, Drop::NoTransform] {
            let new = now.dropped(reason) - self.before.dropped(reason);
            if new > 0 {
                let problem = statistics.last_problem.as_deref().unwrap_or(reason.name());
                task.warn(format!("{new} clouds of no use: {problem}"));
            }
        }
        task.value("clouds_received", now.received);
        task.value("clouds_published", now.published);
        task.value("clouds_dropped", now.dropped_total());
        for reason in Drop::ALL {
            task.value(
                format!("clouds_dropped_{}", reason.name()),
                now.dropped(reason),
            );
        }
        if let Some(silent) = statistics.last_cloud_s {
            task.value("last_cloud_s", format!("{silent:.2}"));
        }
        if let Some(problem) = &statistics.last_problem {
            task.value("last_problem", problem);
        }
        task
    }

    fn detection(&self, statistics: &Statistics, active: &Active, settings: &Settings) -> Task {
        let now = &statistics.counters;
        let mut task = Task::new(&format!("{} model runs", active.model.precision));
        let failed = now.dropped(Drop::EngineError) - self.before.dropped(Drop::EngineError);
        if failed > 0 {
            let problem = statistics.last_problem.as_deref().unwrap_or_default();
            task.raise(
                DiagnosticStatus::ERROR as u8,
                format!("the engine failed on {failed} clouds: {problem}"),
            );
        }
        if let Some(fallback) = &active.fallback {
            let reason = &fallback.reason;
            task.warn(format!("fell back from INT8 to float: {reason}"));
        }
        let limit = settings.diagnostics_max_processing_ms;
        if let Some(processing) = statistics.processing
            && f64::from(processing.last_ms) > limit
            && statistics.last_cloud_s.is_some_and(|s| s < SILENCE_S)
        {
            task.warn(format!(
                "processing takes {:.1} ms, the limit is {limit} ms",
                processing.last_ms
            ));
        }
        let lost = now.dropped_pillars - self.before.dropped_pillars;
        if lost > 0 {
            task.warn(format!(
                "{lost} pillars did not fit the model's max_pillars"
            ));
        }
        task.value("model_id", &active.model.id);
        task.value("precision", active.model.precision);
        task.value("model_path", active.model.path.display());
        task.value("model_bytes", active.model.bytes);
        if let Some(kernels) = &active.model.kernels {
            let providers = kernels.providers();
            let total: usize = providers.values().sum();
            for (provider, count) in providers {
                let share = count as f64 / total as f64;
                task.value(format!("kernels_{provider}"), format!("{share:.3}"));
            }
            task.value("convolutions_int8", kernels.integer_convolutions);
            task.value("convolutions_float", kernels.float_convolutions);
        }
        task.value("published_int8", now.published_int8);
        task.value("dropped_pillars", now.dropped_pillars);
        if let Some(shadow) = &statistics.shadow {
            if let Some(problem) = &shadow.problem {
                task.warn(format!("the float model cannot check INT8: {problem}"));
            }
            task.value("shadow_frames", shadow.checked);
            task.value("shadow_frames_skipped", shadow.skipped);
            if let Some(f1) = shadow.f1 {
                task.value("shadow_f1", format!("{f1:.3}"));
            }
            if let Some(boxes) = shadow.boxes {
                // None: the window is full, and there was nothing to judge by.
                task.value("shadow_boxes", boxes);
            }
        }
        task.latency("processing", statistics.processing);
        task.latency("inference_float", statistics.inference_float);
        task.latency("inference_int8", statistics.inference_int8);
        // What keeping frames costs the inference loop.
        task.latency("buffer", statistics.buffer);
        task
    }
}

fn calibration(active: &Active, work: &Work, settings: &Settings, fill: &Fill) -> Task {
    let mut task = Task::new("idle");
    if let Some(now) = &work.calibrating {
        task.message = format!("calibrating: {} {:.0} %", now.stage, now.fraction * 100.0);
        task.value("stage", &now.stage);
        task.value("fraction", format!("{:.3}", now.fraction));
        if let Some(eta) = now.eta_s {
            task.value("eta_s", format!("{eta:.0}"));
        }
    } else if let Some(last) = &work.last {
        let reasons = last.reasons.join("; ");
        match last.outcome {
            Outcome::Swapped => {
                let notes = last.notes.iter().map(|note| format!("; {note}"));
                task.message = format!(
                    "INT8 model made and swapped in{}",
                    notes.collect::<String>()
                );
            }
            Outcome::Cancelled => task.message = "last calibration cancelled".into(),
            Outcome::Refused => task.warn(format!("INT8 model refused: {reasons}")),
            Outcome::Failed => task.warn(format!("last calibration failed: {reasons}")),
        }
    }
    if let Some(judgement) = &work.judgement
        && judgement.frames == 0
        && work.calibrating.is_none()
        && active.model.precision == Precision::Int8
    {
        task.message = format!("{} runs: {}", judgement.stored_id, judgement.text);
    }
    if let Some(problem) = &fill.problem {
        task.warn(format!("calibration buffer: {problem}"));
    }
    if let Some(start) = &work.start
        && !start.problems.is_empty()
    {
        task.warn(format!(
            "the model that ran before the start cannot run: {}",
            start.problems.join("; ")
        ));
    }
    if let Some(problem) = &work.store_problem {
        task.warn(format!("model store: {problem}"));
    }
    let state = match &work.calibrating {
        Some(_) => "calibrating",
        None => "idle",
    };
    task.value("state", state);
    task.value("buffer_frames", fill.frames());
    task.value("buffer_held_out_frames", fill.held_out);
    task.value("buffer_frames_few_sweeps", fill.few_sweeps);
    task.value("buffer_max_frames", settings.calibration_max_frames);
    task.value("buffer_min_frames", settings.calibration_min_frames);
    task.value("buffer_mb", format!("{:.1}", fill.bytes as f64 / 1e6));
    task.value("buffer_frames_offered", fill.offered);
    task.value("buffer_frames_taken", fill.taken);
    if let Some(diversity) = fill.diversity {
        task.value("buffer_diversity", format!("{diversity:.3}"));
    }
    for (class, count) in active.model.classes.iter().zip(&fill.objects) {
        task.value(format!("buffer_objects_{class}"), count);
    }
    if let Some(int8) = &active.int8 {
        task.value("int8_model_id", &int8.id);
    }
    if let Some(judgement) = &work.judgement {
        task.value("judged_on_own_frames", judgement.frames);
        task.value("judgement", &judgement.text);
    }
    if let Some(verdict) = work.last.as_ref().and_then(|last| last.verdict.as_ref()) {
        task.value("verdict", verdict.headline());
        for remark in &verdict.remarks {
            task.value("verdict_remark", remark);
        }
    }
    if let Some(report) = work.last.as_ref().and_then(|last| last.report.as_ref()) {
        task.value("report", report.display());
    }
    task
}
