//! Who we are to a registry: docker's `config.json` (`auths`, `credHelpers`, `credsStore`), read and written as docker
//! does, so that either tool's login serves both.

use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use luna_core::{Error, Kind, Result};
use serde::Deserialize;
use serde_json::{Map, Value};

/// Docker Hub's key, older than the name.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";

/// A user name and a password or token. Its `Debug` shows no secret.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    pub user: String,
    pub password: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Credentials({}, …)", self.user)
    }
}

/// What a credential helper answers to `get`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

/// Docker's configuration file with what Luna does not know left as it is.
#[derive(Debug)]
pub(crate) struct Config {
    path: PathBuf,
    content: Map<String, Value>,
}

impl Config {
    /// `$DOCKER_CONFIG/config.json` or `~/.docker/config.json`; a missing file is an empty one.
    pub(crate) fn read() -> Result<Config> {
        let directory = match (std::env::var_os("DOCKER_CONFIG"), std::env::var_os("HOME")) {
            (Some(directory), _) if !directory.is_empty() => PathBuf::from(directory),
            (_, Some(home)) => PathBuf::from(home).join(".docker"),
            _ => PathBuf::from("/root/.docker"),
        };
        Config::read_from(directory.join("config.json"))
    }

    fn read_from(path: PathBuf) -> Result<Config> {
        let content = match std::fs::read(&path) {
            Ok(bytes) if bytes.trim_ascii().is_empty() => Map::new(),
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| {
                Error::new(Kind::InvalidInput, format!("cannot read `{}`", path.display()))
                    .because(error)
                    .hint("mend the file or move it away")
            })?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Map::new(),
            Err(error) => return Err(Error::io(format!("cannot read `{}`", path.display()), error)),
        };
        Ok(Config { path, content })
    }

    /// What is stored for `registry`, from a helper program where one is set for it.
    pub(crate) fn credentials(&self, registry: &str) -> Result<Option<Credentials>> {
        if let Some(helper) = self.helper(registry) {
            let answer = match run_helper(&helper, "get", key(registry).as_bytes()) {
                // Docker's configuration may have come from another machine; public images need no login.
                Err(error) if error.kind() == Kind::NotFound => None,
                answer => answer?,
            };
            // A helper that has nothing says so and fails; that is no error of ours.
            let found = answer.and_then(|bytes| serde_json::from_slice::<Answer>(&bytes).ok());
            return Ok(found.map(|answer| Credentials {
                user: answer.username,
                password: answer.secret,
            }));
        }
        let Some(auths) = self.content.get("auths").and_then(Value::as_object) else {
            return Ok(None);
        };
        let entry = keys(registry).iter().find_map(|key| auths.get(key));
        let Some(encoded) = entry.and_then(|entry| entry.get("auth")).and_then(Value::as_str) else {
            return Ok(None);
        };
        let invalid = || {
            Error::new(
                Kind::InvalidInput,
                format!(
                    "cannot read the login for `{registry}` in `{}`",
                    self.path.display()
                ),
            )
            .hint(format!("luna login {registry}"))
        };
        let decoded = STANDARD.decode(encoded.trim()).map_err(|_| invalid())?;
        let decoded = String::from_utf8(decoded).map_err(|_| invalid())?;
        let (user, password) = decoded.split_once(':').ok_or_else(invalid)?;
        Ok(Some(Credentials {
            user: user.to_owned(),
            password: password.trim_end_matches('\0').to_owned(),
        }))
    }

    /// Stores a login, in the helper where one is set, else in the file.
    pub(crate) fn store(&mut self, registry: &str, credentials: &Credentials) -> Result<()> {
        if let Some(helper) = self.helper(registry) {
            let request = serde_json::json!({
                "ServerURL": key(registry),
                "Username": credentials.user,
                "Secret": credentials.password,
            });
            return match run_helper(&helper, "store", request.to_string().as_bytes())? {
                Some(_) => Ok(()),
                None => Err(Error::new(
                    Kind::PermissionDenied,
                    format!("cannot store the login with `docker-credential-{helper}`"),
                )),
            };
        }
        let encoded = STANDARD.encode(format!("{}:{}", credentials.user, credentials.password));
        let auths = self
            .content
            .entry("auths")
            .or_insert_with(|| Value::Object(Map::new()));
        if let Some(auths) = auths.as_object_mut() {
            auths.insert(key(registry), serde_json::json!({ "auth": encoded }));
        }
        self.write()
    }

    /// Forgets a login; false when there was none.
    pub(crate) fn forget(&mut self, registry: &str) -> Result<bool> {
        if let Some(helper) = self.helper(registry) {
            return Ok(run_helper(&helper, "erase", key(registry).as_bytes())?.is_some());
        }
        let Some(auths) = self.content.get_mut("auths").and_then(Value::as_object_mut) else {
            return Ok(false);
        };
        let before = auths.len();
        for key in keys(registry) {
            auths.remove(&key);
        }
        if auths.len() == before {
            return Ok(false);
        }
        self.write()?;
        Ok(true)
    }

    fn helper(&self, registry: &str) -> Option<String> {
        let helpers = self.content.get("credHelpers").and_then(Value::as_object);
        let own = helpers.and_then(|helpers| keys(registry).iter().find_map(|key| helpers.get(key)));
        let name = own.or_else(|| self.content.get("credsStore"))?.as_str()?;
        let reads_well = name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'));
        (!name.is_empty() && reads_well).then(|| name.to_owned())
    }

    fn write(&self) -> Result<()> {
        let failed = |error| Error::io(format!("cannot write `{}`", self.path.display()), error);
        let directory = self.path.parent().expect("the path ends in config.json");
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(failed)?;
        let temporary = self.path.with_extension(format!("json.{}", std::process::id()));
        let write = || -> std::io::Result<()> {
            let mut file = std::fs::OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&temporary)?;
            file.write_all(&serde_json::to_vec_pretty(&self.content)?)?;
            file.sync_all()?;
            std::fs::rename(&temporary, &self.path)
        };
        write().map_err(|error| {
            let _ = std::fs::remove_file(&temporary);
            failed(error)
        })
    }
}

