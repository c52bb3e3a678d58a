//! Scores on frames whose outcome is known: by hand, by symmetry, or because nothing differs; and
//! `evaluate` and `render` on a small bag.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use approx::assert_relative_eq;
use centerpoint_ptq::bag::msg::Header;
use centerpoint_ptq::bag::{Stamp, Writer};
use centerpoint_ptq::cloud::{Point, Points, encode};
use centerpoint_ptq::eval::truth::Truth;
use centerpoint_ptq::eval::{
    Agreement, AgreementOptions, DifferenceOptions, EvalOptions, Evaluation, FrameResult,
    agreement, bootstrap_difference, evaluate,
};
use centerpoint_ptq::geometry::{Box3d, Detection};
use nalgebra::{Vector2, Vector3};
use proptest::prelude::*;

fn classes() -> Vec<String> {
    ["CAR", "PEDESTRIAN"].map(String::from).to_vec()
}

fn bbox(x: f32, y: f32) -> Box3d {
    Box3d {
        center: Vector3::new(x, y, 0.8),
        size: Vector3::new(4.0, 2.0, 1.5),
        yaw: 0.3,
    }
}

fn detection(class: usize, x: f32, y: f32, score: f32) -> Detection {
    Detection {
        bbox: bbox(x, y),
        class,
        score,
        velocity: None,
    }
}

fn truth(class: usize, x: f32, y: f32) -> Truth {
    Truth {
        bbox: bbox(x, y),
        label: classes()[class].clone(),
        class: Some(class),
        velocity: None,
        points: None,
        track: None,
        ignored: false,
    }
}

fn frame(detections: Vec<Detection>, truths: Vec<Truth>) -> FrameResult {
    FrameResult { detections, truths }
}

fn score(frames: &[FrameResult]) -> Evaluation {
    evaluate(frames, &classes(), &EvalOptions::default())
}

/// Hits and false positives of a class at a distance, over all bands.
fn counts(evaluation: &Evaluation, class: usize, distance: f32) -> (usize, usize) {
    let at = &evaluation.classes[class].all.at;
    let at = at.iter().find(|a| a.distance == distance).unwrap();
    (at.hits, at.false_positives)
}

// --- average precision -----------------------------------------------------------------------

#[test]
fn detections_equal_to_the_truth_score_one_in_everything() {
    let places = [(5.0, 1.0), (35.0, -4.0), (60.0, 3.0)];
    let frames: Vec<FrameResult> = (0..4)
        .map(|i| {
            let shift = i as f32;
            frame(
                places
                    .iter()
                    .map(|(x, y)| Detection {
                        velocity: Some(Vector2::new(1.0, shift)),
                        ..detection(0, x + shift, *y, 0.5 + 0.1 * shift)
                    })
                    .collect(),
                places
                    .iter()
                    .map(|(x, y)| Truth {
                        velocity: Some(Vector2::new(1.0, shift)),
                        ..truth(0, x + shift, *y)
                    })
                    .collect(),
            )
        })
        .collect();
    let evaluation = score(&frames);
    let car = &evaluation.classes[0];
    for scores in [&car.all].into_iter().chain(&car.bands) {
        assert_eq!((scores.ap, scores.ap_nuscenes), (Some(1.0), Some(1.0)));
        assert_eq!(scores.errors.translation, Some(0.0));
        assert_relative_eq!(scores.errors.scale.unwrap(), 0.0, epsilon = 1e-6);
        assert_eq!(scores.errors.orientation, Some(0.0));
        assert_eq!(scores.errors.velocity, Some(0.0));
    }
    assert_eq!(
        evaluation.mean_ap,
        Some(1.0),
        "a class without truths is left out"
    );
    assert_eq!(evaluation.classes[1].all.ap, None);
}

