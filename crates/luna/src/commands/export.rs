//! `image export`.

use std::path::PathBuf;

use luna_core::Result;
use luna_runtime::{ExportFormat, ExportRequest};
use serde_json::json;

use super::{Front, bars};
use crate::cli::image::{DiskFormat, ExportArgs};

pub(super) fn export(front: &Front, args: &ExportArgs) -> Result<()> {
    let format = match args.format {
        DiskFormat::Qcow2 => ExportFormat::Qcow2,
        DiskFormat::Raw => ExportFormat::Raw,
        DiskFormat::Vmdk => ExportFormat::Vmdk,
        DiskFormat::Vdi => ExportFormat::Vdi,
        DiskFormat::Vhdx => ExportFormat::Vhdx,
    };
    let runtime = front.runtime()?;
    let image = runtime.store().get(&args.image)?;
    let request = ExportRequest {
        format,
        output: args
            .output
            .clone()
            .unwrap_or_else(|| file_name(&image.name(), format)),
        size: args.size.as_deref().map(str::parse).transpose()?,
        kernel: args.kernel.clone(),
    };
    let bars = bars(args.quiet);
    let made = runtime.export(&image, &request, &|progress| bars.take(progress))?;
    drop(bars);
    if args.json.json {
        return front.printer.json(&json!({
            "Path": made.path,
            "Format": made.format.as_str(),
            "Size": made.size,
            "Taken": made.taken,
            "Image": image.id.to_string(),
        }));
    }
    front.printer.line(made.path.display().to_string())
}

/// `luna/agent:latest` becomes `luna-agent-latest.qcow2`.
fn file_name(image: &str, format: ExportFormat) -> PathBuf {
    let plain = |c: char| {
        if c.is_ascii_alphanumeric() || matches!(c, '.' | '_') {
            c
        } else {
            '-'
        }
    };
    let name: String = image.chars().map(plain).collect();
    format!("{}.{}", name.trim_start_matches(['-', '.']), format.as_str()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_called_as_its_image() {
        let name = |image: &str| file_name(image, ExportFormat::Vdi).display().to_string();
        assert_eq!(name("luna/agent:latest"), "luna-agent-latest.vdi");
        assert_eq!(name("../x"), "x.vdi");
    }
}
