//! Which file system a path is on, without touching it: by the mount table of the kernel, which is answered from memory.

use std::fs::File;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Component, Path, PathBuf};
use std::sync::OnceLock;

/// The most bytes of the mount table that are read; a line has about a hundred.
const MOST_BYTES: usize = 8 << 20;

/// Accesses that may hang at a mount at once, before further ones are refused: of a network file system one server answers for
/// all, and of a local one a single image may hang alone.
const MOST_NETWORK: usize = 2;
const MOST_LOCAL: usize = 24;

/// File systems that another host, or another process, answers for.
const NETWORK: [&str; 16] = [
    "nfs",
    "nfs4",
    "cifs",
    "smb3",
    "smbfs",
    "ceph",
    "glusterfs",
    "9p",
    "afs",
    "lustre",
    "gfs2",
    "ocfs2",
    "beegfs",
    "gpfs",
    "pvfs2",
    "fuse",
];

/// A mounted file system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mount {
    /// Where it is mounted.
    pub(super) point: PathBuf,
    /// Accesses that may hang at it at once.
    pub(super) most: usize,
}

static TABLE: OnceLock<Option<File>> = OnceLock::new();

/// Opens the mount table. To be called before the process gives up root: the sandbox has no rule for it.
pub fn prepare() {
    table();
}

fn table() -> Option<&'static File> {
    TABLE.get_or_init(|| File::open("/proc/self/mountinfo").ok()).as_ref()
}

/// The mount that a path is on, by its spelling: symbolic links are not followed, because following one may hang. `None` when
/// the mount table cannot be read.
pub(super) fn of(path: &Path) -> Option<Mount> {
    find(&read()?, &plain(path))
}

/// Without `.` and `..`, by the spelling alone.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => _ = plain.pop(),
            Component::CurDir => {}
            part => plain.push(part),
        }
    }
    plain
}

fn read() -> Option<Vec<u8>> {
    let file = table()?;
    let (mut bytes, mut buffer) = (Vec::new(), vec![0; 64 << 10]);
    loop {
        let count = file.read_at(&mut buffer, bytes.len() as u64).ok()?;
        bytes.extend_from_slice(buffer.get(..count)?);
        if count == 0 || bytes.len() >= MOST_BYTES {
            return Some(bytes);
        }
    }
}

/// The last mount at the longest prefix of the path: it is on top of those at the same place.
fn find(table: &[u8], path: &Path) -> Option<Mount> {
    let mounts = table.split(|byte| *byte == b'\n').filter_map(parse);
    mounts.filter(|mount| path.starts_with(&mount.point)).max_by_key(|mount| mount.point.as_os_str().len())
}

/// A line: `ID PARENT MAJOR:MINOR ROOT POINT OPTIONS [FIELD...] - TYPE SOURCE SUPER_OPTIONS` (proc(5)).
fn parse(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let point = PathBuf::from(std::ffi::OsString::from_vec(unescaped(fields.nth(4)?)));
    let kind = fields.skip_while(|field| *field != b"-").nth(1)?;
    let kind = std::str::from_utf8(kind).ok()?;
    let is_network = NETWORK.contains(&kind) || kind.starts_with("fuse.");
    Some(Mount { point, most: if is_network { MOST_NETWORK } else { MOST_LOCAL } })
}

/// Spaces, tabs, newlines and backslashes are written as `\` and three octal digits.
fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        let code =
            (first == b'\\').then(|| after.get(..3)).flatten().and_then(|digits| std::str::from_utf8(digits).ok());
        match code.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = after.get(3..).unwrap_or_default();
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &[u8] = b"22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw\n\
        60 22 0:50 / /srv/images rw shared:9 master:2 - nfs4 10.0.0.1:/images rw,hard\n\
        61 60 0:51 / /srv/images/local\\040disk rw - xfs /dev/vdb rw\n\
        62 22 0:52 / /mnt rw - fuse.sshfs host: rw\n";

    #[test]
    fn a_path_is_on_the_mount_with_the_longest_prefix() {
        let find =
            |path: &str| find(SAMPLE, Path::new(path)).map(|mount| (mount.point.display().to_string(), mount.most));
        assert_eq!(find("/var/x.qcow2"), Some(("/".to_owned(), MOST_LOCAL)));
        assert_eq!(find("/srv/images/x.qcow2"), Some(("/srv/images".to_owned(), MOST_NETWORK)));
        assert_eq!(find("/srv/images2/x.qcow2"), Some(("/".to_owned(), MOST_LOCAL)));
        assert_eq!(find("/srv/images/local disk/x"), Some(("/srv/images/local disk".to_owned(), MOST_LOCAL)));
        assert_eq!(find("/mnt/x"), Some(("/mnt".to_owned(), MOST_NETWORK)));
        assert_eq!(plain(Path::new("/srv/x/../images/./y")), Path::new("/srv/images/y"));
        assert_eq!(super::find(b"nonsense\n\n1 2 3", Path::new("/")), None);
    }

    #[test]
    fn the_table_of_this_host_has_a_root() {
        assert!(of(Path::new("/")).is_some());
    }
}