#[test]
fn a_hit_must_be_nearer_than_the_threshold() {
    let frames = [frame(
        vec![detection(0, 11.0, 0.0, 0.9)],
        vec![truth(0, 10.0, 0.0)],
    )];
    let evaluation = score(&frames);
    let by_distance: Vec<_> = evaluation.classes[0].all.at.iter().map(|a| a.ap).collect();
    // One metre off: a miss at 0.5 m and at exactly 1 m.
    assert_eq!(by_distance, [Some(0.0), Some(0.0), Some(1.0), Some(1.0)]);
    assert_eq!(
        evaluation.classes[0].all.ap,
        Some(1.0),
        "the headline is at 2 m"
    );
    assert_eq!(evaluation.classes[0].all.ap_nuscenes, Some(0.5));
    assert_relative_eq!(evaluation.classes[0].all.errors.translation.unwrap(), 1.0);
}

#[test]
fn a_second_detection_of_the_same_object_is_false() {
    let frames = [frame(
        vec![detection(0, 10.1, 0.0, 0.6), detection(0, 10.5, 0.0, 0.9)],
        vec![truth(0, 10.0, 0.0)],
    )];
    let evaluation = score(&frames);
    assert_eq!(counts(&evaluation, 0, 2.0), (1, 1));
    // The surer one hits, though the other is nearer; the false one comes after full recall, so
    // that of 101 recalls only the last (at 1: precision 1/2, the last point of that recall)
    // suffers.
    let ap = evaluation.classes[0].all.ap.unwrap();
    assert_relative_eq!(ap, 100.5 / 101.0, epsilon = 1e-12);
    let error = evaluation.classes[0].all.errors.translation.unwrap();
    assert_relative_eq!(error, 0.5, epsilon = 1e-6);
}

#[test]
fn classes_and_frames_do_not_mix() {
    let frames = [
        frame(
            vec![detection(1, 10.0, 0.0, 0.9)],
            vec![truth(0, 10.0, 0.0)],
        ),
        frame(vec![detection(0, 10.0, 0.0, 0.8)], vec![]),
    ];
    let evaluation = score(&frames);
    assert_eq!(counts(&evaluation, 0, 4.0), (0, 1));
    assert_eq!(counts(&evaluation, 1, 4.0), (0, 1));
}

#[test]
fn an_object_with_few_points_is_neither_hit_nor_miss() {
    let seen = |x: f32, points: u32| Truth {
        points: Some(points),
        ..truth(0, x, 0.0)
    };
    let truths = vec![seen(10.0, 50), seen(20.0, 4)];
    let found = vec![detection(0, 10.0, 0.0, 0.8), detection(0, 20.0, 0.0, 0.9)];
    let only_near = score(&[frame(vec![found[0].clone()], truths.clone())]);
    let both = score(&[frame(found.clone(), truths.clone())]);
    for evaluation in [&only_near, &both] {
        let all = &evaluation.classes[0].all;
        assert_eq!((all.truths, all.ignored, all.ap), (1, 1, Some(1.0)));
        assert_eq!(counts(evaluation, 0, 2.0), (1, 0));
    }
    // It forgives one detection, not two.
    let mut twice = found;
    twice.push(detection(0, 20.1, 0.0, 0.3));
    let evaluation = score(&[frame(twice, truths)]);
    assert_eq!(counts(&evaluation, 0, 2.0), (1, 1));
}

#[test]
fn a_detection_prefers_a_counted_object_to_an_ignored_one() {
    let ignored = Truth {
        points: Some(0),
        ..truth(0, 10.1, 0.0)
    };
    let frames = [frame(
        vec![detection(0, 10.2, 0.0, 0.9)],
        vec![ignored, truth(0, 11.0, 0.0)],
    )];
    assert_eq!(counts(&score(&frames), 0, 2.0), (1, 0));
}

#[test]
fn an_object_mapped_to_ignore_forgives_any_class() {
    let van = Truth {
        class: None,
        ignored: true,
        ..truth(0, 10.0, 0.0)
    };
    let unknown = Truth {
        class: None,
        ..truth(0, 30.0, 0.0)
    };
    let frames = [frame(
        vec![
            detection(0, 10.0, 0.0, 0.9),
            detection(1, 10.0, 0.0, 0.4),
            detection(0, 30.0, 0.0, 0.8),
        ],
        vec![van, unknown],
    )];
    let evaluation = score(&frames);
    assert_eq!(
        counts(&evaluation, 0, 2.0),
        (0, 1),
        "an unmapped object forgives nothing"
    );
    assert_eq!(counts(&evaluation, 1, 2.0), (0, 0));
}

