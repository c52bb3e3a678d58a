//! The report as one page for a browser: it loads nothing, runs nothing, and follows light and dark mode.
//!
//! Text reaches the page only through `html!`, which escapes it: names of models, classes, layers and tensors come
//! from files that others made. What the page shows depends on the report alone, so a page made again from
//! `report.json` is the same to the byte.

use std::time::{Duration, UNIX_EPOCH};

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::svg::{Axis, Mark};
use super::{FileRecord, LayerReport, Report, TensorReport, by_sweeps};
use crate::detector::kernels::Operator;
use crate::eval::{AgreementCell, Spread};
use crate::ptq::check::{Evidence, Latency, Measure, Verdict};
use crate::ptq::frames::Role;
use crate::ptq::quantizer::Quantizer;
use crate::ptq::recipe::Bounds;
use crate::ptq::recipe::Target;
use crate::ptq::reconstruct::Outcome;
use crate::ptq::reconstruct::sensitivity::{Promotion, Sensitivity};

const STYLE: &str = include_str!("page.css");
/// Should text ever pass as markup, a browser still loads and runs nothing.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'";
/// Rows of a ranking.
const WORST: usize = 8;

/// The whole page.
pub(super) fn page(report: &Report) -> String {
    let sections = [
        ("agreement", "Agreement with float", agreement(report)),
        ("input", "Input", input(report)),
        ("sensitivity", "Where the error is", sensitivity(report)),
        ("activations", "Activations", activations(report)),
        ("weights", "Weights", weights(report)),
        ("reconstruction", "Reconstruction", reconstruction(report)),
        ("graph", "Float layers and graph", graph(report)),
        ("kernels", "Kernels", kernels(report)),
        ("cost", "Cost", cost(report)),
        ("recipe", "Recipe", recipe(report)),
        ("provenance", "Provenance", provenance(report)),
    ];
    let page = html! {
        (DOCTYPE)
        html lang="en-GB" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                title { (report.model) ": INT8 for " (report.target) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                main {
                    (headline(report))
                    nav {
                        @for (id, title, _) in &sections {
                            a href={ "#" (id) } { (title) }
                        }
                    }
                    @for (id, title, body) in &sections {
                        section id=(id) {
                            h2 { (title) }
                            (body)
                        }
                    }
                }
            }
        }
    };
    page.into_string()
}

fn headline(report: &Report) -> Markup {
    let verdict = &report.check.verdict;
    html! {
        h1 { (report.model) }
        p.dim {
            "INT8 for " (report.target) ", recipe " (report.recipe.name) ", " (date(report.tool.created)) ", on "
            (report.tool.machine)
        }
        @let whole = verdict.not_judged.is_empty() && verdict.remarks.is_empty();
        div.verdict.accepted[verdict.accepted].partly[!whole] {
            strong { @if verdict.accepted { "Accepted" } @else { "Refused" } }
            @if verdict.accepted {
                " by the gate: its bounds on the agreement with float hold for what was judged."
            } @else {
                " by the gate. The model is written; the reasons against it:"
                ul {
                    @for reason in &verdict.reasons {
                        li { (reason) }
                    }
                }
            }
            (evidence(verdict))
        }
        (tiles(report))
    }
}

/// What the verdict rests on, and what it does not cover.
fn evidence(verdict: &Verdict) -> Markup {
    let list = |evidence: &mut dyn Iterator<Item = &Evidence>, needed: bool| {
        let each = evidence.map(|e| {
            let needed = match needed {
                true => format!("; {} needed", e.needed),
                false => String::new(),
            };
            format!(
                "{e} ({} of float, {} of INT8{needed})",
                e.float_boxes, e.int8_boxes
            )
        });
        each.collect::<Vec<_>>().join(", ")
    };
    let judged = list(&mut verdict.judged_classes(), false);
    let not_judged = list(&mut verdict.unjudged_classes(), true);
    let bands = list(&mut verdict.unjudged_bands(), true);
    html! {
        @if !judged.is_empty() {
            p { b { "Judged" } ", with so many boxes: " (judged) "." }
        }
        @if !not_judged.is_empty() {
            p.unjudged {
                b { "Not judged" } ", for lack of boxes: " (not_judged) ". How well INT8 finds these is not known."
            }
        }
        @if !bands.is_empty() {
            p.unjudged { b { "Not judged at these distances" } ", for lack of boxes: " (bands) "." }
        }
        @if !verdict.remarks.is_empty() {
            ul.unjudged {
                @for remark in &verdict.remarks {
                    li { (remark) }
                }
            }
        }
    }
}

