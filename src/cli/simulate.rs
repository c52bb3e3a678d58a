//! `centerpoint_ptq simulate`: write a bag of labelled, simulated LiDAR sweeps.

#[derive(clap::Args)]
pub struct Args {}

pub fn run(_args: Args) -> anyhow::Result<()> {
    anyhow::bail!("simulate is not there yet")
}
