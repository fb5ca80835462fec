//! The contract suite: the same image gives the same answers behind every wall, and afterwards nothing is left. A new
//! engine joins with one line at the end of this file.

mod death;
mod files;
mod kernel;
mod life;
mod limits;
mod program;
mod streams;

use std::io::{self, Write as _};

use contract::luna::Luna;

/// Runs one test on a Luna of its own, or says why not.
fn on(luna: Result<Luna, String>, test: fn(&Luna)) {
    match luna {
        Ok(luna) => test(&luna),
        // Straight to standard error: a skip is seen where the test passes, too.
        Err(why) => drop(writeln!(io::stderr(), "skipped: {why}")),
    }
}

macro_rules! suite {
    ($name:ident, $luna:expr; $($group:ident: $($test:ident)*;)*) => {
        mod $name {
            $($(
                #[test]
                fn $test() {
                    super::on($luna, super::$group::$test);
                }
            )*)*
        }
    };
}

macro_rules! engine {
    ($name:ident, $isolation:literal) => {
        suite! { $name, contract::luna::Luna::of_root($isolation);
            program: environment devices users_and_groups working_directory entrypoint_and_command exit_codes
                host_name_and_hosts a_terminal;
            streams: standard_input_and_its_end a_hundred_megabytes_of_output logs a_port_both_ways
                a_hundred_megabytes_through_a_port a_port_in_use;
            files: a_read_only_root a_tmpfs a_bind_mount a_named_volume copies;
            life: signals stop_then_kill an_exec health restarts pause names exec_outlived_by_nothing;
            limits: memory processes processor open_files;
            kernel: modules;
            death: of_the_supervisor of_the_supervisor_while_it_starts of_the_supervisor_while_it_stops;
        }
    };
}

/// What does not need cgroups or the host's own ids.
macro_rules! engine_without_root {
    ($name:ident, $isolation:literal) => {
        suite! { $name, contract::luna::Luna::of_a_user($isolation);
            program: environment devices users_and_groups working_directory exit_codes a_terminal;
            streams: standard_input_and_its_end logs a_port_both_ways;
            files: a_read_only_root a_tmpfs a_named_volume copies;
            life: signals stop_then_kill an_exec;
            death: of_the_supervisor of_the_supervisor_while_it_starts;
        }
    };
}

engine!(container, "container");
engine_without_root!(container_of_a_user, "container");
engine!(vm, "vm");
engine_without_root!(vm_of_a_user, "vm");