fn input(report: &Report) -> Markup {
    let input = &report.input;
    let lines = input.lines();
    html! {
        p {
            (report.frames.calibration) " frames to calibrate with, " (report.frames.held_out) " to check with; "
            (report.frames.empty) " empty ones were left out."
            @if input.sweeps_wanted > 0 {
                " The model was trained with " (input.sweeps_wanted) " sweeps a frame; there were "
                (by_sweeps(&input.sweeps)) "."
            }
        }
        @if input.sweeps_wanted == 0 {
            p { "How they were read is not in this report." }
        } @else if lines.is_empty() {
            p { "Nothing in them was odd." }
        } @else {
            ul {
                @for line in &lines {
                    li { (line) }
                }
            }
        }
    }
}

fn tiles(report: &Report) -> Markup {
    let (latency, kernels) = (&report.check.latency, &report.check.kernels);
    let total = &report.check.agreement.total;
    let bytes = |files: &[FileRecord]| files.iter().map(|f| f.bytes as f64).sum::<f64>();
    let (float, int8) = (bytes(&report.float_files), bytes(&report.int8_files));
    let convolutions = kernels.integer_convolutions + kernels.float_convolutions;
    let longest = report.cost.stages.iter().max_by(|a, b| a.1.total_cmp(&b.1));
    let tile = |what: &str, value: String, note: String| {
        html! {
            div.tile { span { (what) } b { (value) } span { (note) } }
        }
    };
    let medians = |float: &Latency, int8: &Latency| {
        format!("{} → {} ms", number(float.median), number(int8.median))
    };
    html! {
        div.tiles {
            (tile(
                "Boxes, INT8 against float",
                format!("F1 {}", fixed(total.f1)),
                format!("{} matched, {} missed, {} extra", total.matched, total.missed, total.extra),
            ))
            (tile(
                "Backbone, median",
                medians(&latency.float_backbone, &latency.int8_backbone),
                format!(
                    "{} times as fast; {} runs each by turns, {}",
                    number(latency.backbone_speedup),
                    latency.runs,
                    threads(latency.threads)
                ),
            ))
            (tile(
                "Points to boxes, median",
                medians(&latency.float_total, &latency.int8_total),
                format!(
                    "95 % within {} → {} ms",
                    number(latency.float_total.p95),
                    number(latency.int8_total.p95)
                ),
            ))
            (tile(
                "Multiplications on integers",
                kernels.integer_multiplications.map_or("not known".into(), percent),
                format!("{} of {convolutions} convolutions", kernels.integer_convolutions),
            ))
            (tile(
                "Size",
                format!("{:.2} → {:.2} MB", float / 1e6, int8 / 1e6),
                format!("{} times smaller", number(float / int8)),
            ))
            (tile(
                "Frames",
                format!("{} + {}", report.frames.calibration, report.frames.held_out),
                format!("calibration + held out; {} empty ones left out", report.frames.empty),
            ))
            (tile(
                "Time",
                duration(report.cost.seconds),
                longest.map_or(String::new(), |(stage, s)| format!("{stage} {}", duration(*s))),
            ))
            (tile(
                "Memory, peak",
                report.cost.peak_memory.map_or("not known".into(), |b| format!("{:.0} MB", b as f64 / 1e6)),
                "of this process".into(),
            ))
        }
        @if report.target != Target::Cpu {
            p.note {
                "Kernels and latency are those of ONNX Runtime on the CPU; those of " (report.target)
                " are not measured here."
            }
        }
    }
}

/// Bounds in words.
fn limits(bounds: &Bounds) -> String {
    let share = |what: &str, bound: f64| match bound < 1.0 {
        true => format!("up to {:.0} % of the boxes {what}, ", bound * 100.0),
        false => String::new(),
    };
    format!(
        "{} boxes: F1 {} or more, {}{}mean errors of centre up to {} m, size up to {} m, heading up to {} rad",
        bounds.min_boxes,
        bounds.min_f1,
        share("missed", bounds.max_missed),
        share("extra", bounds.max_extra),
        bounds.max_centre_error,
        bounds.max_size_error,
        bounds.max_yaw_error
    )
}

