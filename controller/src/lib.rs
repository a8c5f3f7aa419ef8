//! The user side of shunt. Data flows one way: cluster objects -> model -> compile -> diff -> kernel maps.

pub mod compile;
pub mod kernel;
pub mod model;
