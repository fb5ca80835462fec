//! The contract suite: the same image gives the same answers behind every wall, and afterwards nothing is left. A new
//! engine joins with one line at the end of this file.

mod death;
mod files;
mod life;
mod limits;
mod program;
mod streams;

use std::io::{self, Write as _};

use contract::luna::Luna;

/// Runs one test on a Luna of its own, or says why not.
fn on(isolation: &'static str, test: fn(&Luna)) {
    match Luna::new(isolation) {
        Ok(luna) => test(&luna),
        // Straight to standard error: a skip is seen where the test passes, too.
        Err(why) => drop(writeln!(io::stderr(), "skipped: {why}")),
    }
}

macro_rules! engine {
    ($name:ident, $isolation:literal) => {
        engine! { $name, $isolation:
            program::environment program::users_and_groups program::working_directory
            program::entrypoint_and_command program::exit_codes program::host_name_and_hosts program::a_terminal
            streams::standard_input_and_its_end streams::a_hundred_megabytes_of_output streams::logs
            streams::a_port_both_ways streams::a_hundred_megabytes_through_a_port streams::a_port_in_use
            files::a_read_only_root files::a_tmpfs files::a_bind_mount files::a_named_volume files::copies
            life::signals life::stop_then_kill life::an_exec life::health life::restarts life::pause life::names
            life::exec_outlived_by_nothing
            limits::memory limits::processes limits::processor limits::open_files
            death::of_the_supervisor death::of_the_supervisor_while_it_starts death::of_the_supervisor_while_it_stops
        }
    };
    ($name:ident, $isolation:literal: $($group:ident::$test:ident)*) => {
        mod $name {
            $(
                #[test]
                fn $test() {
                    super::on($isolation, super::$group::$test);
                }
            )*
        }
    };
}

engine!(container, "container");
