//! `centerpoint_ptq report`: make the page of a quantization again from its stored report.

use std::path::{Path, PathBuf};

use super::output::{check_file, write_whole};
use super::{Ended, terminal};
use crate::ptq::report::{PAGE_FILE, Report};

#[derive(clap::Args)]
pub struct Args {
    /// A report.json, or the model folder that holds it
    #[arg(value_name = "PATH")]
    report: PathBuf,
    /// File to write; by default HTML goes to report.html beside the JSON and text to standard output
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    #[arg(long, value_enum, default_value_t = Format::Html)]
    format: Format,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// A page for a browser, complete in one file
    Html,
    /// The summary that `quantize` prints
    Text,
}

pub fn run(args: Args) -> anyhow::Result<Ended> {
    if let Some(out) = &args.out {
        check_file(out)?;
    }
    let report = Report::load(&args.report)?;
    match (args.format, args.out) {
        (Format::Html, out) => write(&out.unwrap_or_else(|| beside(&args.report)), &report.page())?,
        (Format::Text, Some(out)) => write(&out, &report.summary())?,
        (Format::Text, None) => terminal::print(&report.summary())?,
    }
    Ok(Ended::Done)
}

fn write(out: &Path, text: &str) -> anyhow::Result<()> {
    write_whole(out, |file| Ok(file.write_all(text.as_bytes())?))?;
    terminal::print(&format!("wrote {}\n", out.display()))
}

fn beside(report: &Path) -> PathBuf {
    if report.is_dir() {
        report.join(PAGE_FILE)
    } else {
        report.with_file_name(PAGE_FILE)
    }
}