#[test]
fn the_border_of_the_range_punishes_nobody() {
    let options = EvalOptions {
        max_range: Some(50.0),
        ..EvalOptions::default()
    };
    // Truth just outside, detection just inside; truth inside, detection outside; both outside.
    let frames = [frame(
        vec![
            detection(0, 49.8, 0.0, 0.9),
            detection(0, 0.0, 50.3, 0.8),
            detection(0, -70.0, 0.0, 0.7),
            detection(0, 0.0, -90.0, 0.6),
        ],
        vec![
            truth(0, 50.2, 0.0),
            truth(0, 0.0, 49.7),
            truth(0, -70.0, 0.0),
        ],
    )];
    let evaluation = evaluate(&frames, &classes(), &options);
    let all = &evaluation.classes[0].all;
    assert_eq!((all.truths, all.ignored), (1, 2));
    assert_eq!(counts(&evaluation, 0, 2.0), (1, 0));
    assert_eq!(all.ap, Some(1.0));
}

#[test]
fn a_pair_across_the_border_of_bands_counts_in_the_band_of_the_truth() {
    let frames = [frame(
        vec![detection(0, 29.5, 0.0, 0.9)],
        vec![truth(0, 30.5, 0.0)],
    )];
    let evaluation = score(&frames);
    let bands = &evaluation.classes[0].bands;
    assert_eq!((bands[0].truths, bands[0].ap), (0, None));
    assert_eq!(bands[0].at[2].false_positives, 0);
    assert_eq!((bands[1].truths, bands[1].ap), (1, Some(1.0)));
}

#[test]
fn box_errors_are_those_of_nuscenes() {
    let found = Detection {
        bbox: Box3d {
            center: Vector3::new(10.3, 0.4, 2.0),
            size: Vector3::new(2.0, 2.0, 3.0),
            yaw: -3.0,
        },
        velocity: Some(Vector2::new(3.0, 4.0)),
        ..detection(0, 0.0, 0.0, 0.9)
    };
    let real = Truth {
        bbox: Box3d {
            yaw: 3.0,
            ..bbox(10.0, 0.0)
        },
        velocity: Some(Vector2::zeros()),
        ..truth(0, 0.0, 0.0)
    };
    let errors = score(&[frame(vec![found], vec![real])]).classes[0]
        .all
        .errors;
    assert_relative_eq!(errors.translation.unwrap(), 0.5, epsilon = 1e-6);
    // 4 x 2 x 1.5 against 2 x 2 x 3: 6 m3 shared of 12 + 12 - 6.
    assert_relative_eq!(errors.scale.unwrap(), 1.0 - 6.0 / 18.0, epsilon = 1e-6);
    let turn = 2.0 * std::f64::consts::PI - 6.0;
    assert_relative_eq!(errors.orientation.unwrap(), turn, epsilon = 1e-6);
    assert_relative_eq!(errors.velocity.unwrap(), 5.0, epsilon = 1e-6);
}

#[test]
fn figures_are_named_in_the_json() {
    let json = serde_json::to_value(score(&[frame(vec![], vec![truth(0, 1.0, 0.0)])])).unwrap();
    assert_eq!(json["definitions"]["headline"], "ap at 2 m");
    assert!(json["definitions"]["ap"].as_str().unwrap().contains("101"));
    assert!(
        json["definitions"]["ap_nuscenes"]
            .as_str()
            .unwrap()
            .contains("0.1")
    );
    assert_eq!(json["classes"][0]["all"]["ap"], 0.0);
    assert_eq!(json["classes"][1]["all"]["ap"], serde_json::Value::Null);
}

// --- bootstrap -------------------------------------------------------------------------------

/// Twenty frames with three cars; of the first `good` frames all are found, then one in three.
fn drive(good: usize) -> Vec<FrameResult> {
    let places = [(5.0, 0.0), (15.0, 5.0), (40.0, -5.0)];
    (0..20)
        .map(|i| {
            let found = if i < good { 3 } else { 1 };
            frame(
                places[..found]
                    .iter()
                    .enumerate()
                    .map(|(j, (x, y))| detection(0, *x, *y, 0.9 - 0.1 * j as f32))
                    .collect(),
                places.iter().map(|(x, y)| truth(0, *x, *y)).collect(),
            )
        })
        .collect()
}

