//! Layers over each other, as overlayfs shows them (kernel `Documentation/filesystems/overlayfs.rst`).

use super::tree::{Child, NodeId, Tree};

/// Puts the layer with the root `below` under all that `merged` has: what `merged` does not name comes in whole, and of
/// what both name only directories become one. What stays in `below` is hidden.
pub(super) fn merge(tree: &mut Tree, merged: NodeId, below: NodeId) {
    let mut pairs = vec![(merged, below)];
    while let Some((upper, lower)) = pairs.pop() {
        let Some(from) = tree.directory_mut(lower) else {
            continue;
        };
        let children = std::mem::take(&mut from.children);
        let opaque = from.opaque;
        if tree.directory(upper).is_none_or(|directory| directory.opaque) {
            continue;
        }
        for (name, child) in children {
            match tree.child(upper, &name) {
                None => {
                    if let Some(directory) = tree.directory_mut(upper) {
                        directory.children.insert(name, child);
                    }
                }
                Some(Child::Whiteout) => {}
                Some(Child::Node(over)) => match child {
                    Child::Node(under) if tree.directory(under).is_some() => pairs.push((over, under)),
                    // Under a directory lies something else, which ends it.
                    _ => close(tree, over),
                },
            }
        }
        if opaque {
            close(tree, upper);
        }
    }
}

fn close(tree: &mut Tree, node: NodeId) {
    if let Some(directory) = tree.directory_mut(node) {
        directory.opaque = true;
    }
}
