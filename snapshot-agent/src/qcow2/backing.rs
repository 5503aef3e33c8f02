//! What lies below an image.

use std::path::Path;

use super::{Header, ImageError, open};
use crate::bounded::files;

/// The path of the file below an image as it is written in it, absolute or relative to the image's folder; `None` when
/// there is none, or when it is no local file.
pub fn backing_file(path: &Path) -> Result<Option<String>, ImageError> {
    let _access = files::enter(path)?;
    let file = open(path)?;
    let backing = Header::read(&file)?.read_backing(&file)?;
    Ok(backing.and_then(|backing| local_path(&backing.name)))
}

/// The path in what QEMU takes for the name of an image, if it is a local file:
/// <https://www.qemu.org/docs/master/system/images.html>.
pub fn local_path(name: &str) -> Option<String> {
    if let Some(json) = name.strip_prefix("json:") {
        return in_json(&serde_json::from_str(json).ok()?);
    }
    if let Some(path) = name.strip_prefix("file:") {
        return Some(path.to_owned());
    }
    let before_path = name.split('/').next().unwrap_or_default();
    (!before_path.contains(':')).then(|| name.to_owned())
}

/// `file` may be a node within, or its members spelled `file.filename`.
fn in_json(node: &serde_json::Value) -> Option<String> {
    let named = node.get("filename").or_else(|| node.get("file.filename"));
    match named.and_then(serde_json::Value::as_str) {
        Some(name) => local_path(name),
        None => in_json(node.get("file")?),
    }
}
