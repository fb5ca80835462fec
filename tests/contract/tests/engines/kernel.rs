//! Whose kernel it is.

use std::io::Write as _;

use contract::luna::Luna;

/// A module goes into a kernel of the sandbox's own, where that was asked for, and never into the host's.
pub(crate) fn modules(luna: &Luna) {
    let Some(kernel) = Luna::kernel(true) else {
        drop(writeln!(
            std::io::stderr(),
            "skipped: no kernel here loads modules: `luna kernel fetch` gets one"
        ));
        return;
    };
    let mount = format!("{}:/kernel:ro", kernel.join("tree").display());
    let unasked = luna.shell(
        &["--volume", &mount],
        "insmod /kernel/kernel/drivers/net/dummy.ko",
    );
    assert!(!unasked.success(), "{unasked:?}");

    let script = "insmod /lib/modules/*/kernel/drivers/net/dummy.ko && grep dummy /proc/modules";
    if !luna.has_own_kernel() {
        let refused = luna.shell(&["--privileged"], script);
        assert_eq!(refused.code(), Some(125), "{refused:?}");
        return;
    }
    let name = kernel
        .file_name()
        .expect("a kernel's directory has a name")
        .to_string_lossy()
        .into_owned();
    // It may be the one that every test here runs on.
    if !luna.must(&["kernel", "ls", "--quiet"]).contains(&name) {
        luna.must(&["kernel", "import", &kernel.display().to_string()]);
    }
    let loaded = luna.says(&["--privileged", "--kernel", &name], script);
    assert!(loaded.starts_with("dummy "), "{loaded}");
}
