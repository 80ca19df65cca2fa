//! Hints and metrics as JSON, by the original's names.

use crate::{DIMS, Vectors, filled};
use lucid_attention::titans::lucidia::*;
use lucid_attention::titans::*;

#[test]
fn hints() {
    let read = |text| serde_json::from_str::<Hints>(text).expect(text);
    assert_eq!(read("{}"), Hints::default());
    let text = r#"{"focus": "emotional",
        "mac": {"context_limit": 8, "attention_temperature": 0.5, "attention_mode": "recency_focused"},
        "mag": {"context_limit": 9, "gate_modifiers": {"alpha_scale": 1.5, "eta_scale": 0.5}},
        "mal": {"context_limit": 7, "blend_factor": 0.25, "attention_temperature": 2}}"#;
    let expected = Hints {
        focus: Focus::Emotional,
        mac: MacHints {
            context_limit: Some(8),
            attention_temperature: Some(0.5),
            attention_mode: Some(MacMode::RecencyFocused),
        },
        mag: MagHints {
            context_limit: Some(9),
            gate_modifiers: GateModifiers { alpha_scale: Some(1.5), theta_scale: None, eta_scale: Some(0.5) },
        },
        mal: MalHints { context_limit: Some(7), blend_factor: Some(0.25), attention_temperature: Some(2.0) },
    };
    assert_eq!(read(text), expected);
    assert_eq!(read(&serde_json::to_string(&expected).expect("plain data")), expected);
    for (text, why) in [
        (r#"{"focus": "novelty"}"#, "unknown variant `novelty`"),
        (r#"{"mac": {"limit": 3}}"#, "unknown field `limit`"),
        (r#"{"mag": {"gate_modifiers": {"beta_scale": 1}}}"#, "unknown field `beta_scale`"),
        (r#"{"mal": {"context_limit": 2.5}}"#, "invalid type"),
    ] {
        let error = serde_json::from_str::<Hints>(text).expect_err(text).to_string();
        assert!(error.contains(why), "{text}: {error}");
    }
}

#[test]
fn metrics() {
    let (mut context, _) = filled(DIMS, 12);
    let now = Vectors::new(DIMS, 1000);
    let current = context.begin(now.step(0.0, "now")).expect("a valid step");
    let mac = Mac::new(HistoryAttention::identity(1), DIMS).expect("valid parts");
    let (mut out, hints) = (vec![0.0; DIMS.y], Hints { focus: Focus::Recency, ..Hints::default() });
    let metrics = mac
        .process_input(&current, &now.y, Some(&hints), &mut out, &mut TitansWorkspace::new())
        .expect("a valid call");
    let json = serde_json::to_value(metrics).expect("plain data");
    for (name, expected) in [
        ("attention_focus", "\"recency\""),
        ("attention_mode", "\"recency_focused\""),
        ("context_limited", "true"),
        ("context_limit", "10"),
        ("history_size_used", "10"),
        ("output_blending_applied", "true"),
        ("fallback_mode", "false"),
        ("aligned_dimension", "null"),
    ] {
        assert_eq!(json[name].to_string(), expected, "{name}");
    }
}
