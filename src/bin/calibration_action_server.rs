//! `calibration_action_server`: calibrations as a ROS 2 action, beside the node or on another machine.

use std::process::ExitCode;

fn main() -> ExitCode {
    match centerpoint_ptq::node::ros::action::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("calibration_action_server: {error}");
            ExitCode::FAILURE
        }
    }
}
