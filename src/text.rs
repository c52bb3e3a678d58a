//! Words for figures, and names from outside as people may see them.

/// Longest name that is shown whole, in characters. Names of topics and frames are shorter.
const LONGEST_NAME: usize = 100;
/// Names that a list shows.
const NAMES: usize = 12;

/// A name from outside on one line: what a terminal would obey or hide is spelt out, what is too long is cut.
pub(crate) fn shown(name: &str) -> String {
    let mut text = String::new();
    let mut characters = name.chars();
    for character in characters.by_ref().take(LONGEST_NAME) {
        match is_harmless(character) {
            true => text.push(character),
            false => text.extend(character.escape_default()),
        }
    }
    match characters.count() {
        0 => text,
        more => format!("{text}… ({more} more characters)"),
    }
}

/// The same for several names, the first of them where they are many; "none" where there is none.
pub(crate) fn shown_all<N: AsRef<str>>(names: impl IntoIterator<Item = N>) -> String {
    list(names.into_iter().map(|name| shown(name.as_ref())))
}

/// The same in quotes, for names that may have spaces in them.
pub(crate) fn quoted_all<N: AsRef<str>>(names: impl IntoIterator<Item = N>) -> String {
    list(
        names
            .into_iter()
            .map(|name| format!("\"{}\"", shown(name.as_ref()))),
    )
}

fn list(mut names: impl Iterator<Item = String>) -> String {
    let first: Vec<String> = names.by_ref().take(NAMES).collect();
    match (first.len(), names.count()) {
        (0, _) => "none".to_owned(),
        (_, 0) => first.join(", "),
        (_, more) => format!("{} and {more} more", first.join(", ")),
    }
}

/// A text of several lines as a terminal and a log may have it: no control characters but the ends of lines and tabs, and
/// no longer than `longest` characters.
pub(crate) fn printable(text: &str, longest: usize) -> String {
    let mut shown = String::with_capacity(text.len().min(longest));
    let mut characters = text.chars();
    for character in characters.by_ref().take(longest) {
        match character {
            '\n' | '\t' => shown.push(character),
            character if is_harmless(character) => shown.push(character),
            character => shown.extend(character.escape_default()),
        }
    }
    match characters.count() {
        0 => shown,
        more => format!("{shown}… ({more} more characters)"),
    }
}

/// The same on one line.
pub(crate) fn one_line(text: &str, longest: usize) -> String {
    let text = printable(text, longest);
    text.replace('\n', "\\n").replace('\t', " ")
}

/// A text from outside as an error may quote it: on one line, about 300 characters long. The end is kept, where the
/// parser says at which line it was.
pub(crate) fn excerpt(text: &str) -> String {
    const BEGIN: usize = 220;
    const END: usize = 50;
    let escaped = |c: char| match is_harmless(c) {
        true => c.to_string(),
        false => c.escape_unicode().to_string(),
    };
    let count = text.chars().count();
    if count <= BEGIN + END {
        let whole: String = text.chars().map(escaped).collect();
        if whole.chars().count() <= BEGIN + END {
            return whole;
        }
    }
    let begin: String = text.chars().take(BEGIN).map(escaped).collect();
    let begin: String = begin.chars().take(BEGIN).collect();
    let mut end: Vec<char> = text.chars().rev().take(END).collect();
    end.reverse();
    let end: String = end.into_iter().map(escaped).collect();
    let skipped = end.chars().count().saturating_sub(END);
    let end: String = end.chars().skip(skipped).collect();
    format!("{begin}... ({count} characters) ...{end}")
}

/// The message of a parser without what it quotes from the text: between double quotes there are values, which are
/// nobody's business who cannot read the file. Names of keys are between backquotes, or bare.
pub(crate) fn without_values(message: &str) -> String {
    let mut text = String::with_capacity(message.len());
    let mut characters = message.chars();
    while let Some(character) = characters.next() {
        text.push(character);
        if character != '"' {
            continue;
        }
        text.push('…');
        while let Some(quoted) = characters.next() {
            match quoted {
                '\\' => drop(characters.next()),
                '"' => {
                    text.push('"');
                    break;
                }
                _ => {}
            }
        }
    }
    text
}

/// Whether a name can be shown as it is.
pub(crate) fn is_showable(name: &str) -> bool {
    name.len() <= 255 && name.chars().all(is_harmless)
}

/// Whether a character stands for itself wherever it is written. Those of the C0 and C1 sets command terminals, those
/// that set the direction of writing make texts read as what they are not, and those without a width hide.
fn is_harmless(character: char) -> bool {
    !character.is_control()
        && !matches!(
            character,
            '\u{ad}'
                | '\u{61c}'
                | '\u{180e}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

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
    fn names_are_one_line_that_commands_nothing() {
        assert_eq!(shown("/velodyne_points"), "/velodyne_points");
        assert_eq!(shown("Fußgänger 行人"), "Fußgänger 行人");
        let hostile = "a\x1b[2J\r\nerror: b\u{9b}31m\u{202e}c\u{200b}";
        let text = shown(hostile);
        assert_eq!(
            text,
            "a\\u{1b}[2J\\r\\nerror: b\\u{9b}31m\\u{202e}c\\u{200b}"
        );
        assert_eq!(shown(""), "");
    }

    #[test]
    fn what_is_too_long_is_cut_and_counted() {
        let text = shown(&"ä".repeat(1_000_000));
        assert!(text.ends_with("ä… (999900 more characters)"), "{text}");
        assert!(!shown(&"x".repeat(LONGEST_NAME)).contains('…'));
        let names: Vec<String> = (0..1000).map(|i| format!("f{i}")).collect();
        let text = shown_all(&names);
        assert!(
            text.starts_with("f0, f1") && text.ends_with("f11 and 988 more"),
            "{text}"
        );
        assert_eq!(quoted_all(["a b", ""]), "\"a b\", \"\"");
        assert_eq!(shown_all::<&str>([]), "none");
        assert_eq!(printable("a\n\tb\x07", 10), "a\n\tb\\u{7}");
        assert_eq!(printable("abc", 2), "ab… (1 more characters)");
    }

    #[test]
    fn what_a_parser_quotes_can_be_left_out() {
        let message = r#"weights.bits: invalid type: string "root:\"x\":0", expected u8 at line 3, or `weights`"#;
        assert_eq!(
            without_values(message),
            r#"weights.bits: invalid type: string "…", expected u8 at line 3, or `weights`"#
        );
        assert_eq!(without_values(r#"cut off "in a value\"#), r#"cut off "…"#);
    }

    #[test]
    fn spans_are_told_in_their_unit() {
        let told = [0, 1_500_000, 37_000_000_000, 3_600_000_000_000, u64::MAX].map(span);
        assert_eq!(
            told,
            ["0 ms", "1.5 ms", "37.0 s", "60.0 minutes", "584.5 years"]
        );
    }
}
