//! Bytes for targets, made of numbers: what stands for a mutator where there is none.

use crate::common::cases::Rng;

/// Bytes between so many and so many, now and then a few of one kind.
pub(crate) fn bytes(rng: &mut Rng, least: usize, most: usize) -> Vec<u8> {
    let len = rng.between(least..=most);
    let biased = rng.pick(&[0.0, 0.0, 0.0, 0.1, 0.5]);
    let kind = rng.pick(&[0, 1, 0x7f, 0xff]);
    (0..len).map(|_| if rng.chance(biased) { kind } else { rng.bits() as u8 }).collect()
}

/// Choices of `plan`: 16 bits each, of which most are tame, so that some calls are legal.
pub(crate) fn choices(rng: &mut Rng) -> Vec<u8> {
    let wild = rng.pick(&[0.02, 0.1, 1.0]);
    let count = rng.between(20..=200);
    let choice = |rng: &mut Rng| if rng.chance(wild) { rng.bits() as u16 } else { rng.between(0..=3) as u16 };
    (0..count).flat_map(|_| choice(rng).to_le_bytes()).collect()
}

/// A configuration of `weights` and some bytes to change.
pub(crate) fn file(rng: &mut Rng) -> Vec<u8> {
    let changes = rng.pick(&[0, 0, 2, 6, 40]);
    bytes(rng, 24 + changes, 24 + 2 * changes)
}

/// JSON: objects of known fields, with values mostly of their types, and a few bytes changed.
pub(crate) fn json(rng: &mut Rng) -> Vec<u8> {
    const LAYER: [&str; 18] = [
        "num_heads",
        "key_dim",
        "value_dim",
        "dropout",
        "use_bias",
        "use_layer_norm",
        "use_residual",
        "activation",
        "name",
        "kv_heads",
        "output_dim",
        "causal",
        "window_left",
        "window_right",
        "scale",
        "softcap",
        "layer_norm_epsilon",
        "weights_dtype",
    ];
    const PLAN: [&str; 5] =
        ["level", "max_threads", "spread_from_microseconds", "bf16_dot", "max_workspace_bytes"];
    const PROBLEM: [&str; 6] = ["q_heads", "kv_heads", "head_dim", "v_dim", "max_q_len", "max_kv_len"];
    const DIMS: [&str; 3] = ["query", "key", "value"];
    let names: &[&str] = match rng.between(0..=7) {
        0 => &PLAN,
        1 => &PROBLEM,
        2 => &DIMS,
        3 => {
            let config = server_config(rng);
            return changed(rng, config.into_bytes());
        }
        _ => &LAYER,
    };
    // What has no default is mostly there.
    let some = names.len() != PROBLEM.len() && names.len() != DIMS.len() || rng.chance(0.1);
    let share = rng.pick(&[0.1, 0.3, 0.7]);
    let mut fields = Vec::new();
    for name in names {
        if !some || rng.chance(share) {
            fields.push(format!("\"{name}\": {}", value(rng, name)));
        }
    }
    changed(rng, format!("{{{}}}", fields.join(", ")).into_bytes())
}

/// A value for a field, mostly of its type.
fn value(rng: &mut Rng, name: &str) -> String {
    if rng.chance(0.05) {
        let any = [
            "null",
            "true",
            "-1",
            "1.5",
            "\"x\"",
            "[]",
            "{}",
            "1e39",
            "1e-46",
            "18446744073709551615",
            "1e999",
        ];
        return rng.pick(&any).to_owned();
    }
    match name {
        "use_bias" | "use_layer_norm" | "use_residual" | "causal" | "bf16_dot" => {
            rng.pick(&["true", "false"]).to_owned()
        }
        "activation" => rng
            .pick(&[
                "null",
                "\"linear\"",
                "\"relu\"",
                "\"gelu\"",
                "\"gelu_tanh\"",
                "\"silu\"",
                "\"tanh\"",
                "\"sigmoid\"",
            ])
            .to_owned(),
        "weights_dtype" => rng.pick(&["\"f32\"", "\"f16\"", "\"bf16\""]).to_owned(),
        "level" => rng.pick(&["null", "\"portable\"", "\"avx2\"", "\"avx512\""]).to_owned(),
        "name" => rng.pick(&["\"\"", "\"layer\"", "\"\\u00e9\\n\""]).to_owned(),
        "dropout" | "layer_norm_epsilon" => rng.pick(&["0.0", "0.5", "1e-6", "1.0", "-0.1", "0"]).to_owned(),
        "scale" | "softcap" => rng.pick(&["null", "0.5", "1.0", "-2", "0", "30.0", "1e38"]).to_owned(),
        _ if rng.chance(0.03) => {
            rng.pick(&["9223372036854775807", "4611686018427387904", "4294967296"]).to_owned()
        }
        _ => rng.between(0..=8).to_string(),
    }
}

fn server_config(rng: &mut Rng) -> String {
    let mut size = || rng.between(0..=12);
    let memory = format!(
        "{{\"input_dim\": {}, \"key_dim\": {}, \"value_dim\": {}, \"query_dim\": {}, \"memory_hidden_dims\": [{}], \
         \"gate_hidden_dims\": [], \"alpha_init\": -2.0, \"theta_init\": -3.0, \"eta_init\": 2.0, \
         \"outer_learning_rate\": 0.001, \"use_complex_gates\": false}}",
        size(),
        size(),
        size(),
        size(),
        size(),
    );
    let attention = format!("{{\"num_heads\": {}, \"key_dim\": {}}}", size(), size());
    let attention = rng.pick(&["null", &attention]).to_owned();
    let variant = rng.pick(&["MAC", "MAG", "MAL", "NONE"]);
    format!(
        "{{\"neural_memory_config\": {memory}, \"attention_config\": {attention}, \"titans_variant\": \"{variant}\", \
         \"supports_external_gates\": true, \"supports_external_projections\": true}}"
    )
}

/// A few bytes changed, now and then.
fn changed(rng: &mut Rng, mut text: Vec<u8>) -> Vec<u8> {
    if rng.chance(0.2) {
        for _ in 0..rng.between(1..=3) {
            let at = rng.between(0..=text.len() - 1);
            text[at] = rng.pick(b"{}[],:\"0 -e.a\xff");
        }
    }
    text
}
