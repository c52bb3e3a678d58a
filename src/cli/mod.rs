//! The `centerpoint_ptq` command line: one module per subcommand.
//!
//! [`terminal`] is the only one that prints, [`input`] the only one that reads clouds, and [`output`]
//! knows before the work what cannot be written after it.

#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod bench;
mod columns;
pub mod detect;
pub mod doctor;
pub mod evaluate;
pub mod input;
pub mod inspect;
pub mod models;
mod numbers;
pub mod output;
pub mod play;
#[cfg(feature = "ros2")]
pub mod player;
pub mod quantize;
pub mod render;
pub mod report;
pub mod select;
mod signals;
pub mod simulate;
mod sweeps;
pub mod terminal;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::onnx::limit;

/// How a subcommand ended that did its work. One that did not is an error, and its exit code 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    Done,
    /// The gate refuses the model, which is written all the same.
    Refused,
    /// What was to be written is, but some of the input was lost.
    WithLosses,
    /// Nothing was written, as asked for by a signal.
    Cancelled,
}

impl Ended {
    pub fn code(self) -> u8 {
        match self {
            Ended::Done => 0,
            Ended::Refused => 3,
            Ended::WithLosses => 4,
            Ended::Cancelled => 130,
        }
    }
}

/// CenterPoint LiDAR detection that quantizes itself to INT8 with LiDAR-PTQ.
#[derive(Parser)]
#[command(name = "centerpoint_ptq", version)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// What every subcommand takes.
#[derive(clap::Args)]
struct Global {
    /// Say nothing but errors on standard error. Without it, RUST_LOG chooses what is said
    #[arg(long, global = true)]
    quiet: bool,
    /// Size of a model at the most, all its files together; a larger one is not read
    #[arg(long, global = true, value_name = "MB", default_value_t = limit::DEFAULT_MB)]
    max_model_mb: u64,
}

// Made once per process, so its size does not matter.
#[allow(clippy::large_enum_variant)]
#[derive(Subcommand)]
enum Command {
    /// Run a model over a bag and write the detections as JSON
    Detect(detect::Args),
    /// Turn a float model into an INT8 one from the frames of a bag
    Quantize(quantize::Args),
    /// Choose frames of a long recording to calibrate with, as a node chooses them from its traffic
    Select(select::Args),
    /// Make the page of a quantization again from its stored report
    Report(report::Args),
    /// Score a model against ground truth, or two models against each other
    Evaluate(evaluate::Args),
    /// Write a bag of labelled, simulated LiDAR sweeps
    Simulate(simulate::Args),
    /// Draw a frame of a bag with boxes from above as a PNG
    Render(render::Args),
    /// Say what is in a model folder, an ONNX file or a bag
    Inspect(inspect::Args),
    /// Measure a model's latency on this machine
    Bench(bench::Args),
    /// List, compare, add, activate and remove the INT8 models that nodes keep
    Models(models::Args),
    /// Check that this machine has what the tool and the node need
    Doctor(doctor::Args),
    /// Publish a bag to the ROS 2 graph at its own rate
    Play(play::Args),
}

/// Parses the process arguments and runs the subcommand.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    terminal::install(cli.global.quiet);
    limit::set_mb(cli.global.max_model_mb);
    exit(match cli.command {
        Command::Detect(args) => detect::run(args),
        Command::Quantize(args) => quantize::run(args),
        Command::Select(args) => select::run(args),
        Command::Report(args) => report::run(args),
        Command::Evaluate(args) => evaluate::run(args),
        Command::Simulate(args) => simulate::run(args),
        Command::Render(args) => render::run(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Models(args) => models::run(args),
        Command::Doctor(args) => doctor::run(args),
        Command::Play(_) => play::run(),
    })
}

/// Says why there is no result, with each cause once, and what warnings there were more of. A
/// backtrace is for a panic; a refusal is none.
fn exit(result: anyhow::Result<Ended>) -> ExitCode {
    let code = match result {
        Ok(ended) => ended.code(),
        Err(error) => {
            terminal::error(&terminal::causes(&error));
            1
        }
    };
    terminal::finish();
    ExitCode::from(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// clap compares the types of parsers and fields only when a value is taken out.
    #[test]
    fn every_number_is_parsed_as_what_it_is_kept_as() {
        for line in [
            "detect --model m --bag b --out o --limit 3 --threads 2",
            "quantize --model m --bag b --out o --max-frames 8 --threads 1 --max-memory-mb 900",
            "select --model m --bag b --out o --max-frames 8 --min-period 0.5 --gap 2 --per-place 4",
            "evaluate --model m --bag b --truth t --score-threshold 0.1 --limit 3 --max-range 50 --min-points 5 \
             --bands 30,50 --resamples 100 --seed 3 --block 2",
            "simulate --out o --frames 3 --seed 1 --scenes 2 --rate 10 --azimuth-steps 100 --noise 0.1 --dropout 0.1 \
             --threads 2",
            "render --bag b --out o --frame 2 --sweeps 2 --min-score 0.3 --scale 8",
            "render --bag b --out o --stamp -5",
            "bench --model m --bag b --repeat 2 --warmup 0 --limit 5",
            "--max-model-mb 10 play --bag b --rate 2 --max-pause 1 --wait-for-subscribers 1 --wait-timeout 3 --clouds 9",
            "models --store s list",
        ] {
            let words = std::iter::once("centerpoint_ptq").chain(line.split_whitespace());
            if let Err(error) = Cli::try_parse_from(words) {
                panic!("{line}: {error}");
            }
        }
    }

    #[test]
    fn numbers_that_nothing_could_bear_are_refused_with_the_range() {
        for (line, option) in [
            (
                "evaluate --model m --bag b --truth t --resamples 18446744073709551615",
                "--resamples",
            ),
            (
                "evaluate --model m --bag b --truth t --resamples 1000000000000",
                "--resamples",
            ),
            (
                "detect --model m --bag b --out o --threads 1000000",
                "--threads",
            ),
            ("simulate --out o --threads 1000000", "--threads"),
            ("bench --model m --bag b --repeat 0", "--repeat"),
            ("render --bag b --out o --scale NaN", "--scale"),
        ] {
            let words = std::iter::once("centerpoint_ptq").chain(line.split_whitespace());
            let Err(error) = Cli::try_parse_from(words) else {
                panic!("{line} is accepted");
            };
            let text = error.to_string();
            assert!(
                text.contains(option) && text.contains("give a number from"),
                "{text}"
            );
        }
    }
}
