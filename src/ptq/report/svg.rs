//! Small plots that stand in a table, one row each: an axis and marks along it.
//!
//! Places along the axis are percentages, so a plot is as wide as its column and nothing in it is stretched. Colours
//! are classes of the page's style sheet: with colours in the drawing a page could not follow the reader's light or
//! dark mode. Every coordinate is finite, whatever the values are; a value without a place is not drawn.

use maud::{Markup, html};

/// Height of a plot, pixels.
const HEIGHT: u32 = 20;
/// Share of the width that stays free at each end, so that marks and tick labels there are not cut, percent.
const INSET: f64 = 4.0;
/// Values nearer to zero or further from it than this cannot stretch an axis.
const SMALLEST: f64 = 1e-30;
const LARGEST: f64 = 1e30;

/// Values from one end of a plot to the other.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Axis {
    scale: Scale,
    low: f64,
    high: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scale {
    Linear,
    Logarithmic,
}

/// How a value is marked. Marks differ in shape as well as in colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    Tick,
    Ring,
    Dot,
    Diamond,
}

impl Axis {
    /// From zero to a round number that no value exceeds.
    pub fn linear(values: impl IntoIterator<Item = f64>) -> Self {
        let (_, largest) = bounds(values).unwrap_or((0.0, 1.0));
        let step = round_up(largest / 5.0);
        Axis {
            scale: Scale::Linear,
            low: 0.0,
            high: (largest / step).ceil() * step,
        }
    }

    /// Around all values above zero, between round numbers.
    pub fn logarithmic(values: impl IntoIterator<Item = f64>) -> Self {
        let (least, largest) = bounds(values).unwrap_or((0.1, 1.0));
        let (low, high) = if largest / least < 30.0 {
            (round_down(least), round_up(largest))
        } else {
            (decade(least), 1.0 / decade(1.0 / largest))
        };
        let (low, high) = if low < high {
            (low, high)
        } else {
            (low / 10.0, low * 10.0)
        };
        Axis {
            scale: Scale::Logarithmic,
            low,
            high,
        }
    }

    /// Where a value lies, percent of the width; values beyond an end lie at the end. Nothing for what is not a number,
    /// or not above zero on a logarithmic axis.
    fn place(&self, value: f64) -> Option<f64> {
        if value.is_nan() || (self.scale == Scale::Logarithmic && value <= 0.0) {
            return None;
        }
        let value = value.clamp(self.low, self.high);
        let share = match self.scale {
            Scale::Linear => (value - self.low) / (self.high - self.low),
            Scale::Logarithmic => (value / self.low).ln() / (self.high / self.low).ln(),
        };
        Some(INSET + share * (100.0 - 2.0 * INSET))
    }

    /// Round numbers along the axis, at most ten or so.
    fn ticks(&self) -> Vec<f64> {
        match self.scale {
            Scale::Linear => {
                let step = round_up(self.high / 5.0 * (1.0 - 1e-9));
                let count = (self.high / step).round() as u32;
                (0..=count).map(|i| f64::from(i) * step).collect()
            }
            Scale::Logarithmic => {
                let decades = (self.high / self.low).log10();
                let first = self.low.log10().floor() as i32;
                let last = self.high.log10().ceil() as i32;
                let every = (decades / 7.0).ceil().max(1.0) as usize;
                let within =
                    |v: &f64| (self.low * (1.0 - 1e-9)..=self.high * (1.0 + 1e-9)).contains(v);
                let steps: &[f64] = if decades < 2.0 {
                    &[1.0, 2.0, 5.0]
                } else {
                    &[1.0]
                };
                (first..=last)
                    .step_by(every)
                    .flat_map(|e| steps.iter().map(move |m| m * 10f64.powi(e)))
                    .filter(within)
                    .collect()
            }
        }
    }

