//! What Keras, PyTorch and BERT call a module's tensors, and how they store them: reading and saving.

use super::config::AttentionConfig;
use super::weights::{Columns, DenseWeights, ModuleWeights, NormWeights};
use crate::error::AttentionError;
use std::borrow::Cow;

/// Whose names and shapes the tensors have.
///
/// | | Keras, `y = x W` | PyTorch, `y = x W^T` | BERT, `y = x W^T` |
/// |---|---|---|---|
/// | query | `query/kernel` `[query_dim, heads, key_dim]` | `in_proj_weight` `[q + k + v, dim]`, or `q_proj_weight` `[q, query_dim]` | `attention.self.query.weight` `[q, query_dim]` |
/// | key | `key/kernel` | the same, or `k_proj_weight` | `attention.self.key.weight` |
/// | value | `value/kernel` | the same, or `v_proj_weight` | `attention.self.value.weight` |
/// | their biases | `query/bias` `[heads, key_dim]`, ... | `in_proj_bias` `[q + k + v]` | `attention.self.query.bias`, ... |
/// | output | `attention_output/kernel` `[heads, value_dim, output_dim]`, `.../bias` | `out_proj.weight` `[output_dim, heads * value_dim]`, `out_proj.bias` | `attention.output.dense.weight`, `.bias` |
/// | layer norm | `layer_normalization/gamma`, `/beta` | `norm.weight`, `norm.bias` | `attention.output.LayerNorm.weight`, `.bias` (or `.gamma`, `.beta`) |
///
/// `q`, `k` and `v` are the columns of all heads. A prefix comes before each name as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "lowercase"))]
#[non_exhaustive]
pub enum Naming {
    /// Keras's `MultiHeadAttention` (or `GroupQueryAttention`) and `LayerNormalization`, by the paths of their variables.
    Keras,
    /// PyTorch's `nn.MultiheadAttention`, and an `nn.LayerNorm` called `norm`.
    PyTorch,
    /// The self-attention and its output of a layer of Hugging Face's BERT.
    Bert,
}

/// A tensor by its name. `D` is `&[f32]` for what is read and `Vec<f32>` for what is saved.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedTensor<D> {
    /// Its name, prefix included.
    pub name: String,
    /// Its shape; it is contiguous.
    pub shape: Vec<usize>,
    /// Its numbers.
    pub data: D,
}

/// Where tensors are looked up.
pub(crate) trait Source {
    /// Whether there is one of that name.
    fn has(&self, name: &str) -> bool;

    /// The tensor of that name, if there is one.
    fn tensor(&self, name: &str) -> Result<Option<Found<'_>>, AttentionError>;
}

/// A tensor that was looked up.
pub(crate) struct Found<'a> {
    pub(crate) shape: Cow<'a, [usize]>,
    pub(crate) data: Cow<'a, [f32]>,
}

impl<D: AsRef<[f32]>> Source for [NamedTensor<D>] {
    fn has(&self, name: &str) -> bool {
        self.iter().any(|tensor| tensor.name == name)
    }

    fn tensor(&self, name: &str) -> Result<Option<Found<'_>>, AttentionError> {
        let Some(tensor) = self.iter().find(|tensor| tensor.name == name) else {
            return Ok(None);
        };
        let data = tensor.data.as_ref();
        let size = tensor.shape.iter().try_fold(1usize, |product, &n| product.checked_mul(n));
        if size != Some(data.len()) {
            let (name, expected) = (name.to_owned(), format!("of {} elements", data.len()));
            return Err(AttentionError::TensorShape { name, expected, got: tensor.shape.clone() });
        }
        Ok(Some(Found { shape: Cow::Borrowed(&tensor.shape), data: Cow::Borrowed(data) }))
    }
}

