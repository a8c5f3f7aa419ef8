//! What this node tells the cluster of itself: annotations, a condition, Events. Decisions only, each a function of what is and what
//! was said before; the agent carries them to the API server. Nothing of the kernel enters.

pub mod news;
pub mod node;
pub mod pace;

/// Who writes: the field manager of patches and the controller of Events.
pub const WRITER: &str = "shunt";
