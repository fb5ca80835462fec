//! A program in the place of `luna-virtiofs`, for the tests: accepts the connection it was left, says what it finds, and
//! waits to be killed. One line for each word it is sent: `read PATH`, `write PATH`, `list PATH`, `status`.

#![allow(clippy::unwrap_used)] // a test's

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;

fn main() {
    let listener = UnixListener::from(std::io::stdin().as_fd().try_clone_to_owned().unwrap());
    let (connection, _) = listener.accept().unwrap();
    let mut answers = connection.try_clone().unwrap();
    for line in BufReader::new(connection).lines() {
        let line = line.unwrap();
        let (word, path) = line.split_once(' ').unwrap_or((&line, ""));
        let answer = match word {
            "read" => fs::read(path).map(|bytes| format!("{} bytes", bytes.len())),
            "write" => fs::write(path, "x").map(|()| "written".to_owned()),
            "list" => fs::read_dir(path).map(|entries| {
                let mut names: Vec<_> = entries
                    .flatten()
                    .map(|entry| entry.file_name().to_string_lossy().into_owned())
                    .collect();
                names.sort();
                names.join(" ")
            }),
            "mounts" => fs::read_to_string("/proc/self/mountinfo").map(|text| text.replace('\n', "|")),
            "status" => fs::read_to_string("/proc/self/status").map(|text| text.replace('\n', "|")),
            "connect" => std::net::TcpStream::connect(path).map(|_| "connected".to_owned()),
            "device" => {
                let number = rustix::fs::makedev(8, 0);
                let mode = rustix::fs::Mode::RWXU;
                rustix::fs::mknodat(
                    rustix::fs::CWD,
                    path,
                    rustix::fs::FileType::BlockDevice,
                    mode,
                    number,
                )
                .map(|()| "made".to_owned())
                .map_err(Into::into)
            }
            _ => Ok(String::new()),
        };
        let answer = answer.map_or_else(|error| format!("error {error}"), |text| format!("ok {text}"));
        writeln!(answers, "{answer}").unwrap();
    }
}