impl ModuleWeights {
    /// The tensors of these names, each with `prefix` in front.
    ///
    /// ```
    /// use lucid_attention::module::{AttentionConfig, InputDims, ModuleWeights, Naming};
    ///
    /// let config = AttentionConfig { num_heads: 2, key_dim: 4, ..AttentionConfig::default() };
    /// let weights = ModuleWeights::glorot(&config, InputDims::all(8), 1)?;
    /// let saved = weights.to_tensors(&config, Naming::PyTorch, "encoder.")?;
    /// assert_eq!((saved[0].name.as_str(), &saved[0].shape[..]), ("encoder.in_proj_weight", &[24, 8][..]));
    /// assert_eq!(ModuleWeights::from_tensors(&config, Naming::PyTorch, "encoder.", &saved)?, weights);
    /// # Ok::<(), lucid_attention::AttentionError>(())
    /// ```
    ///
    /// # Errors
    /// `config` is not valid; a tensor is missing or has another shape than `config` asks for; or one is there that
    /// `config` has no use for and that would change results: a bias without `use_bias`, PyTorch's `bias_k` and `bias_v`.
    /// (A layer norm without `use_layer_norm` is left alone.)
    pub fn from_tensors<D: AsRef<[f32]>>(
        config: &AttentionConfig,
        naming: Naming,
        prefix: &str,
        tensors: &[NamedTensor<D>],
    ) -> Result<Self, AttentionError> {
        Self::read(config, naming, prefix, tensors)
    }

    /// The tensors by these names, each with `prefix` in front.
    ///
    /// # Errors
    /// `config` is not valid or not that of these weights.
    pub fn to_tensors(
        &self,
        config: &AttentionConfig,
        naming: Naming,
        prefix: &str,
    ) -> Result<Vec<NamedTensor<Vec<f32>>>, AttentionError> {
        config.validate()?;
        self.check(config)?;
        let mut writer = Writer { prefix, tensors: Vec::new() };
        let norm = match naming {
            Naming::Keras => self.write_keras(config, &mut writer),
            Naming::PyTorch => self.write_pytorch(&mut writer),
            Naming::Bert => self.write_bert(&mut writer),
        };
        self.layer_norm.iter().for_each(|weights| writer.norm(naming, norm, weights));
        Ok(writer.tensors)
    }

    pub(crate) fn read(
        config: &AttentionConfig,
        naming: Naming,
        prefix: &str,
        source: &(impl Source + ?Sized),
    ) -> Result<Self, AttentionError> {
        config.validate()?;
        let reader = Reader { config, prefix, source };
        match naming {
            Naming::Keras => reader.keras(),
            Naming::PyTorch => reader.pytorch(),
            Naming::Bert => reader.bert(),
        }
    }
}

/// Reads the tensors of a configuration.
struct Reader<'a, S: ?Sized> {
    config: &'a AttentionConfig,
    prefix: &'a str,
    source: &'a S,
}

/// An axis whose size the tensor decides.
const ANY: usize = usize::MAX; // a valid configuration has no such size

