//! The matrix products of the module's projections: `y = x W^T + b` by [`Linear`].

use super::cases::Limit;
use super::common::Uniform;
use super::{Line, Timed, Watch};
use lucid_attention::module::{Linear, LinearOptions};
use lucid_attention::{DType, Level};

/// A product of `[rows, inputs]` with `[outputs, inputs]`, transposed.
pub(crate) struct Product {
    rows: usize,
    inputs: usize,
    outputs: usize,
    /// Of the weights.
    dtype: DType,
    level: Level,
    limit: Limit,
    floor: Option<f64>,
}

/// All lines, for the best level there is (the tallest product for all); with `quick` only those with a floor.
pub(crate) fn all(quick: bool) -> Vec<Product> {
    let best = Level::available().last();
    let mut products: Vec<Product> =
        Level::available().flat_map(|level| of_level(level, Some(level) == best)).collect();
    products.retain(|product| !quick || product.floor.is_some());
    products
}

fn of_level(level: Level, best: bool) -> Vec<Product> {
    let product = |[rows, inputs, outputs]: [usize; 3], dtype, limit| Product {
        rows,
        inputs,
        outputs,
        dtype,
        level,
        limit,
        floor: None,
    };
    let multiply_adds = Limit::MultiplyAdds(level);
    let tall = product([512, 768, 2304], DType::F32, multiply_adds);
    let mut products = vec![Product { floor: (level > Level::Portable).then_some(FLOOR), ..tall }];
    if best {
        for sizes in [[10, 128, 128], [128, 384, 1152], [128, 768, 768], [512, 768, 768], [512, 768, 3072]] {
            products.push(product(sizes, DType::F32, multiply_adds));
        }
        products.push(product([512, 768, 768], DType::F16, multiply_adds));
        for dtype in [DType::F32, DType::F16, DType::Bf16] {
            products.push(product([1, 4096, 12288], dtype, Limit::Read));
        }
        products.push(product([4, 4096, 12288], DType::F32, Limit::Read));
        products.push(product([1, 128, 128], DType::F32, multiply_adds));
        products.push(product([1, 768, 768], DType::F32, multiply_adds));
    }
    products
}

/// Half of what AVX2 and AVX-512 reach on a quiet machine.
const FLOOR: f64 = 0.35;

impl Timed for Product {
    fn id(&self) -> String {
        let Self { rows, inputs, outputs, dtype, level, .. } = self;
        format!("projection/{level}/{dtype}/rows{rows}_in{inputs}_out{outputs}")
    }

    fn floor(&self) -> Option<f64> {
        self.floor
    }

    fn measure(&self, watch: &Watch<'_>) -> Option<Line> {
        let Self { rows, inputs, outputs, dtype, level, limit, .. } = *self;
        let mut uniform = Uniform::new();
        let [weight, bias, x] =
            [outputs * inputs, outputs, rows * inputs].map(|count| uniform.values::<f32>(count));
        let options = LinearOptions { level: Some(level), dtype, ..LinearOptions::default() };
        let layer = Linear::new(&weight, Some(&bias), [outputs, inputs], &options).expect("a layer");
        let mut y = vec![0.0; rows * outputs];
        layer.run(&x, &mut y).expect("operands that fit");
        for (row, column) in [(0, 0), (rows / 2, outputs / 2), (rows - 1, outputs - 1)] {
            let pairs = x[row * inputs..][..inputs].iter().zip(&weight[column * inputs..][..inputs]);
            let want =
                pairs.map(|(&x, &w)| f64::from(x) * f64::from(w)).sum::<f64>() + f64::from(bias[column]);
            let error = (f64::from(y[row * outputs + column]) - want).abs();
            // Products are at most 3.
            let tolerance = 3.0 * inputs as f64 * (dtype.unit_roundoff() + DType::F32.unit_roundoff());
            assert!(error <= tolerance, "{}: off by {error}, more than {tolerance}", self.id());
        }
        let work = match limit {
            Limit::Read => outputs * inputs * dtype.bytes(),
            _ => 2 * rows * outputs * inputs,
        };
        watch.rounds(limit, work as f64, || {
            layer.run(std::hint::black_box(&x), &mut y).expect("operands that fit")
        })
    }
}
