//! `centerpoint_node`: the ROS 2 node. Parameters, remappings and names come as ROS arguments.

use std::process::ExitCode;

use centerpoint_ptq::node::{ros, usage};

fn main() -> ExitCode {
    ros::main(&usage::NODE, ros::run)
}
