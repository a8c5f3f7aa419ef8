//! Programs without a node: packets as values, run one by one through `BPF_PROG_TEST_RUN` over maps that are filled by hand.

pub mod dataplane;
pub mod packet;
