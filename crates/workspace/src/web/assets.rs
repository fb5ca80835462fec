//! The page's files, inside the executable. Browsers keep them and ask each time whether they are still the same.

use axum::extract::Path;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::refusal;

struct Asset {
    name: &'static str,
    kind: &'static str,
    bytes: &'static [u8],
}

const INDEX: Asset = Asset {
    name: "index.html",
    kind: "text/html; charset=utf-8",
    bytes: include_bytes!("../../assets/index.html"),
};

const FILES: [Asset; 4] = [
    Asset {
        name: "app.js",
        kind: "text/javascript; charset=utf-8",
        bytes: include_bytes!("../../assets/app.js"),
    },
    Asset {
        name: "app.css",
        kind: "text/css; charset=utf-8",
        bytes: include_bytes!("../../assets/app.css"),
    },
    Asset {
        name: "novnc.js",
        kind: "text/javascript; charset=utf-8",
        bytes: include_bytes!("../../assets/novnc.js"),
    },
    Asset {
        name: "icon.svg",
        kind: "image/svg+xml",
        bytes: include_bytes!("../../assets/icon.svg"),
    },
];

pub(super) fn index(request: &HeaderMap) -> Response {
    INDEX.answer(request)
}

pub(super) async fn file(Path(name): Path<String>, request: HeaderMap) -> Response {
    FILES.iter().find(|file| file.name == name).map_or_else(
        || refusal(StatusCode::NOT_FOUND, "there is nothing under this path", None),
        |file| file.answer(&request),
    )
}

impl Asset {
    fn answer(&self, request: &HeaderMap) -> Response {
        let tag = format!("\"{:016x}\"", fnv(self.bytes));
        let held = request
            .get(header::IF_NONE_MATCH)
            .is_some_and(|held| held == tag.as_str());
        let mut answer = if held {
            StatusCode::NOT_MODIFIED.into_response()
        } else {
            self.bytes.into_response()
        };
        let headers = answer.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(self.kind));
        headers.insert(
            header::CACHE_CONTROL,
            HeaderValue::from_static("private, no-cache"),
        );
        headers.insert(
            header::ETAG,
            HeaderValue::from_str(&tag).expect("it is hexadecimal"),
        );
        answer
    }
}

/// FNV-1a, 64 bits: tells versions of our own files apart, nothing more.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
