"""The package as ROS 2's tools see it, and the ROS 2 environment that scripts/setup makes.

`ros2 launch` itself is not in the wheels. What it relies on is checked instead: the launch file is
XML, so its package, executable, files and arguments can be held against the install tree.

Run it with `make test`, which installs the package first (CENTERPOINT_PTQ_PREFIX names another
prefix).
"""

import ast
import os
import re
import subprocess
import sys
import textwrap
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import yaml
from ament_index_python.packages import get_package_prefix, get_package_share_directory

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "centerpoint_ptq"


@pytest.fixture(scope="session")
def prefix() -> Path:
    path = Path(os.environ.get("CENTERPOINT_PTQ_PREFIX", ROOT / "install"))
    if not (path / "share" / PACKAGE / "package.xml").is_file():
        pytest.fail(f"the package is not installed in {path}; run `make install`")
    return path


@pytest.fixture(scope="session")
def share(prefix: Path) -> Path:
    return prefix / "share" / PACKAGE


@pytest.fixture(scope="session")
def launch(share: Path) -> ElementTree.Element:
    """The launch file of the node."""
    return ElementTree.parse(share / "launch" / "centerpoint.launch.xml").getroot()


@pytest.fixture(scope="session", params=["centerpoint.launch.xml", "calibration_elsewhere.launch.xml"])
def any_launch(request, share: Path) -> ElementTree.Element:
    return ElementTree.parse(share / "launch" / request.param).getroot()


def launch_arguments(launch: ElementTree.Element) -> dict[str, str]:
    return {arg.get("name"): arg.get("default") for arg in launch.findall("arg")}


def resolve(text: str, launch: ElementTree.Element, share: Path) -> str:
    """What launch makes of `text` when no argument is given."""
    arguments = launch_arguments(launch)

    def replace(match: re.Match) -> str:
        kind, name = match.groups()
        if kind == "var":
            return resolve(arguments[name], launch, share)
        assert kind == "find-pkg-share", f"unknown substitution in {text!r}"
        assert name == PACKAGE, f"{text!r} looks in another package"
        return str(share)

    return re.sub(r"\$\(([\w-]+) (\w+)\)", replace, text)


def node(launch: ElementTree.Element, program: str = "centerpoint_node") -> ElementTree.Element:
    (found,) = [n for n in launch.findall("node") if n.get("pkg") == PACKAGE and n.get("exec") == program]
    return found


def parameters(node: ElementTree.Element) -> dict[str, str]:
    return {p.get("name"): p.get("value") for p in node.findall("param") if p.get("name")}


def node_source() -> str:
    return "".join(p.read_text() for p in sorted((ROOT / "src" / "node").rglob("*.rs")))


# --- the install tree -----------------------------------------------------------------------------


def test_the_ament_index_leads_to_the_package(prefix, share, monkeypatch):
    monkeypatch.setenv("AMENT_PREFIX_PATH", f"{prefix}:{os.environ['AMENT_PREFIX_PATH']}")
    assert Path(get_package_prefix(PACKAGE)).samefile(prefix)
    assert Path(get_package_share_directory(PACKAGE)).samefile(share)


@pytest.mark.parametrize("name", [
    "calibration_action_server", "centerpoint_node", "centerpoint_ptq", "centerpoint_ptq_play",
])
def test_the_programs_are_where_ros2_run_looks(prefix, name):
    program = prefix / "lib" / PACKAGE / name
    assert program.is_file() and os.access(program, os.X_OK)


def test_the_programs_find_all_their_libraries(prefix):
    for program in (prefix / "lib" / PACKAGE).iterdir():
        listing = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
        assert "not found" not in listing, f"{program.name}: {listing}"


def needed_libraries(program: Path) -> set[str]:
    """What the loader looks for before the program starts, itself and through other libraries."""
    listing = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
    return {line.split()[0].rsplit("/", 1)[-1] for line in listing.splitlines()}


