#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| lucid_attention_fuzz::config(data, &mut Default::default()));
