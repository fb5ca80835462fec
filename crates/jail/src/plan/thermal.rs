//! The counters of thermal throttling, one directory for each processor that has them: they tell what others on the host
//! are doing.

use std::ffi::CString;
use std::path::Path;
use std::sync::OnceLock;

use super::literal;

/// Where they are below `/sys`; none on a machine that does not show its own temperature, as a virtual one.
pub(super) fn counters() -> &'static [CString] {
    static FOUND: OnceLock<Vec<CString>> = OnceLock::new();
    FOUND.get_or_init(|| below(Path::new("/sys/devices/system/cpu")))
}

fn below(processors: &Path) -> Vec<CString> {
    let entries = std::fs::read_dir(processors).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names
        .filter(|name| {
            let number = name.strip_prefix("cpu").unwrap_or_default();
            !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
        })
        .filter(|name| processors.join(name).join("thermal_throttle").is_dir())
        .map(|name| literal(&format!("devices/system/cpu/{name}/thermal_throttle")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_with_counters_are_found() {
        let world = tempfile::tempdir().unwrap();
        for path in [
            "cpu0/thermal_throttle",
            "cpu11/thermal_throttle",
            "cpu2",
            "cpufreq/thermal_throttle",
            "cpu/thermal_throttle",
        ] {
            std::fs::create_dir_all(world.path().join(path)).unwrap();
        }
        let mut found = below(world.path());
        found.sort();
        assert_eq!(
            found,
            [
                c"devices/system/cpu/cpu0/thermal_throttle",
                c"devices/system/cpu/cpu11/thermal_throttle"
            ]
            .map(ToOwned::to_owned)
        );
        assert!(below(&world.path().join("none")).is_empty());
    }
}
