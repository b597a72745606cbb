//! The ivsmc device: not written yet.
