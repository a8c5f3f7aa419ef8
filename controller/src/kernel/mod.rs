//! The kernel as the agent sees it. Only this room imports aya, and only `links` speaks netlink.

pub mod step;
