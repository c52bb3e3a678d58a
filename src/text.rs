//! Words for figures.

/// A span of time in the unit that a person would use.
pub(crate) fn span(ns: u64) -> String {
    let s = ns as f64 / 1e9;
    match s {
        ..1.0 => format!("{} ms", (s * 1e6).round() / 1e3),
        ..120.0 => format!("{s:.1} s"),
        ..7200.0 => format!("{:.1} minutes", s / 60.0),
        ..172_800.0 => format!("{:.1} hours", s / 3600.0),
        ..63_115_200.0 => format!("{:.1} days", s / 86_400.0),
        _ => format!("{:.1} years", s / 31_557_600.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_told_in_their_unit() {
        let told = [0, 1_500_000, 37_000_000_000, 3_600_000_000_000, u64::MAX].map(span);
        assert_eq!(
            told,
            ["0 ms", "1.5 ms", "37.0 s", "60.0 minutes", "584.5 years"]
        );
    }
}
