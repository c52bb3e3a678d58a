//! Whole numbers of a recipe, each with the range that makes sense.

use std::ops::RangeInclusive;

/// A whole number of a recipe: its key, its value, and the range that makes sense.
pub type Count = (&'static str, usize, RangeInclusive<usize>);

/// What to say where the number is outside of its range.
pub fn outside((key, value, range): Count) -> Option<(&'static str, String)> {
    let (least, most) = (range.start(), range.end());
    (!range.contains(&value)).then(|| (key, format!("{value}; {least} to {most}")))
}