fn difference(a: &[FrameResult], b: &[FrameResult], seed: u64) -> (f64, f64, f64) {
    let how = DifferenceOptions {
        seed,
        resamples: 200,
        ..DifferenceOptions::default()
    };
    let rows = bootstrap_difference(a, b, &classes(), &EvalOptions::default(), &how).unwrap();
    let mean = rows.iter().find(|r| r.class == "mean").unwrap();
    (mean.difference, mean.lower, mean.upper)
}

#[test]
fn a_model_differs_from_itself_by_exactly_zero() {
    assert_eq!(difference(&drive(10), &drive(10), 1), (0.0, 0.0, 0.0));
}

#[test]
fn a_worse_model_has_an_interval_below_zero_and_the_swap_mirrors_it() {
    let (good, bad) = (drive(20), drive(8));
    let (point, lower, upper) = difference(&good, &bad, 7);
    assert!(
        lower <= point && point <= upper && upper < 0.0,
        "{lower} {point} {upper}"
    );
    assert!(lower < upper);
    let (mirrored, mirrored_lower, mirrored_upper) = difference(&bad, &good, 7);
    assert_relative_eq!(mirrored, -point);
    assert_relative_eq!(mirrored_lower, -upper, epsilon = 1e-3);
    assert_relative_eq!(mirrored_upper, -lower, epsilon = 1e-3);
}

#[test]
fn the_seed_alone_decides_the_interval() {
    let (good, bad) = (drive(20), drive(8));
    assert_eq!(difference(&good, &bad, 3), difference(&good, &bad, 3));
    assert_ne!(difference(&good, &bad, 3), difference(&good, &bad, 4));
}

#[test]
fn the_point_estimate_is_the_difference_of_the_evaluations() {
    let (good, bad) = (drive(20), drive(8));
    let expected = score(&bad).mean_ap.unwrap() - score(&good).mean_ap.unwrap();
    assert_relative_eq!(difference(&good, &bad, 1).0, expected, epsilon = 1e-12);
}

#[test]
fn longer_blocks_never_narrow_the_interval_of_a_drive_in_two_halves() {
    let width = |block: usize| {
        let how = DifferenceOptions {
            block,
            ..DifferenceOptions::default()
        };
        let (a, b) = (drive(20), drive(10));
        let rows = bootstrap_difference(&a, &b, &classes(), &EvalOptions::default(), &how).unwrap();
        rows[0].upper - rows[0].lower
    };
    assert!(width(5) > width(1), "{} {}", width(5), width(1));
}

#[test]
fn different_numbers_of_frames_are_refused() {
    let options = EvalOptions::default();
    let how = DifferenceOptions::default();
    let error = bootstrap_difference(&drive(1), &drive(1)[..3], &classes(), &options, &how);
    assert!(error.unwrap_err().to_string().contains("20 and 3"));
    let nothing = bootstrap_difference(&[], &[], &classes(), &options, &how).unwrap();
    assert!(nothing.is_empty());
}

// --- agreement -------------------------------------------------------------------------------

fn agree(a: &[Vec<Detection>], b: &[Vec<Detection>]) -> Agreement {
    agreement(a, b, &classes(), &AgreementOptions::default())
}