fn agreement(report: &Report) -> Markup {
    let agreement = &report.check.agreement;
    let gate = &report.recipe.gate;
    let axis = Axis::linear([1.0]);
    let mean = |spread: Option<Spread>| spread.map(|s| s.mean);
    // Sums over the classes are not held against bounds.
    let row = |name: &str, cell: &AgreementCell, class: &str, bounds: Option<&Bounds>| {
        let broken = bounds.map_or(Vec::new(), |bounds| bounds.broken(cell));
        let judged = bounds.is_some_and(|bounds| bounds.judges(cell));
        // Figures of too few boxes break no bound, but they are none to rely on.
        let class_of = |measure| match (broken.iter().any(|b| b.measure == measure), judged) {
            (false, _) => "n",
            (true, true) => "n bad",
            (true, false) => "n unjudged",
        };
        let (float_boxes, int8_boxes) = (cell.matched + cell.missed, cell.matched + cell.extra);
        let boxes = (cell.matched + cell.missed + cell.extra) as f64;
        let matched = cell.matched as f64 / boxes;
        let missed = matched + cell.missed as f64 / boxes;
        let words = format!(
            "{} matched, {} missed, {} extra",
            cell.matched, cell.missed, cell.extra
        );
        let marks = html! {
            (axis.bar("matched", 0.0, matched))
            (axis.bar("missed", matched, missed))
            (axis.bar("extra", missed, 1.0))
        };
        html! {
            tr class=(class) {
                td {
                    (name)
                    @if let Some(bounds) = bounds && !judged {
                        span.unjudged {
                            " not judged: " (float_boxes.max(int8_boxes)) " of " (bounds.needed()) " boxes"
                        }
                    }
                }
                td.drawing { @if boxes > 0.0 { (axis.row(&words, marks)) } @else { span.dim { "no boxes" } } }
                td.n { (cell.matched) }
                td class=(class_of(Measure::Missed)) { (cell.missed) }
                td class=(class_of(Measure::Extra)) { (cell.extra) }
                td class=(class_of(Measure::F1)) { (fixed(cell.f1)) }
                td class=(class_of(Measure::Centre)) { (fixed(mean(cell.centre))) }
                td class=(class_of(Measure::Size)) { (fixed(mean(cell.size))) }
                td class=(class_of(Measure::Heading)) { (fixed(mean(cell.yaw))) }
                td.n { (fixed(mean(cell.velocity))) }
                td.n { (fixed(cell.score_shift)) }
            }
        }
    };
    let whole = gate.class();
    let seen = |cell: &&AgreementCell| cell.matched + cell.missed + cell.extra > 0;
    html! {
        p {
            "Boxes of both models on " (agreement.frames) " held-out frames, paired one to one. The gate judges each "
            "class with at least " (limits(&gate.class())) "."
            @if let Some(bands) = &gate.bands {
                " In each distance band it judges each class with at least " (limits(bands)) "."
            }
            " Values that break a bound are red; where there are too few boxes to judge they would, and are orange. "
            "Distance bands are in metres."
        }
        div.legend {
            @for (class, what) in [("matched", "in both"), ("missed", "only float"), ("extra", "only INT8")] {
                span { span class={ "swatch " (class) } {} (what) }
            }
        }
        table {
            thead {
                tr {
                    th { "Class" }
                    th { "Share of the boxes" (axis.labels()) }
                    th.n { "Matched" }
                    th.n { "Missed" }
                    th.n { "Extra" }
                    th.n { "F1" }
                    th.n { "Centre" br; "m" }
                    th.n { "Size" br; "m" }
                    th.n { "Heading" br; "rad" }
                    th.n { "Velocity" br; "m/s" }
                    th.n { "Score" br; "shift" }
                }
            }
            tbody {
                (row("all", &agreement.total, "total", None))
                @for band in agreement.bands.iter().filter(seen) {
                    (row(&band.band, band, "part", None))
                }
                @for class in &agreement.classes {
                    (row(&class.class, &class.all, "whole", Some(&whole)))
                    @for band in class.bands.iter().filter(seen) {
                        (row(&band.band, band, "part", gate.bands.as_ref()))
                    }
                }
            }
        }
        p.note {
            (agreement.relabelled) " missed boxes have an unpaired INT8 box of another class within reach. Errors are "
            "means over the pairs; the score shift is INT8 minus float."
        }
    }
}

/// Something whose error can be ranked.
struct Suspect {
    name: String,
    /// Share of the energy.
    error: f64,
}

