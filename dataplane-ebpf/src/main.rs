//! The kernel-side programs of shunt: one hook a file in `programs/`, each a walk through `stages/` in packet order.
//!
//! Everything here is verified by the kernel before it runs; `shunt-common` holds what can be tested without one.
#![no_std]
#![no_main]

mod count;
mod maps;
mod packet;
mod programs;
mod socket;
mod stages;
mod subprograms;

/// As the kernel asks of programs that call GPL-only helpers (include/linux/license.h).
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// Never reached: a program that could panic would carry code the verifier rejects.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
