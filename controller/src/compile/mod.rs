//! Model in, desired maps out: pure and incremental.

pub mod desired;
