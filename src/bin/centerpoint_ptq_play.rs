//! `centerpoint_ptq_play`: what `centerpoint_ptq play` becomes. It is a program of its own because it
//! needs the libraries of ROS 2.

use std::process::ExitCode;

fn main() -> ExitCode {
    centerpoint_ptq::cli::player::main()
}
