//! JSON as it comes: Python's `json.dump` writes NaN and Infinity, which are none, and nothing keeps a
//! key from being there twice.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;

/// An object with its keys in order, also those that are there twice.
pub(super) struct Entries(pub Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys;
        impl<'de> Visitor<'de> for Keys {
            type Value = Entries;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with a stamp for each key")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(Keys)
    }
}

/// Python's words for numbers that JSON does not have, and strings of the same length that stand for
/// them here, so that a parser's line and column stay right. No name holds these control characters by chance.
const WORDS: [(&str, &str); 3] = [
    ("-Infinity", "\"-\\u0000\""),
    ("Infinity", "\"\\u0000\""),
    ("NaN", "\"\u{7f}\""),
];

/// The same text as strict JSON: see [`number`] for what becomes of NaN and Infinity.
pub(super) fn strict(text: &str) -> String {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    let mut in_string = false;
    while let Some(c) = rest.chars().next() {
        if in_string {
            // What is escaped does not end the string.
            let length = match (c, rest.chars().nth(1)) {
                ('\\', Some(escaped)) => 1 + escaped.len_utf8(),
                _ => c.len_utf8(),
            };
            in_string = c != '"';
            out.push_str(&rest[..length]);
            rest = &rest[length..];
            continue;
        }
        if let Some((word, stand_in)) = WORDS.iter().find(|(word, _)| rest.starts_with(word)) {
            out.push_str(stand_in);
            rest = &rest[word.len()..];
            continue;
        }
        in_string = c == '"';
        out.push(c);
        rest = &rest[c.len_utf8()..];
    }
    out
}

/// A number; `None` where it is null, NaN or infinite, which is how tools write what they do not know.
pub(super) fn number(value: &Value) -> Result<Option<f64>, String> {
    match value {
        Value::Null => Ok(None),
        Value::Number(n) => Ok(n.as_f64().filter(|n| n.is_finite())),
        Value::String(text) if word(text).is_some() => Ok(None),
        other => Err(format!("expected a number, not {other}")),
    }
}

/// What stood in the file where a stand-in of [`strict`] is.
fn word(text: &str) -> Option<&'static str> {
    match text {
        "\u{7f}" => Some("NaN"),
        "\0" => Some("Infinity"),
        "-\0" => Some("-Infinity"),
        _ => None,
    }
}

/// A value as it stood in the file.
fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => match word(text) {
            Some(word) => word.to_owned(),
            None => value.to_string(),
        },
        Value::Array(values) => {
            let values: Vec<String> = values.iter().map(shown).collect();
            format!("[{}]", values.join(", "))
        }
        _ => value.to_string(),
    }
}

/// A name; `None` where it is null or NaN, as in a table with a gap.
pub(super) fn name(what: &str, value: Option<&Value>) -> Result<Option<String>, String> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(word(text).is_none().then(|| text.clone())),
        // Tracks are also numbered.
        Some(Value::Number(number)) => Ok(Some(number.to_string())),
        Some(other) => Err(format!("{what} is {other}, not a name")),
    }
}

/// So many numbers, all of them known, of which `what` is made.
pub(super) fn known<const N: usize>(what: &str, value: &Value) -> Result<[f32; N], String> {
    let numbers = numbers::<N>(what, value)?;
    let mut known = [0.0; N];
    for (known, number) in known.iter_mut().zip(numbers) {
        *known = match number.map(|n| n as f32) {
            Some(number) if number.is_finite() => number,
            _ => {
                return Err(format!(
                    "{what} is {}, but a box needs finite numbers; leave the box out where they are not \
                     known",
                    shown(value)
                ));
            }
        };
    }
    Ok(known)
}

/// So many numbers, or nothing where one of them is not known.
pub(super) fn if_known<const N: usize>(
    what: &str,
    value: Option<&Value>,
) -> Result<Option<[f32; N]>, String> {
    let Some(value) = value.filter(|value| !matches!(number(value), Ok(None))) else {
        return Ok(None);
    };
    let mut known = [0.0; N];
    for (known, number) in known.iter_mut().zip(numbers::<N>(what, value)?) {
        match number.map(|n| n as f32).filter(|n| n.is_finite()) {
            Some(number) => *known = number,
            None => return Ok(None),
        }
    }
    Ok(Some(known))
}

