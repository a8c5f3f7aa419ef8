//! Traffic made and watched inside namespaces, in Rust: so that a test can assert what programs only print.

pub mod echo;
pub mod flood;
pub mod http;
pub mod iperf;
pub mod packet;
pub mod ping;
pub mod probe;
pub mod steady;
mod worker;
