//! How a layer's archive is compressed: named by its media type, or told by its first bytes where nothing names it.

use std::io::{self, BufRead, BufReader, Read};

use luna_core::{Error, Kind, Result};
use serde::{Deserialize, Serialize};

use super::Limits;

/// A layer blob's compression.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    None,
    /// Every registry and engine reads it.
    Gzip,
    /// Several times faster both ways, and smaller.
    #[default]
    Zstd,
}

impl Compression {
    /// The OCI media type of a layer compressed like this.
    pub fn media_type(self) -> &'static str {
        match self {
            Compression::None => "application/vnd.oci.image.layer.v1.tar",
            Compression::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Compression::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }

    /// Reads a layer's media type: OCI's, its retired non-distributable forms, docker's.
    pub fn of_media_type(text: &str) -> Result<Compression> {
        match text {
            "application/vnd.oci.image.layer.v1.tar"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar"
            | "application/vnd.docker.image.rootfs.diff.tar" => Ok(Compression::None),
            "application/vnd.oci.image.layer.v1.tar+gzip"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
            | "application/vnd.docker.image.rootfs.diff.tar.gzip"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip" => Ok(Compression::Gzip),
            "application/vnd.oci.image.layer.v1.tar+zstd"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd"
            | "application/vnd.docker.image.rootfs.diff.tar.zstd" => Ok(Compression::Zstd),
            other => {
                let shown: String = other.chars().take(100).collect();
                Err(Error::new(
                    Kind::Unsupported,
                    format!("cannot unpack a layer of type `{}`", shown.escape_debug()),
                )
                .hint("encrypted layers and artifacts that are no images cannot be run"))
            }
        }
    }

    /// Told by the first bytes; what is none of the known forms is taken for a plain archive.
    pub(crate) fn of_bytes(start: &[u8]) -> Result<Compression> {
        let named = |name: &str, program: &str| {
            Err(Error::new(
                Kind::Unsupported,
                format!("cannot read an archive compressed with {name}"),
            )
            .hint(format!(
                "decompress it first, for example `{program} -dc FILE | luna import - NAME`"
            )))
        };
        match start {
            [0x1f, 0x8b, ..] => Ok(Compression::Gzip),
            // A skippable frame may come before the first real one (zstd's frame format, 0x184D2A5?).
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Ok(Compression::Zstd),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => named("xz", "xz"),
            [b'B', b'Z', b'h', ..] => named("bzip2", "bzip2"),
            _ => Ok(Compression::None),
        }
    }
}

/// Looks at the start of `source` without taking it away.
pub(crate) fn sniff<R: Read>(source: R) -> Result<(Compression, BufReader<R>)> {
    let mut source = BufReader::with_capacity(64 << 10, source);
    let start = source
        .fill_buf()
        .map_err(|error| Error::io("cannot read the archive", error))?;
    let compression = Compression::of_bytes(start)?;
    Ok((compression, source))
}

/// The plain archive behind a compressed stream, refused when it grows out of proportion.
pub(crate) struct Decoder<'a, R: Read> {
    inner: Inner<R>,
    limits: &'a Limits,
    unpacked: u64,
}

enum Inner<R: Read> {
    None(Counting<R>),
    Gzip(Box<flate2::bufread::MultiGzDecoder<BufReader<Counting<R>>>>),
    Zstd(Box<zstd::stream::read::Decoder<'static, BufReader<Counting<R>>>>),
}

struct Counting<R> {
    inner: R,
    count: u64,
}

impl<R: Read> Read for Counting<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.count += count as u64;
        Ok(count)
    }
}

