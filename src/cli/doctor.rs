//! `centerpoint_ptq doctor`: check that this machine has what the tool and the node need.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::bail;

use super::detect::RuntimeArgs;
use super::{Ended, terminal};
use crate::cloud::Points;
use crate::detector::{Detector, ModelDescription, runtime};
use crate::ptq::report::Report;

#[derive(clap::Args)]
pub struct Args {
    /// Model description to load and run as well
    #[arg(long)]
    model: Option<PathBuf>,
    #[command(flatten)]
    runtime: RuntimeArgs,
}

/// Least size of /dev/shm: Fast DDS keeps a few clouds of megabytes per publisher there.
const LEAST_SHARED_MEMORY: u64 = 64 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Status {
    Ok,
    /// Works, but slower or with less.
    Warning,
    Failed,
}

#[derive(Debug)]
struct Check {
    name: &'static str,
    status: Status,
    finding: String,
    /// What to do; empty where nothing is to be done.
    fix: String,
}

impl Check {
    fn ok(name: &'static str, finding: impl Into<String>) -> Self {
        Check {
            name,
            status: Status::Ok,
            finding: finding.into(),
            fix: String::new(),
        }
    }

    fn bad(
        name: &'static str,
        status: Status,
        finding: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Check {
            name,
            status,
            finding: finding.into(),
            fix: fix.into(),
        }
    }
}

/// Exits with an error when a check failed; warnings do not count.
pub fn run(args: Args) -> anyhow::Result<Ended> {
    let mut checks = vec![
        check_processor(&processor_features()),
        check_runtime(),
        check_ros(
            env::var("ROS_DISTRO").ok(),
            env::var_os("AMENT_PREFIX_PATH"),
        ),
        check_transport(&env::var_os("FASTRTPS_DEFAULT_PROFILES_FILE").map(PathBuf::from)),
        check_shared_memory(Path::new("/dev/shm")),
    ];
    if let Some(model) = &args.model {
        checks.push(check_model(model, &args));
    }
    let mut text = String::new();
    for check in &checks {
        let mark = match check.status {
            Status::Ok => "ok",
            Status::Warning => "warn",
            Status::Failed => "FAIL",
        };
        text += &format!(
            "{mark:<5} {:<14} {}\n",
            check.name,
            indented(&check.finding)
        );
        if !check.fix.is_empty() {
            text += &format!("      {:<14} -> {}\n", "", check.fix);
        }
    }
    terminal::print(&text)?;
    let failed = checks.iter().filter(|c| c.status == Status::Failed).count();
    match failed {
        0 => Ok(Ended::Done),
        1 => bail!("1 check failed"),
        n => bail!("{n} checks failed"),
    }
}

fn indented(text: &str) -> String {
    text.replace('\n', &format!("\n{:21}", ""))
}

/// Instruction sets that decide the speed, with whether they are there.
fn processor_features() -> Vec<(&'static str, bool)> {
    #[cfg(target_arch = "x86_64")]
    {
        vec![
            ("avx2", is_x86_feature_detected!("avx2")),
            ("avx512f", is_x86_feature_detected!("avx512f")),
            ("avx512_vnni", is_x86_feature_detected!("avx512vnni")),
            ("avx_vnni", is_x86_feature_detected!("avxvnni")),
        ]
    }
    #[cfg(target_arch = "aarch64")]
    {
        vec![
            ("neon", std::arch::is_aarch64_feature_detected!("neon")),
            (
                "dotprod",
                std::arch::is_aarch64_feature_detected!("dotprod"),
            ),
            ("i8mm", std::arch::is_aarch64_feature_detected!("i8mm")),
        ]
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        Vec::new()
    }
}

fn check_processor(features: &[(&str, bool)]) -> Check {
    const NAME: &str = "processor";
    let has = |name: &str| features.iter().any(|(n, there)| *n == name && *there);
    let there: Vec<&str> = features.iter().filter(|f| f.1).map(|f| f.0).collect();
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    let finding = format!(
        "{cores} cores, {}",
        match there.is_empty() {
            true => "no vector instructions known to this check".to_string(),
            false => there.join(" "),
        }
    );
    let integer_dot = ["avx512_vnni", "avx_vnni", "dotprod", "i8mm"]
        .into_iter()
        .any(has);
    if integer_dot {
        return Check::ok(NAME, finding);
    }
    if features.is_empty() {
        return Check::ok(NAME, finding);
    }
    Check::bad(
        NAME,
        Status::Warning,
        finding,
        "no 8-bit dot product (VNNI, dotprod): INT8 saves memory here but little time; \
         measure with `centerpoint_ptq bench --model FLOAT --model INT8`",
    )
}

fn check_runtime() -> Check {
    const NAME: &str = "ONNX Runtime";
    match runtime::init() {
        Ok(found) => {
            let providers: Vec<&str> = found.providers().iter().map(|p| p.name()).collect();
            Check::ok(
                NAME,
                format!(
                    "{} with {}, {}",
                    found.version(),
                    providers.join(", "),
                    found.library().display()
                ),
            )
        }
        Err(error) => Check::bad(
            NAME,
            Status::Failed,
            error.to_string(),
            "run scripts/setup, or set ORT_DYLIB_PATH",
        ),
    }
}

