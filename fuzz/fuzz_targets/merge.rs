#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| lucid_attention_fuzz::merge(data, &mut Default::default()));
