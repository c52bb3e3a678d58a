//! Where clouds, or the transforms that they need, do not come: what is on the graph instead.

use std::sync::Arc;
use std::time::{Duration, Instant};

use r2r::qos::{DurabilityPolicy, ReliabilityPolicy};

use crate::cloud::condition::ConditionKind;
use crate::node::Pipeline;
use crate::node::pipeline::Drop;
use crate::node::settings::{Reliability, edit_distance};
use crate::node::troubles::{Part, Symptom};

/// Time without a cloud after which the input counts as gone.
pub const SILENCE: Duration = Duration::from_secs(2);
/// Between two looks at the graph.
const PERIOD: Duration = Duration::from_secs(1);
/// Topics and publishers that a message names at the most.
const NAMED: usize = 5;
/// Topics whose publishers are looked for at the most.
const SEARCHED: usize = 40;

pub const TOPIC: &str = "~/input/pointcloud";
const CLOUD: &str = "sensor_msgs/msg/PointCloud2";
/// Names of the two troubles.
const NO_CLOUDS: &str = "no_clouds";
const NO_TF: &str = "no_tf";

/// A publisher as the graph shows it.
#[derive(Debug, Clone, PartialEq)]
struct Publisher {
    /// Full name of its node.
    node: String,
    topic_type: String,
    reliable: bool,
    latched: bool,
}

/// The part of the graph that is asked for.
trait Graph {
    fn publishers(&self, topic: &str) -> Vec<Publisher>;
    /// All topics with their types.
    fn topics(&self) -> Vec<(String, Vec<String>)>;
}

impl Graph for r2r::Node {
    fn publishers(&self, topic: &str) -> Vec<Publisher> {
        let found = self.get_publishers_info_by_topic(topic, false);
        let found = found.unwrap_or_default().into_iter();
        found
            .map(|found| Publisher {
                node: format!(
                    "{}/{}",
                    found.node_namespace.trim_end_matches('/'),
                    found.node_name
                ),
                topic_type: found.topic_type,
                reliable: found.qos_profile.reliability != ReliabilityPolicy::BestEffort,
                latched: found.qos_profile.durability == DurabilityPolicy::TransientLocal,
            })
            .collect()
    }

    fn topics(&self) -> Vec<(String, Vec<String>)> {
        let found = self.get_topic_names_and_types();
        found.unwrap_or_default().into_iter().collect()
    }
}

/// Looks at the graph while something is missing.
pub struct Watch {
    pipeline: Arc<Pipeline>,
    /// The cloud topic, after remapping.
    topic: String,
    reliability: Reliability,
    start: Instant,
    next: Instant,
}

impl Watch {
    pub fn new(pipeline: Arc<Pipeline>, topic: String, reliability: Reliability) -> Self {
        let start = Instant::now();
        Self {
            pipeline,
            topic,
            reliability,
            start,
            next: start,
        }
    }

    /// To be called often; looks once a second, and asks the graph only while clouds or transforms are missing.
    pub fn look(&mut self, node: &r2r::Node) {
        let now = Instant::now();
        if now < self.next {
            return;
        }
        self.next = now + PERIOD;
        let last = self.pipeline.statistics().last_cloud_s;
        let silent = match last {
            Some(silent) => silent >= SILENCE.as_secs_f64(),
            None => now.duration_since(self.start) >= SILENCE,
        };
        let text = silent.then(|| {
            let since = match last {
                Some(_) => "no cloud for more than 2 s",
                None => "no cloud since the start",
            };
            let found = clouds(node, &self.topic, self.reliability);
            format!("{since} on {}: {found}", self.topic)
        });
        self.set(NO_CLOUDS, text);
        let troubles = self.pipeline.troubles();
        let has = |kind: &str| {
            troubles
                .iter()
                .any(|t| t.part == Part::Input && t.kind == kind)
        };
        let text = match (
            has(Drop::NoTransform.name()),
            has(ConditionKind::NoEgoMotion.name()),
        ) {
            (false, false) => None,
            (placing, _) => transforms(node, placing),
        };
        self.set(NO_TF, text);
    }

    fn set(&self, kind: &'static str, text: Option<String>) {
        let symptom = text.as_deref().map(|text| Symptom::warn(kind, text));
        self.pipeline.set_trouble(Part::Input, kind, symptom);
    }
}

