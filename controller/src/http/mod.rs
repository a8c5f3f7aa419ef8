//! Health and metrics over HTTP: what is answered (`answer`), and to whom and for how long (`server`). Knows nothing of the agent but
//! its [`Site`]; asks for no secrets and changes nothing.

pub mod answer;
pub mod server;

pub use answer::{Readiness, Site};
pub use server::{Limits, serve};
