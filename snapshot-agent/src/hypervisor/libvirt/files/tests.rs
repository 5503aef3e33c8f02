//! Real files in a directory.

use std::fs;

use super::*;
use crate::hypervisor::overlays::text;

struct Scene {
    dir: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().canonicalize().unwrap().join(name)
    }

    fn write(&self, name: &str) -> String {
        fs::write(self.at(name), name).unwrap();
        text(&self.at(name))
    }

    fn names(&self) -> Vec<(String, String)> {
        let mut names: Vec<_> = fs::read_dir(self.dir.path())
            .unwrap()
            .map(|entry| entry.unwrap())
            .map(|entry| (entry.file_name().into_string().unwrap(), fs::read_to_string(entry.path()).unwrap()))
            .collect();
        names.sort();
        names
    }
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected.iter().map(|(name, held)| ((*name).to_owned(), (*held).to_owned())).collect()
}

#[test]
fn a_guarded_file_outlives_its_removal() {
    let scene = Scene::new();
    let (files, folders) = ([scene.write("a"), scene.write("b"), text(&scene.at("none"))], Beneath::anywhere());
    guard(folders, &files).unwrap();
    guard(folders, &files).unwrap();
    assert_eq!(scene.names(), pairs(&[("a", "a"), ("a.kept", "a"), ("b", "b"), ("b.kept", "b")]));
    fs::remove_file(&files[0]).unwrap();
    // libvirt may be at it still, so it keeps the second name until it is unguarded.
    guard(folders, &files).unwrap();
    assert_eq!(scene.names(), pairs(&[("a", "a"), ("a.kept", "a"), ("b", "b"), ("b.kept", "b")]));
    fs::remove_file(&files[1]).unwrap();
    unguard(folders, &files).unwrap();
    assert_eq!(scene.names(), pairs(&[("a", "a"), ("b", "b")]));
}

#[test]
fn a_second_name_of_another_file_is_not_taken_for_a_guard() {
    let scene = Scene::new();
    let file = scene.write("a");
    scene.write("a.kept");
    guard(Beneath::anywhere(), &[file]).unwrap_err();
    assert_eq!(scene.names(), pairs(&[("a", "a"), ("a.kept", "a.kept")]));
}

#[test]
fn files_are_removed_and_what_is_gone_is_no_failure() {
    let scene = Scene::new();
    let files = [scene.write("a"), text(&scene.at("none")), scene.write("b")];
    unlink(Beneath::anywhere(), &files).unwrap();
    assert_eq!(scene.names(), []);
    fs::create_dir(scene.at("directory")).unwrap();
    unlink(Beneath::anywhere(), &[text(&scene.at("directory"))]).unwrap_err();
}

#[test]
fn a_file_is_the_same_by_another_path() {
    let scene = Scene::new();
    let file = scene.write("a");
    std::os::unix::fs::symlink(&file, scene.at("link")).unwrap();
    assert!(is_same(&scene.at("link"), &file) && !is_same(&scene.at("b"), &file));
}

