// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A stock user of an ivshmem device.
