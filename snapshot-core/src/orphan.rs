//! Orphans: files that the service created for a VM, that hold a state which was once current, and that nothing uses any more. None is
//! removed automatically. What keeps one from being deleted on request is decided here, the same for a listing and for a deletion.

use crate::error::{Error, Reason};

/// How the file of an orphan was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OrphanState {
    /// Not known.
    #[default]
    Unknown,
    /// As the service created it.
    Ready,
    /// It is not there, or its directory is not.
    Missing,
    /// Another file is at its path.
    Replaced,
}

/// Who uses an orphan.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OrphanUse {
    /// A VM, by name where it is known, whose definition or snapshots lead to the file.
    pub vm: Option<String>,
    /// The path of an image that depends on it.
    pub image: Option<String>,
    /// Whether a process has it open, or locked.
    pub is_open: bool,
}

/// Why an orphan cannot be deleted; `None` when it can.
pub fn refusal(path: &str, state: OrphanState, used: &OrphanUse) -> Option<Error> {
    let in_use = |message: String| Error::new(Reason::ImageInUse, format!("{message}; nothing was deleted"));
    let error = match (state, used) {
        (OrphanState::Unknown, _) => {
            Error::new(Reason::ImageUnavailable, "the file of the orphan cannot be read; nothing was deleted")
        }
        (OrphanState::Missing, _) => Error::new(Reason::OrphanNotFound, "the file of the orphan is not there"),
        (OrphanState::Replaced, _) => {
            let message =
                "another file is at the path of the orphan, which the service did not create; nothing was deleted";
            Error::new(Reason::OrphanNotFound, message)
        }
        (OrphanState::Ready, OrphanUse { vm: Some(name), .. }) => {
            let vm = if name.is_empty() { "a VM of the host".to_owned() } else { format!("VM {name}") };
            in_use(format!("{vm} uses the file, as a disk, in a snapshot or as a backing file")).with("user", name)
        }
        (OrphanState::Ready, OrphanUse { image: Some(image), .. }) => {
            in_use(format!("{image} depends on the file: delete that image first")).with("user", image)
        }
        (OrphanState::Ready, OrphanUse { is_open: true, .. }) => in_use("a process has the file open".to_owned()),
        (OrphanState::Ready, _) => return None,
    };
    Some(error.with("path", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(state: OrphanState, used: &OrphanUse) -> Option<Reason> {
        refusal("/images/vda.snap", state, used).map(|error| error.reason())
    }

    #[test]
    fn only_a_file_that_is_ours_and_that_nobody_uses_can_be_deleted() {
        let nobody = OrphanUse::default();
        let users = [
            OrphanUse { vm: Some("desk".to_owned()), ..OrphanUse::default() },
            OrphanUse { vm: Some(String::new()), ..OrphanUse::default() },
            OrphanUse { image: Some("/images/clone".to_owned()), ..OrphanUse::default() },
            OrphanUse { is_open: true, ..OrphanUse::default() },
        ];
        assert_eq!(reason(OrphanState::Ready, &nobody), None);
        for used in &users {
            assert_eq!(reason(OrphanState::Ready, used), Some(Reason::ImageInUse), "{used:?}");
        }
        for used in users.iter().chain([&nobody]) {
            assert_eq!(reason(OrphanState::Missing, used), Some(Reason::OrphanNotFound));
            assert_eq!(reason(OrphanState::Replaced, used), Some(Reason::OrphanNotFound));
            assert_eq!(reason(OrphanState::Unknown, used), Some(Reason::ImageUnavailable));
        }
    }

    #[test]
    fn the_user_is_named() {
        let by_vm = OrphanUse { vm: Some("desk".to_owned()), ..OrphanUse::default() };
        let told = refusal("/images/vda.snap", OrphanState::Ready, &by_vm).unwrap();
        assert!(told.message().contains("VM desk uses the file"), "{told}");
        assert_eq!((told.metadata()["user"].as_str(), told.metadata()["path"].as_str()), ("desk", "/images/vda.snap"));
    }
}
