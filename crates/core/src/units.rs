//! Quantities with their units: bytes and processor shares as users write them.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Error, Kind, Result};

/// A number of bytes. Reads `512m`, `1.5g`, `4096`, `64kib` (powers of 1024, as docker does).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Bytes(pub u64);

impl Bytes {
    pub const fn mebibytes(count: u64) -> Bytes {
        Bytes(count << 20)
    }
}

impl FromStr for Bytes {
    type Err = Error;

    fn from_str(text: &str) -> Result<Bytes> {
        let invalid = || {
            Error::new(
                Kind::InvalidInput,
                format!("cannot read `{}` as a size", text.escape_debug()),
            )
            .hint("write a number and a unit, for example `512m` or `2g`")
        };
        let lower = text.trim().to_ascii_lowercase();
        let digits = lower
            .find(|c: char| !(c.is_ascii_digit() || c == '.'))
            .unwrap_or(lower.len());
        let (number, unit) = lower.split_at(digits);
        let shift = match unit.trim() {
            "" | "b" => 0,
            "k" | "kb" | "kib" => 10,
            "m" | "mb" | "mib" => 20,
            "g" | "gb" | "gib" => 30,
            "t" | "tb" | "tib" => 40,
            _ => return Err(invalid()),
        };
        if let Ok(whole) = number.parse::<u64>() {
            return whole.checked_mul(1 << shift).map(Bytes).ok_or_else(invalid);
        }
        let fraction: f64 = number.parse().map_err(|_| invalid())?;
        let bytes = fraction * (1u64 << shift) as f64;
        if !bytes.is_finite() || bytes >= (1u64 << 62) as f64 {
            return Err(invalid());
        }
        Ok(Bytes(bytes as u64))
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
        let mut value = self.0 as f64;
        let mut unit = 0;
        while value >= 1024.0 && unit + 1 < UNITS.len() {
            value /= 1024.0;
            unit += 1;
        }
        if unit == 0 {
            write!(f, "{} B", self.0)
        } else {
            write!(f, "{value:.1} {}", UNITS[unit])
        }
    }
}

/// A share of processors in thousandths: `1.5` is 1500.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MilliCpus(pub u32);

impl FromStr for MilliCpus {
    type Err = Error;

    fn from_str(text: &str) -> Result<MilliCpus> {
        match text.trim().parse::<f64>() {
            Ok(cpus) if (0.01..=4096.0).contains(&cpus) => Ok(MilliCpus((cpus * 1000.0).round() as u32)),
            _ => Err(Error::new(
                Kind::InvalidInput,
                format!("cannot read `{}` as a number of CPUs", text.escape_debug()),
            )
            .hint("write a number from 0.01, for example `--cpus 1.5`")),
        }
    }
}

impl fmt::Display for MilliCpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", f64::from(self.0) / 1000.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_docker_reads_them() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("1k", 1024),
            ("512m", 512 << 20),
            ("1.5g", 3 << 29),
            ("2GiB", 2 << 30),
            ("1 mb", 1 << 20),
        ] {
            assert_eq!(text.parse::<Bytes>().unwrap(), Bytes(bytes), "{text}");
        }
        for bad in ["", "m", "-1", "1x", "1e9", "99999999999t", "1..2"] {
            assert!(bad.parse::<Bytes>().is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes_print_short() {
        assert_eq!(Bytes(999).to_string(), "999 B");
        assert_eq!(Bytes::mebibytes(1536).to_string(), "1.5 GiB");
    }

    #[test]
    fn cpus_are_thousandths() {
        assert_eq!("1.5".parse::<MilliCpus>().unwrap(), MilliCpus(1500));
        assert!("0".parse::<MilliCpus>().is_err());
        assert!("x".parse::<MilliCpus>().is_err());
    }
}