fn numbers<const N: usize>(what: &str, value: &Value) -> Result<[Option<f64>; N], String> {
    let single = std::slice::from_ref(value);
    let values = match value {
        Value::Array(values) if N > 1 => values.as_slice(),
        _ if N > 1 => return Err(format!("{what} is {}, not {N} numbers", shown(value))),
        _ => single,
    };
    let numbers: Result<Vec<_>, String> = values.iter().map(number).collect();
    let numbers = numbers.map_err(|error| format!("{what}: {error}"))?;
    let count = numbers.len();
    numbers
        .try_into()
        .map_err(|_| format!("{what} holds {count} numbers, expected {N}"))
}

/// A count, which tools that know NaN also write as `12.0`.
pub(super) fn count(what: &str, value: Option<&Value>) -> Result<Option<u32>, String> {
    let Some(value) = value else { return Ok(None) };
    let Some(number) = number(value).map_err(|error| format!("{what}: {error}"))? else {
        return Ok(None);
    };
    if number < 0.0 || number.fract() != 0.0 || number > f64::from(u32::MAX) {
        return Err(format!("{what} is {value}, not a count"));
    }
    Ok(Some(number as u32))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn read(text: &str) -> Value {
        serde_json::from_str(&strict(text)).unwrap()
    }

    #[test]
    fn python_s_numbers_are_unknown_and_strings_stay() {
        let value = read(r#"{"v": [NaN, -Infinity, Infinity, 1], "NaN": "a \" NaN \\"}"#);
        let numbers: Vec<_> = (0..4).map(|i| number(&value["v"][i]).unwrap()).collect();
        assert_eq!(numbers, [None, None, None, Some(1.0)]);
        assert_eq!(value["NaN"], r#"a " NaN \"#);
        assert_eq!(
            known::<4>("v", &value["v"]).unwrap_err().split(',').next(),
            Some("v is [NaN")
        );
        assert_eq!(if_known::<4>("v", Some(&value["v"])), Ok(None));
    }

    #[test]
    fn columns_stay_what_they_are() {
        for text in ["NaN", "Infinity", "-Infinity"] {
            let inside = format!("[{text}, }}]");
            let error = |text: &str| serde_json::from_str::<Value>(text).unwrap_err().column();
            assert_eq!(error(&strict(&inside)), inside.len() - 1, "{inside}");
        }
    }

    #[test]
    fn what_is_no_number_is_told() {
        assert!(
            known::<2>("size", &json!([1, "2"]))
                .unwrap_err()
                .contains("\"2\"")
        );
        assert!(
            known::<2>("size", &json!([1]))
                .unwrap_err()
                .contains("expected 2")
        );
        assert!(
            known::<1>("yaw", &json!(1e300))
                .unwrap_err()
                .contains("finite")
        );
        assert_eq!(known::<1>("yaw", &json!(2)), Ok([2.0]));
        assert_eq!(if_known::<2>("velocity", Some(&Value::Null)), Ok(None));
        assert!(if_known::<2>("velocity", Some(&json!("fast"))).is_err());
        assert_eq!(count("points", Some(&json!(12.0))), Ok(Some(12)));
        assert_eq!(count("points", Some(&Value::Null)), Ok(None));
        for bad in [json!(-1), json!(1.5), json!(1e10), json!("many")] {
            assert!(count("points", Some(&bad)).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn valid_json_means_the_same(text in "\\PC{0,40}", n in any::<i32>()) {
            let value = json!({"NaN": [text, n, null, true], "b": {"c": text}});
            prop_assert_eq!(read(&value.to_string()), value);
        }

        #[test]
        fn any_text_is_taken(text in "[NaInfty\"\\\\\\-,\\[{ ]{0,40}") {
            let _ = strict(&text);
        }
    }
}
