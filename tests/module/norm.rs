//! The layer norm by itself: against its definition in `f64`, by everybody's names, and what it refuses.

use crate::{assert_bits, numbers};
use lucid_attention::module::*;
use lucid_attention::{AttentionError, Level};

fn weights(dim: usize) -> NormWeights {
    let gamma = numbers(dim, 1).iter().map(|x| 1.0 + 0.5 * x).collect();
    NormWeights { gamma, beta: numbers(dim, 2) }
}

/// `(x - mean) / sqrt(variance + epsilon) * gamma + beta` of a row.
fn normalised(row: &[f64], weights: &NormWeights, epsilon: f32) -> Vec<f64> {
    let n = row.len() as f64;
    let mean = row.iter().sum::<f64>() / n;
    let variance = row.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
    let deviation = (variance + f64::from(epsilon)).sqrt();
    let scaled = row.iter().zip(&weights.gamma).zip(&weights.beta);
    scaled.map(|((x, &gamma), &beta)| (x - mean) / deviation * f64::from(gamma) + f64::from(beta)).collect()
}

#[test]
fn the_definition() {
    for (rows, dim, epsilon) in [(1, 1, 1e-6), (3, 7, 1e-12), (5, 16, 1e-5), (2, 384, 1e-12), (700, 40, 1e-6)]
    {
        let (x, residual) = (numbers(rows * dim, 3), numbers(rows * dim, 4));
        for residual in [None, Some(&residual[..])] {
            let sum: Vec<f64> = (0..rows * dim)
                .map(|i| f64::from(x[i]) + residual.map_or(0.0, |residual| f64::from(residual[i])))
                .collect();
            let expected: Vec<f64> =
                sum.chunks_exact(dim).flat_map(|row| normalised(row, &weights(dim), epsilon)).collect();
            for level in Level::available() {
                let norm = LayerNorm::new(weights(dim), epsilon, Some(level), Some(1)).expect("valid parts");
                assert_eq!(norm.dim(), dim);
                let mut got = x.clone();
                norm.run(residual, &mut got).expect("whole rows");
                for (got, expected) in got.iter().zip(&expected) {
                    let off = (f64::from(*got) - expected).abs();
                    assert!(off <= 1e-5, "{rows} x {dim}, {level}: {got}, expected {expected}");
                }
            }
        }
    }
}

/// The end of a module is this norm: the same bits.
#[test]
fn a_module_s_end() {
    let config = AttentionConfig { num_heads: 2, key_dim: 8, ..AttentionConfig::default() };
    let mut with = crate::lively_weights(&config, InputDims::all(24), 1);
    let module = MultiHeadAttention::new(config.clone(), &with).expect("valid parts");
    let epsilon = config.layer_norm_epsilon;
    let norm = with.layer_norm.take().expect("a layer norm");
    let norm = LayerNorm::new(norm, epsilon, None, None).expect("valid parts");
    let bare = AttentionConfig { use_layer_norm: false, use_residual: false, ..config };
    let bare = MultiHeadAttention::new(bare, &with).expect("valid parts");
    let tokens = numbers(9 * 24, 5);
    let inputs = ModuleInputs::self_attention(crate::tensor(&tokens, &[9, 24]));
    let mut got = bare.forward(&inputs).expect("a valid call");
    norm.run(Some(&tokens), &mut got).expect("whole rows");
    assert_bits(&got, &module.forward(&inputs).expect("a valid call"), "residual and norm");
}

#[test]
fn names() {
    let norm = weights(5);
    for naming in [Naming::Keras, Naming::PyTorch, Naming::Bert] {
        let saved = norm.to_tensors(naming, "output.LayerNorm");
        assert_eq!(NormWeights::from_tensors(naming, "output.LayerNorm", &saved), Ok(norm.clone()));
        for missing in 0..2 {
            let mut rest = saved.clone();
            let name = rest.remove(missing).name;
            let got = NormWeights::from_tensors(naming, "output.LayerNorm", &rest);
            assert_eq!(got, Err(AttentionError::TensorMissing { name }));
        }
        let mut bent = saved.clone();
        bent[1].data.push(0.0);
        bent[1].shape = vec![6];
        let error = NormWeights::from_tensors(naming, "output.LayerNorm", &bent).expect_err("two sizes");
        let (name, expected) = (bent[1].name.clone(), "[5]".to_owned());
        assert_eq!(error, AttentionError::TensorShape { name, expected, got: vec![6] });
        #[cfg(feature = "safetensors")]
        {
            let data: Vec<Vec<u8>> =
                saved.iter().map(|t| t.data.iter().flat_map(|x| x.to_le_bytes()).collect()).collect();
            let views = saved.iter().zip(&data).map(|(t, bytes)| {
                let view = safetensors::tensor::TensorView::new(
                    safetensors::tensor::Dtype::F32,
                    t.shape.clone(),
                    bytes,
                );
                (t.name.as_str(), view.expect("sized to its shape"))
            });
            let bytes = safetensors::serialize(views.collect::<Vec<_>>(), None).expect("tensors");
            let file = safetensors::SafeTensors::deserialize(&bytes).expect("a file");
            let read = NormWeights::from_safetensors(naming, "output.LayerNorm", &file);
            assert_eq!(read, Ok(norm.clone()));
        }
    }
    let older: Vec<_> = norm
        .to_tensors(Naming::Keras, "n")
        .into_iter()
        .map(|tensor| NamedTensor { name: tensor.name.replace('/', "."), ..tensor })
        .collect();
    assert_eq!(NormWeights::from_tensors(Naming::Bert, "n", &older), Ok(norm), "n.gamma and n.beta");
}

#[test]
fn what_is_refused() {
    let refuse = |gamma, beta, epsilon, threads| {
        let weights = NormWeights { gamma: vec![1.0; gamma], beta: vec![0.0; beta] };
        LayerNorm::new(weights, epsilon, None, threads).map(|norm| norm.dim()).expect_err("no such norm")
    };
    let value =
        |operand, expected, got: &str| AttentionError::Value { operand, expected, got: got.to_owned() };
    let shape = |operand, expected, got| AttentionError::Shape { operand, axis: "elements", expected, got };
    assert_eq!(refuse(0, 0, 0.0, None), value("layer norm gamma", "at least 1 element", "0"));
    assert_eq!(refuse(3, 2, 0.0, None), shape("layer norm beta", 3, 2));
    let expected = "a finite number that is not negative";
    assert_eq!(refuse(3, 3, -1.0, None), value("layer_norm_epsilon", expected, "-1"));
    assert_eq!(refuse(3, 3, f32::NAN, None), value("layer_norm_epsilon", expected, "NaN"));
    assert_eq!(refuse(3, 3, 0.0, Some(0)), value("max_threads", "at least 1", "0"));
    for level in Level::ALL.into_iter().filter(|level| !level.is_available()) {
        let got = LayerNorm::new(weights(3), 0.0, Some(level), None).map(|norm| norm.dim());
        assert_eq!(got, Err(AttentionError::LevelUnavailable { level: level.name() }));
    }

    let norm = LayerNorm::new(weights(3), 1e-6, None, None).expect("valid parts");
    let mut x = [7.0; 6];
    assert_eq!(norm.run(None, &mut x[..5]), Err(shape("x", 3, 5)));
    assert_eq!(norm.run(Some(&[0.0; 5]), &mut x), Err(shape("residual", 6, 5)));
    assert_eq!(x, [7.0; 6], "nothing is written");
    assert_eq!(norm.run(Some(&[]), &mut []), Ok(()), "no rows");
}
