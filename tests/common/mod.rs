//! What the integration tests share.
#![allow(dead_code, unused_imports, reason = "each test crate uses its own part")]
#![allow(unreachable_pub, reason = "a module of every test crate, an API of none")]
#![allow(missing_docs, reason = "names say what fields are")]

pub mod cases;
pub mod engines;
pub mod guard;
pub mod model;
pub mod process;
pub mod verify;
