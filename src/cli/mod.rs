//! The `centerpoint_ptq` command line: one module per subcommand.

pub mod bench;
mod columns;
pub mod detect;
pub mod doctor;
pub mod evaluate;
pub mod input;
pub mod inspect;
pub mod models;
#[cfg(feature = "ros2")]
pub mod play;
pub mod quantize;
pub mod render;
pub mod report;
pub mod select;
pub mod simulate;
mod sweeps;

use clap::{Parser, Subcommand};

/// Exit code where the gate refuses a model, which is written all the same.
const REFUSED: i32 = 3;

/// CenterPoint LiDAR detection that quantizes itself to INT8 with LiDAR-PTQ.
#[derive(Parser)]
#[command(name = "centerpoint_ptq", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
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
    #[cfg(feature = "ros2")]
    Play(play::Args),
}

/// Parses the process arguments and runs the subcommand.
pub fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
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
        #[cfg(feature = "ros2")]
        Command::Play(args) => play::run(args),
    }
}
