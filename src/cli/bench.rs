//! `centerpoint_ptq bench`: measure a model's latency on this machine.

#[derive(clap::Args)]
pub struct Args {}

pub fn run(_args: Args) -> anyhow::Result<()> {
    anyhow::bail!("bench is not there yet")
}
