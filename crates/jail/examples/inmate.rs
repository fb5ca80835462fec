//! A program to put into a jail: does what each argument says and prints one line of result for it. The tests ask it
//! what the world inside looks like; `argument = command word...`.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::process::ExitCode;

fn main() -> ExitCode {
    for line in std::env::args().skip(1) {
        let words: Vec<&str> = line.split(' ').collect();
        if let ["exit", code] = words[..] {
            return ExitCode::from(code.parse::<u8>().unwrap_or(99));
        }
        let result = match run(&words) {
            Ok(text) => format!("ok {text}"),
            Err(error) => format!("error {}", error.raw_os_error().unwrap_or(-1)),
        };
        let mut out = io::stdout();
        if writeln!(out, "{}", result.replace('\n', "|"))
            .and_then(|()| out.flush())
            .is_err()
        {
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn run(words: &[&str]) -> io::Result<String> {
    match words {
        ["read", path] => {
            let mut text = Vec::new();
            fs::File::open(path)?.take(1 << 16).read_to_end(&mut text)?;
            Ok(String::from_utf8_lossy(&text).trim().to_owned())
        }
        ["write", path, text @ ..] => {
            let mut file = fs::OpenOptions::new().write(true).open(path)?;
            file.write_all(text.join(" ").as_bytes()).map(|()| String::new())
        }
        ["create", path] => {
            fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o644)
                .open(path)?;
            Ok(String::new())
        }
        ["list", path] => {
            let mut names: Vec<_> = fs::read_dir(path)?
                .map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()))
                .collect::<io::Result<_>>()?;
            names.sort();
            Ok(names.join(" "))
        }
        ["link", path] => Ok(fs::read_link(path)?.display().to_string()),
        ["owner", path] => {
            let found = fs::symlink_metadata(path)?;
            Ok(format!("{}:{} {:o}", found.uid(), found.gid(), found.mode()))
        }
        ["mkdir", path] => fs::create_dir(path).map(|()| String::new()),
        ["cwd"] => Ok(std::env::current_dir()?.display().to_string()),
        ["arguments"] => Ok(std::env::args().next().unwrap_or_default()),
        ["environment"] => {
            let mut text = String::new();
            for (name, value) in std::env::vars() {
                let _ = write!(text, "{name}={value} ");
            }
            Ok(text)
        }
        ["pid"] => Ok(std::process::id().to_string()),
        // Reads descriptor 0 to its end: a way for the test to hold it.
        ["wait"] => {
            io::stdin().read_to_end(&mut Vec::new())?;
            Ok(String::new())
        }
        ["eat", mebibytes] => {
            let size = mebibytes.parse::<usize>().unwrap_or(0) << 20;
            let mut memory = vec![0u8; size];
            for page in memory.iter_mut().step_by(4096) {
                *page = 1;
            }
            Ok(memory
                .iter()
                .step_by(4096)
                .map(|byte| usize::from(*byte))
                .sum::<usize>()
                .to_string())
        }
        // As many threads as can be had, which are tasks like any other; how many came to be.
        ["threads", count] => {
            let barrier = std::sync::Arc::new(std::sync::Mutex::new(()));
            let held = barrier.lock();
            let mut threads = Vec::new();
            for _ in 0..count.parse().unwrap_or(0) {
                let barrier = std::sync::Arc::clone(&barrier);
                match std::thread::Builder::new()
                    .stack_size(65536)
                    .spawn(move || drop(barrier.lock()))
                {
                    Ok(thread) => threads.push(thread),
                    Err(_) => break,
                }
            }
            let count = threads.len();
            drop(held);
            for thread in threads {
                let _ = thread.join();
            }
            Ok(count.to_string())
        }
        ["spin", milliseconds] => {
            let end = std::time::Duration::from_millis(milliseconds.parse().unwrap_or(0));
            let begin = std::time::Instant::now();
            let mut rounds = 0u64;
            while begin.elapsed() < end {
                rounds = std::hint::black_box(rounds + 1);
            }
            Ok(rounds.to_string())
        }
        ["abort"] => std::process::abort(),
        _ => Err(io::Error::from_raw_os_error(22)),
    }
}
