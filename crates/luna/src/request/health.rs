//! Health checks.

use std::time::Duration;

use luna_core::spec::{HealthCheck, HealthRequest};
use luna_core::{Error, Kind, Result};

use super::duration;
use crate::cli::run::HealthFlags;

pub(super) fn health(flags: &HealthFlags) -> Result<HealthRequest> {
    let timed = flags.health_interval.is_some()
        || flags.health_timeout.is_some()
        || flags.health_start_period.is_some()
        || flags.health_retries.is_some();
    if flags.no_healthcheck {
        if timed || flags.health_cmd.is_some() {
            return Err(Error::new(
                Kind::InvalidInput,
                "cannot use `--no-healthcheck` and `--health-…` together",
            ));
        }
        return Ok(HealthRequest::Disabled);
    }
    let Some(command) = &flags.health_cmd else {
        if timed {
            return Err(Error::new(
                Kind::InvalidInput,
                "cannot change the timing of the image's health check",
            )
            .hint("give the command too: `--health-cmd COMMAND`"));
        }
        return Ok(HealthRequest::FromImage);
    };
    let or =
        |text: &Option<String>, seconds| text.as_deref().map_or(Ok(Duration::from_secs(seconds)), duration);
    Ok(HealthRequest::Check(HealthCheck {
        command: vec!["/bin/sh".to_owned(), "-c".to_owned(), command.clone()],
        interval: or(&flags.health_interval, 30)?,
        timeout: or(&flags.health_timeout, 30)?,
        start_period: or(&flags.health_start_period, 0)?,
        retries: flags.health_retries.unwrap_or(3).max(1),
    }))
}
