//! Attempts to use up what the host has.

use std::fs::File;
use std::io::{self, Write as _};

use crate::{Outcome, number, refused, sys};

pub(crate) fn attempt(name: &str, arguments: &[&str]) -> Option<Outcome> {
    Some(match (name, arguments) {
        ("fork-bomb", [count]) => number(count).and_then(fork_bomb),
        ("memory-hog", [mebibytes]) => number(mebibytes).and_then(memory_hog),
        ("fill", [path, mebibytes]) => number(mebibytes).and_then(|mebibytes| fill(path, mebibytes)),
        _ => return None,
    })
}

/// Has `count` children at one time, each waiting for a pipe to close.
fn fork_bomb(count: usize) -> Outcome {
    let (reader, writer) = io::pipe()?;
    let mut children = Vec::new();
    let outcome = loop {
        if children.len() == count {
            break Ok(format!("{count} processes"));
        }
        match sys::fork() {
            Ok(sys::Side::Parent(child)) => children.push(child),
            Ok(sys::Side::Child) => {
                drop(writer);
                let _ = io::Read::read(&mut &reader, &mut [0]);
                sys::leave(0);
            }
            Err(error) => break Err(error),
        }
    };
    drop(writer);
    for child in children {
        sys::wait(child)?;
    }
    outcome
}

/// In a child, which is the one to be killed.
fn memory_hog(mebibytes: usize) -> Outcome {
    match sys::fork()? {
        sys::Side::Child => {
            let mut memory = vec![0u8; mebibytes << 20];
            for page in memory.iter_mut().step_by(4096) {
                *page = 1;
            }
            sys::leave(i32::from(std::hint::black_box(&memory)[0] == 0));
        }
        sys::Side::Parent(child) => match sys::wait(child)? {
            0 => Ok(format!("{mebibytes} MiB")),
            code => refused(&format!("it ended with {code}")),
        },
    }
}

fn fill(path: &str, mebibytes: usize) -> Outcome {
    let mut file = File::create(path)?;
    let block = vec![1u8; 1 << 20];
    for _ in 0..mebibytes {
        file.write_all(&block)?;
    }
    Ok(format!("{mebibytes} MiB"))
}
