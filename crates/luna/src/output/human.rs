//! Times and sizes in people's words, docker's where docker has them.

use std::time::{Duration, SystemTime};

/// `Less than a second`, `5 seconds`, `About a minute`, `3 hours`, `2 weeks`: docker's `HumanDuration`.
pub(crate) fn span(span: Duration) -> String {
    let seconds = span.as_secs();
    let (minutes, hours) = (seconds / 60, (seconds + 1800) / 3600);
    match seconds {
        0 => "Less than a second".to_owned(),
        1 => "1 second".to_owned(),
        2..60 => format!("{seconds} seconds"),
        60..120 => "About a minute".to_owned(),
        _ if minutes < 60 => format!("{minutes} minutes"),
        _ if hours == 1 => "About an hour".to_owned(),
        _ if hours < 48 => format!("{hours} hours"),
        _ if hours < 24 * 7 * 2 => format!("{} days", hours / 24),
        _ if hours < 24 * 30 * 2 => format!("{} weeks", hours / 24 / 7),
        _ if hours < 24 * 365 * 2 => format!("{} months", hours / 24 / 30),
        _ => format!("{} years", hours / 24 / 365),
    }
}

/// How long ago an RFC 3339 time was; `None` where it is none.
pub(crate) fn since(time: &str) -> Option<Duration> {
    let then = humantime::parse_rfc3339_weak(time).ok()?;
    Some(SystemTime::now().duration_since(then).unwrap_or_default())
}

/// `5 minutes ago`, or `N/A`.
pub(crate) fn ago(time: &str) -> String {
    since(time).map_or_else(|| "N/A".to_owned(), |ago| format!("{} ago", span(ago)))
}

/// Powers of 1000 with three digits, docker's way with images and transfers: `77.8MB`.
pub(crate) fn decimal_size(bytes: u64) -> String {
    scaled(bytes, 1000.0, &["B", "kB", "MB", "GB", "TB", "PB"], 3)
}

/// Powers of 1024 with four digits, docker's way with memory: `12.5MiB`.
pub(crate) fn binary_size(bytes: u64) -> String {
    scaled(bytes, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB", "PiB"], 4)
}

fn scaled(bytes: u64, base: f64, units: &[&str], digits: usize) -> String {
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= base && unit + 1 < units.len() {
        value /= base;
        unit += 1;
    }
    let whole = (value as u64).to_string().len();
    let text = format!("{value:.*}", digits.saturating_sub(whole));
    let text = if text.contains('.') {
        text.trim_end_matches('0').trim_end_matches('.')
    } else {
        &text
    };
    format!("{text}{}", units[unit])
}

/// A point in time as users write it: RFC 3339, seconds since 1970, or how long ago (`10m`).
pub(crate) fn moment(text: &str) -> luna_core::Result<SystemTime> {
    if let Ok(time) = humantime::parse_rfc3339_weak(text) {
        return Ok(time);
    }
    if let Ok(time) = humantime::parse_rfc3339_weak(&format!("{text}T00:00:00")) {
        return Ok(time);
    }
    let seconds = text
        .parse::<f64>()
        .ok()
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let time = match seconds {
        Some(seconds) => SystemTime::UNIX_EPOCH.checked_add(seconds),
        None => humantime::parse_duration(text)
            .ok()
            .and_then(|ago| SystemTime::now().checked_sub(ago)),
    };
    time.ok_or_else(|| {
        luna_core::Error::new(
            luna_core::Kind::InvalidInput,
            format!("cannot read `{}` as a time", text.escape_debug()),
        )
        .hint("write a time such as `2026-01-31T12:00:00Z`, or how long ago: `10m`")
    })
}

/// The same as RFC 3339 with nanoseconds, so that times in logs and events compare as text.
pub(crate) fn moment_text(text: &str) -> luna_core::Result<String> {
    Ok(humantime::format_rfc3339_nanos(moment(text)?).to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_read_as_docker_s() {
        for (seconds, text) in [
            (0, "Less than a second"),
            (59, "59 seconds"),
            (60, "About a minute"),
            (180, "3 minutes"),
            (3600, "About an hour"),
            (7200, "2 hours"),
            (86_400 * 3, "3 days"),
            (86_400 * 21, "3 weeks"),
            (86_400 * 90, "3 months"),
            (86_400 * 800, "2 years"),
        ] {
            assert_eq!(span(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn sizes_read_as_docker_s() {
        assert_eq!(decimal_size(77_812_345), "77.8MB");
        assert_eq!(decimal_size(0), "0B");
        assert_eq!(decimal_size(999), "999B");
        assert_eq!(binary_size(13_107_200), "12.5MiB");
        assert_eq!(binary_size(1 << 30), "1GiB");
    }

    #[test]
    fn moments_in_every_form() {
        let seconds = |text| {
            moment(text)
                .unwrap()
                .duration_since(SystemTime::UNIX_EPOCH)
                .unwrap()
                .as_secs()
        };
        assert_eq!(seconds("1970-01-01T00:01:00Z"), 60);
        assert_eq!(seconds("1970-01-02"), 86_400);
        assert_eq!(seconds("60"), 60);
        assert!(seconds("10m") > 1_700_000_000);
        assert!(moment("yesterday").is_err());
    }
}