impl<S: Source + ?Sized> Reader<'_, S> {
    fn keras(&self) -> Result<ModuleWeights, AttentionError> {
        let config = self.config;
        let (key_dim, value_dim) = (config.key_dim, config.value_dim());
        let input = |name: &str, heads: usize, dim: usize| {
            let (kernel, shape) = self.get(&format!("{name}/kernel"), &[ANY, heads, dim])?;
            let bias = self.bias(&format!("{name}/bias"), &[heads, dim])?;
            let outputs = heads * dim;
            Ok(DenseWeights { weight: transposed(&kernel, outputs), bias, outputs, inputs: shape[0] })
        };
        let query = input("query", config.num_heads, key_dim)?;
        let key = input("key", config.kv_heads(), key_dim)?;
        let value = input("value", config.kv_heads(), value_dim)?;
        let columns = Columns::new(config, query.inputs);
        let shape = [config.num_heads, value_dim, columns.output];
        let (kernel, _) = self.get("attention_output/kernel", &shape)?;
        let bias = self.bias("attention_output/bias", &[columns.output])?;
        let (outputs, inputs) = (columns.output, columns.context);
        let output = DenseWeights { weight: transposed(&kernel, outputs), bias, outputs, inputs };
        let layer_norm = self.norm(Naming::Keras, "layer_normalization", outputs)?;
        Ok(ModuleWeights { query, key, value, output, layer_norm })
    }

    fn pytorch(&self) -> Result<ModuleWeights, AttentionError> {
        for name in ["bias_k", "bias_v"] {
            if self.has(name) {
                let (name, reason) = (self.full(name), "a module that has no learned extra key");
                return Err(AttentionError::TensorUnexpected { name, reason });
            }
        }
        let of = Columns::new(self.config, 0);
        let sizes = [of.query, of.key, of.value];
        let all = sizes.iter().try_fold(0usize, |sum, &n| sum.checked_add(n));
        let all = all.ok_or(AttentionError::SizeOverflow { operand: "in_proj_weight" })?;
        let biases = self.bias("in_proj_bias", &[all])?;
        let mut first = 0;
        let mut bias = |size: usize| {
            first += size;
            biases.as_ref().map(|biases| biases[first - size..first].to_vec())
        };
        let [query, key, value] = if self.has("in_proj_weight") {
            let (stacked, shape) = self.get("in_proj_weight", &[all, ANY])?;
            let mut rest = &stacked[..];
            sizes.map(|outputs| {
                let weight;
                (weight, rest) = rest.split_at(outputs * shape[1]);
                DenseWeights { weight: weight.to_vec(), bias: bias(outputs), outputs, inputs: shape[1] }
            })
        } else {
            let mut part = |name, outputs| {
                let (weight, shape) = self.get(name, &[outputs, ANY])?;
                Ok(DenseWeights { weight, bias: bias(outputs), outputs, inputs: shape[1] })
            };
            [
                part("q_proj_weight", of.query)?,
                part("k_proj_weight", of.key)?,
                part("v_proj_weight", of.value)?,
            ]
        };
        let columns = Columns::new(self.config, query.inputs);
        let output = self.dense("out_proj", columns.output, columns.context)?;
        let layer_norm = self.norm(Naming::PyTorch, "norm", columns.output)?;
        Ok(ModuleWeights { query, key, value, output, layer_norm })
    }

    fn bert(&self) -> Result<ModuleWeights, AttentionError> {
        let of = Columns::new(self.config, 0);
        let query = self.dense("attention.self.query", of.query, ANY)?;
        let key = self.dense("attention.self.key", of.key, ANY)?;
        let value = self.dense("attention.self.value", of.value, ANY)?;
        let columns = Columns::new(self.config, query.inputs);
        let output = self.dense("attention.output.dense", columns.output, columns.context)?;
        let layer_norm = self.norm(Naming::Bert, "attention.output.LayerNorm", columns.output)?;
        Ok(ModuleWeights { query, key, value, output, layer_norm })
    }

    /// `name.weight`, `[outputs, inputs]`, and `name.bias`.
    fn dense(&self, name: &str, outputs: usize, inputs: usize) -> Result<DenseWeights, AttentionError> {
        let (weight, shape) = self.get(&format!("{name}.weight"), &[outputs, inputs])?;
        let bias = self.bias(&format!("{name}.bias"), &[outputs])?;
        Ok(DenseWeights { weight, bias, outputs, inputs: shape[1] })
    }

    /// A bias, flat, if the configuration has biases; none may be there if not.
    fn bias(&self, name: &str, shape: &[usize]) -> Result<Option<Vec<f32>>, AttentionError> {
        if self.config.use_bias {
            return Ok(Some(self.get(name, shape)?.0));
        }
        if self.has(name) {
            let (name, reason) = (self.full(name), "use_bias = false");
            return Err(AttentionError::TensorUnexpected { name, reason });
        }
        Ok(None)
    }

    /// Scale and shift of the layer norm called `name`, if the configuration has one.
    fn norm(&self, naming: Naming, name: &str, size: usize) -> Result<Option<NormWeights>, AttentionError> {
        let wanted = self.config.use_layer_norm;
        wanted.then(|| NormWeights::read_sized(naming, &self.full(name), size, self.source)).transpose()
    }

    fn full(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn has(&self, name: &str) -> bool {
        self.source.has(&self.full(name))
    }

    /// A tensor of this shape, and its shape.
    fn get(&self, name: &str, shape: &[usize]) -> Result<(Vec<f32>, Vec<usize>), AttentionError> {
        get(self.source, self.full(name), shape)
    }
}