/// Suspects of one kind after another, the worst of each first, by what the quantizers leave.
fn rankings(report: &Report) -> [(&'static str, Vec<Suspect>); 3] {
    let suspect = |name: &str, error: f64| Suspect {
        name: name.to_owned(),
        error,
    };
    let activations = report.tensors.iter();
    let weights = report.layers.iter();
    let blocks = report.reconstruction.iter();
    let mut rankings = [
        (
            "Activations, after the grid search",
            activations
                .map(|t| suspect(t.name(), t.error_chosen))
                .collect::<Vec<_>>(),
        ),
        (
            "Weights, after the grid search",
            weights.map(|l| suspect(&l.name, l.error_chosen)).collect(),
        ),
        (
            "Outputs of blocks, after reconstruction",
            blocks
                .map(|o| suspect(&block_names(report, o).join(", "), o.error_after))
                .collect(),
        ),
    ];
    for (_, suspects) in &mut rankings {
        suspects.sort_by(|a, b| b.error.total_cmp(&a.error));
    }
    rankings
}

/// What the heads lose when a layer alone is quantized, worst first.
fn measured(report: &Report) -> Vec<Suspect> {
    let suspect = |s: &Sensitivity| {
        let promoted = report.promoted.iter().find(|p| p.layer == s.layer);
        let note = match promoted.map(|p| p.to) {
            None => "",
            Some(Promotion::EightBits) => " (8 bits instead)",
            Some(Promotion::Float) => " (float instead)",
        };
        let bits = format!("W{}A{}", s.weight_bits, s.activation_bits);
        Some(Suspect {
            name: format!("{}, {bits}{note}", s.layer),
            error: s.task?,
        })
    };
    report.sensitivity.iter().filter_map(suspect).collect()
}

fn sensitivity(report: &Report) -> Markup {
    let measured = measured(report);
    let rankings = rankings(report);
    let worst = |suspects: &[Suspect]| suspects.len().min(WORST);
    let shown = rankings.iter().flat_map(|(_, s)| &s[..worst(s)]);
    let axis = Axis::logarithmic(shown.map(|s| s.error));
    html! {
        @if !measured.is_empty() {
            h3 { "At the heads" }
            p {
                "Task-guided loss at the objects when this layer alone is quantized and all others are float: what its "
                "precision costs the boxes."
            }
            (ranking(&measured, &Axis::logarithmic(measured.iter().map(|s| s.error)), "Loss"))
        }
        p {
            "The error that quantization leaves, as share of the energy, the worst first. Activations and weights are "
            "each on their own; the output of a block has all the error in it that came in from before."
            @if measured.is_empty() {
                " How much of it reaches the boxes is not measured. Candidates for more bits or for float stand at the top."
            }
        }
        @for (what, suspects) in rankings.iter().filter(|(_, s)| !s.is_empty()) {
            h3 { (what) ": the worst " (worst(suspects)) " of " (suspects.len()) }
            (ranking(&suspects[..worst(suspects)], &axis, "Error"))
        }
    }
}

/// A row and a plot for each.
fn ranking(suspects: &[Suspect], axis: &Axis, what: &str) -> Markup {
    html! {
        table {
            thead {
                tr { th.name { "Where" } th { (what) (axis.labels()) } th.n { (what) } }
            }
            tbody {
                @for suspect in suspects {
                    tr {
                        td.name { code { (suspect.name) } }
                        td.drawing {
                            (axis.row(&share(suspect.error), html! {
                                // From the axis's lower end.
                                (axis.line(f64::MIN_POSITIVE, suspect.error))
                                (axis.mark(Mark::Dot, suspect.error))
                            }))
                        }
                        td.n { (share(suspect.error)) }
                    }
                }
            }
        }
    }
}

fn activations(report: &Report) -> Markup {
    let tensors = &report.tensors;
    let seen = |t: &TensorReport| f64::from(t.seen.min.abs().max(t.seen.max.abs()));
    let axis = Axis::logarithmic(tensors.iter().flat_map(|t| {
        [Some(&t.max_min), Some(&t.chosen), t.learned.as_ref()]
            .into_iter()
            .flatten()
            .map(reach)
            .chain([seen(t)])
    }));
    let any_learned = tensors.iter().any(|t| t.learned.is_some());
    let marks = [
        (Mark::Tick, "seen"),
        (Mark::Ring, "max-min clip"),
        (Mark::Dot, "grid clip"),
        (Mark::Diamond, "learned clip"),
    ];
    html! {
        h3 { "Ranges" }
        p {
            "Largest magnitude that each tensor held on the calibration frames, and the magnitude at which its quantizer "
            "clips. A ratio is a step by the max-min step: below 1 the largest values are cut so that the others become "
            "finer."
        }
        (legend(if any_learned { &marks } else { &marks[..3] }))
        table {
            thead {
                tr {
                    th.name { "Tensor" }
                    th { "Magnitude" (axis.labels()) }
                    th.n { "Seen" }
                    th.n { "Grid" br; "clip" }
                    th.n { "Grid" br; "ratio" }
                    @if any_learned { th.n { "Learned" br; "ratio" } }
                }
            }
            tbody {
                @for t in tensors {
                    @let learned = t.learned.as_ref();
                    @let words = format!(
                        "seen {} to {}; clip at {} (max-min), {} (grid){}",
                        number(t.seen.min.into()),
                        number(t.seen.max.into()),
                        number(reach(&t.max_min)),
                        number(reach(&t.chosen)),
                        learned.map_or(String::new(), |q| format!(", {} (learned)", number(reach(q)))),
                    );
                    tr {
                        td.name { (tensor_name(t)) }
                        td.drawing {
                            (axis.row(&words, html! {
                                (axis.line(reach(&t.max_min), reach(learned.unwrap_or(&t.chosen))))
                                (axis.mark(Mark::Tick, seen(t)))
                                (axis.mark(Mark::Ring, reach(&t.max_min)))
                                (axis.mark(Mark::Dot, reach(&t.chosen)))
                                @if let Some(learned) = learned { (axis.mark(Mark::Diamond, reach(learned))) }
                            }))
                        }
                        td.n { (number(t.seen.min.into())) " to " (number(t.seen.max.into())) }
                        td.n { (number(reach(&t.chosen))) }
                        td.n { (number(t.clip.into())) }
                        @if any_learned {
                            td.n { (optional(learned.map(|q| f64::from(q.scale) / f64::from(t.max_min.scale)))) }
                        }
                    }
                }
            }
        }
        h3 { "Errors" }
        p { "Error over the calibration frames as share of the tensor's energy, before and after the grid search." }
        (changes(
            "Tensor",
            [(Mark::Ring, "max-min"), (Mark::Dot, "grid")],
            tensors.iter().map(|t| Change {
                name: tensor_name(t),
                before: Some(t.error_max_min),
                after: Some(t.error_chosen),
            }),
        ))
    }
}

fn weights(report: &Report) -> Markup {
    // For another target the runtime's kernels here say nothing, and none may have been traced.
    let traced = !report.check.kernels.integer_layers.is_empty() || report.target == Target::Cpu;
    let name = |l: &LayerReport| {
        let shape: Vec<String> = l.shape.iter().map(usize::to_string).collect();
        let [least, mean, largest] = l.clip.map(f64::from);
        html! {
            code { (l.name) }
            span.note {
                (l.op) " " (shape.join(" × ")) ", " (l.bits) " bits, "
                (number(l.multiplications as f64 / 1e6)) " M multiplications"
            }
            span.note {
                "clip ratio " (number(mean)) " (" (number(least)) " to " (number(largest)) ")"
                @if traced && !l.integer_kernel { ", " span.bad { "did not run on integers" } }
            }
        }
    };
    html! {
        p {
            "Error of each layer's weights as share of their energy, before and after the grid search, rounded to the "
            "nearest. The clip ratio is the step by the max-min step, mean over the output channels, least and largest "
            "in brackets."
        }
        (changes(
            "Layer",
            [(Mark::Ring, "max-min"), (Mark::Dot, "grid")],
            report.layers.iter().map(|l| Change {
                name: name(l),
                before: Some(l.error_max_min),
                after: Some(l.error_chosen),
            }),
        ))
    }
}

fn reconstruction(report: &Report) -> Markup {
    let blocks = &report.reconstruction;
    if blocks.is_empty() {
        return html! {
            p { "None: the weights are rounded to the nearest, the activation steps are those of the grid search." }
        };
    }
    let stages = [(Mark::Dot, "nearest"), (Mark::Diamond, "learned")];
    let name = |o: &Outcome| {
        html! {
            @for (i, name) in block_names(report, o).iter().enumerate() {
                @if i > 0 { ", " }
                code { (name) }
            }
            @if !o.taken { span.note { "learned no better: nearest kept" } }
        }
    };
    let taken = blocks.iter().filter(|o| o.taken).count();
    html! {
        p {
            "Blocks in network order. Nearest: every weight rounded to the nearest integer, steps of the grid search. "
            "Learned: after adaptive rounding and learned steps. " (taken) " of " (blocks.len()) " blocks took the "
            "learned result; the others keep the nearest."
        }
        h3 { "Error of the block's output" }
        p { "As share of the output's energy, on the windows that decide." }
        (changes("Block", stages, blocks.iter().map(|o| Change {
            name: name(o),
            before: Some(o.error_before),
            after: Some(o.error_after),
        })))
        h3 { "Task-guided loss at positives" }
        p { "The block's output pushed through the float layers behind it, compared with float where float sees objects." }
        (changes("Block", stages, blocks.iter().map(|o| Change {
            name: name(o),
            before: o.tgpl_before,
            after: o.tgpl_after,
        })))
        h3 { "Roundings" }
        p {
            "Flipped: weights that are not rounded to the nearest. Decided: roundings that had settled by themselves "
            "when the steps ended; the others were forced."
        }
        (roundings(report))
    }
}

fn roundings(report: &Report) -> Markup {
    let blocks = &report.reconstruction;
    let percents = |v: &[f64]| v.iter().map(|share| 100.0 * share).collect::<Vec<f64>>();
    let flips = Axis::linear(blocks.iter().flat_map(|o| percents(&o.flipped)));
    let decided = Axis::linear([100.0]);
    html! {
        table {
            thead {
                tr {
                    th.name { "Layer" }
                    th { "Flipped, %" (flips.labels()) }
                    th.n { "Flipped" }
                    th { "Decided, %" (decided.labels()) }
                    th.n { "Decided" }
                    th.n { "Steps" }
                    th.n { "Time" }
                }
            }
            tbody {
                @for o in blocks {
                    @for (i, name) in block_names(report, o).iter().enumerate() {
                        @let (flipped, settled) = (o.flipped.get(i).copied(), o.converged.get(i).copied());
                        tr {
                            td.name { code { (name) } }
                            @for (axis, value) in [(&flips, flipped), (&decided, settled)] {
                                @let value = value.unwrap_or(f64::NAN);
                                td.drawing { (axis.row(&percent(value), axis.bar("plain", 0.0, 100.0 * value))) }
                                td.n { (percent(value)) }
                            }
                            // A block is tuned as a whole: its effort stands once.
                            td.n { @if i == 0 { (o.iterations) } }
                            td.n { @if i == 0 { (duration(o.seconds)) } }
                        }
                    }
                }
            }
        }
    }
}

fn graph(report: &Report) -> Markup {
    let changes = &report.changes;
    html! {
        @if report.float_layers.is_empty() {
            p { "No convolution stays in float." }
        } @else {
            table {
                thead { tr { th.name { "Float layer" } th { "Operator" } th { "Reason" } } }
                tbody {
                    @for layer in &report.float_layers {
                        tr {
                            td.name { code { (layer.name) } }
                            td { (layer.op) }
                            td.text { (layer.reason) }
                        }
                    }
                }
            }
        }
        p {
            "The pillar encoder is float. Operator set " (changes.opset_from) " came in, " (changes.opset_to) " went out; "
            (changes.folded_batch_norms.len()) " batch normalizations were folded into convolutions, "
            (changes.rewritten_deconvolutions.len()) " deconvolutions became 1x1 convolution and depth-to-space."
        }
        (names("folded batch normalizations", &changes.folded_batch_norms))
        (names("rewritten deconvolutions", &changes.rewritten_deconvolutions))
        @for (name, reason) in &changes.kept_deconvolutions {
            p { "Deconvolution " code.text { (name) } " could not be rewritten: " (reason) }
        }
        @if !report.equalized.is_empty() {
            details {
                summary { "Channels brought to like ranges" }
                ul {
                    @for tensor in &report.equalized {
                        li {
                            code.text { (tensor.tensor) } ": divided by "
                            (number(f64::from(tensor.least))) " to " (number(f64::from(tensor.most)))
                        }
                    }
                }
            }
        }
    }
}

fn kernels(report: &Report) -> Markup {
    let kernels = &report.check.kernels;
    let mut operators: Vec<&Operator> = kernels.operators.iter().collect();
    operators.sort_by(|a, b| b.milliseconds.total_cmp(&a.milliseconds));
    let axis = Axis::linear(operators.iter().map(|o| o.milliseconds));
    html! {
        p {
            "What ONNX Runtime ran for one frame, by its own profile: " (kernels.integer_convolutions)
            " integer convolutions, " (kernels.float_convolutions) " in float. " (percent(kernels.integer_time))
            " of the time went into kernels that give integers, conversions not counted."
        }
        table {
            thead {
                tr {
                    th { "Operator" }
                    th { "Gives" }
                    th { "Provider" }
                    th.n { "Nodes" }
                    th { "Time, ms" (axis.labels()) }
                    th.n { "ms" }
                }
            }
            tbody {
                @for o in operators {
                    tr {
                        td { code { (o.name) } }
                        td { (o.gives) }
                        td.text { (o.provider) }
                        td.n { (o.nodes) }
                        td.drawing {
                            (axis.row(&format!("{} ms", number(o.milliseconds)), axis.bar("plain", 0.0, o.milliseconds)))
                        }
                        td.n { (number(o.milliseconds)) }
                    }
                }
            }
        }
    }
}

fn cost(report: &Report) -> Markup {
    let axis = Axis::linear(report.cost.stages.iter().map(|(_, seconds)| *seconds));
    html! {
        table {
            thead { tr { th { "Stage" } th { "Seconds" (axis.labels()) } th.n { "Time" } } }
            tbody {
                @for (stage, seconds) in &report.cost.stages {
                    tr {
                        td { (stage) }
                        td.drawing { (axis.row(&duration(*seconds), axis.bar("plain", 0.0, *seconds))) }
                        td.n { (duration(*seconds)) }
                    }
                }
            }
        }
    }
}

fn recipe(report: &Report) -> Markup {
    let text = serde_yaml::to_string(&report.recipe).unwrap_or_else(|e| e.to_string());
    html! {
        p { "As it was used, so with what the command line changed." }
        pre { (text) }
    }
}

fn provenance(report: &Report) -> Markup {
    let tool = &report.tool;
    let yes = |b: bool| if b { "yes" } else { "no" };
    let facts = [
        ("Made", date(tool.created)),
        ("centerpoint_ptq", tool.version.clone()),
        ("ONNX Runtime", tool.onnx_runtime.clone()),
        ("Machine", tool.machine.clone()),
        ("8-bit products exact on it", yes(tool.exact_u8s8).into()),
        ("Weights with a bit less", yes(report.reduced_range).into()),
        ("SHA-256 of the frames", report.frames.sha256.clone()),
    ];
    let files = [("float", &report.float_files), ("INT8", &report.int8_files)];
    html! {
        table {
            tbody {
                @for (key, value) in &facts {
                    tr { th { (key) } td.text { (value) } }
                }
            }
        }
        table {
            thead { tr { th { "Model" } th { "File" } th.n { "Bytes" } th { "SHA-256" } } }
            tbody {
                @for (model, files) in files {
                    @for file in files {
                        tr {
                            td { (model) }
                            td.text { (file.file) }
                            td.n { (file.bytes) }
                            td.text { code { (file.sha256) } }
                        }
                    }
                }
            }
        }
        details {
            summary { (report.frames.list.len()) " frames" }
            table {
                thead {
                    tr { th.n { "Stamp, ns" } th { "Role" } th.n { "Points" } th.n { "Sweeps" } th { "SHA-256" } }
                }
                tbody {
                    @for frame in &report.frames.list {
                        tr {
                            td.n { (frame.stamp) }
                            td {
                                @match frame.role { Role::Calibration => "calibration", Role::HeldOut => "held out" }
                            }
                            td.n { (frame.points) }
                            td.n { (frame.sweeps.map_or("–".into(), |n| n.to_string())) }
                            td.text { code { (frame.sha256) } }
                        }
                    }
                }
            }
        }
    }
}

/// A row of [`changes`].
struct Change {
    name: Markup,
    before: Option<f64>,
    after: Option<f64>,
}

/// A table of errors before and after a stage, a row each.
fn changes(
    what: &str,
    [before, after]: [(Mark, &str); 2],
    rows: impl Iterator<Item = Change>,
) -> Markup {
    let rows: Vec<Change> = rows.collect();
    let axis = Axis::logarithmic(rows.iter().flat_map(|r| [r.before, r.after]).flatten());
    let shown = |error: Option<f64>| error.map_or("–".into(), share);
    html! {
        (legend(&[before, after]))
        table {
            thead {
                tr {
                    th.name { (what) }
                    th { "Error" (axis.labels()) }
                    th.n { (before.1) }
                    th.n { (after.1) }
                    th.n { "by" }
                }
            }
            tbody {
                @for row in &rows {
                    @let (a, b) = (row.before.unwrap_or(f64::NAN), row.after.unwrap_or(f64::NAN));
                    @let words = format!("{} {}, {} {}", before.1, shown(row.before), after.1, shown(row.after));
                    tr {
                        td.name { (row.name) }
                        td.drawing {
                            (axis.row(&words, html! {
                                (axis.line(a, b))
                                (axis.mark(before.0, a))
                                (axis.mark(after.0, b))
                            }))
                        }
                        td.n { (shown(row.before)) }
                        td.n { (shown(row.after)) }
                        td.n.bad[b > a] { @if a > 0.0 && b > 0.0 { "÷ " (number(a / b)) } }
                    }
                }
            }
        }
    }
}

fn legend(marks: &[(Mark, &str)]) -> Markup {
    html! {
        div.legend {
            @for (mark, what) in marks {
                span { (mark.symbol()) (what) }
            }
        }
    }
}

fn tensor_name(t: &TensorReport) -> Markup {
    let zeros = t.seen.zeros as f64 / t.seen.count as f64;
    html! {
        code { (t.name()) }
        span.note { (t.bits) " bits, " (percent(zeros)) " zeros" }
        (names("that share it", t.tensors.get(1..).unwrap_or_default()))
    }
}

/// A folded list; nothing for an empty one.
fn names(what: &str, names: &[String]) -> Markup {
    html! {
        @if !names.is_empty() {
            details {
                summary { (names.len()) " " (what) }
                ul {
                    @for name in names {
                        li { code.text { (name) } }
                    }
                }
            }
        }
    }
}

fn block_names<'a>(report: &'a Report, outcome: &Outcome) -> Vec<&'a str> {
    let name = |&l: &usize| report.layers.get(l).map_or("?", |l| l.name.as_str());
    outcome.layers.iter().map(name).collect()
}

