//! `calibration_action_server`: calibrations as a ROS 2 action, beside the node or on another machine.

use std::process::ExitCode;

use centerpoint_ptq::node::{ros, usage};

fn main() -> ExitCode {
    ros::main(&usage::ACTION_SERVER, ros::action::run)
}
