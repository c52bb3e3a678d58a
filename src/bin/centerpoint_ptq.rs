//! `centerpoint_ptq`: the command-line tool that needs no ROS.

fn main() -> anyhow::Result<()> {
    centerpoint_ptq::cli::main()
}