impl<'a, R: Read> Decoder<'a, R> {
    pub(crate) fn new(source: R, compression: Compression, limits: &'a Limits) -> Result<Decoder<'a, R>> {
        let counting = Counting {
            inner: source,
            count: 0,
        };
        let buffered = |counting| BufReader::with_capacity(128 << 10, counting);
        let inner = match compression {
            Compression::None => Inner::None(counting),
            Compression::Gzip => {
                Inner::Gzip(Box::new(flate2::bufread::MultiGzDecoder::new(buffered(counting))))
            }
            Compression::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(buffered(counting))
                    .map_err(|error| Error::io("cannot read a layer compressed with zstd", error))?;
                // A frame may ask for a window of up to 2 GiB; 128 MiB is what zstd's own tool takes unasked.
                decoder
                    .window_log_max(27)
                    .map_err(|error| Error::io("cannot read a layer compressed with zstd", error))?;
                Inner::Zstd(Box::new(decoder))
            }
        };
        Ok(Decoder {
            inner,
            limits,
            unpacked: 0,
        })
    }

    fn compressed(&self) -> u64 {
        match &self.inner {
            Inner::None(source) => source.count,
            Inner::Gzip(decoder) => decoder.get_ref().get_ref().count,
            Inner::Zstd(decoder) => decoder.get_ref().get_ref().count,
        }
    }
}

impl<R: Read> Read for Decoder<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let (count, name) = match &mut self.inner {
            Inner::None(source) => return source.read(buffer),
            Inner::Gzip(decoder) => (decoder.read(buffer), "gzip"),
            Inner::Zstd(decoder) => (decoder.read(buffer), "zstd"),
        };
        let count = count.map_err(|error| broken(error, name))?;
        self.unpacked += count as u64;
        let compressed = self.compressed();
        if self.unpacked > Limits::RATIO_FLOOR && self.unpacked / compressed.max(1) > self.limits.ratio {
            return Err(io::Error::other(
                Error::new(Kind::Exhausted, "cannot unpack more of this layer").because(format!(
                    "{compressed} compressed bytes became more than {} of them",
                    self.unpacked
                )),
            ));
        }
        Ok(count)
    }
}

/// A decompressor's complaint is about the bytes; the source's own failures pass as they are.
fn broken(error: io::Error, name: &str) -> io::Error {
    let is_sources = error.raw_os_error().is_some()
        || error
            .get_ref()
            .is_some_and(<dyn std::error::Error + Send + Sync>::is::<Error>);
    if is_sources || error.kind() == io::ErrorKind::Interrupted {
        return error;
    }
    io::Error::other(
        Error::new(Kind::Corrupt, format!("cannot decompress a layer with {name}")).because(error),
    )
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn media_types_and_first_bytes_agree() {
        for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
            assert_eq!(
                Compression::of_media_type(compression.media_type()).unwrap(),
                compression
            );
        }
        assert!(Compression::of_media_type("application/wasm").is_err());
        let error = Compression::of_bytes(b"\xfd7zXZ\0").unwrap_err();
        assert!(error.hint_text().unwrap().contains("xz -dc"));
    }

    #[test]
    fn what_grows_out_of_proportion_is_refused() {
        let limits = Limits {
            ratio: 100,
            ..Limits::default()
        };
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        let zeros = vec![0; 1 << 20];
        for _ in 0..1100 {
            encoder.write_all(&zeros).unwrap();
        }
        let bomb = encoder.finish().unwrap();
        let mut decoder = Decoder::new(&bomb[..], Compression::Zstd, &limits).unwrap();
        let error = io::copy(&mut decoder, &mut io::sink()).unwrap_err();
        let error = error.downcast::<Error>().unwrap();
        assert_eq!(error.kind(), Kind::Exhausted);
    }

    #[test]
    fn a_damaged_stream_is_corrupt() {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(&[7; 10_000]).unwrap();
        let mut bytes = encoder.finish().unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0xff;
        let limits = Limits::default();
        let mut decoder = Decoder::new(&bytes[..], Compression::Gzip, &limits).unwrap();
        let error = io::copy(&mut decoder, &mut io::sink()).unwrap_err();
        assert_eq!(error.downcast::<Error>().unwrap().kind(), Kind::Corrupt);
    }
}
