//! Decoder families as tables: names, shapes, sharding, initial values, FLOPs and bytes.
//!
//! Nothing here links libtorch, so that the runner's side can plan, check and price a model too.
//! A family is one file in [`families`] and one line in [`FAMILIES`].

pub mod config;
pub mod error;
pub mod experts;
pub mod families;
pub mod fit;
pub mod init;
pub mod memory;
pub mod mesh;
pub mod params;
pub mod reader;
pub mod rope;
pub mod size;
pub mod slice;
pub mod stages;
pub mod write;

pub use config::ModelConfig;
pub use error::Error;
pub use experts::Experts;
pub use families::{FAMILIES, Family};
pub use mesh::{Axis, Coord, Mesh};
pub use params::{Cut, Init, ParamDef, Role, Shard};
pub use rope::{Rope, Scaling};
pub use slice::{Held, Slice, held};
pub use write::{ExpertSizes, Sizes};