#[test]
fn what_others_use_is_followed_down_and_what_cannot_be_read_is_an_error() {
    let scene = Scene::new();
    let image = |name: &str, below: &[&str]| {
        let path = scene.at(name);
        let mut command = std::process::Command::new("qemu-img");
        command.args(["create", "-q", "-u", "-f", "qcow2", "-o", "size=1M"]).args(below).arg(&path);
        assert!(command.status().unwrap().success());
        path
    };
    let base = image("base", &[]);
    let top = image("top", &["-F", "qcow2", "-b", base.to_str().unwrap()]);
    let used = |path: &Path, format: &str| {
        let files = BTreeMap::from([((path.to_owned(), format.to_owned()), "neighbour".to_owned())]);
        follow(files, Beneath::anywhere())
    };
    assert_eq!(used(&top, "qcow2").unwrap(), BTreeSet::from([text(&base), text(&top)]));
    // Of a raw image a guest may have written the first bytes.
    assert_eq!(used(&top, "raw").unwrap(), BTreeSet::from([text(&top)]));
    // In two formats: by the one that has something below it.
    let both = ["raw", "qcow2"].map(|format| ((top.clone(), format.to_owned()), "neighbour".to_owned()));
    assert_eq!(follow(both.into(), Beneath::anywhere()).unwrap(), BTreeSet::from([text(&base), text(&top)]));
    let within = scene.at("file").join("image");
    fs::write(scene.at("file"), "").unwrap();
    let Err(Failure::Precondition(error)) = used(&within, "qcow2") else { panic!("it is not known what it is on") };
    assert_eq!((error.reason(), &error.metadata()["neighbour"]), (Reason::ImageUnavailable, &"neighbour".to_owned()));
    // And where it may not be read, it is said which directory is missing in the configuration.
    let Err(Failure::Precondition(error)) =
        follow(BTreeMap::from([((within, "qcow2".to_owned()), "neighbour".to_owned())]), &Beneath::open(&[], &[]))
    else {
        panic!("it is not known what it is on")
    };
    assert_eq!(error.reason(), Reason::ImageOutOfReach);
}

/// A host of libvirt's test driver with these elements, which nobody else is connected to. A VM in it is of type `test`.
pub(in super::super) fn host(dir: &Path, elements: &str) -> Arc<Link> {
    let path = dir.join("host.xml");
    fs::write(&path, format!("<node>{elements}</node>")).unwrap();
    Arc::new(Link::new(&format!("test://{}", path.display()), Arc::default()))
}

/// A VM of that host.
pub(in super::super) fn domain(number: u128, name: &str, devices: &str) -> String {
    let id = uuid::Uuid::from_u128(number);
    format!(
        "<domain type='test'><name>{name}</name><uuid>{id}</uuid><memory>1024</memory><os><type>hvm</type></os>\
         <devices>{devices}</devices></domain>"
    )
}

/// A disk of such a VM.
pub(in super::super) fn disk(target: &str, source: &str, format: &str) -> String {
    let kind = if source.contains("pool=") { "volume" } else { "file" };
    format!(
        "<disk type='{kind}' device='disk'><driver name='qemu' type='{format}'/><source {source}/><target dev='{target}'/></disk>"
    )
}

/// An external snapshot of the first disk of a VM, for libvirt to be told of.
pub(in super::super) fn snapshot(name: &str, overlay: &str, domain: &str) -> String {
    let others = ["vdb", "vdc"].into_iter().filter(|target| domain.contains(&format!("dev='{target}'")));
    let left_out: String = others.map(|target| format!("<disk name='{target}' snapshot='no'/>")).collect();
    format!(
        "<domainsnapshot><name>{name}</name><state>shutoff</state><creationTime>7</creationTime><memory snapshot='no'/><disks>\
         <disk name='vda' snapshot='external' type='file'><driver type='qcow2'/><source file='{overlay}'/></disk>{left_out}\
         </disks>{domain}</domainsnapshot>"
    )
}

fn pool(kind: &str, name: &str, path: &Path) -> String {
    let source = if kind == "fs" { "<source><device path='/dev/none'/></source>" } else { "" };
    format!("<pool type='{kind}'><name>{name}</name>{source}<target><path>{}</path></target></pool>", path.display())
}

/// The message of the refusal, or what others reach.
fn others(link: &Link, of: u128) -> Result<BTreeSet<String>, String> {
    let vm = VmId::from_uuid(uuid::Uuid::from_u128(of));
    match link.look("test", |connection| reached_by_others(connection, vm)) {
        Ok(files) => Ok(files.into_keys().map(|(path, _)| text(&path)).collect()),
        Err(Failure::Precondition(error)) => Err(error.message().to_owned()),
        Err(failure) => panic!("{failure}"),
    }
}

