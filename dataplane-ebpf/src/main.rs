#![no_std]
#![no_main]
//! x
use aya_ebpf::{macros::classifier, programs::TcContext};
#[classifier]
pub fn from_pod(ctx: TcContext) -> i32 {
    ctx.len() as i32
}
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
