//! Decoders over local weights: loading, saving, fresh values, and the forward in segments.
//!
//! | module | what |
//! |---|---|
//! | [`weights`] | [`Weights`]: parameters by Hugging Face name |
//! | [`files`] | safetensors files and their index, checked before use |
//! | [`save`] | model directories written, sharded |
//! | [`convert`] | a model directory to another, byte for byte or with another dtype |
//! | [`dcp`] | distributed checkpoints of PyTorch, read and written |
//! | [`decoder`] | [`Decoder`]: segments and their forward |
//! | [`moe`] | [`Dispatch`] and [`Routing`]: rows to experts and back |
//! | [`ops`] | [`Ops`] and its libtorch implementation |
//! | [`attend`] | [`Attend`], [`Layout`], and [`Packed`] training attention |
//! | [`split`] | [`Split`]: how ranks share a segment's matrices and rows |
//!
//! What crosses ranks or differs by device inside a segment ([`Attend`], [`Dispatch`], [`Ops`],
//! [`Split`]) is injected:
//! nothing here knows of ranks.

pub mod attend;
pub mod convert;
pub mod dcp;
pub mod decoder;
pub mod error;
pub mod files;
pub mod moe;
pub mod ops;
pub mod save;
pub mod split;
pub mod weights;

pub use attend::packed::Packed;
pub use attend::{Attend, AttendSpec, Layout, Share, Span};
pub use decoder::{Context, Decoder, Segment, SegmentKind, Stream};
pub use error::Error;
pub use moe::{Dispatch, Routing};
pub use ops::{Libtorch, Ops};
pub use split::{Split, Unsplit};
pub use weights::Weights;
