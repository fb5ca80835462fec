//! `build`.

use luna_core::error::Kind;
use luna_core::spec::Network;
use luna_core::{Error, Result};
use luna_runtime::BuildRequest;
use luna_runtime::image::Reference;

use super::Front;
use crate::cli::build::{BuildArgs, BuildNetwork, ProgressKind};
use crate::output::{Bars, Look};
use crate::request;

pub(super) fn build(front: &Front, args: BuildArgs) -> Result<()> {
    let look = match args.progress {
        _ if args.quiet => Look::Quiet,
        ProgressKind::Auto => Look::fitting(),
        ProgressKind::Plain => Look::Plain,
        ProgressKind::Tty => Look::Bars,
    };
    if !args.context.is_dir() {
        return Err(Error::new(
            Kind::NotFound,
            format!("cannot find the directory `{}`", args.context.display()),
        )
        .hint("name the directory that holds the Dockerfile and what it copies"));
    }
    let mut options = BuildRequest::new(&args.context);
    options.file = args.file;
    options.references = args
        .tag
        .iter()
        .map(|tag| Reference::parse(tag))
        .collect::<Result<_>>()?;
    options.arguments = request::variables(&[], &args.build_arg)?.into_iter().collect();
    options.labels = request::labels(&args.label)?;
    options.target = args.target;
    options.platform = args.platform.as_deref().map(str::parse).transpose()?;
    options.network = match args.network {
        BuildNetwork::None => Network::None,
        BuildNetwork::Host => Network::Host,
    };
    options.secrets = args
        .secret
        .iter()
        .map(|text| secret(text))
        .collect::<Result<_>>()?;
    options.no_cache = args.no_cache;
    options.pull = args.pull;
    options.no_host_ca = args.no_host_ca;
    let bars = Bars::new(look);
    let image = front
        .runtime()?
        .build(&options, &|progress| bars.take(progress))?;
    drop(bars);
    front.printer.line(image.id.to_string())
}

/// `id=NAME,src=FILE`; the file of that name where there is no `src`.
fn secret(text: &str) -> Result<(String, std::path::PathBuf)> {
    let invalid = || {
        Error::new(
            Kind::InvalidInput,
            format!("cannot read the secret `{}`", text.escape_debug()),
        )
        .hint("write `--secret id=NAME,src=FILE`")
    };
    let (mut id, mut source) = (None, None);
    for part in text.split(',') {
        match part.split_once('=').ok_or_else(invalid)? {
            ("id", value) if !value.is_empty() => id = Some(value.to_owned()),
            ("src" | "source", value) if !value.is_empty() => source = Some(value.into()),
            ("type", "file") => {}
            _ => return Err(invalid()),
        }
    }
    let id = id.ok_or_else(invalid)?;
    let source = source.unwrap_or_else(|| std::path::PathBuf::from(&id));
    Ok((id, source))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_read_as_docker_s() {
        assert_eq!(secret("id=a,src=/b").unwrap(), ("a".to_owned(), "/b".into()));
        assert_eq!(secret("type=file,id=a").unwrap(), ("a".to_owned(), "a".into()));
        assert!(secret("src=/b").is_err() && secret("a").is_err());
    }
}
