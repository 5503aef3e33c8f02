//! What is in an image file.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::Result;
use tests::tools::run;

use super::super::draft::{Draft, Image};
use super::Form;

/// Byte offset of the incompatible features in a qcow2 header, 8 bytes big-endian.
const INCOMPATIBLE: u64 = 72;

/// Sets a bit of the incompatible features.
fn set_incompatible(path: &Path, bit: u32) -> Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, INCOMPATIBLE)?;
    file.write_all_at(&(u64::from_be_bytes(bytes) | 1 << bit).to_be_bytes(), INCOMPATIBLE)?;
    Ok(())
}

const SECRET: &str = "a secret of a test";

/// A LUKS disk: its key is a secret of libvirt's.
fn encrypted(draft: Draft, format: &str) -> Result<super::super::draft::Machine> {
    let (secret, path) = (draft.uuid(), draft.path("boot.img"));
    let key = draft.path("key");
    std::fs::write(&key, SECRET)?;
    let raw = draft.boot_image_of("raw", "plain.img", &[])?;
    let object = format!("secret,id=s,file={}", key.display());
    let options = if format == "qcow2" {
        "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10"
    } else {
        "key-secret=s,iter-time=10"
    };
    let mut create = Command::new("qemu-img");
    create.args(["convert", "-f", "raw", "-O", format, "--object", &object, "-o", options]).arg(&raw).arg(&path);
    run(&mut create)?;
    std::fs::remove_file(raw)?;
    let file = path.display().to_string();
    let open = match format {
        "qcow2" => format!("driver=qcow2,encrypt.key-secret=s,file.filename={file}"),
        _ => format!("driver=luks,key-secret=s,file.filename={file}"),
    };
    let image = Image {
        target: "vda".to_owned(),
        open: vec!["--object".to_owned(), object, "--image-opts".to_owned(), open],
        files: vec![path.clone()],
    };
    let driver = if format == "qcow2" { "qcow2" } else { "raw" };
    let inside = format!(
        "<driver name='qemu' type='{driver}'/><source file='{file}'>\
         <encryption format='luks'><secret type='passphrase' uuid='{secret}'/></encryption></source>"
    );
    let draft = draft.disk("type='file' device='disk'", "vda", &inside, Some(image)).before(move |daemon, machine| {
        let xml = machine.dir.join("secret.xml");
        std::fs::write(&xml, format!("<secret ephemeral='no' private='yes'><uuid>{secret}</uuid></secret>"))?;
        daemon.virsh(&["secret-define", &xml.display().to_string()])?;
        let key = machine.dir.join("key").display().to_string();
        daemon.virsh(&["secret-set-value", &secret.to_string(), "--file", &key, "--plain"]).map(drop)
    });
    draft.finish()
}

