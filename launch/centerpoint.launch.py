"""The XML launch file, for those who include Python launch files. Same arguments."""

from launch import LaunchDescription
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import AnyLaunchDescriptionSource
from launch.substitutions import PathJoinSubstitution
from launch_ros.substitutions import FindPackageShare


def generate_launch_description():
    xml = PathJoinSubstitution([FindPackageShare("centerpoint_ptq"), "launch", "centerpoint.launch.xml"])
    return LaunchDescription([IncludeLaunchDescription(AnyLaunchDescriptionSource(xml))])
