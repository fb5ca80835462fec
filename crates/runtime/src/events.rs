//! The life of all sandboxes as one file of JSON lines, for `luna events`.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::time::SystemTime;

use luna_core::event::{Action, Event};
use luna_core::{Error, Result};

use crate::layout::Layout;
use crate::log::timestamp;
use crate::record::Record;

/// The file starts anew past this; the one before it is kept as `events.json.1`.
const LIMIT: u64 = 8 << 20;

/// Appends one event. Events tell; they never stop work, so a failure to write one is not an error.
pub(crate) fn record(layout: &Layout, of: &Record, action: Action) {
    let event = Event {
        time: timestamp(SystemTime::now()),
        id: of.id.clone(),
        name: of.name.clone(),
        image: of.reference().to_owned(),
        action,
    };
    let Ok(mut line) = serde_json::to_vec(&event) else {
        return;
    };
    line.push(b'\n');
    let path = layout.events();
    if fs::metadata(&path).is_ok_and(|metadata| metadata.len() > LIMIT) {
        let _ = fs::rename(&path, path.with_extension("json.1"));
    }
    // One write of one line with O_APPEND: lines of several supervisors never mix.
    if let Ok(mut file) = fs::OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(&path)
    {
        let _ = file.write_all(&line);
    }
}

/// Reads events from the beginning of what is kept and goes on as they are added.
#[derive(Debug)]
pub struct Events {
    layout: Layout,
    file: Option<BufReader<fs::File>>,
    partial: String,
}

impl Events {
    pub(crate) fn open(layout: &Layout) -> Events {
        Events {
            layout: layout.clone(),
            file: None,
            partial: String::new(),
        }
    }

    /// The next event there is by now; `None` is the end so far.
    pub fn next_event(&mut self) -> Result<Option<Event>> {
        let path = self.layout.events();
        loop {
            if self.file.is_none() {
                match fs::File::open(&path) {
                    Ok(file) => self.file = Some(BufReader::new(file)),
                    Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
                    Err(error) => return Err(Error::io(format!("cannot read `{}`", path.display()), error)),
                }
            }
            let file = self.file.as_mut().expect("opened above");
            let count = file
                .read_line(&mut self.partial)
                .map_err(|e| Error::io(format!("cannot read `{}`", path.display()), e))?;
            if self.partial.ends_with('\n') {
                let event = serde_json::from_str(&self.partial);
                self.partial.clear();
                if let Ok(event) = event {
                    return Ok(Some(event));
                }
            } else if count == 0 {
                use std::os::unix::fs::MetadataExt;
                let here = file.get_ref().metadata().map(|metadata| metadata.ino()).ok();
                let newest = fs::metadata(&path).map(|metadata| metadata.ino()).ok();
                if here == newest || newest.is_none() {
                    return Ok(None);
                }
                self.file = None;
                self.partial.clear();
            }
        }
    }
}