#[test]
fn matched_missed_and_extra_as_counted_by_hand() {
    let reference = vec![vec![
        detection(0, 10.0, 0.0, 0.9),
        detection(0, 40.0, 0.0, 0.5),
        detection(1, 5.0, 5.0, 0.4),
    ]];
    let candidate = vec![vec![
        detection(0, 10.3, 0.4, 0.8),
        detection(1, 5.0, 5.6, 0.4),
        detection(1, 60.0, 0.0, 0.6),
    ]];
    let result = agree(&reference, &candidate);
    let car = &result.classes[0].all;
    assert_eq!((car.matched, car.missed, car.extra), (1, 1, 0));
    assert_eq!((car.precision, car.recall), (Some(1.0), Some(0.5)));
    assert_relative_eq!(car.f1.unwrap(), 2.0 / 3.0);
    assert_relative_eq!(car.centre.unwrap().mean, 0.5, epsilon = 1e-6);
    assert_relative_eq!(car.score.unwrap().max, 0.1, epsilon = 1e-6);
    assert_relative_eq!(car.score_shift.unwrap(), -0.1, epsilon = 1e-6);
    assert_relative_eq!(car.missed_score.unwrap(), 0.5, epsilon = 1e-6);
    // People are paired up to half a metre only.
    let person = &result.classes[1].all;
    assert_eq!((person.matched, person.missed, person.extra), (0, 1, 2));
    assert_eq!(person.f1, Some(0.0));
    let bands: Vec<_> = result
        .bands
        .iter()
        .map(|b| (b.band.as_str(), b.matched, b.missed, b.extra))
        .collect();
    assert_eq!(
        bands,
        [("0-30", 1, 1, 1), ("30-50", 0, 1, 0), ("50+", 0, 0, 1)]
    );
    assert_eq!(result.relabelled, 0);
}

#[test]
fn an_object_under_another_name_is_missed_extra_and_relabelled() {
    let result = agree(
        &[vec![detection(0, 10.0, 0.0, 0.9)]],
        &[vec![detection(1, 10.2, 0.0, 0.9)]],
    );
    let total = &result.total;
    assert_eq!((total.matched, total.missed, total.extra), (0, 1, 1));
    assert_eq!(result.relabelled, 1);
}

#[test]
fn neighbours_are_not_exchanged_when_their_scores_are() {
    let result = agree(
        &[vec![
            detection(0, 10.0, 0.0, 0.9),
            detection(0, 10.8, 0.0, 0.8),
        ]],
        &[vec![
            detection(0, 10.1, 0.0, 0.8),
            detection(0, 10.9, 0.0, 0.9),
        ]],
    );
    assert_eq!(result.total.matched, 2);
    assert_relative_eq!(result.total.centre.unwrap().max, 0.1, epsilon = 1e-5);
}

#[test]
fn frames_that_one_model_lacks_count_as_empty() {
    let frames = vec![vec![detection(0, 10.0, 0.0, 0.9)]; 3];
    let result = agree(&frames, &frames[..1]);
    assert_eq!(
        (result.frames, result.total.matched, result.total.missed),
        (3, 1, 2)
    );
    let nothing = agree(&[], &[]);
    assert_eq!((nothing.frames, nothing.total.f1), (0, None));
}

#[test]
fn classes_beyond_the_list_are_reported_as_other() {
    let frames = vec![vec![detection(7, 10.0, 0.0, 0.9)]];
    let result = agree(&frames, &frames);
    assert_eq!(result.classes.last().unwrap().class, "other");
    assert_eq!(result.classes.last().unwrap().all.matched, 1);
}

// --- properties ------------------------------------------------------------------------------

prop_compose! {
    /// Scores in coarse steps, so that ties are common, as with INT8.
    fn any_detection()(
        class in 0usize..2, x in -70f32..70.0, y in -5f32..5.0, yaw in -3.1f32..3.1, score in 1u8..8,
    ) -> Detection {
        let bbox = Box3d { yaw, ..bbox(x, y) };
        Detection { bbox, ..detection(class, 0.0, 0.0, f32::from(score) / 8.0) }
    }
}

prop_compose! {
    fn any_truth()(d in any_detection(), points in proptest::option::of(0u32..10)) -> Truth {
        Truth { bbox: d.bbox, points, ..truth(d.class, 0.0, 0.0) }
    }
}

fn any_frames() -> impl Strategy<Value = Vec<Vec<Detection>>> {
    prop::collection::vec(prop::collection::vec(any_detection(), 0..25), 1..4)
}

fn any_results() -> impl Strategy<Value = Vec<FrameResult>> {
    let one = (
        prop::collection::vec(any_detection(), 0..25),
        prop::collection::vec(any_truth(), 0..15),
    );
    let one = one.prop_map(|(detections, truths)| FrameResult { detections, truths });
    prop::collection::vec(one, 1..4)
}

