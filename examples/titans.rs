//! A neural memory's steps through the Titans variants: gates and values for its update, and its answer in the light of the
//! answers before it.
//!
//! ```sh
//! cargo run --release --example titans
//! ```

use lucid_attention::AttentionError;
use lucid_attention::module::{AttentionConfig, InputDims, ModuleWeights, MultiHeadAttention};
use lucid_attention::titans::lucidia::{DenseGates, Focus, Hints, Mac, Mag, Mal};
use lucid_attention::titans::{HistoryAttention, SequenceContext, Step, StepDims, TitansWorkspace};

const DIM: usize = 128;

fn main() -> Result<(), AttentionError> {
    // The attention module, 4 heads of 32.
    let config = AttentionConfig { num_heads: 4, key_dim: 32, ..AttentionConfig::default() };
    let weights = ModuleWeights::glorot(&config, InputDims::all(DIM), 1)?;
    let attention_module = MultiHeadAttention::new(config, &weights)?;

    let dims = StepDims::all(DIM);
    let mut sequence_context = SequenceContext::new(dims)?; // the last 50 steps
    let mac_variant = Mac::new(attention_module, dims)?;
    let mag_variant = Mag::new(HistoryAttention::identity(4), DenseGates::initial(DIM)?, dims)?;
    let mal_variant = Mal::new(HistoryAttention::identity(4), dims)?;
    let [mut for_mac, mut for_mag, mut for_mal]: [TitansWorkspace; 3] = Default::default();

    for t in 0..60 {
        let focus = Focus::ALL[t / 10];
        let hints = Hints { focus, ..Hints::default() };
        // What the memory's projections make of an input.
        let [x_t, k_t, v_t, q_t] = [1, 2, 3, 4].map(|kind| wave(t, kind));
        let id = format!("memory {t}");
        let step = Step { timestamp: t as f64, id: &id, x: &x_t, key: &k_t, value: &v_t, query: &q_t };
        let current = sequence_context.begin(step)?;

        // Before the update: with which gates, and to which value.
        let (gates, _) = mag_variant.process_input(&current, Some(&hints), &mut for_mag)?;
        let mut v_prime = vec![0.0; DIM];
        let changed = mal_variant.process_input(&current, Some(&hints), &mut v_prime, &mut for_mal)?;

        // The memory is updated with them, and answers.
        let y_t = wave(t, 5);

        // After it: the answer in the light of those before.
        let mut y_final = vec![0.0; DIM];
        let result = mac_variant.process_input(&current, &y_t, Some(&hints), &mut y_final, &mut for_mac)?;
        current.finish(&y_t)?; // now the step is history

        if t % 10 == 9 {
            let entropy = result.attention_weights_entropy.unwrap_or(0.0);
            println!("{focus:?}, {} of {t} steps: entropy {entropy:.3} nats", result.history_size_used);
            println!("  value changed by {:.3}, gates {gates:?}", changed.v_change_magnitude.unwrap_or(0.0));
        }
    }
    Ok(())
}

/// Numbers in place of a memory's.
fn wave(t: usize, kind: usize) -> Vec<f32> {
    (0..DIM).map(|d| ((t * kind + d * (kind + 3)) as f32 * 0.37).sin()).collect()
}
