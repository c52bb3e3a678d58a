//! pillars