    /// The numbers along the axis, for the head of a table.
    pub fn labels(&self) -> Markup {
        html! {
            svg.plot aria-hidden="true" {
                @for (tick, x) in self.places() {
                    text x=(x) y="14" text-anchor="middle" { (label(tick)) }
                }
            }
        }
    }

    /// One row: marks over grid lines, and what they say in words.
    pub fn row(&self, words: &str, marks: Markup) -> Markup {
        html! {
            svg.plot role="img" {
                title { (words) }
                @for (_, x) in self.places() {
                    line.rule x1=(x) x2=(x) y1="0" y2=(HEIGHT) {}
                }
                (marks)
            }
        }
    }

    fn places(&self) -> impl Iterator<Item = (f64, String)> {
        let place = |tick| Some((tick, percent(self.place(tick)?)));
        self.ticks().into_iter().filter_map(place)
    }

    /// A mark at a value.
    pub fn mark(&self, mark: Mark, value: f64) -> Markup {
        match self.place(value) {
            Some(at) => mark.at(&percent(at)),
            None => html! {},
        }
    }

    /// A line from a value to another, for a change.
    pub fn line(&self, from: f64, to: f64) -> Markup {
        let (Some(from), Some(to)) = (self.place(from), self.place(to)) else {
            return html! {};
        };
        html! {
            line.change x1=(percent(from)) x2=(percent(to)) y1=(HEIGHT / 2) y2=(HEIGHT / 2) {}
        }
    }

    /// A bar from a value up to another, coloured by a class of the style sheet.
    pub fn bar(&self, class: &str, from: f64, to: f64) -> Markup {
        match (self.place(from), self.place(to)) {
            (Some(from), Some(to)) if from < to => html! {
                rect class={ "bar " (class) } x=(percent(from)) width=(percent(to - from)) y="4" height="12" {}
            },
            _ => html! {},
        }
    }
}

impl Mark {
    /// The mark alone, for a legend.
    pub fn symbol(self) -> Markup {
        html! {
            svg.symbol aria-hidden="true" { (self.at("50%")) }
        }
    }

    fn at(self, x: &str) -> Markup {
        let middle = HEIGHT / 2;
        match self {
            Mark::Tick => html! { line.tick x1=(x) x2=(x) y1="2" y2="18" {} },
            Mark::Ring => html! { circle.ring cx=(x) cy=(middle) r="4.5" {} },
            Mark::Dot => html! { circle.dot cx=(x) cy=(middle) r="4.5" {} },
            // Paths know no percentages, so the drawing inside is moved.
            Mark::Diamond => html! {
                svg.moved x=(x) y=(middle) { path.diamond d="M0 -6 L6 0 L0 6 L-6 0 Z" {} }
            },
        }
    }
}

/// Least and largest of the values above zero, within what an axis may show.
fn bounds(values: impl IntoIterator<Item = f64>) -> Option<(f64, f64)> {
    values
        .into_iter()
        .filter(|v| v.is_finite() && *v > 0.0)
        .map(|v| v.clamp(SMALLEST, LARGEST))
        .fold(None, |found, v| match found {
            None => Some((v, v)),
            Some((least, largest)) => Some((least.min(v), largest.max(v))),
        })
}

/// The power of ten at or below a value above zero.
fn decade(value: f64) -> f64 {
    10f64.powi((value.log10() + 1e-9).floor() as i32)
}

/// The largest of 1, 2, 5, 10, ... at or below a value above zero.
fn round_down(value: f64) -> f64 {
    let decade = decade(value);
    let fits = |m: &f64| m * decade <= value * (1.0 + 1e-9);
    [5.0, 2.0].into_iter().find(fits).unwrap_or(1.0) * decade
}

/// The least of 1, 2, 5, 10, ... at or above a value above zero.
fn round_up(value: f64) -> f64 {
    let decade = decade(value);
    let fits = |m: &f64| m * decade >= value * (1.0 - 1e-9);
    [1.0, 2.0, 5.0].into_iter().find(fits).unwrap_or(10.0) * decade
}

