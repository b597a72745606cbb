// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What becomes of this process when nobody reads what it writes.
//!
//! Rust has SIGPIPE ignored before `main()`, with which printing panics. Programs that are run inherit that: they
//! are to have what our caller had instead. systemd's services have it ignored, what a shell starts has not.

use std::sync::atomic::{AtomicUsize, Ordering};

static FOUND: AtomicUsize = AtomicUsize::new(libc::SIG_DFL);

/// Runs before Rust's own preparations.
#[used]
#[unsafe(link_section = ".init_array")]
static LOOK: extern "C" fn() = {
    extern "C" fn look() {
        // SAFETY: all zeroes is a valid sigaction; it is alive during the call, which changes nothing.
        let found = unsafe {
            let mut found: libc::sigaction = std::mem::zeroed();
            libc::sigaction(libc::SIGPIPE, std::ptr::null(), &raw mut found);
            found.sa_sigaction
        };
        FOUND.store(found, Ordering::Relaxed);
    }
    look
};

fn set(action: libc::sighandler_t) {
    // SAFETY: sets one of the two actions that run no code of ours.
    unsafe { libc::signal(libc::SIGPIPE, action) };
}

/// What it was when this process began. A handler cannot be: there are none after an exec.
pub fn restore() {
    set(FOUND.load(Ordering::Relaxed));
}

/// Ends this process, in silence, as other tools end.
pub fn end() {
    set(libc::SIG_DFL);
}

/// Has writing give an error.
pub fn ignore() {
    set(libc::SIG_IGN);
}
