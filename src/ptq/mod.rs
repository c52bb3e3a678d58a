//! ptq
