//! `centerpoint_ptq doctor`: check that this machine has what the tool and the node need.

#[derive(clap::Args)]
pub struct Args {}

pub fn run(_args: Args) -> anyhow::Result<()> {
    anyhow::bail!("doctor is not there yet")
}
