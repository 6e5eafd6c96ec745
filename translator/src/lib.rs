//! Guest bytes to host code. The only package that names Cranelift.

pub mod abi;
