//! A registry that misbehaves in every way a network and an enemy can: one clear error each, the store unharmed, and
//! a pull that goes on where a broken one stopped.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test fails by panicking and says why it skips"
)]

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use luna_core::event::Progress;
use luna_core::{Error, Kind};
use luna_image::registry::{Access, PullOptions, pull};
use luna_image::{Digest, Image, Platform, Reference, Store};

fn quiet(_: Progress) {}

/// What goes wrong with the layer's blob, or with everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    None,
    /// Every connection ends after this many bytes of the body.
    Disconnect(usize),
    /// The same, and ranges are ignored.
    DisconnectWithoutRanges(usize),
    /// This many bytes, then silence.
    Stall(usize),
    WrongBytes,
    Longer,
    Shorter,
    Missing,
    Unauthorized,
    EndlessManifest,
    WrongManifest,
}

struct Registry {
    port: u16,
    fault: Arc<Mutex<Fault>>,
    /// Bytes of layer bodies sent.
    sent: Arc<AtomicUsize>,
    layer: Digest,
}

impl Registry {
    fn start(fault: Fault) -> Registry {
        let mut archive = tar::Builder::new(Vec::new());
        let mut noise = 1u32;
        let content: Vec<u8> = (0..200_000)
            .map(|_| {
                noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (noise >> 24) as u8
            })
            .collect();
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        archive.append_data(&mut header, "noise", &content[..]).unwrap();
        let plain = archive.into_inner().unwrap();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&plain).unwrap();
        let layer = gzip.finish().unwrap();
        let config = format!(
            r#"{{"architecture":"{}","os":"linux","config":{{}},"rootfs":{{"type":"layers","diff_ids":["{}"]}},"history":[]}}"#,
            Platform::host().architecture,
            Digest::of(&plain)
        )
        .into_bytes();
        let manifest = format!(
            r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{}","size":{}}},"layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"{}","size":{}}}]}}"#,
            Digest::of(&config),
            config.len(),
            Digest::of(&layer),
            layer.len()
        )
        .into_bytes();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let layer_digest = Digest::of(&layer);
        let blobs = HashMap::from([
            (Digest::of(&config).to_string(), config),
            (layer_digest.to_string(), layer),
        ]);
        let fault = Arc::new(Mutex::new(fault));
        let sent = Arc::new(AtomicUsize::new(0));
        let server = Arc::new(Server {
            manifest,
            blobs,
            layer: layer_digest.to_string(),
            fault: Arc::clone(&fault),
            sent: Arc::clone(&sent),
        });
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let server = Arc::clone(&server);
                std::thread::spawn(move || server.answer(&stream));
            }
        });
        Registry {
            port,
            fault,
            sent,
            layer: layer_digest,
        }
    }

    fn reference(&self) -> Reference {
        Reference::parse(&format!("127.0.0.1:{}/test/image:1", self.port)).unwrap()
    }

    fn pull(&self, store: &Store) -> Result<Image, Error> {
        let options = PullOptions {
            access: Access {
                stall: Duration::from_millis(700),
                ..Access::default()
            },
            ..PullOptions::default()
        };
        pull(store, &self.reference(), &options, &quiet)
    }

    fn set(&self, fault: Fault) {
        *self.fault.lock().unwrap() = fault;
    }
}

struct Server {
    manifest: Vec<u8>,
    blobs: HashMap<String, Vec<u8>>,
    layer: String,
    fault: Arc<Mutex<Fault>>,
    sent: Arc<AtomicUsize>,
}

impl Server {
    fn answer(&self, stream: &TcpStream) {
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        if reader.read_line(&mut line).is_err() {
            return;
        }
        let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
        let mut start = 0;
        loop {
            let mut header = String::new();
            if reader.read_line(&mut header).unwrap_or(0) == 0 || header.trim().is_empty() {
                break;
            }
            if let Some(range) = header.to_ascii_lowercase().strip_prefix("range: bytes=") {
                start = range.trim().trim_end_matches('-').parse().unwrap_or(0);
            }
        }
        let fault = *self.fault.lock().unwrap();
        let mut out = stream;
        // A client that hangs up is what some of these tests are about.
        let _ = match path.as_str() {
            "/v2/" if line.starts_with("GET") => reply(&mut out, "200 OK", "", b"{}"),
            path if path.contains("/manifests/") => match fault {
                Fault::Unauthorized => {
                    let text = br#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#;
                    reply(&mut out, "401 Unauthorized", "", text)
                }
                Fault::EndlessManifest => endless(&mut out),
                Fault::WrongManifest => reply(&mut out, "200 OK", "", b"<html>a proxy's login page</html>"),
                _ => {
                    let kind = "Content-Type: application/vnd.oci.image.manifest.v1+json\r\n";
                    reply(&mut out, "200 OK", kind, &self.manifest)
                }
            },
            path => {
                let digest = path.rsplit('/').next().unwrap_or_default();
                match self.blobs.get(digest) {
                    Some(_) if digest == self.layer && fault == Fault::Missing => {
                        reply(&mut out, "404 Not Found", "", b"")
                    }
                    Some(blob) if digest == self.layer => self.layer(&mut out, blob, start, fault),
                    Some(blob) => reply(&mut out, "200 OK", "", blob),
                    None => reply(&mut out, "404 Not Found", "", b""),
                }
            }
        };
    }