/// A file that is missing here is removed, or merged into, though another VM uses it.
#[test]
fn others_use_the_files_of_their_disks_their_volumes_and_their_snapshots() {
    let scene = Scene::new();
    let volume = scene.write("volume");
    let directory = scene.at("");
    let old = domain(
        2,
        "neighbour",
        &[
            disk("vda", "file='/none/frozen'", "qcow2"),
            disk("vdb", "pool='images' volume='volume'", "raw"),
            disk("vdc", "pool='images' volume='none'", "raw"),
        ]
        .concat(),
    );
    let now = domain(
        2,
        "neighbour",
        &[
            disk("vda", "file='/none/overlay'", "qcow2"),
            disk("vdb", "pool='images' volume='volume'", "raw"),
            disk("vdc", "pool='images' volume='none'", "raw"),
        ]
        .concat(),
    );
    let own = domain(1, "desk", &disk("vda", "file='/none/own'", "qcow2"));
    let link = host(&directory, &[own, now, pool("dir", "images", &directory)].concat());
    link.act("test", |connection| {
        let neighbour = connection.connect().lookup_domain_by_name("neighbour")?;
        neighbour
            .create_snapshot_xml(&snapshot("one", "/none/overlay", &old), sys::VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE)?;
        Ok(())
    })
    .unwrap();
    // A volume that is not there is used by nobody.
    let used = ["/none/frozen", "/none/overlay", volume.as_str()].map(str::to_owned);
    assert_eq!(others(&link, 1), Ok(used.clone().into()));
    assert_eq!(others(&link, 2), Ok(["/none/own".to_owned()].into()));
    let all: BTreeSet<String> = used.into_iter().chain(["/none/own".to_owned()]).collect();
    assert_eq!(others(&link, 3), Ok(all));
    // With what they lie on.
    let found = elsewhere(&link, None, VmId::from_uuid(uuid::Uuid::from_u128(2))).unwrap();
    assert_eq!(found, ["/none/own".to_owned()].into());
}

#[test]
fn where_the_pool_of_a_volume_is_not_active_it_is_not_known_what_others_use() {
    let scene = Scene::new();
    let directory = scene.at("");
    let link = |devices: &str, then: &str| {
        let away = scene.at("away");
        let elements = [domain(2, "neighbour", devices), pool("fs", "away", &away)].concat();
        let link = host(&directory, &elements);
        link.act("test", |connection| {
            let neighbour = connection.connect().lookup_domain_by_name("neighbour")?;
            let xml = snapshot("one", "/none/overlay", &domain(2, "neighbour", then));
            neighbour.create_snapshot_xml(&xml, sys::VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE)?;
            Ok(connection.connect().lookup_storage_pool_by_name("away")?.destroy()?)
        })
        .unwrap();
        link
    };
    let (file, volume) = (disk("vda", "file='/none/a'", "qcow2"), disk("vda", "pool='away' volume='a'", "qcow2"));
    let used = |paths: &[&str]| Ok(paths.iter().map(|path| (*path).to_owned()).collect());
    assert_eq!(others(&link(&file, &file), 1), used(&["/none/a", "/none/overlay"]));
    for (now, then) in [(&volume, &file), (&file, &volume)] {
        let refusal = others(&link(now, then), 1).unwrap_err();
        assert!(refusal.contains("neighbour") && refusal.contains("away"), "{refusal}");
    }
}

#[test]
fn a_snapshot_that_goes_while_it_is_read_is_left_out_and_another_error_is_one() {
    assert_eq!(unless_gone(Ok(1)).unwrap(), Some(1));
    assert_eq!(unless_gone::<u8>(Err(Failure::SnapshotGone)).unwrap(), None);
    for failure in [Failure::VmGone, Failure::Refused { code: 1, message: "so".to_owned() }] {
        assert_eq!(unless_gone::<u8>(Err(failure.clone())), Err(failure));
    }
}
