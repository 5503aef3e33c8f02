//! What the definition of a VM, and the one in a snapshot, make unavailable.

use snapshot_core::Reason;
use snapshot_core::definition;
use snapshot_core::hardware::Element;
use snapshot_core::restriction::{RestrictedOperation, Restriction};
use snapshot_core::snapshot::Content;

use super::hardware_xml::read;

/// Of a VM, by its XML as libvirt tells it now.
pub(super) fn restrictions(xml: &str) -> Vec<Restriction> {
    of(read(xml), definition::restrictions)
}

/// Of a snapshot, by its XML. One whose definition is not told has none: libvirt reverts its disks alone.
pub(super) fn snapshot_restrictions(xml: &str, content: Content) -> Vec<Restriction> {
    let domain = read(xml).map(|snapshot| {
        let children = snapshot.into_iter().flat_map(|snapshot| snapshot.children);
        children.into_iter().find(|child| child.name == "domain")
    });
    match domain {
        Ok(None) => Vec::new(),
        read => of(read, |domain| definition::snapshot_restrictions(domain, content)),
    }
}

fn of(
    read: Result<Option<Element>, quick_xml::Error>,
    restrictions: impl Fn(&Element) -> Vec<Restriction>,
) -> Vec<Restriction> {
    match read {
        Ok(Some(domain)) => restrictions(&domain),
        Ok(None) | Err(_) => {
            let message = "the definition of the VM cannot be read: operations on its snapshots are unavailable";
            vec![Restriction::new(RestrictedOperation::ALL, Reason::FeatureUnsupported, message)]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::xml_samples::{
        DOMAIN_OFF, DOMAIN_RUNNING, HARDWARE_NEXT_START, HARDWARE_RUNNING, HARDWARE_SNAPSHOT, SNAPSHOT_EXTERNAL,
        SNAPSHOT_OFF, SNAPSHOT_RUNNING,
    };
    use super::*;

    #[test]
    fn what_libvirt_tells_of_ordinary_vms_is_understood() {
        let told = [DOMAIN_OFF, DOMAIN_RUNNING, HARDWARE_RUNNING, HARDWARE_NEXT_START].map(restrictions);
        let snapshots = [SNAPSHOT_OFF, SNAPSHOT_RUNNING, SNAPSHOT_EXTERNAL, HARDWARE_SNAPSHOT];
        let of_snapshots = snapshots.map(|xml| snapshot_restrictions(xml, Content::DisksAndMemory));
        for restriction in told.iter().chain(&of_snapshots).flatten() {
            assert!(!restriction.message.contains("is not known"), "{restriction:?}");
        }
        assert_eq!((&told[2], &of_snapshots[3]), (&Vec::new(), &Vec::new()), "an ordinary VM has none");
    }

    #[test]
    fn what_cannot_be_read_restricts_everything() {
        for xml in ["", "<domain", &"<a>".repeat(100_000)] {
            assert!(RestrictedOperation::ALL.iter().all(|operation| restrictions(xml)[0].restricts(*operation)));
        }
        assert_eq!(snapshot_restrictions("<domainsnapshot/>", Content::DisksAndMemory), []);
    }
}
