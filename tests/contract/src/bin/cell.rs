//! `cell JSON`: builds the wall that a [`contract::cell::Cell`] describes, runs its command inside, prints what that says
//! and exits as it does; 125 where there was no wall to try.

use std::io::{self, Write as _};
use std::process::ExitCode;

use contract::cell::{self, Cell};

const NO_WALL: u8 = 125;

fn main() -> ExitCode {
    let cell: Cell = match std::env::args().nth(1).map(|text| serde_json::from_str(&text)) {
        Some(Ok(cell)) => cell,
        other => {
            let _ = writeln!(io::stderr(), "no cell: {other:?}");
            return ExitCode::from(NO_WALL);
        }
    };
    let said = enter(&cell).and_then(|()| cell::run(&cell));
    match said {
        Ok(said) => {
            // The suite reads both; where it is gone there is nobody to tell.
            let _ = io::stdout().write_all(said.output.as_bytes());
            ExitCode::from(said.code)
        }
        Err(error) => {
            let _ = writeln!(io::stderr(), "{error:?}");
            ExitCode::from(NO_WALL)
        }
    }
}

fn enter(cell: &Cell) -> luna_core::Result<()> {
    if cell.rootless {
        luna_jail::rootless::enter()
    } else {
        Ok(())
    }
}
