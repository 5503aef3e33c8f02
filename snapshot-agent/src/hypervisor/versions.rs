//! Which libvirt and which QEMU there are, and what the two cannot do yet.

use snapshot_core::policy::HostPolicy;

/// What runs on a host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Versions {
    /// libvirt's, such as `11.3.0`.
    pub libvirt: String,
    /// QEMU's, such as `10.0.2`.
    pub qemu: String,
}

impl Versions {
    /// Whether QEMU's disks can be taken live here: QEMU has them by the names of their nodes since 4.2, libvirt since 6.0.
    pub fn take_live(&self) -> bool {
        is_since(&self.libvirt, (6, 0)) && is_since(&self.qemu, (4, 2))
    }

    /// Whether QEMU can load a snapshot into a process that runs: it has `snapshot-load` since 6.0.
    pub fn load_in_place(&self) -> bool {
        is_since(&self.qemu, (6, 0))
    }

    /// Whether libvirt starts a VM whose UEFI variables have another format than their template: until 12.0 it looks at the template
    /// only where the file with the variables does not exist.
    pub fn convert_nvram(&self) -> bool {
        !self.libvirt.is_empty() && !is_since(&self.libvirt, (12, 1))
    }

    /// What of the policy can be had here.
    pub fn limit(&self, policy: &HostPolicy) -> HostPolicy {
        HostPolicy {
            live_snapshots: policy.live_snapshots && self.take_live(),
            in_place_reverts: policy.in_place_reverts && self.load_in_place(),
            ..policy.clone()
        }
    }
}

fn is_since(version: &str, since: (u32, u32)) -> bool {
    let mut parts = version.split('.').map(|part| part.parse().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0)) >= since
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether disks are taken live, and reverts done in place, where the policy allows both.
    fn had_of(libvirt: &str, qemu: &str) -> (bool, bool) {
        let versions = Versions { libvirt: libvirt.to_owned(), qemu: qemu.to_owned() };
        let policy = HostPolicy { live_snapshots: true, in_place_reverts: true, ..HostPolicy::default() };
        let limited = versions.limit(&policy);
        (limited.live_snapshots, limited.in_place_reverts)
    }

    #[test]
    fn what_is_too_old_is_not_asked_for_what_it_does_not_have() {
        for (libvirt, qemu, had) in [
            ("11.3.0", "10.0.2", (true, true)),
            ("9.9.0", "6.0.0", (true, true)),
            ("9.9.0", "5.2.0", (true, false)),
            ("9.9.0", "4.2.1", (true, false)),
            ("9.9.0", "4.1.0", (false, false)),
            ("5.10.0", "6.0.0", (false, true)),
            ("", "", (false, false)),
        ] {
            assert_eq!(had_of(libvirt, qemu), had, "libvirt {libvirt:?}, QEMU {qemu:?}");
        }
    }

    #[test]
    fn formats_of_uefi_variables() {
        for (libvirt, is_converted) in
            [("11.3.0", true), ("12.0.0", true), ("12.1.0", false), ("12.9.0", false), ("", false)]
        {
            let versions = Versions { libvirt: libvirt.to_owned(), qemu: String::new() };
            assert_eq!(versions.convert_nvram(), is_converted, "{libvirt:?}");
        }
    }

    #[test]
    fn what_the_policy_forbids_no_version_brings() {
        let versions = Versions { libvirt: "11.3.0".to_owned(), qemu: "10.0.2".to_owned() };
        let policy = HostPolicy { live_snapshots: false, in_place_reverts: false, ..HostPolicy::default() };
        assert_eq!(versions.limit(&policy), policy);
    }
}
