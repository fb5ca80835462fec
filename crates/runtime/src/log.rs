//! What a sandbox printed: JSON lines as docker's `json-file` writes them, rotated by size.
//!
//! ```text
//! {"log":"text up to a newline or 16 KiB\n","stream":"stdout","time":"2026-01-01T00:00:00.000000000Z"}
//! ```
//! `log.json` is being written; `log.json.1` is the one before it. Bytes that are no UTF-8 are replaced in the log, never
//! in what an attached client sees.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use luna_core::spec::LogLimits;
use luna_core::{Error, Result};
use serde::{Deserialize, Serialize};

const FILE: &str = "log.json";
/// A line is logged in pieces of at most this.
const LINE: usize = 16 << 10;

/// Which stream a line came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    Stdout,
    Stderr,
}

/// One line of the log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    pub log: String,
    pub stream: Source,
    /// RFC 3339, UTC, nanoseconds.
    pub time: String,
}

pub(crate) fn timestamp(time: SystemTime) -> String {
    humantime::format_rfc3339_nanos(time).to_string()
}

/// The writing end, held by the supervisor.
#[derive(Debug)]
pub(crate) struct Writer {
    path: PathBuf,
    file: File,
    written: u64,
    limits: LogLimits,
    /// The unfinished lines of stdout and stderr.
    partial: [Vec<u8>; 2],
    batch: Vec<u8>,
}

impl Writer {
    pub(crate) fn open(directory: &Path, limits: LogLimits) -> Result<Writer> {
        let path = directory.join(FILE);
        let file = append(&path).map_err(|e| Error::io(format!("cannot write `{}`", path.display()), e))?;
        let written = file.metadata().map_or(0, |metadata| metadata.len());
        Ok(Writer {
            path,
            file,
            written,
            limits,
            partial: [Vec::new(), Vec::new()],
            batch: Vec::new(),
        })
    }

    /// Takes what came out of the sandbox. A disk that is full loses log lines, not the sandbox.
    pub(crate) fn write(&mut self, source: Source, mut bytes: &[u8]) {
        let time = timestamp(SystemTime::now());
        let partial = source as usize;
        while !bytes.is_empty() {
            let room = LINE - self.partial[partial].len();
            let newline = bytes.iter().position(|byte| *byte == b'\n').map(|at| at + 1);
            let take = newline.unwrap_or(bytes.len()).min(room);
            self.partial[partial].extend_from_slice(&bytes[..take]);
            bytes = &bytes[take..];
            if self.partial[partial].ends_with(b"\n") || self.partial[partial].len() >= LINE {
                self.log(source, &time);
            }
        }
        self.flush();
    }

    /// Logs unfinished lines: the program has ended.
    pub(crate) fn finish(&mut self) {
        let time = timestamp(SystemTime::now());
        for source in [Source::Stdout, Source::Stderr] {
            if !self.partial[source as usize].is_empty() {
                self.log(source, &time);
            }
        }
        self.flush();
    }

    fn log(&mut self, source: Source, time: &str) {
        let partial = &mut self.partial[source as usize];
        let line = Line {
            log: String::from_utf8_lossy(partial).into_owned(),
            stream: source,
            time: time.to_owned(),
        };
        partial.clear();
        if serde_json::to_writer(&mut self.batch, &line).is_ok() {
            self.batch.push(b'\n');
        }
        if self.batch.len() >= 256 << 10 {
            self.flush();
        }
    }

    fn flush(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        if self.written > 0 && self.written + self.batch.len() as u64 > self.limits.size.0 {
            self.rotate();
        }
        if self.file.write_all(&self.batch).is_ok() {
            self.written += self.batch.len() as u64;
        }
        self.batch.clear();
    }

    fn rotate(&mut self) {
        for number in (1..self.limits.files).rev() {
            let _ = fs::rename(numbered(&self.path, number - 1), numbered(&self.path, number));
        }
        if self.limits.files <= 1 {
            let _ = fs::remove_file(&self.path);
        }
        if let Ok(file) = append(&self.path) {
            self.file = file;
            self.written = 0;
        }
    }
}

fn append(path: &Path) -> io::Result<File> {
    fs::OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
}

fn numbered(path: &Path, number: u32) -> PathBuf {
    if number == 0 {
        return path.to_owned();
    }
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    PathBuf::from(name)
}

/// The reading end: everything kept, oldest first, then what is added.
#[derive(Debug)]
pub struct Reader {
    path: PathBuf,
    /// Older files still to be read, the oldest last.
    older: Vec<PathBuf>,
    current: Option<BufReader<File>>,
    partial: String,
}