fn key(registry: &str) -> String {
    match registry {
        "docker.io" => DOCKER_HUB.to_owned(),
        other => other.to_owned(),
    }
}

/// The forms under which tools have stored a registry over the years.
fn keys(registry: &str) -> Vec<String> {
    let mut keys = vec![
        key(registry),
        registry.to_owned(),
        format!("https://{registry}"),
        format!("https://{registry}/v1/"),
        format!("https://{registry}/v2/"),
    ];
    if registry == "docker.io" {
        keys.push("index.docker.io".to_owned());
    }
    keys
}

/// `None` when the helper says no.
fn run_helper(name: &str, verb: &str, input: &[u8]) -> Result<Option<Vec<u8>>> {
    let program = format!("docker-credential-{name}");
    let failed = |error| {
        Error::io(format!("cannot run the credential helper `{program}`"), error)
            .hint("install it, or remove it from docker's config.json")
    };
    let mut child = Command::new(&program)
        .arg(verb)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that does not read its input has its own reasons; its exit code tells.
        let _ = stdin.write_all(input);
    }
    let output = child.wait_with_output().map_err(failed)?;
    Ok(output.status.success().then_some(output.stdout))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_login_is_kept_closed_and_forgotten_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deep/config.json");
        let mut config = Config::read_from(path.clone()).unwrap();
        let credentials = Credentials {
            user: "me".to_owned(),
            password: "se:cret".to_owned(),
        };
        config.store("127.0.0.1:5000", &credentials).unwrap();
        config.store("docker.io", &credentials).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(DOCKER_HUB) && !text.contains("cret"));
        let mut again = Config::read_from(path).unwrap();
        assert_eq!(again.credentials("127.0.0.1:5000").unwrap(), Some(credentials));
        assert!(again.forget("127.0.0.1:5000").unwrap());
        assert!(!again.forget("127.0.0.1:5000").unwrap());
        assert_eq!(again.credentials("127.0.0.1:5000").unwrap(), None);
        assert!(again.credentials("docker.io").unwrap().is_some());
    }

    #[test]
    fn what_docker_wrote_beside_logins_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        std::fs::write(&path, r#"{"proxies":{"default":{}},"auths":{}}"#).unwrap();
        let mut config = Config::read_from(path.clone()).unwrap();
        let credentials = Credentials {
            user: "a".to_owned(),
            password: "b".to_owned(),
        };
        config.store("ghcr.io", &credentials).unwrap();
        assert!(std::fs::read_to_string(&path).unwrap().contains("proxies"));
        std::fs::write(&path, "{").unwrap();
        assert_eq!(Config::read_from(path).unwrap_err().kind(), Kind::InvalidInput);
    }

    #[test]
    fn without_its_helper_nobody_is_logged_in() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.json");
        std::fs::write(&path, r#"{"credsStore":"luna-test-that-is-not-installed"}"#).unwrap();
        let mut config = Config::read_from(path).unwrap();
        assert_eq!(config.credentials("ghcr.io").unwrap(), None);
        let credentials = Credentials {
            user: "a".to_owned(),
            password: "b".to_owned(),
        };
        assert_eq!(
            config.store("ghcr.io", &credentials).unwrap_err().kind(),
            Kind::NotFound
        );
        assert_eq!(config.forget("ghcr.io").unwrap_err().kind(), Kind::NotFound);
    }

    #[test]
    fn secrets_are_not_shown() {
        let credentials = Credentials {
            user: "me".to_owned(),
            password: "hidden".to_owned(),
        };
        assert!(!format!("{credentials:?}").contains("hidden"));
    }
}