def test_the_command_line_needs_no_library_of_ros(prefix):
    of_ros = re.compile(r"lib(rcl|rmw|rcutils|rosidl|\w+_msgs|builtin_interfaces|tracetools)")
    tool, player = (prefix / "lib" / PACKAGE / name for name in ("centerpoint_ptq", "centerpoint_ptq_play"))
    assert not [name for name in needed_libraries(tool) if of_ros.match(name)]
    assert [name for name in needed_libraries(player) if of_ros.match(name)], "the check itself finds none"


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["play", "--help"]])
def test_the_command_line_starts_in_an_empty_environment(prefix, arguments):
    command = [prefix / "lib" / PACKAGE / "centerpoint_ptq", *arguments]
    result = subprocess.run(command, env={}, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0 and "centerpoint_ptq" in result.stdout, result.stderr


def test_playing_without_ros_says_what_to_source(prefix, tmp_path):
    command = [prefix / "lib" / PACKAGE / "centerpoint_ptq", "play", "--bag", tmp_path]
    result = subprocess.run(command, env={}, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    # Where the linker was told of a path to ROS, the player starts and the bag is what is wrong.
    assert "setup.bash" in result.stderr or str(tmp_path) in result.stderr, result.stderr


def test_every_source_file_of_launch_and_config_is_installed(share):
    for source, target in [("launch", "launch"), ("config/rviz", "rviz"), ("calibration", "calibration"),
                           ("models", "models")]:
        for path in sorted((ROOT / source).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                assert (share / target / path.relative_to(ROOT / source)).is_file(), path


# --- package.xml ----------------------------------------------------------------------------------


def declared_dependencies() -> set[str]:
    root = ElementTree.parse(ROOT / "package.xml").getroot()
    assert root.get("format") == "3" and root.findtext("name") == PACKAGE
    return {e.text for e in root if e.tag in ("depend", "build_depend", "exec_depend", "buildtool_depend")}


def idl_packages() -> list[str]:
    text = (ROOT / ".cargo/config.toml").read_text()
    return re.search(r'^IDL_PACKAGE_FILTER *= *"([^"]+)"', text, re.M).group(1).split(";")


def test_package_xml_names_what_r2r_builds_against():
    missing = {"rcl", "rcl_action", "ament_cmake", *idl_packages()} - declared_dependencies()
    assert not missing


def test_package_xml_and_cargo_agree_on_the_version():
    cargo = re.search(r'^version *= *"([^"]+)"', (ROOT / "Cargo.toml").read_text(), re.M).group(1)
    assert ElementTree.parse(ROOT / "package.xml").getroot().findtext("version") == cargo


def test_the_message_filter_is_closed_under_dependencies():
    """r2r's generated code does not compile when a nested message's package is filtered out."""
    chosen = set(idl_packages())
    if os.environ["ROS_DISTRO"] == "humble":
        chosen.discard("service_msgs")  # came later
    for name in sorted(chosen):
        manifest = ElementTree.parse(Path(get_package_share_directory(name)) / "package.xml").getroot()
        nested = {e.text for e in manifest if e.tag in ("depend", "build_depend", "build_export_depend")}
        messages = {n for n in nested if n.endswith(("_msgs", "_interfaces"))}
        assert messages <= chosen, f"{name} needs {messages - chosen}"


# --- the launch files -----------------------------------------------------------------------------


def test_launch_starts_installed_programs(any_launch, prefix):
    own = [n for n in any_launch.findall("node") if n.get("pkg") == PACKAGE]
    assert own
    for each in own:
        assert (prefix / "lib" / PACKAGE / each.get("exec")).is_file()


def test_launch_uses_only_declared_arguments(any_launch):
    used = set(re.findall(r"\$\(var (\w+)\)", ElementTree.tostring(any_launch, encoding="unicode")))
    assert used == set(launch_arguments(any_launch)), "declared and used arguments differ"


def test_files_that_launch_names_are_installed(any_launch, share):
    text = ElementTree.tostring(any_launch, encoding="unicode")
    named = re.findall(r"\$\(find-pkg-share centerpoint_ptq\)/[\w./-]+", text)
    assert len(named) >= 3
    for name in named:
        path = Path(resolve(name, any_launch, share))
        assert path.is_file(), f"{name} -> {path}"


def test_the_action_server_beside_the_node_drives_that_node(launch):
    detector, server = node(launch), node(launch, "calibration_action_server")
    # A relative name, so that it holds in any namespace, as long as both have the same.
    assert parameters(server)["node"] == detector.get("name") == "$(var node_name)"
    assert server.get("namespace") == detector.get("namespace")
    assert "work_here" not in parameters(server)
    # r2r's action server may end; the node does not need it.
    assert server.get("respawn") == "true" and detector.get("respawn") is None


def test_names_of_parameters_in_launch_files_are_ones_that_the_programs_have(any_launch, share):
    content = yaml.safe_load((share / "config" / "centerpoint_node.param.yaml").read_text())
    known = set(flatten(content["/**"]["ros__parameters"])) | {"model_path", "recipe_path", "use_sim_time"}
    for each in any_launch.findall("node"):
        own = {"node", "work_here"} if each.get("exec") == "calibration_action_server" else set()
        assert set(parameters(each)) <= known | own


def test_launch_remaps_the_cloud_input_of_the_node(launch, share):
    remaps = {r.get("from"): resolve(r.get("to"), launch, share) for r in node(launch).findall("remap")}
    assert remaps == {"~/input/pointcloud": "/sensing/lidar/top/pointcloud"}
    for name in remaps:
        assert f'"{name}"' in node_source(), f"the node has no topic {name}"


def test_launch_gives_node_and_rviz_the_same_clock(launch):
    for each in launch.findall("node"):
        times = [p.get("value") for p in each.findall("param") if p.get("name") == "use_sim_time"]
        assert times == ["$(var use_sim_time)"], each.get("pkg")


def test_launch_sets_the_transport_profile_for_both_generations_of_fast_dds(launch, share):
    values = {e.get("name"): resolve(e.get("value"), launch, share) for e in launch.findall("set_env")}
    profile = str(share / "config" / "fastdds.xml")
    assert values == {"FASTRTPS_DEFAULT_PROFILES_FILE": profile, "FASTDDS_DEFAULT_PROFILES_FILE": profile}


def test_the_python_launch_file_includes_the_xml_one(share):
    source = (share / "launch" / "centerpoint.launch.py").read_text()
    tree = ast.parse(source)
    assert "generate_launch_description" in {f.name for f in tree.body if isinstance(f, ast.FunctionDef)}
    strings = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)]
    assert "centerpoint.launch.xml" in strings


# --- configuration --------------------------------------------------------------------------------


def flatten(values: dict, path: str = "") -> dict[str, object]:
    flat = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat.update(flatten(value, f"{path}{key}."))
        else:
            flat[path + key] = value
    return flat


def test_parameter_file_fits_any_node_name_and_leaves_to_launch_what_launch_sets(share, launch):
    content = yaml.safe_load((share / "config" / "centerpoint_node.param.yaml").read_text())
    assert list(content) == ["/**"], "the node may be renamed, so the section must fit every name"
    given = flatten(content["/**"]["ros__parameters"])
    assert not set(parameters(node(launch))) & set(given), "launch would override these silently"
    # r2r's parameters know no arrays.
    assert all(isinstance(v, (bool, int, float, str)) for v in given.values())


def test_fast_dds_profile_holds_a_large_cloud(share):
    root = ElementTree.parse(share / "config" / "fastdds.xml").getroot()
    space = {"f": root.tag[1:].split("}")[0]}
    descriptors = {d.findtext("f:transport_id", namespaces=space): d
                   for d in root.findall(".//f:transport_descriptor", space)}
    kinds = {d.findtext("f:type", namespaces=space) for d in descriptors.values()}
    assert kinds == {"SHM", "UDPv4"}, "shared memory for this host, UDP for others"
    (shared,) = [d for d in descriptors.values() if d.findtext("f:type", namespaces=space) == "SHM"]
    # 128 beams by 2048 columns of 48 bytes are 12.6 MB.
    assert int(shared.findtext("f:maxMessageSize", namespaces=space)) >= 128 * 2048 * 48
    assert int(shared.findtext("f:segment_size", namespaces=space)) >= 64 << 20
    used = {t.text for t in root.findall(".//f:userTransports/f:transport_id", space)}
    assert used == set(descriptors)


def test_rviz_shows_what_the_launch_file_connects(share, launch):
    view = yaml.safe_load((share / "rviz" / "centerpoint.rviz").read_text())["Visualization Manager"]
    displays = {d["Class"].split("/")[1]: d for d in view["Displays"]}
    assert {"Grid", "TF", "PointCloud2", "MarkerArray"} <= set(displays)
    arguments = launch_arguments(launch)
    assert displays["PointCloud2"]["Topic"]["Value"] == arguments["input_topic"]
    assert displays["PointCloud2"]["Topic"]["Reliability Policy"] == "Best Effort"
    own, name = f"/{arguments['node_name']}/", displays["MarkerArray"]["Topic"]["Value"]
    assert name.startswith(own)
    assert f'"~/{name.removeprefix(own)}"' in node_source(), f"the node has no topic {name}"


# --- the ROS 2 environment ------------------------------------------------------------------------

# Both peers run in processes of their own, as a driver and a detector do. The next cloud is sent when the receiver has
# told of the one before, or has had long enough for it: what a busy machine delays is not lost.
PEER = """
    import sys, time, rclpy
    from rclpy.qos import QoSProfile, qos_profile_sensor_data
    from geometry_msgs.msg import TransformStamped
    from sensor_msgs.msg import PointCloud2
    from std_msgs.msg import Int32
    from tf2_msgs.msg import TFMessage
    from vision_msgs.msg import Detection3D, Detection3DArray, ObjectHypothesisWithPose

    clouds, size, patience = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    rclpy.init()

    def spin_until(ready, seconds=patience):
        deadline = time.monotonic() + seconds
        while not ready() and time.monotonic() < deadline:
            rclpy.spin_once(node, timeout_sec=0.05)
        return ready()
"""

SENDER = """
    node = rclpy.create_node("sender")
    cloud_out = node.create_publisher(PointCloud2, "cloud", qos_profile_sensor_data)
    objects_out = node.create_publisher(Detection3DArray, "objects", 10)
    tf_out = node.create_publisher(TFMessage, "tf", 10)
    known, told = [], []
    node.create_subscription(Int32, "told", lambda m: (known if m.data < 0 else told).append(m.data), 100)
    connected = lambda: known and all(p.get_subscription_count() for p in (cloud_out, objects_out, tf_out))
    assert spin_until(connected), "no receiver was discovered"

    hypothesis = ObjectHypothesisWithPose()
    hypothesis.hypothesis.class_id = "PEDESTRIAN"
    hypothesis.hypothesis.score = 0.75
    detection = Detection3D(id="7", results=[hypothesis])
    detection.bbox.center.position.x = 12.5
    detection.bbox.size.z = 1.8
    objects = Detection3DArray(detections=[detection])
    objects.header.frame_id = "base_link"
    transform = TransformStamped(child_frame_id="base_link")
    transform.header.frame_id = "odom"
    transform.transform.translation.y = -3.0

    cloud = PointCloud2(height=1, width=size // 16, point_step=16, row_step=size, data=bytes(size))
    for i in range(clouds):
        cloud.header.stamp.sec = i
        cloud_out.publish(cloud)
        spin_until(lambda: i in told, 2.0)
    # Reliable ones are not lost, but for those that the next ones displace.
    for i in range(10):
        objects_out.publish(objects)
        tf_out.publish(TFMessage(transforms=[transform]))
    assert spin_until(lambda: clouds in told), "the receiver did not end"
    print("clouds", len([i for i in told if i < clouds]))
"""

RECEIVER = """
    node = rclpy.create_node("receiver")
    tell = node.create_publisher(Int32, "told", 100)
    objects, transforms = [], []
    def cloud(message):
        assert len(message.data) == size
        tell.publish(Int32(data=message.header.stamp.sec))
    node.create_subscription(PointCloud2, "cloud", cloud, qos_profile_sensor_data)
    node.create_subscription(Detection3DArray, "objects", objects.append, 10)
    node.create_subscription(TFMessage, "tf", transforms.append, 10)
    topics = ["cloud", "objects", "tf"]
    assert spin_until(lambda: all(node.count_publishers(t) for t in topics) and tell.get_subscription_count())
    tell.publish(Int32(data=-1))
    assert spin_until(lambda: len(objects) == len(transforms) == 10), f"{len(objects)} objects, {len(transforms)} transforms"
    first = objects[0].detections[0]
    assert objects[0].header.frame_id == "base_link" and first.id == "7"
    assert first.results[0].hypothesis.class_id == "PEDESTRIAN" and first.results[0].hypothesis.score == 0.75
    assert first.bbox.center.position.x == 12.5 and first.bbox.size.z == 1.8
    assert transforms[0].transforms[0].transform.translation.y == -3.0
    tell.publish(Int32(data=clouds))
    # Until the sender, which waits for that, is gone.
    spin_until(lambda: not node.count_publishers("cloud"))
"""


def test_clouds_of_megabytes_and_our_messages_cross_the_graph(share, tmp_path):
    """2.4 MB best effort: with Fast DDS's defaults about half are lost on one host."""
    import graph

    clouds, size = 30, 2_400_000
    environment = {"ROS_HOME": str(tmp_path)}
    if os.environ.get("RMW_IMPLEMENTATION", "rmw_fastrtps_cpp") == "rmw_fastrtps_cpp":
        environment["FASTRTPS_DEFAULT_PROFILES_FILE"] = str(share / "config" / "fastdds.xml")
        environment["FASTDDS_DEFAULT_PROFILES_FILE"] = str(share / "config" / "fastdds.xml")
    domain = graph.Domain()
    peers = []
    try:
        for name, program in [("receiver", RECEIVER), ("sender", SENDER)]:
            command = [sys.executable, "-c", textwrap.dedent(PEER) + textwrap.dedent(program)]
            command += [clouds, size, graph.PATIENCE]
            peers.append(graph.Process(command, tmp_path / f"{name}.log", domain.number, **environment))
        receiver, sender = peers
        assert sender.wait() == 0, f"{sender.output}\n{receiver.output}"
        assert receiver.wait() == 0, receiver.output
    finally:
        for opened in [*peers, domain]:
            opened.close()
    received = int(re.search(r"^clouds (\d+)$", sender.output, re.M).group(1))
    assert received >= 0.9 * clouds, f"{received} of {clouds} clouds arrived"


def test_onnx_runtime_library_is_there_and_new_enough():
    import ctypes

    library = ctypes.CDLL(os.environ["ORT_DYLIB_PATH"])

    class Base(ctypes.Structure):
        _fields_ = [("get_api", ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32)),
                    ("get_version", ctypes.CFUNCTYPE(ctypes.c_char_p))]

    library.OrtGetApiBase.restype = ctypes.POINTER(Base)
    version = library.OrtGetApiBase().contents.get_version().decode()
    assert int(version.split(".")[1]) >= 17, version
