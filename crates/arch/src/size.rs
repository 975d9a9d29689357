//! FLOPs and bytes of a model.

use crate::{ModelConfig, Role};

impl ModelConfig {
    /// Elements of all parameters, a tied embedding counted once.
    pub fn param_count(&self) -> u64 {
        self.params().iter().map(|p| p.numel() as u64).sum()
    }

    /// Elements of the matrices that a token is multiplied with: all linears (of the experts, as
    /// many as a token goes to) and the LM matrix (tied or not), not the embedding look-up, norms
    /// or biases.
    pub fn matmul_params(&self) -> u64 {
        let (mut dense, mut experts) = (0, 0);
        for p in self.params().iter().filter(|p| p.role == Role::Linear) {
            match p.expert {
                None => dense += p.numel() as u64,
                Some(_) => experts += p.numel() as u64,
            }
        }
        if let Some(e) = &self.experts {
            // experts are of one size
            dense += experts / e.count as u64 * e.per_token as u64;
        }
        dense + (self.vocab_size * self.hidden_size) as u64
    }

    /// Floating-point operations of the forward for one token in a sequence of `seq_len`, averaged
    /// over it: 2 per multiplied matrix element, and 4 x heads x head_dim for each row that
    /// causal attention looks at (scores and weighted sum), `min(window, ..)` of them.
    /// This is the numerator of MFU; a training step costs three times it (PaLM,
    /// arXiv 2204.02311, appendix B).
    pub fn flops_per_token(&self, seq_len: usize) -> f64 {
        let attention: f64 = self
            .windows
            .iter()
            .map(|w| mean_context(seq_len, *w) * 4.0 * (self.heads * self.head_dim) as f64)
            .sum();
        2.0 * self.matmul_params() as f64 + attention
    }

    /// Floating-point operations of forward and backward for one token: 3 x forward.
    pub fn train_flops_per_token(&self, seq_len: usize) -> f64 {
        3.0 * self.flops_per_token(seq_len)
    }

    /// Bytes of keys and values that one token leaves behind, all layers, at `element_bytes` each.
    pub fn kv_bytes_per_token(&self, element_bytes: usize) -> u64 {
        (2 * self.layers * self.kv_heads * self.head_dim * element_bytes) as u64
    }
}

/// Mean number of rows seen by a row of a causal sequence, itself included.
fn mean_context(seq_len: usize, window: Option<usize>) -> f64 {
    let n = seq_len.max(1) as f64;
    let w = window.map_or(n, |w| (w as f64).min(n));
    // rows 1..w see 1..w, the rest see w
    (w * (w + 1.0) / 2.0 + (n - w) * w) / n
}
