//! Compiles the public API to the descriptors by which the gateway routes and transcodes.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::{env, fs};

const INCLUDE: &str = "../proto/proto";
const PUBLIC: &str = "../proto/proto/ravada/snapshot/v1";
const PAGE: &str = "web/dist";

fn main() -> Result<(), Box<dyn Error>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(PUBLIC)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "proto") {
            files.push(path);
        }
    }
    files.sort();

    // Source information is kept so that reflection tells what each field means.
    let mut compiler = protox::Compiler::new([INCLUDE])?;
    compiler.include_imports(true).include_source_info(true).open_files(&files)?;
    let out = PathBuf::from(env::var("OUT_DIR")?).join("public.fds");
    fs::write(out, compiler.encode_file_descriptor_set())?;

    println!("cargo:rerun-if-changed={PUBLIC}");
    // Cargo sees a file that is added to the page only if the folder itself is watched. A folder that is not there yet
    // counts as changed, so the page is picked up as soon as it is built.
    println!("cargo:rerun-if-changed={}", Path::new(PAGE).display());
    println!("cargo:rerun-if-changed=build.rs");
    Ok(())
}
