//! Sockets found, connected to and carried; with a real init where the example `offering` of luna-guest is built.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::process::{Command, Stdio};

use super::*;

fn paths(found: &Found) -> Vec<&str> {
    found.offers.iter().map(|offer| offer.path.as_str()).collect()
}

#[test]
fn a_socket_is_offered_and_a_directory_of_nothing_else_is_not_shared() {
    let home = tempfile::tempdir().unwrap();
    let at = |name: &str| home.path().join(name);
    let target = Path::new("/t/");
    fs::create_dir(at("d")).unwrap();
    let found = find(&at("d"), target).unwrap();
    assert!(found.has_files && found.offers.is_empty(), "empty");
    let _one = UnixListener::bind(at("d/X1")).unwrap();
    let _other = UnixListener::bind(at("d/X0")).unwrap();
    let found = find(&at("d"), target).unwrap();
    assert_eq!((paths(&found), found.has_files), (vec!["/t/X0", "/t/X1"], false));
    let found = find(&at("d/X0"), Path::new("/run/x")).unwrap();
    assert_eq!((paths(&found), found.has_files), (vec!["/run/x"], false));
    // The mount's own source may be a link; a link in the directory is a file like others.
    symlink(at("d/X0"), at("link")).unwrap();
    assert_eq!(paths(&find(&at("link"), target).unwrap()), ["/t/"]);
    symlink(at("d/X0"), at("d/X2")).unwrap();
    let found = find(&at("d"), target).unwrap();
    assert_eq!((paths(&found), found.has_files), (vec!["/t/X0", "/t/X1"], true));
    fs::write(at("file"), "").unwrap();
    for other in ["file", "nothing"] {
        let found = find(&at(other), target).unwrap();
        assert!(found.has_files && found.offers.is_empty(), "{other}");
    }
}

#[test]
fn a_large_directory_is_not_looked_through_for_ever() {
    let home = tempfile::tempdir().unwrap();
    for number in 0..=ENTRIES {
        fs::write(home.path().join(number.to_string()), "").unwrap();
    }
    assert!(find(home.path(), Path::new("/t")).unwrap().has_files);
}

fn entry(directory: &Path, name: &str) -> Place {
    let directory = open(rustix::fs::CWD, directory.as_os_str(), OFlags::DIRECTORY).unwrap();
    Place::Entry(Arc::new(directory), name.into())
}

#[test]
fn a_name_is_found_anew_and_never_through_a_link() {
    let home = tempfile::tempdir().unwrap();
    fs::create_dir(home.path().join("d")).unwrap();
    let secret = home.path().join("secret");
    let _secret = UnixListener::bind(&secret).unwrap();
    let name = home.path().join("d/X0");
    let place = entry(&home.path().join("d"), "X0");
    assert_eq!(place.connect(0).unwrap_err().kind(), io::ErrorKind::NotFound);
    let first = UnixListener::bind(&name).unwrap();
    place.connect(0).unwrap();
    drop(first);
    assert_eq!(
        place.connect(0).unwrap_err().kind(),
        io::ErrorKind::ConnectionRefused
    );
    // A server that was started again.
    fs::remove_file(&name).unwrap();
    let second = UnixListener::bind(&name).unwrap();
    place.connect(0).unwrap();
    drop(second);
    fs::remove_file(&name).unwrap();
    symlink(&secret, &name).unwrap();
    assert!(place.connect(0).is_err(), "a link");
    fs::remove_file(&name).unwrap();
    fs::write(&name, "").unwrap();
    assert!(place.connect(0).is_err(), "a file");
}

#[test]
fn the_sandbox_is_nobody_special_to_the_host() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: not root, so nobody else can be connected as");
        return;
    }
    let home = tempfile::tempdir().unwrap();
    fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let path = home.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    let place = entry(home.path(), "socket");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o660)).unwrap();
    let error = place.connect(1_300_000_000).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
    let _connection = place.connect(1_300_000_000).unwrap();
    let peer = listener.accept().unwrap().0;
    let credentials = rustix::net::sockopt::socket_peercred(&peer).unwrap();
    assert_eq!(credentials.uid.as_raw(), 1_300_000_000);
    assert_eq!(credentials.gid.as_raw(), 1_300_000_000);
    assert!(rustix::process::geteuid().is_root(), "this thread is as it was");
}

/// An init with a socket, and the host's server behind it.
struct World {
    session: Session,
    init: std::process::Child,
    inside: PathBuf,
    server: UnixListener,
    _home: tempfile::TempDir,
}

