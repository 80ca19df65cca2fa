//! The list of seeded bugs, by the rows of a catalogue of what attention kernels and their like have shipped with, and where.
//! Rows about what this crate has not (pages, backward passes, GPUs, memory errors of other languages) are left out.

/// A seeded bug.
pub(crate) struct Mutant {
    /// As `mutant!` names it.
    pub(crate) name: &'static str,
    /// What goes wrong.
    pub(crate) does: &'static str,
    /// Tests that have to find it, `binary path::of::the_test`, the fastest first.
    pub(crate) laws: &'static [&'static str],
}

const fn bug(name: &'static str, does: &'static str, laws: &'static [&'static str]) -> Mutant {
    Mutant { name, does, laws }
}

/// All of them.
#[rustfmt::skip]
pub(crate) const MUTANTS: &[Mutant] = &[
    // B1: a row without keys becomes NaN, or is not written (burn #4697, rten #1321, PyTorch #103963, IREE #24175).
    bug("row-without-keys-is-divided", "0 / 0", &["laws limits::rows_without_keys"]),
    bug("row-without-keys-not-written", "the output holds what scratch held", &["laws workspaces::used_before"]),
    bug("visited-row-has-keys", "a row of a visited tile counts as one with keys", &["laws limits::rows_without_keys"]),
    bug("absorbed-row-without-keys-has-a-bias", "the value projection's bias appears in an empty row", &["module absorbed::nothing_there", "module absorbed::everything_is_as_if_projected"]),

    // B2: -inf is subtracted from -inf where the first tiles of a row are masked (PyTorch #127055, llama.cpp #12776).
    bug("minus-infinity-from-itself", "scores are shifted by a maximum that is not there yet", &["laws limits::overflow_before_the_first_logit"]),

    // B3: merging parts without keys gives NaN, or their LSE has the wrong sign (FlashInfer #4051, vLLM #28181, flash-attention #978).
    bug("merge-of-nothing", "a part without keys is weighed", &["lib merge::tests::a_part_without_keys_changes_no_bit"]),
    bug("empty-split-is-joined", "a split without keys is added to what is there", &["laws limits::splits_without_keys"]),
    bug("empty-split-has-keys", "splits that run side by side all count as seen", &["laws limits::splits_side_by_side_without_keys"]),
    bug("lse-of-no-key-is-plus-infinity", "the sign", &["laws limits::rows_without_keys"]),

    // B4: a finite number stands for -inf (lattice #373, FlashInfer #4267).
    bug("masked-scores-are-finite", "-1e4 takes part in the maximum", &["exact families_of_values", "lib exact::tests::random_cases"]),
    bug("removed-score-is-finite", "returned scores hold the lowest number", &["exact scores_follow_the_definition", "exact options_three_at_a_time"]),
    bug("bias-of-minus-infinity-stays", "a bias of -inf leaves the key, with a weight of 0", &["laws limits::rows_without_keys"]),

    // B5: NaN is silently turned into a number (PyTorch #141128).
    bug("nan-weighs-nothing", "the operands of a maximum are exchanged: NaN becomes a weight of 0", &["laws limits::overflow"]),
    bug("bias-of-nan-removes", "a bias of NaN counts as -inf", &["laws limits::a_bias_of_nan_shows"]),
    bug("relu-of-nan-is-zero", "an activation swallows it", &["module errors::activations_at_levels"]),
    bug("clamp-loses-nan", "so does an elementary function", &["lib math::tests::exp2_edges"]),

    // B6: NaN at a removed key shows: 0 times NaN (PyTorch #101967, flash-attention #1745, OpenVINO #30619).
    bug("removed-values-weigh-zero", "removed values are multiplied by 0 in place of being left out", &["laws poison::removed_keys_are_never_touched"]),
    bug("dropout-unmarks-removed-keys", "dropped weights forget that the key is removed", &["dropout removed_keys_are_never_touched"]),

    // B7: what lies beyond the length of a cache shows (flash-attention #2374, transformers #46765).
    bug("truncation-grows", "truncating to more tokens than there are brings old ones back", &["cache what_does_not_fit_changes_nothing"]),
    bug("ragged-edge-attended", "columns of a tile beyond a row's keys are attended", &["exact key_lengths"]),
    bug("ragged-tile-taken-for-whole", "columns beyond the last key are attended", &["exact key_lengths"]),

    // B8: large numbers overflow to something that looks right (PyTorch #121558, FlashInfer #5119).
    bug("overflowed-row-is-empty", "a row all of whose logits overflow has an LSE of -inf", &["laws limits::overflow"]),
    bug("sink-outside-the-maximum", "a large sink overflows", &["laws limits::sinks_at_the_limits"]),

    // B9: scores, or weights, are kept in half precision (llama.cpp #7805, flash-attention #2717).
    bug("scores-in-f16", "dot products beyond 65504 overflow", &["laws limits::narrow_operands_do_not_overflow"]),
    bug("weights-in-bf16", "weights are rounded before they meet values", &["exact value_dims", "lib exact::tests::random_cases"]),

    // B10: what was summed under an old maximum is not rescaled (flash-attention #2717).
    bug("output-not-rescaled", "the output row", &["exact key_lengths"]),
    bug("sum-not-rescaled", "the denominator", &["exact key_lengths"]),
    bug("merged-sum-not-rescaled", "the denominator of a later split", &["exact tile_edges", "lib exact::tests::random_cases"]),
    bug("energy-not-rescaled", "the entropy", &["metrics definition::values", "metrics definition::random"]),

    // B11: an elementary function is less accurate than it says (ggml #7154, OpenBLAS #5055).
    bug("ln-2-in-one-part", "arguments are reduced by one constant", &["lib math::tests::powers_against_f64"]),
    bug("division-by-reciprocal", "a quotient is rounded twice", &["exact value_dims", "lib exact::tests::random_cases"]),

    // B14: NaN meets a SIMD maximum differently on each instruction set (coreclr #1714, mlx #2339).
    bug("maximum-of-nan-is-the-other", "AVX2 alone takes the operands the other way round", &["lib math::tests::exp2_edges"]),

    // B15: conversion to half precision is wrong (tilelang #2481, dotnet #130583, groonga #2961).
    bug("bf16-is-cut-off", "truncated, on the portable level", &["laws storage::every_kind_of_number"]),
    bug("bf16-rounds-ties-up", "ties are rounded up, on AVX2", &["laws storage::every_kind_of_number"]),
    bug("bf16-of-nan-is-rounded", "NaN with a long payload turns into -0, on AVX2", &["laws storage::every_kind_of_number"]),

    // B16: the tail of an odd dimension or length is wrong (flash-attention 2dc1b205, PyTorch #191937).
    bug("tail-of-queries-not-scaled", "last dimensions of a query", &["exact head_dims"]),
    bug("tail-of-outputs-not-divided", "last dimensions of an output", &["exact value_dims"]),
    bug("tail-of-values-skipped", "last dimensions of values", &["exact value_dims"]),
    bug("maximum-misses-the-tail", "last columns of a tile are not in the maximum", &["exact key_lengths", "lib exact::tests::random_cases"]),
    bug("last-dimension-of-the-last-key", "keys at the end of their buffer lose a dimension", &["exact head_dims", "lib exact::tests::random_cases"]),
    bug("tail-of-a-dense-mask-comes-first", "last keys of a dense mask go to the first columns", &["lib mask::bits::tests::bits_of_booleans"]),
    bug("variance-of-padding", "the padding of a row counts in a layer norm", &["module norm::the_definition"]),

    // B18: output elements that share a place are written by several (PyTorch #156022, FlagGems #5235).
    bug("output-rows-may-overlap", "overlapping strides are accepted", &["errors parts::views"]),

    // B21: more queries than keys under a causal mask (oneDNN 5a7d8bbd, FlashInfer #4452, CUTLASS #2336).
    bug("negative-start-is-clamped", "rows before the first key see one", &["exact query_lengths", "exact options_three_at_a_time"]),
    bug("causal-sees-the-next-key", "the diagonal is one too far", &["exact query_lengths", "exact options_three_at_a_time"]),

    // B22: top-left or bottom-right (onnxruntime #29020, onnx #8068, MLX #2836).
    bug("top-left-is-bottom-right", "one is taken for the other", &["exact query_lengths", "exact options_three_at_a_time"]),
    bug("bottom-right-of-the-buffer", "the end of the buffer is taken for the last valid key", &["exact options_three_at_a_time", "lib exact::tests::random_cases"]),
    bug("window-counts-the-query", "a window of n keys to the left has n - 1", &["errors extremes::extreme_positions"]),
    bug("document-starts-late", "the first token of a document sees the one before", &["lib mask::tests::a_position_lies_in_one_document"]),
    bug("span-includes-its-end", "a half-open interval is taken for a closed one", &["exact options_three_at_a_time", "lib exact::tests::random_cases"]),

    // B23: an offset overflows 32 bits (flash-attention #2662, onnxruntime #32299, PyTorch #192007).
    bug("offsets-in-32-bits", "rows beyond 2^31 elements", &["laws limits::rows_far_apart"]),

    // B24: size arithmetic wraps (nalgebra #1620, onnxruntime #28962).
    bug("sizes-wrap", "a product of sizes", &["errors plans::plans"]),
    bug("strides-wrap", "the reach of strides", &["errors arbitrary::nothing_panics"]),

    // B25: heads are mapped to KV heads by remainder (jax-js #180, HipKittens #22).
    bug("heads-tiled-not-repeated", "queries and outputs", &["exact groups_of_heads"]),
    bug("heads-of-a-block-share-keys", "KV heads that are worked on together", &["exact small_heads_together"]),
    bug("scores-of-tiled-heads", "returned scores only", &["exact groups_of_heads", "exact scores_of_chosen_heads_and_rows", "lib exact::tests::random_cases"]),

    // B26: heads that do not divide leave output unwritten (fla #1029).
    bug("heads-need-not-divide", "they are accepted", &["errors plans::plans"]),

    // B27: softcap works on other numbers than scaled logits (onnx #7865, sgl-kernel-xpu #491, flash-attention #1025).
    bug("softcap-in-log2", "the cap is of logits in another unit", &["exact scores_follow_the_definition", "exact options_three_at_a_time"]),

    // B28: the dropout mask depends on how a call is cut (PyTorch #190717, oneDNN 2a46bb1f).
    bug("dropout-repeats-by-tile", "each tile has the first one's", &["lib dropout::tests::bits_of_a_tile_are_the_definition"]),
    bug("dropout-alike-in-all-heads", "each head has the first one's", &["lib dropout::tests::bits_of_a_tile_are_the_definition"]),
    bug("philox-of-seven-rounds", "a generator of fewer rounds", &["lib dropout::tests::known_answers"]),
    bug("dropout-does-not-scale", "what is kept is not scaled up", &["dropout weights_are_dropped_and_scaled", "dropout expectation"]),

    // B29: strides are ignored (flash-attention #2665, FlagGems #5896).
    bug("repeated-axis-is-stepped", "a broadcast mask or bias is walked through", &["exact options_three_at_a_time", "lib exact::tests::random_cases"]),
    bug("stepped-mask-by-tile-column", "a mask whose neighbours lie apart begins anew in each tile", &["determinism layouts::masks_and_biases_with_steps"]),
    bug("merge-of-packed-rows", "rows with gaps are merged as if there were none", &["lib merge::tests::strided_rows_in_half_precision"]),
    bug("packed-values-are-keys", "the third part of a packed projection is the second", &["determinism layouts::packed_projections"]),

    // B30: memory is read before it is written (rten #81, OpenBLAS #929, blaspp #39).
    bug("sums-start-as-left", "scratch is not cleared", &["laws workspaces::used_before"]),
    bug("states-start-as-left", "maxima and sums of other rows are not cleared", &["laws workspaces::used_before"]),
    bug("metrics-of-the-first-group", "all rows of a block have the sums of its first", &["metrics calls::rows_alone", "metrics definition::random"]),
    bug("packed-values-of-another-head", "values packed for another head are used", &["lib exact::tests::shared_keys_and_values", "determinism pieces::any_company", "laws workspaces::used_for_other_keys", "exact options_three_at_a_time"]),
    bug("values-packed-to-the-end-of-the-tile", "a panel is taken for packed that was packed in part", &["sparse exactness::close_to_the_reference", "determinism threads::any_number_of_threads", "laws workspaces::used_before"]),
    bug("packed-keys-of-the-last-call", "packed keys of an earlier call are used again", &["laws workspaces::used_for_other_keys"]),

    // B34: one number of splits is broken (aiter #4350).
    bug("last-split-is-lost", "keys after the last whole split", &["lib exact::tests::splits_side_by_side"]),

    // B35: natural and binary logarithms are mixed up (SGLang #35045, attention-gym #205).
    bug("lse-in-log2", "the LSE", &["laws algebra::duplicated_keys", "exact key_lengths"]),
    bug("merge-mixes-logarithms", "the LSE of merged parts", &["laws algebra::merging_parts"]),
    bug("sink-in-the-lse", "it includes the sink, which merging counts again", &["exact options_three_at_a_time", "lib exact::tests::random_cases"]),

    // B36: the result depends on the number of threads (PyTorch #88718, numpy #25100, oneDNN #789).
    bug("split-by-threads", "keys are split by the number of threads", &["determinism threads::any_number_of_threads"]),

    // B38: the result depends on its neighbours in the batch (vLLM #11778).
    bug("packed-keys-of-another-sequence", "keys packed for another sequence are used", &["determinism pieces::any_company", "lib exact::tests::random_cases"]),
    bug("key-lengths-of-the-first-sequence", "all have the first one's length", &["exact options_three_at_a_time", "lib exact::tests::random_cases"]),
    bug("prefix-of-the-first-sequence", "all have the first one's prefix", &["exact options_three_at_a_time", "lib exact::tests::random_cases"]),
    bug("intervals-of-the-first-sequence", "all have the first one's intervals", &["lib mask::tests::a_row_has_its_own_spans"]),
    bug("rows-of-the-first-sequence", "rows of a ragged batch go to the first one's place", &["exact options_three_at_a_time", "lib exact::tests::random_cases"]),
    bug("first-token-is-the-sequence-before", "scores of a ragged batch at a boundary", &["exact scores_of_chosen_heads_and_rows", "lib exact::tests::random_cases"]),

    // B42: blocks of a mask are mislabelled, or another head's (PyTorch #141126, #143534, #188322, #139462).
    bug("partial-block-taken-for-full", "when it is visited", &["sparse exactness::close_to_the_reference", "sparse exactness::patterns_of_every_block_size"]),
    bug("partial-block-stored-full", "when it is stored", &["sparse layouts::from_a_function"]),
    bug("full-blocks-join-over-gaps", "runs of full blocks", &["sparse layouts::from_compressed_rows_and_matrices", "sparse patterns::longformer"]),
    bug("rows-of-blocks-alike-by-place", "rows whose blocks lie alike share their bits", &["sparse layouts::from_a_function", "sparse exactness::close_to_the_reference"]),
    bug("bits-lost-between-words", "blocks that are not aligned to 64 keys", &["sparse exactness::patterns_of_every_block_size", "sparse exactness::close_to_the_reference"]),
    bug("rows-visit-what-the-first-does", "all rows of a block visit what the first does", &["sparse exactness::close_to_the_reference", "sparse exactness::patterns_of_every_block_size"]),
    bug("no-opposite-buckets", "tokens hash to half of the buckets", &["lib sparse::lsh::hash::tests::the_first_of_the_largest"]),
    bug("layouts-alike-by-runs", "heads whose runs are numbered alike share a layout", &["sparse exactness::layouts_of_heads_and_sequences"]),
    bug("blocks-of-the-first-sequence", "each sequence has the first one's blocks", &["sparse layouts::a_mask_of_several_layouts"]),
    bug("last-block-is-covered", "a range that ends within a block covers it", &["sparse layouts::from_ranges"]),

    // B43: a length beyond the capacity is not refused (flash-attention #2711, #1795).
    bug("key-length-unchecked", "key lengths", &["errors calls::options"]),

    // B44: pages of a cache overlap (vllm-ascend #16490, tt-metal #41195).
    bug("appended-keys-overwrite", "tokens go to the beginning", &["cache bits_do_not_depend_on_the_history"]),
    bug("appended-values-overwrite", "values do, keys do not", &["cache bits_do_not_depend_on_the_history"]),
    bug("heads-a-length-apart", "heads are taken to be as long as they are full", &["determinism pieces::any_history_of_panels"]),
    bug("ring-written-once", "the second copy of a ring is not written", &["titans context::the_last_steps_in_order"]),

    // B45: an option is accepted and ignored (flash-attention #1788).
    bug("layers-do-not-stop-in-attention", "a layer's token is looked at before and after only", &["lib cancel::tests::layers_look_in_every_tile"]),
    bug("second-window-replaces-the-first", "of two windows one", &["laws options::windows_compose"]),
    bug("probabilities-without-the-sink", "returned probabilities do without", &["exact scores_follow_the_definition", "lib exact::tests::random_cases"]),
    bug("alibi-by-index", "ALiBi goes by the query's index in the call", &["exact options_three_at_a_time", "lib exact::tests::random_cases"]),
    bug("slopes-from-the-power-above", "slopes for a number of heads that is no power of two", &["lib alibi::tests::twelve_heads_take_four_from_sixteen"]),
    bug("window-of-a-module-is-open", "a layer's right window", &["module sequence::masks_by_position", "module reference::every_number_is_within_the_bound"]),
    bug("removed-keys-not-counted", "a metric that counts removed keys does not", &["metrics totals::rows_that_count_apart", "module metrics::the_specification_s_figures"]),
    bug("merged-empty-rows-lost", "merged metrics forget rows without keys", &["metrics totals::merging_in_any_order"]),

    // B46: linear attention lacks its normaliser, or its stabiliser sees later keys (performer-pytorch #40, #45).
    bug("normaliser-missing", "sums are not divided", &["linear algebra::equal_keys_give_the_mean"]),
    bug("gauge-of-later-keys", "the gauge is raised by keys that a row does not see", &["linear purity::later_tokens_change_no_bit"]),
    bug("block-sees-itself", "a row sees all keys of its block", &["linear purity::later_tokens_change_no_bit"]),
    bug("merged-state-does-not-fade", "states are merged without decay", &["linear decay::merged_states_fade"]),
    bug("norm-of-features-doubled", "features lack a half in their exponent", &["linear definition::calls_are_the_definition"]),
];
