//! `centerpoint_ptq quantize`: turn a float model into an INT8 one from the frames of a bag.

#[derive(clap::Args)]
pub struct Args {}

pub fn run(_args: Args) -> anyhow::Result<()> {
    anyhow::bail!("quantize is not there yet")
}
