//! Images on top of others.

use std::fs;
use std::path::Path;

use anyhow::Result;

use super::super::draft::{Draft, Image, Machine};
use super::Form;

/// A VM on an overlay, whose base has a mark of its own to keep.
fn clone(draft: Draft, format: &str, backing: impl Fn(&Path) -> String) -> Result<Draft> {
    let base = draft.boot_image_of(format, "base.img", &[])?;
    let draft = draft.neighbour(Image::new("base", format, &base));
    let overlay = draft.overlay("boot.qcow2", &backing(&base), format)?;
    Ok(draft.file("vda", "qcow2", &overlay, ""))
}

fn absolute(base: &Path) -> String {
    base.display().to_string()
}

/// A VM whose backing file goes away after the first snapshot; `target` is the disk.
fn losing_its_base(draft: Draft, of_second: bool) -> Result<Machine> {
    let draft = match of_second {
        false => clone(draft, "qcow2", absolute)?,
        true => {
            let base = draft.empty_image("base.img", &[])?;
            let overlay = draft.overlay("data.qcow2", &absolute(&base), "qcow2")?;
            draft.boot().file("vdb", "qcow2", &overlay, "")
        }
    };
    let machine = draft
        .never_started()
        .after(|_, machine| Ok(fs::rename(machine.dir.join("base.img"), machine.dir.join("base.away"))?))
        .end(|_, machine| Ok(fs::rename(machine.dir.join("base.away"), machine.dir.join("base.img"))?))
        .finish()?;
    // Nobody can read what is on top of it meanwhile.
    let disks = machine.disks.into_iter().filter(|disk| disk.target == if of_second { "vda" } else { "" });
    Ok(Machine { disks: disks.collect(), neighbours: Vec::new(), ..machine })
}

pub fn forms() -> Vec<Form> {
    vec![
        Form::sample("a linked clone", |draft| clone(draft, "qcow2", absolute)?.finish()),
        Form::new("a linked clone of a raw base", |draft| clone(draft, "raw", absolute)?.finish()),
        Form::new("a relative backing file", |draft| clone(draft, "qcow2", |_| "base.img".to_owned())?.finish()),
        Form::new("a backing file in another directory, relative", |draft| {
            let dir = draft.path("bases");
            fs::create_dir_all(&dir)?;
            let base = draft.boot_image("bases/base.qcow2", &[])?;
            let draft = draft.neighbour(Image::new("base", "qcow2", &base));
            let overlay = draft.overlay("boot.qcow2", "bases/base.qcow2", "qcow2")?;
            draft.file("vda", "qcow2", &overlay, "").finish()
        }),
        Form::new("a chain of five, relative, with UTF-8 names", |draft| {
            draft.boot_image("größe-0.qcow2", &[])?;
            let mut top = draft.path("größe-0.qcow2");
            for number in 1..5 {
                top =
                    draft.overlay(&format!("größe-{number}.qcow2"), &format!("größe-{}.qcow2", number - 1), "qcow2")?;
            }
            draft.file("vda", "qcow2", &top, "").finish()
        }),
        Form::new("a backing file named by json:", |draft| {
            let json = |base: &Path| {
                format!(
                    "json:{{\"driver\":\"qcow2\",\"file\":{{\"driver\":\"file\",\"filename\":\"{}\"}}}}",
                    base.display()
                )
            };
            // libvirt cannot read it, so it does not start the VM.
            clone(draft, "qcow2", json)?.never_started().finish()
        }),
        Form::new("a backing file named by file:", |draft| {
            clone(draft, "qcow2", |base| format!("file:{}", base.display()))?.never_started().finish()
        }),
        Form::sample("a backing file that goes away", |draft| losing_its_base(draft, false)),
        Form::sample("second disk's backing file goes away", |draft| losing_its_base(draft, true)),
        Form::new("a backing file outside of image_dirs", |draft| {
            let outside = draft.dir().parent().and_then(Path::parent).unwrap_or(Path::new("/")).join("outside");
            fs::create_dir_all(&outside)?;
            let base = outside.join(format!("{}-base.qcow2", draft.uuid()));
            fs::rename(draft.boot_image("base.img", &[])?, &base)?;
            let draft = draft.neighbour(Image::new("base", "qcow2", &base));
            let overlay = draft.overlay("boot.qcow2", &absolute(&base), "qcow2")?;
            draft.file("vda", "qcow2", &overlay, "").finish()
        }),
    ]
}
