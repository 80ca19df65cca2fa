#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| lucid_attention_fuzz::decode(data, &mut Default::default()));
