//! What the command line says: results on standard output; warnings, notes, progress and errors on
//! standard error.
//!
//! Nothing here fails because a reader has gone away: `centerpoint_ptq inspect BAG | head` ends
//! quietly, and what was to be written is written.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write as _};
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{LazyLock, Mutex, PoisonError};

use anyhow::Context as _;
use clap::builder::styling::{AnsiColor, Style};
use indicatif::{MultiProgress, ProgressBar};
use serde::Serialize;
use tracing::callsite::Identifier;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use crate::text::printable;

/// Different warnings of one place in the program that are shown; further ones are counted.
const ALIKE: usize = 5;

/// Longest warning or error that is shown whole, in characters.
const LONGEST: usize = 4000;

/// All progress bars, so that other lines do not run into them.
static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);
static WARNED: Mutex<Repeats> = Mutex::new(Repeats::new());
static QUIET: AtomicBool = AtomicBool::new(false);

/// Shows the library's warnings from here on. `RUST_LOG` chooses others in the usual way; `quiet`
/// leaves errors only.
pub fn install(quiet: bool) {
    QUIET.store(quiet, Ordering::Relaxed);
    let usual = || EnvFilter::new("error,centerpoint_ptq=warn");
    let (filter, problem) = match std::env::var(EnvFilter::DEFAULT_ENV) {
        _ if quiet => (EnvFilter::new("error"), None),
        Ok(text) if !text.trim().is_empty() => match EnvFilter::try_new(&text) {
            Ok(filter) => (filter, None),
            Err(error) => (usual(), Some(format!("RUST_LOG=\"{text}\": {error}"))),
        },
        _ => (usual(), None),
    };
    // Fails only when a subscriber is there already; its output is as good.
    drop(
        tracing_subscriber::registry()
            .with(Lines.with_filter(filter))
            .try_init(),
    );
    if let Some(problem) = problem {
        warn(&problem);
    }
}

/// Says how often the warnings came that were not shown again.
pub fn finish() {
    let repeats = std::mem::replace(&mut *warned(), Repeats::new());
    for line in repeats.counts() {
        print_line(&Kind::Warning, &line);
    }
}

/// A warning of the command line's own, shown whenever those of the library are.
pub fn warn(text: &str) {
    if tracing::enabled!(Level::WARN) {
        print_line(&Kind::Warning, text);
    }
}

/// What was done; not with `--quiet`.
pub fn note(text: &str) {
    if !QUIET.load(Ordering::Relaxed) {
        print_line(&Kind::Note, text);
    }
}

/// Why there is no result.
pub fn error(text: &str) {
    print_line(&Kind::Error, text);
}

/// A bar that other lines on standard error do not disturb.
pub fn bar(bar: ProgressBar) -> ProgressBar {
    match QUIET.load(Ordering::Relaxed) {
        true => ProgressBar::hidden(),
        false => BARS.add(bar),
    }
}

/// Writes a result to standard output. Nobody who reads it (any more) is no error.
pub fn print(text: &str) -> anyhow::Result<()> {
    print_raw(&printable(text, usize::MAX))
}

/// The same for a result as JSON, on lines of its own.
pub fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    print_raw(&(serde_json::to_string_pretty(value)? + "\n"))
}

/// The same on one line.
pub fn print_json_line(value: &impl Serialize) -> anyhow::Result<()> {
    print_raw(&(serde_json::to_string(value)? + "\n"))
}

fn print_raw(text: &str) -> anyhow::Result<()> {
    let written = BARS.suspend(|| {
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes()).and_then(|()| out.flush())
    });
    match written {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written.context("cannot write to standard output"),
    }
}

/// An error with its causes, each said once: an outer one often quotes what it came from.
pub fn causes(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if text.contains(&cause) {
            continue;
        }
        if !text.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&cause);
    }
    text
}

enum Kind {
    Error,
    Warning,
    Note,
    /// Of the library, where RUST_LOG asks for it.
    Other(&'static str),
}

impl Kind {
    fn label(&self) -> (&str, Style) {
        let bold = |colour: AnsiColor| colour.on_default().bold();
        match self {
            Kind::Error => ("error: ", bold(AnsiColor::Red)),
            Kind::Warning => ("warning: ", bold(AnsiColor::Yellow)),
            Kind::Note => ("", Style::new()),
            Kind::Other(label) => (label, AnsiColor::Cyan.on_default()),
        }
    }
}

fn print_line(kind: &Kind, text: &str) {
    let (label, mut style) = kind.label();
    if !io::stderr().is_terminal() || std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty()) {
        style = Style::new();
    }
    let text = printable(text, LONGEST);
    BARS.suspend(|| {
        // There is nobody to tell.
        let _ = writeln!(io::stderr().lock(), "{style}{label}{style:#}{text}");
    });
}