/// A tensor of this shape, and its shape.
fn get(
    source: &(impl Source + ?Sized),
    name: String,
    shape: &[usize],
) -> Result<(Vec<f32>, Vec<usize>), AttentionError> {
    let Some(found) = source.tensor(&name)? else {
        return Err(AttentionError::TensorMissing { name });
    };
    let fits = |(&expected, &got): (&usize, &usize)| got == expected || expected == ANY && got > 0;
    if found.shape.len() != shape.len() || !shape.iter().zip(found.shape.iter()).all(fits) {
        let axis = |&size: &usize| if size == ANY { "*".to_owned() } else { size.to_string() };
        let axes: Vec<String> = shape.iter().map(axis).collect();
        let expected = format!("[{}]", axes.join(", "));
        return Err(AttentionError::TensorShape { name, expected, got: found.shape.to_vec() });
    }
    Ok((found.data.into_owned(), found.shape.to_vec()))
}

impl DenseWeights {
    /// One layer by its name: `name/kernel` `[inputs, outputs]` and `name/bias` in Keras, `name.weight`
    /// `[outputs, inputs]` and `name.bias` elsewhere. A bias is optional.
    ///
    /// # Errors
    /// A tensor is missing or of another shape.
    pub fn from_tensors<D: AsRef<[f32]>>(
        naming: Naming,
        name: &str,
        tensors: &[NamedTensor<D>],
    ) -> Result<Self, AttentionError> {
        Self::read(naming, name, tensors)
    }

    /// The layer's tensors by its name.
    ///
    /// # Errors
    /// Weight or bias are not as large as `outputs` and `inputs` say, or those are 0.
    pub fn to_tensors(
        &self,
        naming: Naming,
        name: &str,
    ) -> Result<Vec<NamedTensor<Vec<f32>>>, AttentionError> {
        let Self { weight, bias, outputs, inputs } = self;
        let [weight_name, bias_name] = Self::names(naming, name);
        let misfit = |name, shape: &[usize], got| {
            Err(AttentionError::TensorShape { name, expected: format!("{shape:?}"), got: vec![got] })
        };
        if *outputs == 0 || *inputs == 0 || outputs.checked_mul(*inputs) != Some(weight.len()) {
            return misfit(weight_name, &[*outputs, *inputs], weight.len());
        }
        if let Some(bias) = bias.as_ref().filter(|bias| bias.len() != *outputs) {
            return misfit(bias_name, &[*outputs], bias.len());
        }
        Ok(self.tensors(naming, name))
    }

    /// [`DenseWeights::to_tensors`] of sizes that fit.
    pub(crate) fn tensors(&self, naming: Naming, name: &str) -> Vec<NamedTensor<Vec<f32>>> {
        let [weight_name, bias_name] = Self::names(naming, name);
        let Self { weight, bias, outputs, inputs } = self;
        let (weight, shape) = match naming {
            Naming::Keras => (transposed(weight, *inputs), [*inputs, *outputs]),
            Naming::PyTorch | Naming::Bert => (weight.clone(), [*outputs, *inputs]),
        };
        let mut writer = Writer { prefix: "", tensors: Vec::new() };
        writer.put(&weight_name, &shape, weight);
        if let Some(bias) = bias {
            writer.put(&bias_name, &[*outputs], bias.clone());
        }
        writer.tensors
    }

    /// What weight and bias of a layer are called.
    fn names(naming: Naming, name: &str) -> [String; 2] {
        match naming {
            Naming::Keras => ["/kernel", "/bias"],
            Naming::PyTorch | Naming::Bert => [".weight", ".bias"],
        }
        .map(|end| format!("{name}{end}"))
    }

    pub(crate) fn read(
        naming: Naming,
        name: &str,
        source: &(impl Source + ?Sized),
    ) -> Result<Self, AttentionError> {
        let [weight, bias] = Self::names(naming, name);
        let (weight, shape) = get(source, weight, &[ANY, ANY])?;
        let (weight, [outputs, inputs]) = match naming {
            Naming::Keras => (transposed(&weight, shape[1]), [shape[1], shape[0]]),
            Naming::PyTorch | Naming::Bert => (weight, [shape[0], shape[1]]),
        };
        let bias = source.has(&bias).then(|| get(source, bias, &[outputs])).transpose()?;
        Ok(Self { weight, bias: bias.map(|(bias, _)| bias), outputs, inputs })
    }
}

