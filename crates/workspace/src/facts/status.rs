//! The lines of `/proc/PID/status` that tell how a process is confined (proc_pid_status(5)).

use std::path::Path;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Status {
    /// Effective.
    pub(super) uid: u32,
    pub(super) no_new_privileges: bool,
    pub(super) seccomp_filters: u32,
    pub(super) effective: u64,
    pub(super) bounding: u64,
    /// In how many pid namespaces the process has a number, as far as the reader's.
    pub(super) pid_depth: usize,
}

impl Status {
    pub(super) fn of(process: &Path) -> Option<Status> {
        std::fs::read_to_string(process.join("status"))
            .ok()
            .map(|text| Status::parse(&text))
    }

    fn parse(text: &str) -> Status {
        let number = |text: &str| text.parse().unwrap_or(0);
        let mut status = Status::default();
        for (name, value) in text.lines().filter_map(|line| line.split_once(':')) {
            let value = value.trim();
            match name {
                "Uid" => status.uid = value.split_whitespace().nth(1).map_or(0, number),
                "NoNewPrivs" => status.no_new_privileges = value == "1",
                "Seccomp_filters" => status.seccomp_filters = number(value),
                "CapEff" => status.effective = u64::from_str_radix(value, 16).unwrap_or(u64::MAX),
                "CapBnd" => status.bounding = u64::from_str_radix(value, 16).unwrap_or(u64::MAX),
                "NSpid" => status.pid_depth = value.split_whitespace().count(),
                _ => {}
            }
        }
        status
    }

    /// Whether this process is a sandbox deeper than `outer`.
    pub(super) fn more_confined_than(&self, outer: &Status) -> bool {
        self.no_new_privileges
            && self.effective == 0
            && self.seccomp_filters > outer.seccomp_filters
            && self.pid_depth > outer.pid_depth
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RENDERER: &str = "Name:\tchromium\nUid:\t1000\t1000\t1000\t1000\nNSpid:\t88\t12\t3\nCapEff:\t0000000000000000\n\
        CapBnd:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\nSeccomp_filters:\t2\n";

    #[test]
    fn a_renderer_is_more_confined_than_its_desktop() {
        let desktop = Status::parse(
            &RENDERER
                .replace("filters:\t2", "filters:\t1")
                .replace("88\t12\t3", "88"),
        );
        let renderer = Status::parse(RENDERER);
        assert_eq!(
            (renderer.uid, renderer.pid_depth, renderer.seccomp_filters),
            (1000, 3, 2)
        );
        assert!(renderer.more_confined_than(&desktop));
        assert!(!renderer.more_confined_than(&renderer));
        for weaker in [
            RENDERER.replace("NoNewPrivs:\t1", "NoNewPrivs:\t0"),
            RENDERER.replace("CapEff:\t0", "CapEff:\tf"),
            RENDERER.replace("filters:\t2", "filters:\t1"),
            RENDERER.replace("88\t12\t3", "88"),
        ] {
            assert!(!Status::parse(&weaker).more_confined_than(&desktop), "{weaker}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_safe_to_parse(text: String) {
            let _ = Status::parse(&text);
        }
    }
}
