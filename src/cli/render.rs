//! `centerpoint_ptq render`: draw a frame of a bag with boxes from above as a PNG.

#[derive(clap::Args)]
pub struct Args {}

pub fn run(_args: Args) -> anyhow::Result<()> {
    anyhow::bail!("render is not there yet")
}
