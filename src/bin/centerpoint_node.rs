//! `centerpoint_node`: the ROS 2 node. Parameters, remappings and names come as ROS arguments.

use std::process::ExitCode;

fn main() -> ExitCode {
    match centerpoint_ptq::node::ros::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("centerpoint_node: {error}");
            ExitCode::FAILURE
        }
    }
}
