//! Frames and labels belong together by their stamps. Where some find no partner, this says how many,
//! and what the reason may be.

use crate::text::span;

/// Frames and labels belong together if their stamps are no farther apart, nanoseconds.
pub const TOLERANCE_NS: u64 = 1_000_000;

/// How the stamps of frames and of labels, or of other results, go together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pairing {
    frames: Vec<i64>,
    labels: Vec<i64>,
    /// Frames with a label within the tolerance.
    pub matched: usize,
    /// Labels that no frame is near.
    pub idle_labels: usize,
    /// Offset of the nearest label against a frame that has none within the tolerance.
    nearest: Option<i128>,
}

impl Pairing {
    /// Stamps in nanoseconds, in any order.
    pub fn new(
        frames: impl IntoIterator<Item = i64>,
        labels: impl IntoIterator<Item = i64>,
    ) -> Self {
        let sorted = |stamps: &mut dyn Iterator<Item = i64>| {
            let mut stamps: Vec<i64> = stamps.collect();
            stamps.sort_unstable();
            stamps
        };
        let frames = sorted(&mut frames.into_iter());
        let labels = sorted(&mut labels.into_iter());
        let near = |offset: &i128| offset.unsigned_abs() <= u128::from(TOLERANCE_NS);
        let offsets = |from: &[i64], to: &[i64]| -> Vec<Option<i128>> {
            from.iter().map(|stamp| offset(*stamp, to)).collect()
        };
        let of_frames = offsets(&frames, &labels);
        let of_labels = offsets(&labels, &frames);
        let matched = of_frames.iter().flatten().filter(|o| near(o)).count();
        let served = of_labels.iter().flatten().filter(|o| near(o)).count();
        let nearest = of_frames
            .iter()
            .flatten()
            .filter(|o| !near(o))
            .min_by_key(|o| o.unsigned_abs())
            .copied();
        Pairing {
            matched,
            idle_labels: labels.len() - served,
            nearest,
            frames,
            labels,
        }
    }

    /// Frames without labels.
    pub fn idle_frames(&self) -> usize {
        self.frames.len() - self.matched
    }

    /// What did not go together, if anything: a sentence without a full stop. `what` the frames are to
    /// have: labels, detections.
    pub fn problem(&self, what: &str) -> Option<String> {
        let (frames, labels) = (self.frames.len(), self.labels.len());
        if self.idle_frames() == 0 && self.idle_labels == 0 {
            return None;
        }
        let mut text = match (self.matched, &self.frames[..], &self.labels[..]) {
            (0, [], _) => "there are no frames".to_owned(),
            (0, _, []) => format!("none of the {frames} frames has {what}: there are none at all"),
            (0, [frame], [start, ..]) => format!(
                "the frame has no {what}: its stamp is {frame} ns, those of the {what} are {start} to \
                 {} ns",
                self.labels[labels - 1]
            ),
            (0, [first, ..], [start, ..]) => format!(
                "none of the {frames} frames has {what}: their stamps are {first} to {} ns, those of \
                 the {what} {start} to {} ns",
                self.frames[frames - 1],
                self.labels[labels - 1]
            ),
            _ => format!(
                "{} of {frames} frames have no {what}, and {} of {labels} stamps of the {what} no frame",
                self.idle_frames(),
                self.idle_labels
            ),
        };
        if let Some(offset) = self.nearest {
            let apart = u64::try_from(offset.unsigned_abs()).unwrap_or(u64::MAX);
            let side = if offset < 0 { "before" } else { "after" };
            text += &format!(
                "; the nearest {what} are {} {side} their frame",
                span(apart)
            );
        }
        if let Some(cause) = self.cause(what) {
            text += &format!(". {cause}");
        }
        Some(text)
    }