impl NormWeights {
    /// A layer norm by its name: `name/gamma` and `name/beta` in Keras, `name.weight` and `name.bias` in PyTorch, and in
    /// BERT either pair with a dot.
    ///
    /// # Errors
    /// A tensor is missing or of another shape than `[dim]`, the same for both.
    pub fn from_tensors<D: AsRef<[f32]>>(
        naming: Naming,
        name: &str,
        tensors: &[NamedTensor<D>],
    ) -> Result<Self, AttentionError> {
        Self::read(naming, name, tensors)
    }

    /// Its tensors by its name, of whatever sizes they are.
    pub fn to_tensors(&self, naming: Naming, name: &str) -> Vec<NamedTensor<Vec<f32>>> {
        let mut writer = Writer { prefix: "", tensors: Vec::new() };
        writer.norm(naming, name, self);
        writer.tensors
    }

    pub(crate) fn read(
        naming: Naming,
        name: &str,
        source: &(impl Source + ?Sized),
    ) -> Result<Self, AttentionError> {
        Self::read_sized(naming, name, ANY, source)
    }

    /// Of `size` numbers each, or whatever size gamma has.
    fn read_sized(
        naming: Naming,
        name: &str,
        size: usize,
        source: &(impl Source + ?Sized),
    ) -> Result<Self, AttentionError> {
        let older = naming == Naming::Bert;
        let get = |[now, before]: [&str; 2], size| {
            let [now, before] = [now, before].map(|end| format!("{name}{end}"));
            let read = if older && !source.has(&now) && source.has(&before) { before } else { now };
            get(source, read, &[size])
        };
        let [gamma, beta] = Self::names(naming);
        let (gamma, _) = get([gamma, ".gamma"], size)?;
        let (beta, _) = get([beta, ".beta"], gamma.len())?;
        Ok(Self { gamma, beta })
    }

    /// What follows its name.
    fn names(naming: Naming) -> [&'static str; 2] {
        match naming {
            Naming::Keras => ["/gamma", "/beta"],
            Naming::PyTorch | Naming::Bert => [".weight", ".bias"],
        }
    }
}

/// `[rows, columns]` as `[columns, rows]`.
fn transposed(matrix: &[f32], columns: usize) -> Vec<f32> {
    (0..columns).flat_map(|column| matrix[column..].iter().step_by(columns).copied()).collect()
}

/// Collects tensors.
struct Writer<'a> {
    prefix: &'a str,
    tensors: Vec<NamedTensor<Vec<f32>>>,
}

impl Writer<'_> {
    fn put(&mut self, name: &str, shape: &[usize], data: Vec<f32>) {
        let name = format!("{}{name}", self.prefix);
        self.tensors.push(NamedTensor { name, shape: shape.to_vec(), data });
    }

    fn dense(&mut self, name: &str, dense: &DenseWeights) {
        let DenseWeights { weight, bias, outputs, inputs } = dense;
        self.put(&format!("{name}.weight"), &[*outputs, *inputs], weight.clone());
        if let Some(bias) = bias {
            self.put(&format!("{name}.bias"), &[*outputs], bias.clone());
        }
    }

    fn norm(&mut self, naming: Naming, name: &str, norm: &NormWeights) {
        let [gamma, beta] = NormWeights::names(naming).map(|end| format!("{name}{end}"));
        self.put(&gamma, &[norm.gamma.len()], norm.gamma.clone());
        self.put(&beta, &[norm.beta.len()], norm.beta.clone());
    }
}

