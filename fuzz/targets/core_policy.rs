//! Policy files: any text is a policy or an error, and a policy joined with itself is itself.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use luna_core::policy::{Pattern, Policy};

fuzz_target!(|text: &str| {
    if let Ok(policy) = Policy::parse(text, Path::new("policy.toml")) {
        assert_eq!(policy.clone().and(policy.clone()), policy);
    }
    if let Ok(pattern) = text.parse::<Pattern>() {
        assert_eq!(pattern.to_string(), text);
    }
});
