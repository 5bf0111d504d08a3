//! How the program is linked: its 25,000 addresses that move with where it is loaded are packed (DT_RELR), 10 KB instead of
//! 0.6 MB that each start reads.
//!
//! Whoever loads the program must know the packed form, so it is used only where that is certain: when the program is made on a
//! machine for that machine, with glibc 2.36 or later. A linker that cannot pack says so and goes on.

use std::ffi::{CStr, c_char};

fn main() {
    println!("cargo::rerun-if-changed=board/link.rs");
    let of = |name: &str| std::env::var(name).unwrap_or_default();
    let is_native = of("HOST") == of("TARGET") && of("CARGO_CFG_TARGET_ENV") == "gnu";
    let known = is_native && glibc_minor().is_some_and(|minor| minor >= 36);
    if of("CARGO_CFG_TARGET_OS") == "linux" && known {
        println!("cargo::rustc-link-arg-bin=snug=-Wl,-z,pack-relative-relocs");
    }
}

/// The 36 of this machine's glibc 2.36, where there is one.
fn glibc_minor() -> Option<u32> {
    unsafe extern "C" {
        fn confstr(name: i32, buf: *mut c_char, len: usize) -> usize;
    }
    const GNU_LIBC_VERSION: i32 = 2; // _CS_GNU_LIBC_VERSION
    let mut text = [0; 32];
    // SAFETY: it writes no more than the length it is given, with a NUL at the end.
    let len = unsafe { confstr(GNU_LIBC_VERSION, text.as_mut_ptr().cast(), text.len()) };
    let text = CStr::from_bytes_until_nul(&text).ok().filter(|_| (1..=text.len()).contains(&len))?;
    text.to_str().ok()?.strip_prefix("glibc 2.")?.parse().ok()
}
