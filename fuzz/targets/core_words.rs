//! Sizes, processors, names and capabilities as users and images write them: whatever is read prints as what reads
//! the same.
#![no_main]

use std::fmt::{Debug, Display};
use std::str::FromStr;

use libfuzzer_sys::fuzz_target;
use luna_core::name::Name;
use luna_core::units::{Bytes, MilliCpus};

fn round_trip<T: FromStr + Display + PartialEq + Debug>(text: &str)
where
    T::Err: Debug,
{
    if let Ok(value) = text.parse::<T>() {
        assert_eq!(value.to_string().parse::<T>().expect("what is printed can be read"), value);
    }
}

fuzz_target!(|text: &str| {
    round_trip::<Name>(text);
    let _ = text.parse::<luna_core::capability::Capability>();
    // Printing rounds, so only the reading is bounded here.
    let _ = text.parse::<Bytes>().map(|bytes| bytes.to_string());
    let _ = text.parse::<MilliCpus>();
});