    fn layer(&self, out: &mut &TcpStream, blob: &[u8], start: usize, fault: Fault) -> std::io::Result<()> {
        let start = match fault {
            Fault::DisconnectWithoutRanges(_) => 0,
            _ => start,
        };
        let mut body = blob[start..].to_vec();
        match fault {
            Fault::WrongBytes => body[1000..2000].fill(0),
            Fault::Longer => body.extend_from_slice(b"more than was promised"),
            Fault::Shorter => body.truncate(body.len() - 100),
            _ => {}
        }
        let status = if start > 0 {
            "206 Partial Content"
        } else {
            "200 OK"
        };
        let range = match start {
            0 => String::new(),
            start => format!(
                "Content-Range: bytes {start}-{}/{}\r\n",
                blob.len() - 1,
                blob.len()
            ),
        };
        write!(
            out,
            "HTTP/1.1 {status}\r\nConnection: close\r\n{range}Content-Length: {}\r\n\r\n",
            body.len()
        )?;
        let until = match fault {
            Fault::Disconnect(count) | Fault::DisconnectWithoutRanges(count) | Fault::Stall(count) => {
                count.min(body.len())
            }
            _ => body.len(),
        };
        out.write_all(&body[..until])?;
        self.sent.fetch_add(until, Ordering::Relaxed);
        if let Fault::Stall(_) = fault {
            // Silent until the client gives up and closes.
            let _ = out.read(&mut [0; 1]);
        }
        Ok(())
    }
}

fn reply(out: &mut &TcpStream, status: &str, headers: &str, body: &[u8]) -> std::io::Result<()> {
    write!(
        out,
        "HTTP/1.1 {status}\r\nConnection: close\r\n{headers}Content-Length: {}\r\n\r\n",
        body.len()
    )?;
    out.write_all(body)
}

