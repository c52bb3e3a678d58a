//! `/diagnostics` once a second: input, detection, calibration.

use r2r::diagnostic_msgs::msg::{DiagnosticArray, DiagnosticStatus, KeyValue};

use super::silence::SILENCE;
use crate::calibration::buffer::Fill;
use crate::detector::Precision;
use crate::node::latency::Summary;
use crate::node::pipeline::{Active, Drop, Statistics};
use crate::node::settings::Settings;
use crate::node::status::{Outcome, Work};
use crate::node::troubles::{Part, Severity, Trouble};

/// Makes the status of each second.
pub struct Diagnostics {
    node: String,
    hardware_id: String,
}

struct Task {
    /// What is said where nothing is wrong.
    message: String,
    /// What is wrong, with its level.
    wrong: Vec<(u8, String)>,
    values: Vec<KeyValue>,
}

impl Task {
    fn new(message: &str) -> Self {
        Self {
            message: message.into(),
            wrong: Vec::new(),
            values: Vec::new(),
        }
    }

    /// Takes up the troubles of a part.
    fn troubles(&mut self, part: Part, troubles: &[Trouble]) {
        let troubles = troubles.iter().filter(|trouble| trouble.part == part);
        let troubles: Vec<_> = troubles.collect();
        // Plain strings and numbers always serialize.
        let json = serde_json::to_string(&troubles).unwrap_or_default();
        self.value("conditions", json);
        for trouble in troubles {
            let Trouble {
                kind,
                text,
                since_s,
                ..
            } = trouble;
            let share = match trouble.share {
                Some(share) => format!("{:.0} % of the last clouds, ", share * 100.0),
                None => String::new(),
            };
            self.value(
                format!("condition_{kind}"),
                format!("{text} ({share}for {since_s:.0} s)"),
            );
            let level = match trouble.severity {
                Severity::Warn => DiagnosticStatus::WARN as u8,
                Severity::Error => DiagnosticStatus::ERROR as u8,
            };
            self.raise(level, text.clone());
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

    fn raise(&mut self, level: u8, message: String) {
        self.wrong.push((level, message));
    }

    /// All that is wrong, the gravest first, or else what goes on.
    fn status(mut self, name: String, hardware_id: String) -> DiagnosticStatus {
        self.wrong
            .sort_by_key(|(level, _)| std::cmp::Reverse(*level));
        let level = self.wrong.first().map(|(level, _)| *level);
        let wrong: Vec<_> = self.wrong.into_iter().map(|(_, text)| text).collect();
        DiagnosticStatus {
            level: level.unwrap_or(DiagnosticStatus::OK as u8),
            name,
            message: match wrong.is_empty() {
                true => self.message,
                false => wrong.join("; "),
            },
            hardware_id,
            values: self.values,
        }
    }
}

impl Diagnostics {
    /// `node` without its leading slash, as REP-107 names statuses.
    pub fn new(node: &str, hardware_id: String) -> Self {
        Self {
            node: node.trim_start_matches('/').to_owned(),
            hardware_id,
        }
    }

    /// The header's stamp is left to the caller.
    pub fn report(
        &self,
        statistics: &Statistics,
        active: &Active,
        work: &Work,
        settings: &Settings,
        fill: &Fill,
    ) -> DiagnosticArray {
        let tasks = [
            ("input", input(statistics)),
            ("detection", detection(statistics, active, settings)),
            (
                "calibration",
                calibration(statistics, active, work, settings, fill),
            ),
        ];
        DiagnosticArray {
            status: tasks
                .into_iter()
                .map(|(name, task)| {
                    let name = format!("{}: {name}", self.node);
                    task.status(name, self.hardware_id.clone())
                })
                .collect(),
            ..Default::default()
        }
    }
}

fn input(statistics: &Statistics) -> Task {
    let now = &statistics.counters;
    let mut task = Task::new(match statistics.last_cloud_s {
        None => "waiting for the first cloud",
        Some(_) => "clouds arrive",
    });
    task.troubles(Part::Input, &statistics.troubles);
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

fn detection(statistics: &Statistics, active: &Active, settings: &Settings) -> Task {
    let now = &statistics.counters;
    let mut task = Task::new(&format!("{} model runs", active.model.precision));
    task.troubles(Part::Detection, &statistics.troubles);
    if let Some(fallback) = &active.fallback {
        let reason = &fallback.reason;
        task.warn(format!("fell back from INT8 to float: {reason}"));
    }
    let limit = settings.diagnostics_max_processing_ms;
    if let Some(processing) = statistics.processing
        && f64::from(processing.last_ms) > limit
        && statistics
            .last_cloud_s
            .is_some_and(|s| s < SILENCE.as_secs_f64())
    {
        task.warn(format!(
            "processing takes {:.1} ms, the limit is {limit} ms",
            processing.last_ms
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

fn calibration(
    statistics: &Statistics,
    active: &Active,
    work: &Work,
    settings: &Settings,
    fill: &Fill,
) -> Task {
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
    task.troubles(Part::Calibration, &statistics.troubles);
    if let Some(judgement) = &work.judgement
        && !judgement.judged
        && work.calibrating.is_none()
        && active.model.precision == Precision::Int8
    {
        task.message = format!("{} runs: {}", judgement.stored_id, judgement.text);
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
        task.value("judged", judgement.judged);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_is_wrong_is_in_the_message_the_gravest_first() {
        let mut task = Task::new("clouds arrive");
        let quiet = Task::new("clouds arrive").status("n".into(), String::new());
        assert_eq!((quiet.level, quiet.message.as_str()), (0, "clouds arrive"));
        let trouble = |kind, severity, text: &str| Trouble {
            part: Part::Input,
            kind,
            severity,
            share: Some(0.5),
            text: text.into(),
            since_s: 7.2,
        };
        let troubles = [
            trouble("few_sweeps", Severity::Warn, "1 of 2 sweeps"),
            trouble("engine_error", Severity::Error, "it failed"),
            Trouble {
                part: Part::Calibration,
                ..trouble("buffer", Severity::Warn, "of another part")
            },
        ];
        task.troubles(Part::Input, &troubles);
        task.warn("and more".into());
        let status = task.status("n".into(), String::new());
        assert_eq!(status.level, DiagnosticStatus::ERROR as u8);
        assert_eq!(status.message, "it failed; 1 of 2 sweeps; and more");
        let value = &status.values[1];
        assert_eq!(value.key, "condition_few_sweeps");
        assert_eq!(
            value.value,
            "1 of 2 sweeps (50 % of the last clouds, for 7 s)"
        );
    }
}
