//! Every byte access: reading, parsing, rewriting, tunnelling. No map and no policy enters here.

pub(crate) mod frame;
pub(crate) mod parse;
pub(crate) mod quote;
pub(crate) mod refuse;
pub(crate) mod rewrite;
pub(crate) mod skb;
pub(crate) mod tunnel;
pub(crate) mod xdp;
