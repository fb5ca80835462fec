//! Id maps of user namespaces (user_namespaces(7)).

use luna_core::{Error, Result};
use rustix::process::Pid;

use crate::spec::Ids;

/// Writes `uid_map` or `gid_map` of a child whose user namespace is below ours.
pub(crate) fn map(child: Pid, file: &str, ids: Ids) -> Result<()> {
    let cannot = |error| {
        Error::io(
            format!("cannot map {} ids to the host's from {}", ids.count, ids.base),
            error,
        )
    };
    let own = std::fs::read_to_string(format!("/proc/self/{file}")).map_err(cannot)?;
    std::fs::write(
        format!("/proc/{}/{file}", child.as_raw_nonzero()),
        lines(&own, ids),
    )
    .map_err(cannot)
}

/// Whether the caller lives in a user namespace of somebody's making, by the shape of its own map.
pub(crate) fn inside_user_namespace() -> bool {
    std::fs::read_to_string("/proc/self/uid_map")
        .is_ok_and(|map| map.split_whitespace().ne(["0", "0", "4294967295"]))
}

/// The kernel takes a line only if one line of our own map covers it, so the range is cut where that map is.
fn lines(own: &str, ids: Ids) -> String {
    let end = u64::from(ids.base) + u64::from(ids.count);
    let mut cuts = vec![u64::from(ids.base), end];
    for line in own.lines() {
        let mut numbers = line
            .split_whitespace()
            .filter_map(|word| word.parse::<u64>().ok());
        if let (Some(first), Some(_), Some(count)) = (numbers.next(), numbers.next(), numbers.next()) {
            cuts.extend(
                [first, first + count]
                    .into_iter()
                    .filter(|cut| (u64::from(ids.base)..end).contains(cut)),
            );
        }
    }
    cuts.sort_unstable();
    cuts.dedup();
    let line = |pair: &[u64]| {
        format!(
            "{} {} {}\n",
            pair[0] - u64::from(ids.base),
            pair[0],
            pair[1] - pair[0]
        )
    };
    cuts.windows(2).map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_is_cut_where_our_own_is() {
        let whole = "         0          0 4294967295\n";
        let base = 1_200_000_000;
        assert_eq!(lines(whole, Ids { base, count: 65_536 }), "0 1200000000 65536\n");
        let rootless = "0 1000 1\n1 100000 1000\n1001 300000 64536\n";
        assert_eq!(
            lines(
                rootless,
                Ids {
                    base: 0,
                    count: 65_536
                }
            ),
            "0 0 1\n1 1 1000\n1001 1001 64535\n"
        );
    }
}