proptest! {
    #[test]
    fn identical_lists_agree_perfectly(frames in any_frames()) {
        let result = agree(&frames, &frames);
        let boxes: usize = frames.iter().map(Vec::len).sum();
        prop_assert_eq!(
            (result.total.matched, result.total.missed, result.total.extra, result.relabelled),
            (boxes, 0, 0, 0)
        );
        prop_assert!(result.total.f1.is_none_or(|f1| f1 == 1.0));
        prop_assert!(result.total.centre.is_none_or(|s| s.max == 0.0));
        prop_assert!(result.total.yaw.is_none_or(|s| s.max == 0.0));
    }

    #[test]
    fn swapping_the_models_exchanges_missed_and_extra(a in any_frames(), b in any_frames()) {
        let (ab, ba) = (agree(&a, &b), agree(&b, &a));
        prop_assert_eq!(ab.relabelled, ba.relabelled);
        for (x, y) in ab.classes.iter().zip(&ba.classes) {
            let (x, y) = (&x.all, &y.all);
            prop_assert_eq!((x.matched, x.missed, x.extra), (y.matched, y.extra, y.missed));
            prop_assert_eq!((x.precision, x.recall, x.f1), (y.recall, y.precision, y.f1));
            prop_assert_eq!(x.centre.map(|s| s.max), y.centre.map(|s| s.max));
        }
    }

    #[test]
    fn agreement_does_not_hang_on_the_order_of_a_list(a in any_frames(), b in any_frames()) {
        let mut reversed = b.clone();
        reversed.iter_mut().for_each(|frame| frame.reverse());
        let (one, other) = (agree(&a, &b), agree(&a, &reversed));
        prop_assert_eq!(one.total.matched, other.total.matched);
        prop_assert_eq!(one.total.centre.map(|s| s.max), other.total.centre.map(|s| s.max));
    }

    #[test]
    fn agreement_is_partitioned_by_bands_and_classes(a in any_frames(), b in any_frames()) {
        let result = agree(&a, &b);
        let total = &result.total;
        let expected = (total.matched, total.missed, total.extra);
        let add = |s: (usize, usize, usize), c: &centerpoint_ptq::eval::AgreementCell| {
            (s.0 + c.matched, s.1 + c.missed, s.2 + c.extra)
        };
        let nothing = (0, 0, 0);
        prop_assert_eq!(result.bands.iter().fold(nothing, add), expected);
        prop_assert_eq!(result.classes.iter().map(|c| &c.all).fold(nothing, add), expected);
        let cells = result.classes.iter().flat_map(|c| &c.bands);
        prop_assert_eq!(cells.fold(nothing, add), expected);
        let boxes = |frames: &[Vec<Detection>]| frames.iter().map(Vec::len).sum::<usize>();
        prop_assert_eq!(total.matched + total.missed, boxes(&a));
        prop_assert_eq!(total.matched + total.extra, boxes(&b));
    }

    #[test]
    fn bands_partition_the_scores(frames in any_results()) {
        for class in &score(&frames).classes {
            let sum = |f: &dyn Fn(&centerpoint_ptq::eval::Scores) -> usize| -> usize {
                class.bands.iter().map(f).sum()
            };
            prop_assert_eq!(sum(&|s| s.truths), class.all.truths);
            prop_assert_eq!(sum(&|s| s.ignored), class.all.ignored);
            for (i, all) in class.all.at.iter().enumerate() {
                prop_assert_eq!(sum(&|s| s.at[i].hits), all.hits);
                prop_assert_eq!(sum(&|s| s.at[i].false_positives), all.false_positives);
            }
        }
    }

    #[test]
    fn every_detection_and_truth_is_accounted_for(frames in any_results()) {
        for (index, class) in score(&frames).classes.iter().enumerate() {
            let detections = frames
                .iter()
                .flat_map(|f| &f.detections)
                .filter(|d| d.class == index)
                .count();
            for at in &class.all.at {
                prop_assert!(at.hits <= class.all.truths);
                // What is neither hit nor false was forgiven, once per ignored truth at most.
                let counted = at.hits + at.false_positives;
                prop_assert!(counted <= detections);
                prop_assert!(detections - counted <= class.all.ignored);
                prop_assert!(at.ap.is_none_or(|ap| (0.0..=1.0).contains(&ap)));
            }
        }
    }

    #[test]
    fn a_wider_threshold_never_finds_less(frames in any_results()) {
        // The truths taken at the narrow threshold are always among those taken at the wide one.
        for class in &score(&frames).classes {
            let hits: Vec<usize> = class.all.at.iter().map(|a| a.hits).collect();
            prop_assert!(hits.is_sorted(), "{:?}", hits);
        }
    }
}