/// Why no cloud comes, as far as the graph tells.
fn clouds(graph: &impl Graph, topic: &str, wanted: Reliability) -> String {
    let publishers = graph.publishers(topic);
    let (clouds, others): (Vec<_>, Vec<_>) = publishers.iter().partition(|p| p.topic_type == CLOUD);
    let mut found = Vec::new();
    if !others.is_empty() {
        let others = named(
            others
                .iter()
                .map(|p| format!("{} as {}", p.node, p.topic_type)),
        );
        found.push(format!(
            "it is published by {others}, and the node takes {CLOUD}"
        ));
    }
    let (deaf, heard): (Vec<&Publisher>, Vec<&Publisher>) = clouds
        .iter()
        .partition(|p| wanted == Reliability::Reliable && !p.reliable);
    if !deaf.is_empty() {
        let deaf = named(deaf.iter().map(|p| p.node.clone()));
        found.push(format!(
            "{deaf} publishes it as best_effort, and the node asks for reliable, so the two do not match; set \
             input.reliability to best_effort, which takes both"
        ));
    }
    if !heard.is_empty() {
        let heard = named(heard.iter().map(|p| p.node.clone()));
        found.push(format!(
            "{heard} publishes it and matches, so either it sends nothing, or its clouds get lost on the way (large ones \
             need config/fastdds.xml on both sides)"
        ));
    }
    if publishers.is_empty() {
        found.push("nobody publishes it".to_owned());
    }
    if clouds.is_empty() {
        found.push(elsewhere(graph, topic));
    }
    found.join("; ")
}

/// Where clouds are, instead, those of a similar name first.
fn elsewhere(graph: &impl Graph, topic: &str) -> String {
    let topics = graph.topics().into_iter();
    let mut other: Vec<_> = topics
        .filter(|(name, types)| name != topic && types.iter().any(|t| t == CLOUD))
        .map(|(name, _)| (distance(&name, topic), name))
        .collect();
    other.sort();
    // The graph lists topics that are only listened to, too.
    let published: Vec<_> = other
        .into_iter()
        .take(SEARCHED)
        .map(|(_, name)| name)
        .filter(|name| graph.publishers(name).iter().any(|p| p.topic_type == CLOUD))
        .collect();
    let Some(nearest) = published.first() else {
        return "there are no point clouds on any topic; is the driver running, in this ROS_DOMAIN_ID?".into();
    };
    let remap =
        format!("-r {TOPIC}:={nearest} (input_topic:={nearest} with the launch file) takes it");
    format!(
        "there are point clouds on {}; {remap}",
        named(published.iter().cloned())
    )
}

/// How little two topic names look alike: by their last parts, then as a whole.
fn distance(a: &str, b: &str) -> (usize, usize) {
    let last = |name: &str| name.rsplit('/').next().unwrap_or(name).to_owned();
    (edit_distance(&last(a), &last(b)), edit_distance(a, b))
}

/// Why no transforms come that clouds need, as far as the graph tells: for the place of the sensor, or else of the vehicle.
fn transforms(graph: &impl Graph, placing: bool) -> Option<String> {
    let (moving, fixed) = (graph.publishers("/tf"), graph.publishers("/tf_static"));
    let deaf_to = |publishers: &[Publisher], hears: fn(&Publisher) -> bool| -> Vec<String> {
        let deaf = publishers.iter().filter(|p| !hears(p));
        deaf.map(|p| p.node.clone()).collect()
    };
    // As the node subscribes.
    let moving_deaf = deaf_to(&moving, |p| p.reliable);
    let fixed_deaf = deaf_to(&fixed, |p| p.reliable && p.latched);
    let mut found = Vec::new();
    match (moving.is_empty(), fixed.is_empty()) {
        (true, true) if placing => found.push(
            "nobody publishes /tf or /tf_static, so clouds cannot be placed; start robot_state_publisher or a static \
             transform publisher, or set input.sensor_pose"
                .to_owned(),
        ),
        (true, _) if !placing => found.push(
            "nobody publishes /tf, so the vehicle's motion is not known; start what publishes odometry".to_owned(),
        ),
        _ => {}
    }
    if !moving_deaf.is_empty() {
        let deaf = named(moving_deaf);
        found.push(format!(
            "{deaf} publishes /tf as best_effort, and the node, as all of tf2, asks for reliable"
        ));
    }
    if placing && !fixed_deaf.is_empty() {
        let deaf = named(fixed_deaf);
        found.push(format!(
            "{deaf} publishes /tf_static, but not as transient_local and reliable, which the node, as all of tf2, asks for"
        ));
    }
    (!found.is_empty()).then(|| found.join("; "))
}

