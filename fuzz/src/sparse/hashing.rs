//! LSH attention of a few tokens, in buckets of anybody's.

use super::definition::{Tokens, check_buckets};
use crate::Tally;
use crate::call::refused;
use arbitrary::{Result, Unstructured};
use lucid_attention::Mask;
use lucid_attention::sparse::{Lsh, Rotations};

pub(super) fn check(input: &mut Unstructured<'_>, tally: &mut Tally) -> Result<()> {
    let shape @ [batch, heads, tokens, dim] = [
        input.int_in_range(1..=2)?,
        input.int_in_range(1..=2)?,
        input.int_in_range(1..=24)?,
        input.int_in_range(1..=6)?,
    ];
    let v_dim = input.int_in_range(1..=4)?;
    let lsh = Lsh {
        rounds: input.int_in_range(0..=3)?,
        buckets: *input.choose(&[2, 4, 4, 6, 3, 0])?,
        wrap: input.arbitrary()?,
        duplicates: input.arbitrary()?,
        across_buckets: input.arbitrary()?,
        norm_epsilon: *input.choose(&[0.0, 1e-6, -1.0, f32::NAN])?,
        ..Lsh::new(input.int_in_range(0..=12)?)
    };
    let numbers = Tokens::new(input.arbitrary::<u32>()?.into(), shape, v_dim);
    let count = batch * heads * lsh.rounds * tokens;
    let mut buckets = Vec::new();
    let drawn = input.arbitrary()?;
    if drawn && lsh.rounds > 0 && lsh.buckets > 1 && lsh.buckets.is_multiple_of(2) {
        let rotations = Rotations::seeded(input.arbitrary()?, heads, dim, lsh.rounds, lsh.buckets);
        buckets = rotations.expect("sizes of rotations").buckets(numbers.qk()).expect("tokens that fit");
        assert!(buckets.len() == count && buckets.iter().all(|&bucket| (bucket as usize) < lsh.buckets));
        tally.same += count as u64;
    } else {
        for _ in 0..count {
            let most = lsh.buckets.saturating_sub(1) + usize::from(input.ratio(1, 255)?);
            buckets.push(input.int_in_range(0..=most as u32)?);
        }
    }
    let (causal, window) = (input.arbitrary::<bool>()?, input.int_in_range(0..=24)?);
    let len = input.int_in_range(0..=tokens + 1)?;
    let lens = vec![len; batch];
    let mask = if causal { Mask::causal().window(Some(window), None) } else { Mask::NONE.kv_lens(&lens) };
    let rules = [
        ("rounds", lsh.rounds == 0),
        ("chunk", lsh.chunk == 0),
        ("buckets", lsh.buckets < 2 || !lsh.buckets.is_multiple_of(2)),
        ("buckets", buckets.iter().any(|&bucket| bucket as usize >= lsh.buckets)),
        ("norm_epsilon", !(0.0..f32::INFINITY).contains(&lsh.norm_epsilon)),
        ("kv_lens", !causal && len > tokens),
    ];
    let wrong: Vec<&str> = rules.into_iter().filter(|rule| rule.1).map(|rule| rule.0).collect();
    if !wrong.is_empty() {
        let answer = lsh.attention(numbers.qk(), numbers.v(), &buckets, mask);
        refused(&answer.expect_err(&format!("{wrong:?} of {lsh:?}")), &wrong, tally);
        return Ok(());
    }
    let allows = |query: usize, key: usize| {
        if causal { key <= query && query - key <= window } else { key < len }
    };
    check_buckets(&lsh, &numbers, &buckets, mask, &allows, &format!("{shape:?}, {lsh:?}"));
    tally.close += (batch * heads * tokens * (v_dim + 1)) as u64;
    Ok(())
}
