//! Cluster objects to the model. Kubernetes types end here, and so does what cannot be meant: each refusal names the object, the field
//! and what to do. Nothing of the kernel enters.

pub mod convert;
mod decode;
mod documents;
mod files;
mod kind;
mod store;

pub use files::{FileSource, OpenError};
pub use kind::{Kind, ObjectId};
pub use store::Counts;
