//! From `sensor_msgs/PointCloud2` of any layout to [`Points`], sweeps joined with ego motion.

/// One LiDAR return.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Point {
    /// Position in metres, in the frame that the owner of the points states.
    pub x: f32,
    pub y: f32,
    pub z: f32,
    /// Reflectance as the sensor reports it; its scale is the sensor's.
    pub intensity: f32,
    /// Age of the point's sweep against the newest sweep, seconds (0 for the newest).
    pub time_lag: f32,
    /// Laser channel, 0 where the sensor reports none.
    pub ring: u16,
}

/// A set of returns, all in one frame. All coordinates are finite.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Points(pub Vec<Point>);