fn warned() -> std::sync::MutexGuard<'static, Repeats> {
    WARNED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Warnings that were shown, and how many more there were of each.
struct Repeats {
    /// By the place in the program that warns.
    places: BTreeMap<String, Place>,
}

#[derive(Default)]
struct Place {
    shown: BTreeSet<String>,
    /// The first that was shown.
    first: String,
    more: u64,
}

impl Repeats {
    const fn new() -> Self {
        Repeats {
            places: BTreeMap::new(),
        }
    }

    /// Whether to show it; counts it where not.
    fn is_new(&mut self, place: String, text: &str) -> bool {
        let place = self.places.entry(place).or_default();
        if place.shown.len() < ALIKE && place.shown.insert(text.to_owned()) {
            if place.first.is_empty() {
                place.first = text.to_owned();
            }
            return true;
        }
        place.more += 1;
        false
    }

    fn counts(&self) -> impl Iterator<Item = String> {
        let more = self.places.values().filter(|place| place.more > 0);
        more.map(|place| format!("{} ({} more like it)", place.first, place.more))
    }
}

struct Lines;

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let mut text = Text::default();
        event.record(&mut text);
        let text = text.finish();
        let kind = match *event.metadata().level() {
            Level::ERROR => Kind::Error,
            Level::WARN => {
                let place = place(event.metadata().callsite(), event);
                if !warned().is_new(place, &text) {
                    return;
                }
                Kind::Warning
            }
            Level::INFO => Kind::Other("info: "),
            Level::DEBUG => Kind::Other("debug: "),
            Level::TRACE => Kind::Other("trace: "),
        };
        print_line(&kind, &text);
    }
}

fn place(callsite: Identifier, event: &Event<'_>) -> String {
    let metadata = event.metadata();
    format!("{} {:?} {callsite:?}", metadata.target(), metadata.line())
}

/// The message of an event, with its fields behind it.
#[derive(Default)]
struct Text {
    message: String,
    fields: String,
}

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a string cannot fail.
        let _ = match (field.name(), self.fields.is_empty()) {
            ("message", _) => write!(self.message, "{value:?}"),
            (name, true) => write!(self.fields, "{name} {value:?}"),
            (name, false) => write!(self.fields, ", {name} {value:?}"),
        };
    }
}

impl Text {
    fn finish(self) -> String {
        match (self.message.is_empty(), self.fields.is_empty()) {
            (_, true) => self.message,
            (true, false) => self.fields,
            (false, false) => format!("{} ({})", self.message, self.fields),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cloud 7: {source}")]
    struct Quoting {
        source: io::Error,
    }

    #[test]
    fn a_cause_that_was_quoted_is_not_said_again() {
        let quoting = || Quoting {
            source: io::Error::other("row_step is 0"),
        };
        let error = anyhow::Error::new(quoting()).context("in drive.mcap");
        assert_eq!(causes(&error), "in drive.mcap: cloud 7: row_step is 0");
        let plain = anyhow::Error::new(io::Error::other("no space")).context("cannot write a.json");
        assert_eq!(causes(&plain), "cannot write a.json: no space");
    }

    #[test]
    fn a_warning_is_shown_once_and_counted() {
        let mut repeats = Repeats::new();
        let mut shown = |place: &str, text: &str| repeats.is_new(place.into(), text);
        assert!(shown("a", "damaged at 1") && shown("b", "damaged at 1"));
        assert!(!shown("a", "damaged at 1"));
        assert!(shown("a", "damaged at 2"));
        let counts: Vec<String> = repeats.counts().collect();
        assert_eq!(counts, ["damaged at 1 (1 more like it)"]);
    }

    #[test]
    fn warnings_that_differ_in_figures_only_do_not_flood() {
        let mut repeats = Repeats::new();
        let shown = (0..100).filter(|i| repeats.is_new("a".into(), &format!("damaged at {i}")));
        assert_eq!(shown.count(), ALIKE);
        let counts: Vec<String> = repeats.counts().collect();
        assert_eq!(counts, ["damaged at 0 (95 more like it)"]);
    }
}