fn percent(place: f64) -> String {
    format!("{place:.2}%")
}

/// A round number as short as it can be: 0, 0.05, 20, 5e-7.
fn label(value: f64) -> String {
    if value == 0.0 {
        "0".into()
    } else if (1e-3..1e4).contains(&(value * (1.0 + 1e-9))) {
        // Rounded, since 3 x 0.1 is not quite 0.3.
        let text = format!("{value:.4}");
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        let text = format!("{value:.1e}");
        text.replace(".0e", "e")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn labels(axis: Axis) -> Vec<String> {
        axis.ticks().into_iter().map(label).collect()
    }

    #[test]
    fn ticks_are_round_numbers_around_the_values() {
        assert_eq!(
            labels(Axis::linear([0.3, 0.97])),
            ["0", "0.2", "0.4", "0.6", "0.8", "1"]
        );
        assert_eq!(labels(Axis::linear([37.0])), ["0", "10", "20", "30", "40"]);
        assert_eq!(
            labels(Axis::logarithmic([0.3, 4.0])),
            ["0.2", "0.5", "1", "2", "5"]
        );
        assert_eq!(
            labels(Axis::logarithmic([3e-6, 0.2])),
            ["1e-6", "1e-5", "1e-4", "0.001", "0.01", "0.1", "1"]
        );
        assert_eq!(labels(Axis::logarithmic([1.0])), ["0.1", "1", "10"]);
    }

    #[test]
    fn places_follow_the_scale_and_stay_inside() {
        let axis = Axis::logarithmic([1e-4, 1.0]);
        let inner = 100.0 - 2.0 * INSET;
        assert!((axis.place(1e-2).unwrap() - 50.0).abs() < 1e-9);
        assert!((axis.place(1e-3).unwrap() - (INSET + inner / 4.0)).abs() < 1e-9);
        assert_eq!(axis.place(1e9), Some(100.0 - INSET));
        assert_eq!(axis.place(0.0), None);
        assert_eq!(axis.place(f64::NAN), None);
        let axis = Axis::linear([10.0]);
        assert_eq!(axis.place(0.0), Some(INSET));
        assert_eq!(axis.place(-3.0), Some(INSET));
        assert_eq!(axis.place(f64::INFINITY), Some(100.0 - INSET));
    }

    #[test]
    fn words_are_escaped() {
        let row = Axis::linear([]).row("<script>&\"", html! {}).into_string();
        assert!(row.contains("&lt;script&gt;&amp;&quot;") && !row.contains("<script"));
    }

    fn anything() -> impl Strategy<Value = f64> {
        prop_oneof![
            any::<f64>(),
            -10.0..10.0f64,
            Just(0.0),
            Just(f64::NAN),
            Just(f64::INFINITY),
            Just(f64::MIN_POSITIVE),
        ]
    }

    proptest! {
        #[test]
        fn whatever_the_values_every_coordinate_is_a_percentage(
            values in proptest::collection::vec(anything(), 0..5),
            a in anything(),
            b in anything(),
        ) {
            for axis in [Axis::linear(values.clone()), Axis::logarithmic(values)] {
                prop_assert!(axis.low < axis.high && axis.high.is_finite());
                let ticks = axis.ticks();
                prop_assert!((2..=14).contains(&ticks.len()), "{axis:?} {ticks:?}");
                for value in ticks.into_iter().chain([a, b]) {
                    if let Some(x) = axis.place(value) {
                        prop_assert!((INSET - 1e-6..=100.0 - INSET + 1e-6).contains(&x), "{axis:?} {value} {x}");
                    }
                }
                let drawing = html! {
                    (axis.labels())
                    (axis.row("x", html! { (axis.line(a, b)) (axis.bar("c", a, b)) (axis.mark(Mark::Diamond, a)) }))
                };
                let drawing = drawing.into_string();
                prop_assert!(!drawing.contains("NaN") && !drawing.contains("inf"), "{drawing}");
            }
        }
    }
}
