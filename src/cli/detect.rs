//! `centerpoint_ptq detect`: run a model over a bag and write the detections as JSON.

#[derive(clap::Args)]
pub struct Args {}

pub fn run(_args: Args) -> anyhow::Result<()> {
    anyhow::bail!("detect is not there yet")
}
