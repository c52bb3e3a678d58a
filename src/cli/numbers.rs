//! Numbers on the command line, each within a range: whatever is given, what follows takes bounded time and memory.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;

/// Threads that a program may start.
pub const THREADS: RangeInclusive<usize> = 0..=1024;
/// Frames that may be asked for: eleven days at 10 Hz.
pub const FRAMES: RangeInclusive<usize> = 1..=10_000_000;

/// A parser for numbers from the first to the last of `range`. Refuses what is no number (NaN, too).
pub fn within<T>(
    range: RangeInclusive<T>,
) -> impl Fn(&str) -> Result<T, String> + Clone + Send + Sync + 'static
where
    T: FromStr + PartialOrd + Display + Clone + Send + Sync + 'static,
{
    move |text| match text.trim().parse() {
        Ok(number) if range.contains(&number) => Ok(number),
        _ => Err(format!(
            "give a number from {} to {}",
            range.start(),
            range.end()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_outside_of_the_range_and_what_is_none_are_refused_with_the_range() {
        let parse = within(0.0..=1.5);
        assert_eq!(parse("0"), Ok(0.0));
        assert_eq!(parse(" 1.5 "), Ok(1.5));
        for bad in ["-1", "1.6", "NaN", "inf", "1e400", "", "two"] {
            assert_eq!(
                parse(bad),
                Err("give a number from 0 to 1.5".into()),
                "{bad}"
            );
        }
        let parse = within(1usize..=10);
        for bad in [
            "0",
            "11",
            "18446744073709551615",
            "18446744073709551616",
            "1.5",
        ] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