/// A list for people, of bounded length, the same whatever order the graph gives.
fn named(names: impl IntoIterator<Item = String>) -> String {
    let mut counted: Vec<(String, usize)> = Vec::new();
    for name in names {
        match counted.iter_mut().find(|(known, _)| *known == name) {
            Some((_, count)) => *count += 1,
            None => counted.push((name, 1)),
        }
    }
    let more = counted.len().saturating_sub(NAMED);
    let named = counted.into_iter().take(NAMED);
    let named = named.map(|(name, count)| match count {
        1 => name,
        count => format!("{name} ({count} publishers)"),
    });
    let mut text = named.collect::<Vec<_>>().join(", ");
    if more > 0 {
        text += &format!(" and {more} more");
    }
    text
}

/// The name that the arguments remap a topic of the node `name` to, as rcl reads them: the first rule that fits.
///
/// r2r does not tell it, and rcl's own answer takes handles that r2r keeps to itself.
pub fn remapped(topic: &str, name: &str, arguments: impl IntoIterator<Item = String>) -> String {
    let (namespace, own_name) = name.rsplit_once('/').unwrap_or(("", name));
    let expand = |topic: &str| match topic.strip_prefix('~') {
        Some(rest) => format!("{name}{rest}"),
        None if topic.starts_with('/') => topic.to_owned(),
        None => format!("{namespace}/{topic}"),
    };
    let wanted = expand(topic);
    let (mut ros, mut is_rule) = (false, false);
    for argument in arguments {
        match argument.as_str() {
            "--ros-args" => ros = true,
            "--" => ros = false,
            "-r" | "--remap" if ros => {
                is_rule = true;
                continue;
            }
            rule if is_rule => {
                if let Some((from, to)) = rule.split_once(":=")
                    && let Some(from) = from_of(from, own_name)
                    && expand(from) == wanted
                {
                    return expand(to.strip_prefix("rostopic://").unwrap_or(to));
                }
            }
            _ => {}
        }
        is_rule = false;
    }
    wanted
}