fn endless(out: &mut &TcpStream) -> std::io::Result<()> {
    write!(out, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")?;
    loop {
        out.write_all(&vec![b' '; 65_536])?;
    }
}

fn store() -> (tempfile::TempDir, Store) {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(directory.path(), false).unwrap();
    (directory, store)
}

/// Files in the store that are neither locks nor an unfinished download.
fn content(store: &Store) -> Vec<String> {
    let mut found = Vec::new();
    for place in ["blobs/sha256", "layers"] {
        for entry in std::fs::read_dir(store.root().join(place)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if !name.starts_with(".part-") {
                found.push(name);
            }
        }
    }
    found
}

fn refused(fault: Fault) -> Error {
    let registry = Registry::start(fault);
    let (_directory, store) = store();
    let error = registry.pull(&store).unwrap_err();
    assert_eq!(
        content(&store),
        Vec::<String>::new(),
        "{fault:?} left something behind"
    );
    assert!(store.list().unwrap().is_empty());
    assert!(error.message().starts_with("cannot pull `127.0.0.1"), "{error:?}");
    assert!(error.hint_text().is_some(), "{fault:?}: {error:?}");
    // The same registry once it behaves: nothing stands in the way.
    registry.set(Fault::None);
    registry.pull(&store).unwrap();
    error
}

#[test]
fn a_pull_works_and_the_second_one_sends_no_layer() {
    let registry = Registry::start(Fault::None);
    let (_directory, store) = store();
    let image = registry.pull(&store).unwrap();
    let tree = store.tree(&image, &quiet).unwrap();
    assert_eq!(tree[0].join("noise").metadata().unwrap().len(), 200_000);
    let sent = registry.sent.load(Ordering::Relaxed);
    let again = registry.pull(&store).unwrap();
    assert_eq!(again.id, image.id);
    assert_eq!(registry.sent.load(Ordering::Relaxed), sent);
}

#[test]
fn a_damaged_layer_is_fetched_again() {
    let registry = Registry::start(Fault::None);
    let (_directory, store) = store();
    let image = registry.pull(&store).unwrap();
    let blob = store.root().join("blobs/sha256").join(registry.layer.hex());
    let whole = std::fs::read(&blob).unwrap();
    // Cut short by a power failure, beside a tree that is whole.
    std::fs::write(&blob, &whole[..1000]).unwrap();
    registry.pull(&store).unwrap();
    assert_eq!(std::fs::read(&blob).unwrap(), whole);
    // Rotten, and needed for the tree.
    let tree = store.tree(&image, &quiet).unwrap().remove(0);
    luna_image::remove_tree(&tree).unwrap();
    let mut rotten = whole.clone();
    rotten[100_000] ^= 1;
    std::fs::write(&blob, &rotten).unwrap();
    assert_eq!(store.tree(&image, &quiet).unwrap_err().kind(), Kind::Corrupt);
    registry.pull(&store).unwrap();
    assert_eq!(std::fs::read(&blob).unwrap(), whole);
    assert_eq!(store.tree(&image, &quiet).unwrap(), [tree]);
}

#[test]
fn a_broken_connection_is_taken_up_where_it_broke() {
    let registry = Registry::start(Fault::Disconnect(30_000));
    let (_directory, store) = store();
    let image = registry.pull(&store).unwrap();
    assert_eq!(image.layers[0].digest, registry.layer);
    let size = image.layers[0].size as usize;
    assert_eq!(registry.sent.load(Ordering::Relaxed), size, "no byte came twice");
}

#[test]
fn a_registry_without_ranges_is_tried_until_it_brings_no_more() {
    let registry = Registry::start(Fault::DisconnectWithoutRanges(50_000));
    let (_directory, store) = store();
    assert_eq!(registry.pull(&store).unwrap_err().kind(), Kind::Unavailable);
    registry.set(Fault::None);
    registry.pull(&store).unwrap();
}

#[test]
fn a_stall_is_given_up_and_what_came_is_kept() {
    let registry = Registry::start(Fault::Stall(60_000));
    let (_directory, store) = store();
    let error = registry.pull(&store).unwrap_err();
    assert_eq!(error.kind(), Kind::TimedOut, "{error:?}");
    registry.set(Fault::None);
    let before = registry.sent.load(Ordering::Relaxed);
    let image = registry.pull(&store).unwrap();
    let rest = registry.sent.load(Ordering::Relaxed) - before;
    assert_eq!(rest, image.layers[0].size as usize - 60_000);
}

#[test]
fn wrong_bytes_are_refused() {
    let error = refused(Fault::WrongBytes);
    assert_eq!(error.kind(), Kind::Corrupt);
    assert!(error.causes().concat().contains("digest"), "{error:?}");
}

#[test]
fn lies_about_sizes_are_refused() {
    for fault in [Fault::Longer, Fault::Shorter] {
        let error = refused(fault);
        assert_eq!(error.kind(), Kind::Corrupt, "{error:?}");
        assert!(
            error.causes().concat().contains("where the manifest says"),
            "{error:?}"
        );
    }
}

#[test]
fn refusals_are_told_with_the_way_out() {
    let error = refused(Fault::Unauthorized);
    assert_eq!(error.kind(), Kind::PermissionDenied);
    assert!(error.hint_text().unwrap().starts_with("luna login 127.0.0.1"));
    assert!(error.causes().concat().contains("authentication required"));
    assert_eq!(refused(Fault::Missing).kind(), Kind::NotFound);
}

#[test]
fn an_endless_manifest_ends() {
    let registry = Registry::start(Fault::EndlessManifest);
    let (_directory, store) = store();
    assert_eq!(registry.pull(&store).unwrap_err().kind(), Kind::Exhausted);
    registry.set(Fault::WrongManifest);
    assert_eq!(registry.pull(&store).unwrap_err().kind(), Kind::Corrupt);
}

#[test]
fn nobody_there_is_said_plainly() {
    let port = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let (_directory, store) = store();
    let reference = Reference::parse(&format!("127.0.0.1:{port}/a:1")).unwrap();
    let error = pull(&store, &reference, &PullOptions::default(), &quiet).unwrap_err();
    assert_eq!(error.kind(), Kind::Unavailable, "{error:?}");
    assert!(error.hint_text().is_some());
}

#[test]
fn two_pulls_at_once_bring_each_byte_once() {
    let registry = Registry::start(Fault::None);
    let (_directory, store) = store();
    std::thread::scope(|scope| {
        let pulls: Vec<_> = (0..3).map(|_| scope.spawn(|| registry.pull(&store))).collect();
        for pull in pulls {
            pull.join().unwrap().unwrap();
        }
    });
    let size = store.list().unwrap()[0].layers[0].size as usize;
    assert_eq!(registry.sent.load(Ordering::Relaxed), size);
}
