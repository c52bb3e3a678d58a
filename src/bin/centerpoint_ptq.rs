//! `centerpoint_ptq`: the command-line tool that needs no ROS.

use std::process::ExitCode;

fn main() -> ExitCode {
    centerpoint_ptq::cli::main()
}
