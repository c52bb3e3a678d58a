//! What is wrong at the moment: it begins, lasts and ends, and each of these is told.
//!
//! A trouble comes in one of two ways. One that clouds have, each for itself, lasts while clouds keep having it
//! ([`Troubles::saw`]). One that is a state lasts from when it is set until it is cleared ([`Troubles::set`]). The log hears
//! of the beginning and of the end; diagnostics and the status list all that last.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::text::printable;

/// Longest text of a trouble that is shown whole, in characters: it goes into every status and into diagnostics.
const LONGEST: usize = 1000;
/// A trouble of clouds is over when it was not seen for so long, and in so many clouds.
const CALM: Duration = Duration::from_secs(3);
const CALM_CLOUDS: u32 = 3;
/// Clouds that shares are counted over.
const RECENT: usize = 100;
/// One that begins again this soon after it ended is not logged again; it is in diagnostics all the same.
const QUIET: Duration = Duration::from_secs(10);

/// What a trouble concerns; each part has a status of its own in `/diagnostics`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    Input,
    Detection,
    Calibration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    Warn,
    Error,
}

/// A trouble that lasts.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Trouble {
    pub part: Part,
    pub kind: &'static str,
    #[serde(skip)]
    pub severity: Severity,
    /// Of the last clouds that could have it, those that had it, 0 to 1; absent for a state.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub share: Option<f64>,
    /// What was seen last.
    pub text: String,
    pub since_s: f64,
}

/// A trouble as it shows.
#[derive(Debug, Clone, Copy)]
pub struct Symptom<'a> {
    kind: &'static str,
    severity: Severity,
    text: &'a str,
    /// Whether the log hears of its beginning here, and not from elsewhere.
    told_here: bool,
}

impl<'a> Symptom<'a> {
    pub fn warn(kind: &'static str, text: &'a str) -> Self {
        Self {
            kind,
            severity: Severity::Warn,
            text,
            told_here: true,
        }
    }

    pub fn error(kind: &'static str, text: &'a str) -> Self {
        Self {
            severity: Severity::Error,
            ..Self::warn(kind, text)
        }
    }

    /// Who noticed it has told the log.
    pub fn logged(self) -> Self {
        Self {
            told_here: false,
            ..self
        }
    }
}

#[derive(Debug)]
struct Entry {
    severity: Severity,
    text: String,
    since: Instant,
    /// `None` for a state.
    seen: Option<Seen>,
    /// Whether its beginning was logged, so that its end is.
    told: bool,
}

#[derive(Debug)]
struct Seen {
    last: Instant,
    /// Clouds since then.
    without: u32,
}

