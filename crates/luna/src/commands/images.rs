//! Images in the store: listed, named, removed.

use luna_core::Result;
use luna_core::error::Kind;
use luna_runtime::Runtime;
use luna_runtime::image::{Image, Reference};
use serde_json::{Map, Value, json};

use super::{Front, bars, confirmed, each, ps};
use crate::cli::image::{
    BootstrapArgs, HistoryArgs, ImagePruneArgs, ImagesArgs, PruneArgs, RmiArgs, TagArgs,
};
use crate::output::{Column, List, ListStyle, filters, human, printable};

const COLUMNS: [Column; 5] = [
    Column("REPOSITORY", "Repository"),
    Column("TAG", "Tag"),
    Column("IMAGE ID", "ID"),
    Column("CREATED", "CreatedSince"),
    Column("SIZE", "Size"),
];

const COLUMNS_WITH_DIGEST: [Column; 6] = [
    COLUMNS[0],
    COLUMNS[1],
    Column("DIGEST", "Digest"),
    COLUMNS[2],
    COLUMNS[3],
    COLUMNS[4],
];

pub(super) fn images(front: &Front, args: &ImagesArgs) -> Result<()> {
    let filters = filters(&args.filter, &["reference", "label", "dangling"])?;
    let store = front.runtime()?.store().clone();
    let images = store.list()?;
    let mut rows = Vec::new();
    for image in images.iter().rev() {
        let names: Vec<Option<&Reference>> = match image.references.as_slice() {
            [] => vec![None],
            references => references.iter().map(Some).collect(),
        };
        for reference in names {
            if passes(image, reference, args.name.as_deref(), &filters) {
                rows.push(row(image, reference, args.list.no_trunc));
            }
        }
    }
    if args.list.quiet {
        // An image of two names has one id.
        let mut seen = std::collections::BTreeSet::new();
        rows.retain(|row| seen.insert(row["ID"].to_string()));
    }
    let columns: &[Column] = if args.digests {
        &COLUMNS_WITH_DIGEST
    } else {
        &COLUMNS
    };
    List { columns, rows }.print(front.printer, &ListStyle::of(&args.list, "ID"))?;
    for error in &store.broken()? {
        front.printer.error(error);
    }
    Ok(())
}

fn passes(
    image: &Image,
    reference: Option<&Reference>,
    name: Option<&str>,
    filters: &[(String, String)],
) -> bool {
    let matches = |pattern: &str| {
        reference.is_some_and(|reference| {
            let full = reference.familiar();
            let bare = reference.familiar_name();
            glob(pattern, &full) || glob(pattern, &bare)
        })
    };
    let labels = image.labels();
    name.is_none_or(matches)
        && filters.iter().all(|(key, value)| match key.as_str() {
            "reference" => matches(value),
            "dangling" => reference.is_none() == (value == "true"),
            _ => match value.split_once('=') {
                Some((name, value)) => labels.get(name).is_some_and(|known| known == value),
                None => labels.contains_key(value),
            },
        })
}

/// `*` is any text without a slash, `?` any one character but a slash.
fn glob(pattern: &str, text: &str) -> bool {
    let (Some(first), rest) = (
        pattern.chars().next(),
        pattern.chars().next().map_or(0, char::len_utf8),
    ) else {
        return text.is_empty();
    };
    let (pattern, next) = (&pattern[rest..], text.chars().next());
    let after = |letter: char| &text[letter.len_utf8()..];
    match (first, next) {
        ('*', None | Some('/')) => glob(pattern, text),
        ('*', Some(letter)) => glob(pattern, text) || glob(&format!("*{pattern}"), after(letter)),
        ('?', Some(letter)) if letter != '/' => glob(pattern, after(letter)),
        (wanted, Some(letter)) if wanted == letter => glob(pattern, after(letter)),
        _ => false,
    }
}

fn row(image: &Image, reference: Option<&Reference>, full: bool) -> Map<String, Value> {
    const NONE: &str = "<none>";
    let created = image.created.clone().unwrap_or_default();
    let row = json!({
        "Repository": reference.map_or(NONE.to_owned(), Reference::familiar_name),
        "Tag": reference.and_then(Reference::tag).unwrap_or(NONE),
        "Digest": image.manifest.to_string(),
        "ID": if full { image.id.to_string() } else { image.id.short() },
        "CreatedSince": human::ago(&created),
        "CreatedAt": created,
        "Size": human::decimal_size(image.size),
        "Platform": image.platform().to_string(),
        "BuiltHere": image.built_here,
    });
    match row {
        Value::Object(row) => row,
        _ => unreachable!("an object was written"),
    }
}

pub(super) fn tag(front: &Front, args: &TagArgs) -> Result<()> {
    let reference = Reference::parse(&args.reference)?;
    let runtime = front.runtime()?;
    let image = runtime.store().get(&args.image)?;
    runtime.store().tag(&image, &reference)
}

