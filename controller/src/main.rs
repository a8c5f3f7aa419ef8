//! The binary `shunt`.

fn main() {}