// --- the command line ------------------------------------------------------------------------

/// A bag of three sweeps with one point each, on which the model of `tests/fixtures/tiny` finds a
/// car at (1, -3), and labels that say so, in a folder.
fn tiny_drive() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut bag = Writer::create(&folder.path().join("bag")).unwrap();
    let points = Points(vec![Point {
        x: 1.7,
        y: -2.4,
        z: 0.5,
        ..Point::default()
    }]);
    let mut labels = serde_json::Map::new();
    for i in 0..3 {
        let stamp = 1_000_000_000 + i * 100_000_000;
        let header = Header {
            stamp: Stamp(stamp),
            frame_id: "base_link".into(),
        };
        bag.write("/points", stamp, &encode(&points, header, false))
            .unwrap();
        let car = serde_json::json!({
            "label": "VEHICLE", "center": [1.0, -3.0, 0.5], "size_lwh": [4.0, 2.0, 1.5],
            "yaw": -std::f32::consts::FRAC_PI_2, "velocity": [0.2, 0.1], "points": 9,
        });
        labels.insert(stamp.to_string(), serde_json::json!([car]));
    }
    bag.finish().unwrap();
    let text = serde_json::Value::Object(labels).to_string();
    std::fs::write(folder.path().join("labels.json"), text).unwrap();
    folder
}

fn tool(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_centerpoint_ptq"))
        .args(arguments)
        .current_dir(folder)
        .output()
        .unwrap()
}

fn json_of(output: &Output) -> serde_json::Value {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn tiny_model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny")
}

#[test]
fn precision_sees_what_the_deployed_threshold_cuts_and_agreement_does_not() {
    let drive = tiny_drive();
    // The same model, but it reports nothing below 0.95; the car's score is 0.88. (From 0.05 on,
    // the tiny model finds something in empty cells, too.)
    let strict = drive.path().join("strict");
    std::fs::create_dir(&strict).unwrap();
    for file in ["encoder.onnx", "backbone.onnx"] {
        std::fs::copy(tiny_model().join(file), strict.join(file)).unwrap();
    }
    let yaml = std::fs::read_to_string(tiny_model().join("model.yaml")).unwrap();
    let changed = yaml.replace(
        "score_thresholds: [0.5, 0.5]",
        "score_thresholds: [0.95, 0.95]",
    );
    assert_ne!(changed, yaml);
    std::fs::write(strict.join("model.yaml"), changed).unwrap();

    let model = tiny_model();
    let output = tool(
        drive.path(),
        &[
            "evaluate",
            "--json",
            "--model",
            model.to_str().unwrap(),
            "--model2",
            "strict",
            "--bag",
            "bag",
            "--truth",
            "labels.json",
            "--class-map",
            "VEHICLE=CAR",
            "--resamples",
            "10",
            "--score-threshold",
            "0.5",
        ],
    );
    let result = json_of(&output);
    assert_eq!(result["frames"], 3);
    for model in [0, 1] {
        let evaluation = &result["models"][model]["evaluation"];
        let car = &evaluation["classes"][0]["all"];
        assert_eq!((&car["truths"], &car["ap"]), (&3.into(), &1.0.into()));
        let errors = &car["errors"];
        for error in ["translation", "scale", "orientation", "velocity"] {
            assert!(errors[error].as_f64().unwrap() < 1e-5, "{errors}");
        }
    }
    assert_eq!(result["agreement"]["total"]["matched"], 0);
    assert_eq!(result["agreement"]["total"]["missed"], 3);
}

