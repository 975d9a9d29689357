//! Generated demonstration data.