pub(super) fn rmi(front: &Front, args: &RmiArgs) -> Result<u8> {
    each(front, &args.images, |runtime, name| {
        let used = runtime.images_in_use()?;
        let removed = match runtime.store().remove(name, args.force, &|id| used.contains(id)) {
            Err(error) if args.force && error.kind() == Kind::NotFound => return Ok(None),
            removed => removed?,
        };
        let untagged = removed
            .untagged
            .iter()
            .map(|reference| format!("Untagged: {}", reference.familiar()));
        let deleted = removed.deleted.iter().map(|digest| format!("Deleted: {digest}"));
        let lines: Vec<_> = untagged.chain(deleted).collect();
        Ok((!lines.is_empty()).then(|| lines.join("\n")))
    })
}

fn remove_unused(runtime: &Runtime, all: bool) -> Result<luna_runtime::image::Pruned> {
    let used = runtime.images_in_use()?;
    runtime.store().prune(all, &|id| used.contains(id))
}

fn print_pruned(front: &Front, pruned: &luna_runtime::image::Pruned) -> Result<()> {
    for reference in &pruned.untagged {
        front
            .printer
            .line(format!("untagged: {}", reference.familiar()))?;
    }
    for digest in &pruned.deleted {
        front.printer.line(format!("deleted: {digest}"))?;
    }
    if pruned.busy {
        front
            .printer
            .note("an image is being brought in, so unfinished layers were left for the next time");
    }
    front.printer.line(format!(
        "Total reclaimed space: {}",
        human::decimal_size(pruned.freed)
    ))
}

pub(super) fn prune(front: &Front, args: &PruneArgs) -> Result<()> {
    let question = match (args.all, args.volumes) {
        (false, false) => "Remove every sandbox that does not run and every unnamed image?",
        (true, false) => "Remove every sandbox that does not run and every image that none is made of?",
        (false, true) => {
            "Remove every sandbox that does not run, every unnamed image and every unused, unnamed volume?"
        }
        (true, true) => "Remove everything that does not run or is not used, named volumes included?",
    };
    if !args.force && !confirmed(question)? {
        return Ok(());
    }
    let runtime = front.runtime()?;
    let pruned = runtime.prune(&|volume| args.volumes && (args.all || volume.is_anonymous()))?;
    let images = remove_unused(&runtime, args.all)?;
    if args.json.json {
        return front.printer.json(&json!({
            "sandboxes": pruned.sandboxes, "volumes": pruned.volumes, "images": images,
        }));
    }
    for name in &pruned.sandboxes {
        front.printer.line(format!("removed sandbox: {name}"))?;
    }
    for name in &pruned.volumes {
        front.printer.line(format!("removed volume: {name}"))?;
    }
    print_pruned(front, &images)
}

pub(super) fn prune_images(front: &Front, args: &ImagePruneArgs) -> Result<()> {
    let question = if args.all {
        "Remove every image that no sandbox is made of?"
    } else {
        "Remove every unnamed image?"
    };
    if !args.force && !confirmed(question)? {
        return Ok(());
    }
    let pruned = remove_unused(&front.runtime()?, args.all)?;
    if args.json.json {
        return front.printer.json(&json!(pruned));
    }
    print_pruned(front, &pruned)
}

pub(super) fn bootstrap(front: &Front, args: &BootstrapArgs) -> Result<()> {
    let reference = Reference::parse(&args.reference)?;
    let bars = bars(args.quiet);
    let runtime = front.runtime()?;
    let image = luna_runtime::image::bootstrap::bootstrap(runtime.store(), &reference, &|progress| {
        bars.take(progress);
    })?;
    drop(bars);
    front.printer.line(image.id.to_string())
}

pub(super) fn history(front: &Front, args: &HistoryArgs) -> Result<()> {
    const COLUMNS: [Column; 4] = [
        Column("CREATED", "CreatedSince"),
        Column("CREATED BY", "CreatedBy"),
        Column("SIZE", "Size"),
        Column("COMMENT", "Comment"),
    ];
    let image = front.runtime()?.store().get(&args.image)?;
    let mut layers = image.layers.iter();
    let history = image.config.history().clone().unwrap_or_default();
    let mut rows: Vec<Map<String, Value>> = history
        .iter()
        .map(|step| {
            let layer = if step.empty_layer().unwrap_or(false) {
                None
            } else {
                layers.next()
            };
            let by = printable(step.created_by().as_deref().unwrap_or_default());
            let created = step.created().as_deref().unwrap_or_default();
            let row = json!({
                "CreatedSince": human::ago(created),
                "CreatedAt": created,
                "CreatedBy": if args.list.no_trunc { by } else { ps::shortened(&by, 45) },
                "Size": human::decimal_size(layer.map_or(0, |layer| layer.size)),
                "Comment": step.comment(),
                "ID": layer.map(|layer| layer.diff_id.to_string()),
            });
            match row {
                Value::Object(row) => row,
                _ => unreachable!("an object was written"),
            }
        })
        .collect();
    rows.reverse();
    List {
        columns: &COLUMNS,
        rows,
    }
    .print(front.printer, &ListStyle::of(&args.list, "ID"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_as_docker_has_them() {
        for (pattern, text, expected) in [
            ("debian", "debian", true),
            ("deb*", "debian", true),
            ("*", "luna/agent", false),
            ("luna/*", "luna/agent", true),
            ("debian:*", "debian:12", true),
            ("debia?", "debian", true),
            ("debian", "debian:12", false),
            ("", "", true),
        ] {
            assert_eq!(glob(pattern, text), expected, "{pattern} {text}");
        }
    }
}
