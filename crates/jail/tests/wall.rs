//! What the world looks like from inside a jail, with the whole wall up.

mod common;

use common::{World, ask};

#[test]
fn the_world_inside() {
    let world = World::new();
    let lines = ask(world.spec(&[
        "pid",
        "cwd",
        "read /etc/from-image",
        "create /etc/made-inside",
        "owner /etc/made-inside",
        "owner /",
        "owner /etc/from-image",
        "list /dev",
        "list /proc/self/fd",
        "read /proc/self/uid_map",
        "read /proc/sys/kernel/hostname",
        "read /proc/self/status",
        "read /proc/self/mountinfo",
        "list /proc/acpi",
        "read /proc/kcore",
        "write /proc/sys/kernel/hostname x",
        "create /sys/x",
        "read /sys/class/net/lo/operstate",
        "list /sys/class/net",
        "arguments",
    ]));
    for line in &lines {
        println!("{line}");
    }
    assert_eq!(lines[0], "ok 1");
}