impl World {
    fn new() -> Option<World> {
        let tests = std::env::current_exe().unwrap();
        let program = tests
            .parent()
            .unwrap()
            .with_file_name("examples")
            .join("offering");
        if !program.exists() {
            println!("skipped: `cargo build -p luna-guest --example offering` was not done");
            return None;
        }
        let home = tempfile::tempdir().unwrap();
        fs::create_dir(home.path().join("host")).unwrap();
        let server = UnixListener::bind(home.path().join("host/s")).unwrap();
        fs::create_dir(home.path().join("inside")).unwrap();
        let inside = home.path().join("inside/s");
        let (near, far) = UnixStream::pair().unwrap();
        let init = Command::new("sh")
            .args(["-c", "exec \"$@\" 3<&0 0</dev/null", "sh"])
            .arg(program)
            .arg(&inside)
            .stdin(Stdio::from(OwnedFd::from(far)))
            .spawn()
            .unwrap();
        let session = Session::open(near.into()).unwrap();
        let found = find(&home.path().join("host"), &home.path().join("inside")).unwrap();
        assert!(!found.has_files);
        let sockets = Sockets {
            offers: found.offers,
            ids: IdRange { base: 0 },
        };
        sockets.serve(&session).unwrap();
        Some(World {
            session,
            init,
            inside,
            server,
            _home: home,
        })
    }

    fn connect(&self) -> UnixStream {
        UnixStream::connect(&self.inside).unwrap()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.session.close();
        let _ = self.init.wait();
    }
}

/// A host's server that sends back what it gets.
fn echo(server: &UnixListener, connections: usize) -> thread::JoinHandle<()> {
    let server = server.try_clone().unwrap();
    thread::spawn(move || {
        for _ in 0..connections {
            let (mut socket, _) = server.accept().unwrap();
            thread::spawn(move || {
                let mut to = socket.try_clone().unwrap();
                let _ = io::copy(&mut socket, &mut to);
                let _ = to.shutdown(Shutdown::Write);
            });
        }
    })
}

#[test]
fn a_thousand_connections_one_after_another_and_four_hundred_at_once() {
    let Some(world) = World::new() else { return };
    let echo = echo(&world.server, 1400);
    let ask = |socket: &mut UnixStream, number: u64| {
        socket.write_all(&number.to_le_bytes()).unwrap();
        socket.shutdown(Shutdown::Write).unwrap();
        let mut back = Vec::new();
        socket.read_to_end(&mut back).unwrap();
        assert_eq!(back, number.to_le_bytes());
    };
    for number in 0..1000 {
        ask(&mut world.connect(), number);
    }
    let mut sockets: Vec<_> = (0..400).map(|_| world.connect()).collect();
    for (number, socket) in sockets.iter_mut().enumerate() {
        ask(socket, number as u64);
    }
    echo.join().unwrap();
}

#[test]
fn a_hundred_megabytes_there_and_back() {
    let Some(world) = World::new() else { return };
    let echo = echo(&world.server, 1);
    let mut socket = world.connect();
    let piece: Vec<u8> = (0..1_000_003u32).map(|n| (n % 251) as u8).collect();
    let (mut sender, sent) = (socket.try_clone().unwrap(), piece.clone());
    let sending = thread::spawn(move || {
        for _ in 0..100 {
            sender.write_all(&sent).unwrap();
        }
        sender.shutdown(Shutdown::Write).unwrap();
    });
    let mut back = vec![0; piece.len()];
    for _ in 0..100 {
        socket.read_exact(&mut back).unwrap();
        assert!(back == piece);
    }
    assert_eq!(socket.read(&mut back).unwrap(), 0);
    sending.join().unwrap();
    echo.join().unwrap();
}

#[test]
fn a_host_that_goes_ends_its_connections_and_no_others() {
    let Some(world) = World::new() else { return };
    let mut one = world.connect();
    one.write_all(b"1").unwrap();
    let (mut peer, _) = world.server.accept().unwrap();
    peer.read_exact(&mut [0]).unwrap();
    let mut other = world.connect();
    other.write_all(b"2").unwrap();
    let (mut other_peer, _) = world.server.accept().unwrap();
    other_peer.read_exact(&mut [0]).unwrap();
    drop(peer);
    assert_eq!(one.read(&mut [0]).unwrap(), 0);
    let broken = loop {
        if let Err(error) = one.write_all(&[0; 4096]) {
            break error.kind();
        }
    };
    // Whichever the kernel says first, of a peer that left bytes unread.
    let gone = [io::ErrorKind::BrokenPipe, io::ErrorKind::ConnectionReset];
    assert!(gone.contains(&broken), "{broken:?}");
    other_peer.write_all(b"2").unwrap();
    other.read_exact(&mut [0]).unwrap();
    // And the other way round: a program inside that goes.
    drop(other);
    assert_eq!(other_peer.read(&mut [0]).unwrap(), 0);
}

#[test]
fn a_server_that_is_not_there_is_an_end() {
    let Some(world) = World::new() else { return };
    fs::remove_file(world.server.local_addr().unwrap().as_pathname().unwrap()).unwrap();
    let mut socket = world.connect();
    assert_eq!(socket.read(&mut [0]).unwrap(), 0);
}