pub fn forms() -> Vec<Form> {
    vec![
        Form::sample("one qcow2 disk", |draft| draft.boot().finish()),
        Form::sample("two qcow2 disks", |draft| draft.boot().data_with(&[]).finish()),
        Form::new("twenty qcow2 disks", |mut draft| {
            draft = draft.boot();
            for number in 1..20_u8 {
                let path = draft.empty_image(&format!("{number}.qcow2"), &[])?;
                draft = draft.file(&format!("vd{}", char::from(b'a' + number)), "qcow2", &path, "");
            }
            draft.finish()
        }),
        Form::sample("a raw disk", |draft| {
            let path = draft.boot_image_of("raw", "boot.raw.img", &[])?;
            draft.file("vda", "raw", &path, "").finish()
        }),
        Form::new("a qcow2 disk and a raw one", |draft| {
            let path = draft.path("data.raw");
            run(Command::new("qemu-img").args(["create", "-q", "-f", "raw"]).arg(&path).arg("8M"))?;
            draft.boot().file("vdb", "raw", &path, "").finish()
        }),
        Form::new("qcow2 in the old format (compat 0.10)", |draft| {
            draft.boot_with(&["-o", "compat=0.10"]).data_with(&["-o", "compat=0.10"]).finish()
        }),
        Form::new("qcow2 with extended L2 entries", |draft| {
            draft.boot_with(&["-o", "extended_l2=on,cluster_size=128k"]).finish()
        }),
        Form::new("qcow2 compressed with zstd", |draft| {
            draft.boot_with(&["-c", "-o", "compression_type=zstd"]).finish()
        }),
        Form::new("qcow2 compressed with zlib", |draft| draft.boot_with(&["-c"]).finish()),
        Form::new("qcow2 with lazy refcounts", |draft| draft.boot_with(&["-o", "lazy_refcounts=on"]).finish()),
        Form::new("qcow2 with clusters of 2 MiB", |draft| draft.boot_with(&["-o", "cluster_size=2M"]).finish()),
        Form::new("qcow2 with clusters of 512 bytes", |draft| draft.boot_with(&["-o", "cluster_size=512"]).finish()),
        Form::new("qcow2 with preallocated metadata", |draft| {
            draft.boot_with(&["-o", "preallocation=metadata"]).finish()
        }),
        Form::sample("qcow2 with refcounts of 1 bit", |draft| draft.boot_with(&["-o", "refcount_bits=1"]).finish()),
        Form::new("second disk with refcounts of 1 bit", |draft| {
            draft.boot().data_with(&["-o", "refcount_bits=1"]).finish()
        }),
        Form::new("qcow2 with refcounts of 64 bits", |draft| draft.boot_with(&["-o", "refcount_bits=64"]).finish()),
        Form::new("qcow2 with an external data file", |draft| {
            let data = format!("data_file={}", draft.path("boot.data").display());
            draft.boot_with(&["-o", &data]).finish()
        }),
        Form::new("qcow2 with a raw external data file", |draft| {
            let data = format!("data_file={},data_file_raw=on", draft.path("boot.data").display());
            draft.boot_with(&["-o", &data]).finish()
        }),
        Form::sample("qcow2 encrypted with LUKS", |draft| encrypted(draft, "qcow2")),
        Form::new("raw disk encrypted with LUKS", |draft| encrypted(draft, "luks")),
        Form::new("qcow2 marked as corrupt", |draft| {
            let draft = draft.boot().data_with(&[]).never_started();
            set_incompatible(&draft.path("data.qcow2"), 1)?;
            // Neither can be marked by a tool that refuses it.
            let mut machine = draft.finish()?;
            machine.disks.truncate(1);
            Ok(machine)
        }),
        Form::new("qcow2 with an incompatible feature of the future", |draft| {
            let draft = draft.boot().data_with(&[]).never_started();
            set_incompatible(&draft.path("data.qcow2"), 40)?;
            let mut machine = draft.finish()?;
            machine.disks.truncate(1);
            Ok(machine)
        }),
        Form::sample("qcow2 with a persistent dirty bitmap", |draft| {
            let draft = draft.boot();
            run(Command::new("qemu-img").args(["bitmap", "--add"]).arg(draft.path("boot.qcow2")).arg("backup"))?;
            draft.finish()
        }),
        Form::new("second disk with a persistent dirty bitmap", |draft| {
            let draft = draft.boot().data_with(&[]);
            run(Command::new("qemu-img").args(["bitmap", "--add"]).arg(draft.path("data.qcow2")).arg("backup"))?;
            draft.finish()
        }),
        Form::new("a dirty bitmap added after the snapshot", |draft| {
            let draft = draft.boot().data_with(&[]);
            let path = draft.path("data.qcow2");
            draft
                .after(move |_, _| {
                    run(Command::new("qemu-img").args(["bitmap", "--add"]).arg(&path).arg("late")).map(drop)
                })
                .finish()
        }),
        Form::new("qcow2 defined as raw", |draft| {
            let path = draft.boot_image("boot.qcow2", &[])?;
            let draft = draft.never_started();
            draft.file("vda", "raw", &path, "").finish().map(|mut machine| {
                // A mark in a raw view would break the qcow2 in it.
                machine.disks.clear();
                machine
            })
        }),
        Form::new("image path with spaces and UTF-8", |draft| {
            let path = draft.boot_image("der große Rechner.qcow2", &[])?;
            draft.file("vda", "qcow2", &path, "").finish()
        }),
        Form::new("image reached by a symbolic link", |draft| {
            let path = draft.boot_image("real.qcow2", &[])?;
            let link = draft.path("link.qcow2");
            std::os::unix::fs::symlink(&path, &link)?;
            draft.file("vda", "qcow2", &link, "").finish()
        }),
    ]
}