#[test]
fn limit_and_points_counted_from_the_bag_take_effect() {
    let drive = tiny_drive();
    let labels = drive.path().join("labels.json");
    let text = std::fs::read_to_string(&labels).unwrap();
    std::fs::write(&labels, text.replace(r#""points":9,"#, "")).unwrap();
    let model = tiny_model();
    let evaluate = |more: &[&str]| {
        let mut arguments = vec![
            "evaluate",
            "--json",
            "--bag",
            "bag",
            "--truth",
            "labels.json",
        ];
        arguments.extend([
            "--class-map",
            "VEHICLE=CAR",
            "--model",
            model.to_str().unwrap(),
        ]);
        arguments.extend(more);
        let result = json_of(&tool(drive.path(), &arguments));
        result["models"][0]["evaluation"]["classes"][0]["all"].clone()
    };
    // One point lies in the labelled box.
    let strict = evaluate(&["--min-points", "2"]);
    assert_eq!(
        (&strict["truths"], &strict["ignored"]),
        (&0.into(), &3.into())
    );
    let open = evaluate(&["--min-points", "1", "--limit", "2"]);
    assert_eq!((&open["truths"], &open["ignored"]), (&2.into(), &0.into()));
}

#[test]
fn a_picture_shows_both_sets_of_detections_where_they_are() {
    let drive = tiny_drive();
    let model = tiny_model();
    let detect = ["detect", "--bag", "bag", "--out", "a.json", "--model"];
    let found = tool(
        drive.path(),
        &[&detect[..], &[model.to_str().unwrap()]].concat(),
    );
    assert!(found.status.success(), "{found:?}");
    let render = tool(
        drive.path(),
        &[
            "render",
            "--bag",
            "bag",
            "--frame",
            "1",
            "--boxes",
            "a.json",
            "--boxes2",
            "a.json",
            "--labels",
            "labels.json",
            "--view=-10,10,-10,10",
            "--scale",
            "20",
            "--out",
            "f.png",
        ],
    );
    let errors = String::from_utf8_lossy(&render.stderr);
    assert!(render.status.success(), "{errors}");
    let picture = image::open(drive.path().join("f.png")).unwrap().to_rgb8();
    assert_eq!(picture.dimensions(), (400, 400));
    // The car heads along -y: its right edge is at x = 0, which is column 200. In its rear half,
    // clear of the heading's tick, the second layer is thin and the first shows on both sides.
    let row = 200 + (20.0 * 2.0) as u32;
    let pixel = |x: u32| picture.get_pixel(x, row).0;
    assert!(pixel(200)[2] > pixel(200)[0], "{:?}", pixel(200));
    for side in [198, 201] {
        assert!(
            pixel(side)[0] > 2 * pixel(side)[2],
            "{side}: {:?}",
            pixel(side)
        );
    }
}

#[test]
fn mistakes_on_the_command_line_are_answered_with_what_to_do() {
    let drive = tiny_drive();
    let path = drive.path();
    let model = tiny_model();
    let model = model.to_str().unwrap();
    for (arguments, part) in [
        (&["evaluate", "--model", model][..], "--bag"),
        (&["evaluate", "--model", model, "--bag", "bag"], "--truth"),
        (&["evaluate"], "--detections"),
        (&["evaluate", "--detections", "none.json"], "none.json"),
        (
            &[
                "evaluate",
                "--model",
                model,
                "--bag",
                "nowhere",
                "--truth",
                "labels.json",
            ],
            "nowhere",
        ),
        (
            &[
                "evaluate",
                "--model",
                model,
                "--bag",
                "bag",
                "--truth",
                "labels.json",
                "--class-map",
                "VEHICLE=LORRY",
            ],
            "CAR, PEDESTRIAN",
        ),
        (
            &["render", "--bag", "bag", "--frame", "7", "--out", "f.png"],
            "it has 3",
        ),
        (
            &["render", "--bag", "bag", "--stamp", "5", "--out", "f.png"],
            "from 1000000000",
        ),
        (
            &["render", "--bag", "bag", "--view", "1,2", "--out", "f.png"],
            "back < front",
        ),
        (
            &["render", "--bag", "bag", "--out", "no/such/f.png"],
            "no/such/f.png",
        ),
    ] {
        let output = tool(path, arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{arguments:?}");
        assert!(errors.contains(part), "no `{part}` in: {errors}");
        assert!(!errors.contains("panicked"), "{errors}");
    }
}