/// All but the layer norm, whose name they return.
impl ModuleWeights {
    fn write_keras(&self, config: &AttentionConfig, writer: &mut Writer<'_>) -> &'static str {
        let inputs = [
            ("query", &self.query, config.num_heads),
            ("key", &self.key, config.kv_heads()),
            ("value", &self.value, config.kv_heads()),
        ];
        for (name, dense, heads) in inputs {
            let dim = dense.outputs / heads;
            let kernel = transposed(&dense.weight, dense.inputs);
            writer.put(&format!("{name}/kernel"), &[dense.inputs, heads, dim], kernel);
            if let Some(bias) = &dense.bias {
                writer.put(&format!("{name}/bias"), &[heads, dim], bias.clone());
            }
        }
        let DenseWeights { weight, bias, outputs, inputs } = &self.output;
        let shape = [config.num_heads, config.value_dim(), *outputs];
        writer.put("attention_output/kernel", &shape, transposed(weight, *inputs));
        if let Some(bias) = bias {
            writer.put("attention_output/bias", &[*outputs], bias.clone());
        }
        "layer_normalization"
    }

    fn write_pytorch(&self, writer: &mut Writer<'_>) -> &'static str {
        let parts = [&self.query, &self.key, &self.value];
        if parts.iter().all(|part| part.inputs == self.query.inputs) {
            let stacked: Vec<f32> = parts.iter().flat_map(|part| part.weight.iter().copied()).collect();
            let outputs = parts.iter().map(|part| part.outputs).sum();
            writer.put("in_proj_weight", &[outputs, self.query.inputs], stacked);
        } else {
            for (name, part) in ["q_proj_weight", "k_proj_weight", "v_proj_weight"].iter().zip(parts) {
                writer.put(name, &[part.outputs, part.inputs], part.weight.clone());
            }
        }
        let biases: Vec<f32> =
            parts.iter().filter_map(|part| part.bias.as_ref()).flatten().copied().collect();
        if !biases.is_empty() {
            writer.put("in_proj_bias", &[biases.len()], biases);
        }
        writer.dense("out_proj", &self.output);
        "norm"
    }

    fn write_bert(&self, writer: &mut Writer<'_>) -> &'static str {
        writer.dense("attention.self.query", &self.query);
        writer.dense("attention.self.key", &self.key);
        writer.dense("attention.self.value", &self.value);
        writer.dense("attention.output.dense", &self.output);
        "attention.output.LayerNorm"
    }
}

#[cfg(test)]
mod tests {
    use super::super::weights::InputDims;
    use super::*;
    use std::cell::RefCell;

    /// A source that notes what is read of it.
    struct Noting<'a>(&'a [NamedTensor<Vec<f32>>], RefCell<Vec<String>>);

    impl Source for Noting<'_> {
        fn has(&self, name: &str) -> bool {
            self.0.has(name)
        }

        fn tensor(&self, name: &str) -> Result<Option<Found<'_>>, AttentionError> {
            self.1.borrow_mut().push(name.to_owned());
            self.0.tensor(name)
        }
    }

    /// To read a tensor may be to convert all of it.
    #[test]
    fn each_tensor_is_read_once() {
        let config = AttentionConfig { num_heads: 2, key_dim: 4, ..AttentionConfig::default() };
        for dims in [InputDims::all(8), InputDims { query: 8, key: 6, value: 5 }] {
            let weights = ModuleWeights::glorot(&config, dims, 1).expect("a valid configuration");
            for naming in [Naming::Keras, Naming::PyTorch, Naming::Bert] {
                let saved = weights.to_tensors(&config, naming, "").expect("its own configuration");
                let source = Noting(&saved, RefCell::default());
                assert_eq!(ModuleWeights::read(&config, naming, "", &source), Ok(weights.clone()));
                let mut names: Vec<String> = saved.iter().map(|tensor| tensor.name.clone()).collect();
                let mut read = source.1.into_inner();
                names.sort();
                read.sort();
                assert_eq!(read, names, "{naming:?}");
            }
        }
        let dense = DenseWeights { weight: vec![0.5; 6], bias: Some(vec![0.5; 2]), outputs: 2, inputs: 3 };
        let saved = dense.to_tensors(Naming::Bert, "p").expect("sizes that fit");
        let source = Noting(&saved, RefCell::default());
        assert_eq!(DenseWeights::read(Naming::Bert, "p", &source), Ok(dense));
        assert_eq!(source.1.into_inner(), ["p.weight", "p.bias"]);
    }
}