fn check_ros(distribution: Option<String>, prefixes: Option<std::ffi::OsString>) -> Check {
    const NAME: &str = "ROS 2";
    const FIX: &str =
        "source /opt/ros/<distribution>/setup.bash, or build/env.sh after scripts/setup";
    let built = match cfg!(feature = "ros2") {
        true => "the node and the player were built, too",
        false => "the node and the player were not built (feature ros2)",
    };
    let Some(distribution) = distribution.filter(|d| !d.is_empty()) else {
        return Check::bad(
            NAME,
            Status::Warning,
            format!("not sourced, which only the node and `play` need; {built}"),
            FIX,
        );
    };
    let gone: Vec<String> = prefixes
        .iter()
        .flat_map(env::split_paths)
        .filter(|p| !p.as_os_str().is_empty() && !p.is_dir())
        .map(|p| p.display().to_string())
        .collect();
    if prefixes.is_none() {
        return Check::bad(
            NAME,
            Status::Warning,
            format!("{distribution}, but AMENT_PREFIX_PATH is not set"),
            FIX,
        );
    }
    if !gone.is_empty() {
        return Check::bad(
            NAME,
            Status::Warning,
            format!(
                "{distribution}; AMENT_PREFIX_PATH names folders that are gone: {}",
                gone.join(", ")
            ),
            "`make install` makes this package's own; for others, source the environment anew",
        );
    }
    Check::ok(NAME, format!("{distribution}; {built}"))
}

fn check_transport(profile: &Option<PathBuf>) -> Check {
    const NAME: &str = "DDS profile";
    const FIX: &str = "set FASTRTPS_DEFAULT_PROFILES_FILE to the package's config/fastdds.xml \
                       (build/env.sh and the launch file do)";
    match profile {
        Some(path) if path.is_file() => Check::ok(NAME, path.display().to_string()),
        Some(path) => Check::bad(
            NAME,
            Status::Warning,
            format!("{} is not there", path.display()),
            FIX,
        ),
        None => Check::bad(
            NAME,
            Status::Warning,
            "Fast DDS runs with its defaults, which lose large clouds on one host",
            FIX,
        ),
    }
}

fn check_shared_memory(folder: &Path) -> Check {
    const NAME: &str = "shared memory";
    let megabytes = |bytes: u64| bytes >> 20;
    match rustix::fs::statvfs(folder) {
        Ok(found) => {
            let size = found.f_frsize.saturating_mul(found.f_blocks);
            let free = found.f_frsize.saturating_mul(found.f_bavail);
            let finding = format!(
                "{} MB, {} MB free in {}",
                megabytes(size),
                megabytes(free),
                folder.display()
            );
            match free >= LEAST_SHARED_MEMORY {
                true => Check::ok(NAME, finding),
                false => Check::bad(
                    NAME,
                    Status::Warning,
                    finding,
                    format!(
                        "clouds need {} MB; in a container: docker run --shm-size=256m",
                        megabytes(LEAST_SHARED_MEMORY)
                    ),
                ),
            }
        }
        Err(error) => Check::bad(
            NAME,
            Status::Warning,
            format!("{}: {error}", folder.display()),
            "DDS falls back to UDP; mount a tmpfs there",
        ),
    }
}

fn check_model(path: &Path, args: &Args) -> Check {
    const NAME: &str = "model";
    let attempt = || -> anyhow::Result<String> {
        let model = ModelDescription::load(path)?;
        Report::check_beside(&model)?;
        let mut detector = Detector::load(&model, &args.runtime.options())?;
        let inference = detector.detect(&Points::default())?;
        Ok(format!(
            "{} ({}, {}, {:.2} MB), an empty frame takes {:.0} ms",
            model.name,
            model.precision,
            detector.id(),
            detector.model_bytes() as f64 / 1e6,
            inference.timing.total_ms
        ))
    };
    match attempt() {
        Ok(finding) => Check::ok(NAME, finding),
        Err(error) => Check::bad(
            NAME,
            Status::Failed,
            terminal::causes(&error),
            "the message names the file and what it should hold",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_without_integer_dot_products_is_a_warning() {
        let plain = check_processor(&[("avx2", true), ("avx512_vnni", false)]);
        assert_eq!(plain.status, Status::Warning);
        assert!(plain.finding.contains("avx2") && !plain.fix.is_empty());
        let vnni = check_processor(&[("avx2", true), ("avx_vnni", true)]);
        assert_eq!(vnni.status, Status::Ok);
    }

    #[test]
    fn ros_is_missing_without_a_distribution_or_its_prefixes() {
        assert_ne!(check_ros(None, None).status, Status::Ok);
        assert_ne!(check_ros(Some("jazzy".into()), None).status, Status::Ok);
        let gone = check_ros(Some("jazzy".into()), Some("/nowhere/at/all".into()));
        assert_eq!(gone.status, Status::Warning);
        assert!(gone.finding.contains("/nowhere/at/all"));
        let here = check_ros(Some("jazzy".into()), Some(env::temp_dir().into()));
        assert_eq!(here.status, Status::Ok);
    }

    #[test]
    fn a_dds_profile_that_is_not_there_is_named() {
        let check = check_transport(&Some("/nowhere/fastdds.xml".into()));
        assert_eq!(check.status, Status::Warning);
        assert!(check.finding.contains("/nowhere/fastdds.xml"));
    }

    #[test]
    fn shared_memory_that_cannot_be_asked_is_a_warning() {
        let check = check_shared_memory(Path::new("/nowhere/shm"));
        assert_eq!(check.status, Status::Warning);
    }
}
