//! The policy as a Hugging Face directory.

use std::path::Path;

use model::files::Dtype;
use model::save::{SaveOptions, copy_companions};

use crate::{Error, Policy};

impl Policy {
    /// Writes `config.json`, the weights (masters, as `dtype` or as they are) and the tokenizer's
    /// and generation files of the source into `dir`, which exists. Rank 0 calls it.
    ///
    /// # Errors
    /// The file that cannot be read or written.
    pub fn export(&self, dir: &Path, dtype: Option<Dtype>) -> Result<(), Error> {
        let options = SaveOptions {
            dtype,
            ..SaveOptions::default()
        };
        self.masters().save(&self.decoder.config, dir, options)?;
        if !self.source.as_os_str().is_empty() {
            copy_companions(&self.source, dir)?;
        }
        Ok(())
    }
}
