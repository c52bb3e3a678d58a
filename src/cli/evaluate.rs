//! `centerpoint_ptq evaluate`: score a model against ground truth, or two models against each other.

#[derive(clap::Args)]
pub struct Args {}

pub fn run(_args: Args) -> anyhow::Result<()> {
    anyhow::bail!("evaluate is not there yet")
}
