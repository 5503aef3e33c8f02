//! Compiles the .proto files in pure Rust: no protoc is needed.

use std::error::Error;
use std::path::PathBuf;

use prost::Message as _;

const FILES: [&str; 11] = [
    "ravada/snapshot/v1/vm.proto",
    "ravada/snapshot/v1/snapshot.proto",
    "ravada/snapshot/v1/operation.proto",
    "ravada/snapshot/v1/host.proto",
    "ravada/snapshot/v1/orphan.proto",
    "ravada/snapshot/v1/audit.proto",
    "ravada/snapshot/v1/snapshot_service.proto",
    "ravada/snapshot/v1/operation_service.proto",
    "ravada/snapshot/v1/host_service.proto",
    "ravada/snapshot/v1/audit_service.proto",
    "ravada/snapshot/agent/v1/agent_service.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    let descriptors = protox::compile(FILES, ["proto"])?;
    let public = protox::compile(&FILES[..10], ["proto"])?;
    std::fs::write(out.join("public_descriptors.bin"), public.encode_to_vec())?;
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    Ok(())
}