    /// What the reason may be where nothing went together.
    fn cause(&self, what: &str) -> Option<String> {
        const DAY: f64 = 86_400e9;
        let (first, start) = match (self.matched, self.frames.first(), self.labels.first()) {
            (0, Some(first), Some(start)) => (*first, *start),
            _ => return None,
        };
        // No recording is as old as the epoch.
        let counted = |stamp: i64| (stamp as f64).abs() < 365.0 * DAY;
        if self.labels.iter().all(|stamp| *stamp == 0) {
            return Some(format!(
                "The {what} bear the stamp 0, as clouds of a driver that fills in none; such clouds go by \
                 their log times, so give the {what} these"
            ));
        }
        for (unit, factor) in [
            ("microseconds", 1e3),
            ("milliseconds", 1e6),
            ("seconds", 1e9),
        ] {
            if (start as f64 * factor - first as f64).abs() < DAY && !counted(first) {
                return Some(format!(
                    "The stamps of the {what} seem to be {unit}; they must be nanoseconds"
                ));
            }
        }
        if counted(start) && !counted(first) {
            return Some(format!(
                "The {what} seem to be numbered, or timed from the start of the recording; their keys must \
                 be the stamps of the clouds"
            ));
        }
        if counted(first) && !counted(start) {
            return Some("The frames' stamps count from 0, as simulated time does".into());
        }
        let seconds = self.nearest? as f64 / 1e9;
        let near = |value: f64, from: f64| (value.abs() - from).abs() < 0.5;
        if near(seconds, 37.0) {
            return Some("37 s are between TAI, as of a sensor on PTP, and UTC".into());
        }
        if near(seconds, 18.0) {
            return Some("18 s are between GPS time and UTC".into());
        }
        let zones = seconds / 1800.0;
        if zones.abs() > 0.5 && zones.abs() < 28.5 && (zones - zones.round()).abs() < 1e-3 {
            return Some("That looks like another time zone".into());
        }
        None
    }
}

/// From a stamp to the nearest of a sorted list.
fn offset(stamp: i64, sorted: &[i64]) -> Option<i128> {
    let at = sorted.partition_point(|other| *other < stamp);
    let around = [at.checked_sub(1), Some(at)];
    let around = around.into_iter().flatten().filter_map(|i| sorted.get(i));
    around
        .map(|other| i128::from(*other) - i128::from(stamp))
        .min_by_key(|offset| offset.unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_700_000_000_000_000_000;
    const SECOND: i64 = 1_000_000_000;

    fn ten_hertz(from: i64) -> impl Iterator<Item = i64> {
        (0..4).map(move |i| from + i * SECOND / 10)
    }

    #[test]
    fn what_goes_together_has_no_problem() {
        let pairing = Pairing::new(ten_hertz(NOW), ten_hertz(NOW + 900_000));
        assert_eq!((pairing.matched, pairing.idle_labels), (4, 0));
        assert_eq!(pairing.problem("labels"), None);
    }

    #[test]
    fn what_finds_no_partner_is_counted_on_both_sides() {
        let pairing = Pairing::new(ten_hertz(NOW), ten_hertz(NOW + SECOND / 5));
        assert_eq!(
            (pairing.matched, pairing.idle_frames(), pairing.idle_labels),
            (2, 2, 2)
        );
        let said = pairing.problem("labels").unwrap();
        assert_eq!(
            said,
            "2 of 4 frames have no labels, and 2 of 4 stamps of the labels no frame; \
             the nearest labels are 100 ms after their frame"
        );
    }

    #[test]
    fn the_likely_cause_is_named_where_nothing_matches() {
        for (labels, cause) in [
            (vec![0], "stamp 0"),
            (ten_hertz(0).map(|ns| ns / 1000).collect(), "numbered"),
            (ten_hertz(NOW).map(|ns| ns / 1000).collect(), "microseconds"),
            (
                ten_hertz(NOW).map(|ns| ns / SECOND).collect(),
                "seem to be seconds",
            ),
            (ten_hertz(NOW + 37 * SECOND).collect(), "TAI"),
            (ten_hertz(NOW - 7200 * SECOND).collect(), "time zone"),
        ] {
            let said = Pairing::new(ten_hertz(NOW), labels)
                .problem("labels")
                .unwrap();
            assert!(
                said.starts_with("none of the 4 frames has labels"),
                "{said}"
            );
            assert!(said.contains(cause), "no {cause} in: {said}");
        }
        let said = Pairing::new(ten_hertz(0), ten_hertz(NOW))
            .problem("labels")
            .unwrap();
        assert!(said.contains("simulated time"), "{said}");
        let said = Pairing::new(ten_hertz(NOW), []).problem("labels").unwrap();
        assert!(said.ends_with("none at all"), "{said}");
        let said = Pairing::new(ten_hertz(NOW), [NOW + 1000 * SECOND])
            .problem("labels")
            .unwrap();
        assert!(said.ends_with("16.7 minutes after their frame"), "{said}");
    }

    #[test]
    fn the_ends_of_time_do_not_overflow() {
        let pairing = Pairing::new([i64::MIN, i64::MAX], [i64::MAX, i64::MIN, 0]);
        assert_eq!((pairing.matched, pairing.idle_labels), (2, 1));
        assert!(
            Pairing::new([i64::MIN], [i64::MAX])
                .problem("labels")
                .is_some()
        );
    }
}