/// All that is wrong now.
#[derive(Debug, Default)]
pub struct Troubles {
    lasting: BTreeMap<(Part, &'static str), Entry>,
    /// What the last clouds had, by the part that looked at them.
    recent: BTreeMap<Part, VecDeque<Vec<&'static str>>>,
    ended: BTreeMap<(Part, &'static str), Instant>,
    changes: u64,
}

impl Troubles {
    /// Notes a cloud, with all that `part` finds wrong with it.
    pub fn saw<'a>(
        &mut self,
        part: Part,
        symptoms: impl IntoIterator<Item = Symptom<'a>>,
        now: Instant,
    ) {
        let mut kinds = Vec::new();
        for entry in self.lasting.iter_mut().filter(|(key, _)| key.0 == part) {
            if let Some(seen) = &mut entry.1.seen {
                seen.without += 1;
            }
        }
        for symptom in symptoms {
            kinds.push(symptom.kind);
            let seen = Seen {
                last: now,
                without: 0,
            };
            match self.lasting.get_mut(&(part, symptom.kind)) {
                Some(entry) => {
                    entry.seen = Some(seen);
                    if entry.text != symptom.text {
                        entry.text = printable(symptom.text, LONGEST);
                    }
                }
                None => self.begin(part, symptom, Some(seen), now),
            }
        }
        let recent = self.recent.entry(part).or_default();
        if recent.len() == RECENT {
            recent.pop_front();
        }
        recent.push_back(kinds);
        self.expire(now);
    }

    /// Says that a state lasts, and how it shows now.
    pub fn set(&mut self, part: Part, symptom: Symptom, now: Instant) {
        match self.lasting.get_mut(&(part, symptom.kind)) {
            Some(entry) => {
                let text = printable(symptom.text, LONGEST);
                if entry.text != text {
                    if symptom.told_here {
                        say(symptom.severity, &text);
                    }
                    entry.text = text;
                    self.changes += 1;
                }
            }
            None => self.begin(part, symptom, None, now),
        }
    }

    /// Says that a state is over.
    pub fn clear(&mut self, part: Part, kind: &'static str, now: Instant) {
        self.end((part, kind), now);
    }

    /// Ends what clouds have had no more for a while. Where none come, what the last ones had lasts.
    pub fn expire(&mut self, now: Instant) {
        let over = |entry: &Entry| {
            entry.seen.as_ref().is_some_and(|seen| {
                seen.without >= CALM_CLOUDS && now.saturating_duration_since(seen.last) >= CALM
            })
        };
        let lasting = self.lasting.iter().filter(|(_, entry)| over(entry));
        let ended: Vec<_> = lasting.map(|(key, _)| *key).collect();
        for key in ended {
            self.end(key, now);
        }
    }

    pub fn has(&self, part: Part, kind: &str) -> bool {
        self.lasting.keys().any(|key| *key == (part, kind))
    }

    /// What lasts, by part.
    pub fn list(&self, now: Instant) -> Vec<Trouble> {
        let list = self.lasting.iter().map(|((part, kind), entry)| Trouble {
            part: *part,
            kind,
            severity: entry.severity,
            share: entry.seen.as_ref().map(|_| self.share(*part, kind)),
            text: entry.text.clone(),
            since_s: now.saturating_duration_since(entry.since).as_secs_f64(),
        });
        list.collect()
    }

    /// Grows whenever something begins, ends or shows otherwise.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    fn share(&self, part: Part, kind: &str) -> f64 {
        let recent = self.recent.get(&part);
        let of = recent.map_or(0, VecDeque::len).max(1);
        let had = recent.into_iter().flatten();
        had.filter(|kinds| kinds.contains(&kind)).count() as f64 / of as f64
    }

    fn begin(&mut self, part: Part, symptom: Symptom, seen: Option<Seen>, now: Instant) {
        let key = (part, symptom.kind);
        let again = |ended: &Instant| now.saturating_duration_since(*ended) < QUIET;
        let told = seen.is_none() || !self.ended.get(&key).is_some_and(again);
        if told && symptom.told_here {
            say(symptom.severity, symptom.text);
        }
        let entry = Entry {
            severity: symptom.severity,
            text: printable(symptom.text, LONGEST),
            since: now,
            seen,
            told,
        };
        self.lasting.insert(key, entry);
        self.changes += 1;
    }

