//! What the ROS programs say of themselves without ROS: `--help`, `--version`.

use std::fmt::Write;

use super::settings::{SPECS, Settings};

/// A program that takes ROS arguments.
pub struct Program {
    pub name: &'static str,
    pub about: &'static str,
    /// Parameters that it has besides those of [`SPECS`]: name, type, default, meaning.
    pub own: &'static [[&'static str; 4]],
}

pub const NODE: Program = Program {
    name: "centerpoint_node",
    about: "Detects objects in LiDAR clouds, and makes itself an INT8 model from them.",
    own: &[],
};

pub const ACTION_SERVER: Program = Program {
    name: "calibration_action_server",
    about: "Offers the calibrations of a centerpoint_node as a ROS action, or does them for it on another machine.",
    own: &[
        [
            "node",
            "string",
            "centerpoint",
            "Name of the centerpoint_node",
        ],
        [
            "work_here",
            "bool",
            "false",
            "Whether to make models here, from recordings, and send them to the node; without it only 'node' counts",
        ],
    ],
};

/// What the arguments (without the program's own name) ask for.
#[derive(Debug, PartialEq)]
pub enum Asked {
    /// A text to print, and no more.
    Text(String),
    /// To run; some arguments mean nothing.
    Run { unknown: Vec<String> },
}

impl Program {
    /// Reads the arguments outside of `--ros-args ... --`.
    pub fn asked(&self, arguments: impl IntoIterator<Item = String>) -> Asked {
        let mut unknown = Vec::new();
        let mut ros = false;
        for argument in arguments {
            match argument.as_str() {
                "--ros-args" => ros = true,
                "--" => ros = false,
                _ if ros => {}
                "-h" | "--help" => return Asked::Text(self.help()),
                "-V" | "--version" => {
                    let version = env!("CARGO_PKG_VERSION");
                    return Asked::Text(format!("{} {version}\n", self.name));
                }
                _ => unknown.push(argument),
            }
        }
        Asked::Run { unknown }
    }

    fn help(&self) -> String {
        let Self { name, about, own } = self;
        let mut text = format!(
            "{about}\n\n\
             Usage: {name} [--help | --version] [--ros-args -p NAME:=VALUE -r FROM:=TO --params-file FILE ...]\n\n\
             Parameters; those marked * may change while it runs:\n"
        );
        for [name, kind, default, meaning] in *own {
            text += &entry(name, kind, default, meaning);
        }
        let defaults = Settings::default();
        for spec in SPECS {
            let value = defaults.get(spec.name);
            let (kind, default) = value.map_or(("", String::new()), |value| {
                (value.type_name(), value.to_string())
            });
            let name = match spec.live {
                true => format!("{} *", spec.name),
                false => spec.name.to_owned(),
            };
            text += &entry(&name, kind, &default, spec.description);
        }
        text
    }
}

fn entry(name: &str, kind: &str, default: &str, meaning: &str) -> String {
    let mut text = String::new();
    let default = match default {
        "" => "empty",
        default => default,
    };
    // Writing to a string cannot fail.
    let _ = writeln!(
        text,
        "  {name}  ({kind}, default {default})\n      {meaning}"
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(arguments: &str) -> Asked {
        NODE.asked(arguments.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn help_has_each_parameter_with_type_default_and_meaning() {
        let Asked::Text(help) = asked("--help") else {
            panic!("help")
        };
        assert!(help.contains("Usage: centerpoint_node"));
        for spec in SPECS {
            assert!(
                help.contains(spec.name) && help.contains(spec.description),
                "{}",
                spec.name
            );
        }
        assert!(
            help.contains("  calibration.nice *  (integer, default 10)\n"),
            "{help}"
        );
        assert!(
            help.contains("  model_path  (string, default empty)\n"),
            "{help}"
        );
        let Asked::Text(help) = ACTION_SERVER.asked(["-h".to_owned()]) else {
            panic!("help")
        };
        assert!(help.contains("work_here  (bool, default false)"));
    }

    #[test]
    fn the_version_is_the_crates() {
        let version = format!("centerpoint_node {}\n", env!("CARGO_PKG_VERSION"));
        assert_eq!(asked("--version"), Asked::Text(version.clone()));
        assert_eq!(asked("--ros-args -p x:=1 -- -V"), Asked::Text(version));
    }

    #[test]
    fn ros_arguments_are_left_to_ros_and_others_are_told() {
        let unknown = |arguments: &str| match asked(arguments) {
            Asked::Run { unknown } => unknown,
            Asked::Text(text) => panic!("{text}"),
        };
        assert_eq!(
            unknown("--ros-args -p model_path:=x --help"),
            [] as [&str; 0]
        );
        assert_eq!(
            unknown("--verbose --ros-args -p x:=1 -- y"),
            ["--verbose", "y"]
        );
    }
}
