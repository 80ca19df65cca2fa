//! The slopes of ALiBi (Press, Smith and Lewis, "Train Short, Test Long", 2022).

/// One slope per head: for a power of two the geometric sequence from `2^(-8 / heads)` with that ratio; otherwise that
/// of the power of two below, followed by every other slope of the power of two above.
///
/// ```
/// assert_eq!(lucid_attention::alibi_slopes(4), [0.25, 0.0625, 0.015625, 0.00390625]);
/// ```
pub fn alibi_slopes(heads: usize) -> Vec<f32> {
    let sequence = |count: usize| (1..=count).map(move |i| (-8.0 * i as f64 / count as f64).exp2() as f32);
    if heads == 0 {
        return Vec::new();
    }
    let below = mutant!("slopes-from-the-power-above", 1usize << heads.ilog2(), heads.next_power_of_two());
    let above = sequence(below.saturating_mul(2)).step_by(2);
    sequence(below).chain(above).take(heads).collect()
}

#[cfg(test)]
mod tests {
    use super::alibi_slopes;

    #[test]
    fn twelve_heads_take_four_from_sixteen() {
        let eight: Vec<f32> = (1..=8).map(|i| 0.5f32.powi(i)).collect();
        let four = [1, 3, 5, 7].map(|i| (-(i as f32) / 2.0).exp2());
        assert_eq!(alibi_slopes(12), [eight, four.to_vec()].concat(), "the paper's rule for 12 heads");
    }

    #[test]
    fn no_heads_no_slopes() {
        assert!(alibi_slopes(0).is_empty(), "no slopes for no heads");
    }
}
