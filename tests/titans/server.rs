//! The Neural Memory server's configuration: what is read, and what is refused.

use crate::value;
use lucid_attention::AttentionError;
use lucid_attention::module::{InputDims, ModuleWeights, MultiHeadAttention};
use lucid_attention::titans::lucidia::Mac;
use lucid_attention::titans::*;

/// A reply as the server gives it.
pub(crate) const REPLY: &str = r#"{"neural_memory_config": {"input_dim": 768, "key_dim": 128, "value_dim": 768,
    "query_dim": 128, "memory_hidden_dims": [512], "gate_hidden_dims": [64], "alpha_init": -2.0, "theta_init": -3.0,
    "eta_init": 2.0, "outer_learning_rate": 0.0001, "use_complex_gates": false, "hidden_dim": 512},
    "attention_config": null, "titans_variant": "MAC", "supports_external_gates": true,
    "supports_external_projections": false}"#;

fn read(text: &str) -> ServerConfig {
    ServerConfig::from_json(text).expect(text)
}

#[test]
fn a_reply() {
    let server = read(REPLY);
    let memory = NeuralMemoryConfig {
        input_dim: 768,
        key_dim: 128,
        value_dim: 768,
        query_dim: 128,
        memory_hidden_dims: vec![512],
        gate_hidden_dims: vec![64],
        alpha_init: -2.0,
        theta_init: -3.0,
        eta_init: 2.0,
        outer_learning_rate: 1e-4,
        use_complex_gates: false,
        hidden_dim: Some(512),
    };
    assert_eq!(server.neural_memory_config, memory);
    assert_eq!((server.titans_variant, server.attention_source()), (Variant::Mac, AttentionSource::KeyDim));
    assert_eq!((server.supports_external_gates, server.supports_external_projections), (true, false));
    assert_eq!(server.step_dims(), StepDims { x: 768, key: 128, value: 768, query: 128, y: 768 });
    let attention = server.attention().expect("checked");
    assert_eq!((attention.num_heads, attention.key_dim, attention.dropout), (4, 32, 0.0));
    assert!(attention.use_layer_norm && attention.use_residual);
    assert_eq!(read(&serde_json::to_string(&server).expect("plain data")), server);

    let without = read(&REPLY.replace(r#", "hidden_dim": 512"#, ""));
    assert_eq!(without.neural_memory_config.hidden_dim, None);
    let newer = read(&REPLY.replace(r#""attention_config""#, r#""version": 3, "attention_config""#));
    assert_eq!(newer, server, "what is not known is left alone");
    for (name, variant) in
        [("MAC", Variant::Mac), ("MAG", Variant::Mag), ("MAL", Variant::Mal), ("NONE", Variant::None)]
    {
        let text = REPLY.replace(r#""MAC""#, &format!("\"{name}\""));
        assert_eq!(read(&text).titans_variant, variant);
    }
}

#[test]
fn attention_of_the_server() {
    let served = r#"{"num_heads": 8, "key_dim": 16, "dropout": 0.25, "use_layer_norm": false, "use_residual": false,
        "max_dim_mismatch_warnings": 10}"#;
    let server = read(&REPLY.replace("null", served));
    let attention = server.attention().expect("checked");
    assert_eq!(server.attention_source(), AttentionSource::Served);
    assert_eq!((attention.num_heads, attention.key_dim, attention.dropout), (8, 16, 0.25));
    assert!(!attention.use_layer_norm && !attention.use_residual);
    let least =
        read(&REPLY.replace("null", r#"{"num_heads": 2, "key_dim": 8}"#)).attention().expect("checked");
    assert!(least.use_layer_norm && least.use_residual);
}

/// A variant can be made of what the server says, as the original's cannot.
#[test]
fn variants_of_the_server() {
    let server = read(REPLY);
    for (variant, output, value) in [
        (Variant::Mac, 768, 768),
        (Variant::Mag, 128, 128),
        (Variant::Mal, 768, 768),
        (Variant::None, 128, 128),
    ] {
        let config = server.variant_attention(variant).expect("checked");
        assert_eq!(
            (config.output_dim, config.use_residual, config.use_layer_norm),
            (Some(output), false, false)
        );
        assert_eq!(server.input_dims(variant), InputDims { query: 128, key: 128, value });
    }
    let config = server.variant_attention(Variant::Mac).expect("checked");
    let weights = ModuleWeights::glorot(&config, server.input_dims(Variant::Mac), 1).expect("valid sizes");
    let module = MultiHeadAttention::new(config, &weights).expect("valid parts");
    Mac::new(module, server.step_dims()).expect("sizes that fit");
}

#[test]
fn what_is_refused() {
    let refuse = |text: &str| ServerConfig::from_json(text).expect_err(text);
    let json = |text: &str, why: &str| {
        let error = refuse(text);
        let AttentionError::Service { operand: "/config", reason } = &error else { panic!("{error}") };
        assert!(reason.contains(why), "\"{reason}\" does not say \"{why}\"");
    };
    for field in [
        "input_dim",
        "key_dim",
        "value_dim",
        "query_dim",
        "memory_hidden_dims",
        "gate_hidden_dims",
        "alpha_init",
        "theta_init",
        "eta_init",
        "outer_learning_rate",
        "use_complex_gates",
        "neural_memory_config",
        "titans_variant",
        "supports_external_gates",
        "supports_external_projections",
    ] {
        let other = REPLY.replacen(&format!("\"{field}\""), "\"other\"", 1);
        json(&other, &format!("missing field `{field}`"));
    }
    json("", "EOF");
    json("<html>", "expected value");
    json(&REPLY[..200], "EOF");
    json(&REPLY.replace("768", "\"768\""), "invalid type: string");
    json(&REPLY.replace("128", "-128"), "invalid value");
    json(&REPLY.replace("128", "12.5"), "invalid type: floating point");
    json(&REPLY.replace("MAC", "MAX"), "unknown variant `MAX`");
    json(&REPLY.replace("true", "\"yes\""), "expected a boolean");
    json(&REPLY.replace("[512]", "512"), "expected a sequence");
    json(&REPLY.replace("null", "{}"), "missing field `num_heads`");
    json(&REPLY.replace("null", r#"{"num_heads": 4, "key_dim": 8, "heads": 4}"#), "unknown field `heads`");

    let least = "at least 1";
    assert_eq!(refuse(&REPLY.replace("128", "0")), value("key_dim", least, "0"));
    assert_eq!(refuse(&REPLY.replace("768", "0")), value("input_dim", least, "0"));
    assert_eq!(refuse(&REPLY.replace("[512]", "[512, 0]")), value("memory_hidden_dims", least, "0"));
    assert_eq!(refuse(&REPLY.replace("[64]", "[0]")), value("gate_hidden_dims", least, "0"));
    assert_eq!(refuse(&REPLY.replace(": 512}", ": 0}")), value("hidden_dim", least, "0"));
    assert_eq!(refuse(&REPLY.replace("-2.0", "1e300")), value("alpha_init", "a finite number", "inf"));
    let rate = value("outer_learning_rate", "a finite number that is not negative", "-0.0001");
    assert_eq!(refuse(&REPLY.replace("0.0001", "-0.0001")), rate);
    let heads = value("key_dim", "a multiple of 4, where attention_config is null", "130");
    assert_eq!(refuse(&REPLY.replace("128", "130")), heads);
    let text = REPLY.replace("null", r#"{"num_heads": 0, "key_dim": 8}"#);
    assert_eq!(refuse(&text), value("num_heads", least, "0"));
    let text = REPLY.replace("null", r#"{"num_heads": 4, "key_dim": 8, "dropout": 1}"#);
    assert_eq!(refuse(&text), value("dropout", "a rate in [0, 1)", "1"));
}
