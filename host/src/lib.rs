// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What `ivsmc-host` does: it finds API sockets of Cloud Hypervisor, and gives their VMs ivsmc devices by a policy.
//!
//! | module | what |
//! |---|---|
//! | [`policy`] | the policy's file; [`pattern`], [`name`] and [`labels`] belong to it |
//! | [`scan`] | which sockets there are; [`watch`] tells when to look again |
//! | [`api`] | calls of a VMM's API; [`vm`]: what they say of a VM, and what is to be done |
//! | [`attach`] | the loop: a task for each VM; [`folder`]: the fabrics' folders; [`complaints`]: what is logged |
//! | [`list`] | what `ivsmc-host list` shows |
//! | [`check`] | what `ivsmc-host check` looks at |
//! | [`drop_link`] | `ivsmc-host drop` and `allow` |

pub mod api;
pub mod attach;
pub mod check;
pub mod complaints;
pub mod drop_link;
pub mod folder;
pub mod labels;
pub mod list;
pub mod name;
pub mod pattern;
pub mod policy;
pub mod scan;
pub mod vm;
pub mod watch;
