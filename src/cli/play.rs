//! `centerpoint_ptq play`: publish a bag to the ROS 2 graph at its own rate.

#[derive(clap::Args)]
pub struct Args {}

pub fn run(_args: Args) -> anyhow::Result<()> {
    anyhow::bail!("play is not there yet")
}
