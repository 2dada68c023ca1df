//! One plain `f32` function per op: the oracle that every backend is compared with.