/// The largest magnitude that a quantizer can represent.
fn reach(q: &Quantizer) -> f64 {
    let end =
        |level: i32| ((f64::from(level) - f64::from(q.zero_point)) * f64::from(q.scale)).abs();
    end(q.levels.min).max(end(q.levels.max))
}

/// Three significant digits.
fn number(value: f64) -> String {
    let size = value.abs();
    if !value.is_finite() {
        "–".into()
    } else if value == 0.0 {
        "0".into()
    } else if (1e-3..1e5).contains(&size) {
        let decimals = 2 - size.log10().floor() as i32;
        format!("{value:.*}", decimals.max(0) as usize)
    } else {
        format!("{value:.2e}")
    }
}

fn optional(value: Option<f64>) -> String {
    value.map_or("–".into(), number)
}

/// Three decimals, for a column of numbers of one unit.
fn fixed(value: Option<f64>) -> String {
    match value {
        Some(value) if value.is_finite() => format!("{value:.3}"),
        _ => "–".into(),
    }
}

/// A share of an energy: small ones matter as much as large ones.
fn share(value: f64) -> String {
    if value.is_finite() {
        format!("{value:.2e}")
    } else {
        "–".into()
    }
}

fn percent(value: f64) -> String {
    if value.is_finite() {
        format!("{:.1} %", 100.0 * value)
    } else {
        "–".into()
    }
}

fn threads(threads: usize) -> String {
    match threads {
        0 => "one thread per core".into(),
        1 => "1 thread".into(),
        n => format!("{n} threads"),
    }
}

fn duration(seconds: f64) -> String {
    if seconds.is_finite() && seconds >= 120.0 {
        format!("{:.1} min", seconds / 60.0)
    } else {
        format!("{} s", number(seconds))
    }
}

/// Date and time in UTC.
pub(crate) fn date(seconds: u64) -> String {
    // The last second of the year 9999, beyond which there is no such format.
    const LAST: u64 = 253_402_300_799;
    let time = UNIX_EPOCH + Duration::from_secs(seconds.min(LAST));
    humantime::format_rfc3339_seconds(time).to_string()
}