/// What a remapping rule matches, where it is one for this node and for topics.
fn from_of<'a>(from: &'a str, own_name: &str) -> Option<&'a str> {
    let from = match from.split_once(':') {
        Some((scheme, _)) if scheme == "rostopic" || scheme == "rosservice" => from,
        Some((node, rest)) if node == own_name => rest,
        Some(_) => return None,
        None => from,
    };
    match from.split_once("://") {
        Some(("rostopic", from)) => Some(from),
        Some(_) => None,
        None => Some(from),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[derive(Default)]
    struct Fake(BTreeMap<String, Vec<Publisher>>);

    impl Fake {
        fn with(mut self, topic: &str, publisher: Publisher) -> Self {
            let publishers = self.0.entry(topic.into()).or_default();
            publishers.push(publisher);
            self
        }

        /// As a subscription alone makes it.
        fn listened(mut self, topic: &str) -> Self {
            self.0.entry(topic.into()).or_default();
            self
        }
    }

    impl Graph for Fake {
        fn publishers(&self, topic: &str) -> Vec<Publisher> {
            self.0.get(topic).cloned().unwrap_or_default()
        }

        fn topics(&self) -> Vec<(String, Vec<String>)> {
            let types = |publishers: &Vec<Publisher>| match publishers.is_empty() {
                true => vec![CLOUD.to_owned()],
                false => publishers.iter().map(|p| p.topic_type.clone()).collect(),
            };
            let topics = self.0.iter();
            topics.map(|(name, p)| (name.clone(), types(p))).collect()
        }
    }

    fn publisher(node: &str, topic_type: &str) -> Publisher {
        Publisher {
            node: node.into(),
            topic_type: topic_type.into(),
            reliable: true,
            latched: false,
        }
    }

    #[test]
    fn without_a_publisher_the_topics_with_clouds_are_named_the_most_alike_first() {
        let graph = Fake::default()
            .listened("/lidar/points")
            .with("/camera/depth", publisher("/camera", CLOUD))
            .with("/lidar/point", publisher("/driver", CLOUD))
            .with("/imu", publisher("/driver", "sensor_msgs/msg/Imu"))
            .listened("/lidar/point_s");
        let text = clouds(&graph, "/lidar/points", Reliability::BestEffort);
        assert!(text.contains("nobody publishes it"), "{text}");
        assert!(
            text.contains("clouds on /lidar/point, /camera/depth;"),
            "{text}"
        );
        assert!(
            text.contains("-r ~/input/pointcloud:=/lidar/point "),
            "{text}"
        );
        let nothing = clouds(&Fake::default(), "/points", Reliability::BestEffort);
        assert!(
            nothing.contains("no point clouds on any topic"),
            "{nothing}"
        );
    }

    #[test]
    fn another_type_and_another_reliability_are_told_with_the_node() {
        let best_effort = Publisher {
            reliable: false,
            ..publisher("/driver", CLOUD)
        };
        let graph = Fake::default().with("/points", best_effort);
        let text = clouds(&graph, "/points", Reliability::Reliable);
        assert!(
            text.contains("/driver publishes it as best_effort"),
            "{text}"
        );
        assert!(text.contains("input.reliability"), "{text}");
        let text = clouds(&graph, "/points", Reliability::BestEffort);
        assert!(text.contains("/driver publishes it and matches"), "{text}");
        let graph =
            Fake::default().with("/points", publisher("/scan", "sensor_msgs/msg/LaserScan"));
        let text = clouds(&graph, "/points", Reliability::BestEffort);
        assert!(
            text.contains("/scan as sensor_msgs/msg/LaserScan"),
            "{text}"
        );
        assert!(text.contains("no point clouds on any"), "{text}");
    }

    #[test]
    fn missing_and_unheard_transforms_are_told() {
        let none = transforms(&Fake::default(), true).unwrap();
        assert!(none.contains("/tf_static") && none.contains("input.sensor_pose"));
        let none = transforms(&Fake::default(), false).unwrap();
        assert!(none.contains("odometry"), "{none}");
        let tf = "tf2_msgs/msg/TFMessage";
        let latched = Publisher {
            latched: true,
            ..publisher("/state", tf)
        };
        let good = Fake::default().with("/tf_static", latched);
        assert_eq!(transforms(&good, true), None);
        let volatile = Fake::default().with("/tf_static", publisher("/state", tf));
        let text = transforms(&volatile, true).unwrap();
        assert!(text.contains("/state publishes /tf_static, but not as transient_local"));
    }

    #[test]
    fn long_lists_are_cut_and_equal_names_counted() {
        let names = ["/a", "/a", "/b", "/c", "/d", "/e", "/f", "/g"];
        let text = named(names.map(str::to_owned));
        assert_eq!(text, "/a (2 publishers), /b, /c, /d, /e and 2 more");
    }

    #[test]
    fn remapping_rules_are_read_as_rcl_reads_them() {
        let of = |arguments: &str| {
            let arguments = arguments.split_whitespace().map(str::to_owned);
            remapped(TOPIC, "/front/node", arguments)
        };
        let own = "/front/node/input/pointcloud";
        for (arguments, topic) in [
            ("", own),
            ("--ros-args -r ~/input/pointcloud:=/points", "/points"),
            ("--ros-args -r ~/input/pointcloud:=points", "/front/points"),
            (
                "--ros-args --remap /front/node/input/pointcloud:=~/in",
                "/front/node/in",
            ),
            (
                "--ros-args -r node/input/pointcloud:=/points -r __node:=x",
                "/points",
            ),
            (
                "--ros-args -r node:~/input/pointcloud:=/a -r ~/input/pointcloud:=/b",
                "/a",
            ),
            ("--ros-args -r other:~/input/pointcloud:=/a", own),
            ("--ros-args -r rostopic://~/input/pointcloud:=/a", "/a"),
            ("--ros-args -r rosservice://~/input/pointcloud:=/a", own),
            ("-r ~/input/pointcloud:=/a", own),
            ("--ros-args -p x:=1 -- -r ~/input/pointcloud:=/a", own),
            ("--ros-args -p ~/input/pointcloud:=/a", own),
        ] {
            assert_eq!(of(arguments), topic, "{arguments}");
        }
    }
}
