//! Cluster objects to the model. Kubernetes types end here, and so does what cannot be meant: each refusal names the object, the field
//! and what to do. Nothing of the kernel enters.

mod api;
pub mod convert;
mod decode;
mod documents;
mod files;
pub(crate) mod flannel;
mod kind;
mod source;
mod store;

pub(crate) use api::paced;
pub use api::{ApiSource, ConnectError, Failure, Reception, Receptions};
pub use files::{FileSource, OpenError};
pub use kind::{Kind, ObjectId};
pub use source::{Origin, Source};
pub use store::Counts;
