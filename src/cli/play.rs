//! `centerpoint_ptq play`: publish a bag to the ROS 2 graph at its own rate.
//!
//! What publishes is a program of its own, `centerpoint_ptq_play` ([`player`](super::player)), so that
//! this one needs no ROS library to start. Its arguments are the same.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, bail};

use super::Ended;
use super::input::BagLimits;
use super::numbers::within;

/// The program that publishes, beside this one.
const PLAYER: &str = "centerpoint_ptq_play";

#[derive(clap::Args)]
pub struct Args {
    /// rosbag2 folder, or a single .mcap or .db3 file
    #[arg(long)]
    pub bag: PathBuf,
    /// Topic to publish, may be given several times [default: all point clouds, and transforms]
    #[arg(long, value_name = "NAME")]
    pub topic: Vec<String>,
    /// Speed: 2 plays twice as fast as recorded
    #[arg(long, default_value_t = 1.0, value_parser = within(RATES))]
    pub rate: f64,
    /// Publish a topic under another name, may be given several times
    #[arg(long, value_name = "FROM:=TO")]
    pub remap: Vec<String>,
    /// Start over at the end, with stamps that go on; until interrupted
    #[arg(long = "loop")]
    pub repeat: bool,
    /// Move all stamps so that the first cloud is from now
    #[arg(long)]
    pub restamp: bool,
    /// Longest wait between two messages, seconds of the recording: a longer pause of it is cut to that,
    /// and told. 0 waits for nothing
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0, value_parser = parse_pause)]
    pub max_pause: f64,
    /// Wait for a call of ~/resume before the first message
    #[arg(long)]
    pub start_paused: bool,
    /// Wait until each cloud topic has this many subscribers
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = within::<usize>(0..=1000))]
    pub wait_for_subscribers: usize,
    /// Seconds to wait for subscribers before giving up
    #[arg(long, value_name = "SECONDS", default_value_t = 60.0, value_parser = within::<f64>(0.0..=86_400.0))]
    pub wait_timeout: f64,
    /// Publish clouds with best-effort reliability instead of reliable
    #[arg(long)]
    pub best_effort: bool,
    /// Stop after this many clouds
    #[arg(long, value_name = "N")]
    pub clouds: Option<u64>,
    /// End at the first message that cannot be played, instead of going on without it
    #[arg(long)]
    pub strict: bool,
    /// Print the summary as JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub limits: BagLimits,
}

/// Speeds that make sense; at the slowest a second of the recording takes a quarter of an hour.
const RATES: std::ops::RangeInclusive<f64> = 1e-3..=1e6;

fn parse_pause(text: &str) -> Result<f64, String> {
    const DAY: f64 = 86_400.0;
    match text.parse() {
        Ok(seconds) if (0.0..=DAY).contains(&seconds) => Ok(seconds),
        _ => Err(format!("give seconds, from 0 to {DAY} (a day)")),
    }
}

/// Becomes the player, with the arguments of this process. Signals then reach it directly.
pub fn run() -> anyhow::Result<Ended> {
    let own = std::env::current_exe().context("cannot tell where this program lies")?;
    let player = find(&own)?;
    check(&player)?;
    // The first word that is the subcommand's name is the subcommand: flags before it take no value.
    let mut arguments: Vec<_> = std::env::args_os().skip(1).collect();
    if let Some(at) = arguments.iter().position(|word| word == "play") {
        arguments.remove(at);
    }
    let error = Command::new(&player).args(arguments).exec();
    Err(error).with_context(|| format!("cannot start {}", player.display()))
}

fn find(own: &Path) -> anyhow::Result<PathBuf> {
    let player = own.with_file_name(PLAYER);
    if player.is_file() {
        return Ok(player);
    }
    bail!(
        "`play` needs the program {PLAYER} beside {}, which is not there: this build has no ROS 2 parts. \
         Build them in a sourced ROS 2 environment with `--features ros2`, or with `make build` or colcon",
        own.display()
    )
}

/// Says what is missing where the player cannot start, which its loader would say less well.
fn check(player: &Path) -> anyhow::Result<()> {
    let tried = Command::new(player)
        .arg("--version")
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {}", player.display()))?;
    if tried.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&tried.stderr);
    bail!(
        "`play` needs the libraries of ROS 2, which are not found ({}). \
         Source the environment first: /opt/ros/<distribution>/setup.bash, or build/env.sh after scripts/setup",
        said.trim()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_pause_is_bounded() {
        assert_eq!((parse_pause("0"), parse_pause("2.5")), (Ok(0.0), Ok(2.5)));
        for bad in ["-1", "inf", "nan", "1e9", "long"] {
            assert!(parse_pause(bad).unwrap_err().contains("a day"), "{bad}");
        }
    }

    #[test]
    fn a_player_that_is_missing_or_does_not_start_is_explained() {
        let folder = tempfile::tempdir().unwrap();
        let own = folder.path().join("centerpoint_ptq");
        let said = find(&own).unwrap_err().to_string();
        assert!(
            said.contains(PLAYER) && said.contains("--features ros2"),
            "{said}"
        );

        let player = folder.path().join(PLAYER);
        let script = |text: &str| {
            std::fs::write(&player, format!("#!/bin/sh\n{text}\n")).unwrap();
            std::fs::set_permissions(&player, PermissionsExt::from_mode(0o755)).unwrap();
        };
        script("echo librcl.so: no such file >&2; exit 127");
        assert_eq!(find(&own).unwrap(), player);
        let said = check(&player).unwrap_err().to_string();
        assert!(
            said.contains("librcl.so") && said.contains("setup.bash"),
            "{said}"
        );
        script("exit 0");
        check(&player).unwrap();
    }
}
