//! Health and metrics over HTTP: what is answered (`answer` to operators, `health_check` to load balancers), and to whom and for how
//! long (`server`). Knows nothing of the agent but its [`Site`]; asks for no secrets and changes nothing.

pub mod answer;
pub mod health_check;
pub mod server;

pub use answer::{Answer, Readiness, Site, answer};
pub use server::{Limits, serve};