    fn end(&mut self, key: (Part, &'static str), now: Instant) {
        let Some(entry) = self.lasting.remove(&key) else {
            return;
        };
        if entry.told {
            let lasted = now.saturating_duration_since(entry.since).as_secs_f64();
            tracing::info!("over after {lasted:.0} s: {}", entry.text);
        }
        self.ended.insert(key, now);
        self.changes += 1;
    }
}

fn say(severity: Severity, text: &str) {
    match severity {
        Severity::Warn => tracing::warn!("{text}"),
        Severity::Error => tracing::error!("{text}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn few(text: &str) -> Symptom<'_> {
        Symptom::warn("few_sweeps", text)
    }

    fn kinds(troubles: &Troubles, now: Instant) -> Vec<&'static str> {
        troubles.list(now).iter().map(|t| t.kind).collect()
    }

    #[test]
    fn what_clouds_have_lasts_as_long_as_they_have_it_and_comes_back() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let mut troubles = Troubles::default();
        for i in 0..20 {
            let text = format!("1 of {i}");
            troubles.saw(Part::Input, [few(&text)], at(100 * i));
        }
        let [trouble] = &troubles.list(at(2000))[..] else {
            panic!("one trouble")
        };
        assert_eq!((trouble.kind, trouble.share), ("few_sweeps", Some(1.0)));
        assert_eq!((trouble.text.as_str(), trouble.since_s), ("1 of 19", 2.0));
        // Every tenth cloud is enough for it to last.
        for i in 20..100 {
            let has = (i % 10 == 0).then(|| few("now and then"));
            troubles.saw(Part::Input, has, at(100 * i));
            assert_eq!(kinds(&troubles, at(100 * i)), ["few_sweeps"]);
        }
        for i in 100..131 {
            troubles.saw(Part::Input, None, at(100 * i));
        }
        assert!(troubles.list(at(13_100)).is_empty());
        let changes = troubles.changes();
        troubles.saw(Part::Input, [few("again")], at(20_000));
        assert_eq!(kinds(&troubles, at(20_000)), ["few_sweeps"]);
        assert!(troubles.changes() > changes);
        assert!(troubles.list(at(20_000))[0].share.unwrap() < 0.3);
    }

    #[test]
    fn while_no_clouds_come_it_is_not_over() {
        let now = Instant::now();
        let mut troubles = Troubles::default();
        troubles.saw(Part::Input, [few("1 of 2")], now);
        troubles.expire(now + 10 * CALM);
        assert!(troubles.has(Part::Input, "few_sweeps"));
        // Nor does a single good one of a slow sensor end it.
        troubles.saw(Part::Input, None, now + 10 * CALM);
        assert!(troubles.has(Part::Input, "few_sweeps"));
        for _ in 1..CALM_CLOUDS {
            troubles.saw(Part::Input, None, now + 10 * CALM);
        }
        assert!(!troubles.has(Part::Input, "few_sweeps"));
    }

    #[test]
    fn a_state_lasts_until_it_is_cleared_whatever_clouds_come() {
        let now = Instant::now();
        let mut troubles = Troubles::default();
        let set = |troubles: &mut Troubles, text: &str| {
            let symptom = Symptom::error("buffer", text);
            troubles.set(Part::Calibration, symptom, now);
        };
        set(&mut troubles, "the disk is full");
        set(&mut troubles, "the disk is full");
        assert_eq!(troubles.changes(), 1);
        for _ in 0..10 {
            troubles.saw(Part::Calibration, None, now + 2 * CALM);
        }
        let listed = &troubles.list(now)[0];
        assert_eq!((listed.share, listed.severity), (None, Severity::Error));
        set(&mut troubles, "the folder is gone");
        assert_eq!(troubles.list(now)[0].text, "the folder is gone");
        troubles.clear(Part::Calibration, "buffer", now);
        assert!(troubles.list(now).is_empty());
    }

    #[test]
    fn texts_are_bounded_and_clean() {
        let now = Instant::now();
        let mut troubles = Troubles::default();
        let text = format!("frame \x1b[2J{}", "x".repeat(1_000_000));
        troubles.saw(Part::Input, [few(&text)], now);
        troubles.saw(Part::Input, [few(&(text.clone() + "y"))], now);
        for _ in 0..3 {
            let symptom = Symptom::error("buffer", &text);
            troubles.set(Part::Calibration, symptom, now);
        }
        assert_eq!(troubles.changes(), 2, "the same text is no change");
        for trouble in troubles.list(now) {
            assert!(trouble.text.len() < 1100 && !trouble.text.contains('\x1b'));
        }
    }

    #[test]
    fn parts_are_counted_apart() {
        let now = Instant::now();
        let mut troubles = Troubles::default();
        troubles.saw(Part::Input, [few("1 of 2")], now);
        for _ in 0..9 {
            troubles.saw(Part::Detection, [few("of another")], now);
        }
        troubles.saw(Part::Input, None, now);
        let shares: Vec<_> = troubles.list(now).iter().map(|t| t.share).collect();
        assert_eq!(shares, [Some(0.5), Some(1.0)]);
    }
}