impl Reader {
    pub(crate) fn open(directory: &Path) -> Reader {
        let path = directory.join(FILE);
        let older = (1..10_000)
            .map(|number| numbered(&path, number))
            .take_while(|path| path.exists())
            .collect();
        Reader {
            path,
            older,
            current: None,
            partial: String::new(),
        }
    }

    /// The next line that is complete by now; `None` is the end so far, and a later call may find more.
    pub fn next_line(&mut self) -> Result<Option<Line>> {
        let fail = |path: &Path, e| Error::io(format!("cannot read `{}`", path.display()), e);
        loop {
            if self.current.is_none() {
                let path = self.older.pop().unwrap_or_else(|| self.path.clone());
                match File::open(&path) {
                    Ok(file) => self.current = Some(BufReader::new(file)),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                    Err(error) => return Err(fail(&path, error)),
                }
            }
            let file = self.current.as_mut().expect("opened above");
            let count = file
                .read_line(&mut self.partial)
                .map_err(|e| fail(&self.path, e))?;
            if self.partial.ends_with('\n') {
                let line = serde_json::from_str(&self.partial);
                self.partial.clear();
                match line {
                    Ok(line) => return Ok(Some(line)),
                    // A line cut short by a full disk.
                    Err(_) => continue,
                }
            }
            if count > 0 {
                continue;
            }
            // The end of this file: go on with the next one, or wait for more in the one being written.
            let here = file.get_ref().metadata().map(|metadata| metadata.ino()).ok();
            let newest = fs::metadata(&self.path).map(|metadata| metadata.ino()).ok();
            if self.older.is_empty() && (here == newest || newest.is_none()) {
                return Ok(None);
            }
            self.partial.clear();
            self.current = None;
        }
    }

    /// Starts again `count` lines before the end.
    pub fn rewind_to_last(&mut self, count: usize) -> Result<()> {
        let mut total = 0usize;
        while self.next_line()?.is_some() {
            total += 1;
        }
        let directory = self.path.parent().expect("made by joining").to_owned();
        *self = Reader::open(&directory);
        for _ in 0..total.saturating_sub(count) {
            self.next_line()?;
        }
        Ok(())
    }

    /// Goes to the end without reading what is there.
    pub fn skip_all(&mut self) -> Result<()> {
        self.older.clear();
        if let Ok(mut file) = File::open(&self.path) {
            file.seek(SeekFrom::End(0))
                .map_err(|e| Error::io("cannot read the log", e))?;
            self.current = Some(BufReader::new(file));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use luna_core::units::Bytes;

    use super::*;

    fn all(directory: &Path) -> Vec<Line> {
        let mut reader = Reader::open(directory);
        std::iter::from_fn(|| reader.next_line().unwrap()).collect()
    }

    #[test]
    fn lines_are_whole_whatever_the_pieces() {
        let directory = tempfile::tempdir().unwrap();
        let mut writer = Writer::open(directory.path(), LogLimits::default()).unwrap();
        writer.write(Source::Stdout, b"one\ntw");
        writer.write(Source::Stderr, b"err\n");
        writer.write(Source::Stdout, b"o\nend");
        let seen: Vec<String> = all(directory.path()).into_iter().map(|line| line.log).collect();
        assert_eq!(seen, ["one\n", "err\n", "two\n"]);
        writer.finish();
        assert_eq!(all(directory.path()).last().unwrap().log, "end");
        writer.write(Source::Stdout, &vec![b'x'; 40 << 10]);
        writer.finish();
        assert_eq!(
            all(directory.path()).iter().map(|line| line.log.len()).max(),
            Some(LINE)
        );
    }

    #[test]
    fn rotation_keeps_the_newest_and_a_reader_crosses_it() {
        let directory = tempfile::tempdir().unwrap();
        let limits = LogLimits {
            size: Bytes(1000),
            files: 3,
        };
        let mut writer = Writer::open(directory.path(), limits).unwrap();
        let mut follower = Reader::open(directory.path());
        let mut followed = 0;
        for number in 0..100 {
            writer.write(Source::Stdout, format!("line {number}\n").as_bytes());
            while let Some(line) = follower.next_line().unwrap() {
                assert_eq!(line.log, format!("line {followed}\n"));
                followed += 1;
            }
        }
        assert_eq!(followed, 100);
        let kept = all(directory.path());
        assert!(kept.len() < 100);
        assert_eq!(kept.last().unwrap().log, "line 99\n");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 3);
        let mut reader = Reader::open(directory.path());
        reader.rewind_to_last(2).unwrap();
        assert_eq!(reader.next_line().unwrap().unwrap().log, "line 98\n");
    }
}
