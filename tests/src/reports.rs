// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What counts as a report of a kernel's checks. It uses nothing but the standard library: xtask has this file, too.

/// What a report's first line has.
const REPORTS: [&str; 8] = [
    "BUG:",
    "WARNING:",
    "KASAN:",
    "UBSAN:",
    "Oops:",
    "INFO: task ",
    "INFO: rcu",
    "general protection fault",
];

/// Whether a line of a kernel's log, "[    1.234567] text", begins a report of its checks, or an oops.
pub fn is_report(line: &str) -> bool {
    line.strip_prefix('[')
        .and_then(|line| line.split_once("] "))
        .is_some_and(|(_, text)| REPORTS.iter().any(|mark| text.contains(mark)))
}
