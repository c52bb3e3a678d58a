//! `centerpoint_ptq inspect`: say what is in a model folder, an ONNX file or a bag.

#[derive(clap::Args)]
pub struct Args {}

pub fn run(_args: Args) -> anyhow::Result<()> {
    anyhow::bail!("inspect is not there yet")
}
