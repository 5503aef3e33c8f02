//! On which host a VM is, where several have it defined or say so.
//!
//! 1. A VM that is active on one connected host is there.
//! 2. Where two connected hosts say that it is active, it stays where it was, and is in conflict: one of them is wrong, or both run it. Nobody can
//!    tell which, so nothing is asked of either.
//! 3. Where it is active nowhere, it is where its snapshots of this service are; where that is said of several, it stays where it was.
//! 4. Where it has none, it is on the host that has just got it: libvirt tells nobody of an offline migration where the VM comes from. Else it
//!    stays where it was.
//!
//! A host that is lost gets no VM. It keeps what it had: a VM that was active there, that has its snapshots there, or that an operation was
//! begun on there, is elsewhere only once it is active there.

use crate::ids::HostId;

/// What a host says of a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    /// The host that says it.
    pub host: HostId,
    /// Whether its agent is connected.
    pub connected: bool,
    /// Whether the VM is active there: it has a process.
    pub active: bool,
    /// How many snapshots of this service it has there.
    pub snapshots: usize,
    /// Whether the host has just told of it for the first time.
    pub is_new: bool,
    /// Whether an operation on it was handed to this host and has not ended.
    pub operates: bool,
}

impl Claim {
    /// Of a host that is not connected, and has told of the VM before.
    pub fn new(host: HostId, active: bool, snapshots: usize) -> Self {
        Self { host, connected: false, active, snapshots, is_new: false, operates: false }
    }
}

/// Where a VM is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// The host that is asked about it.
    pub host: HostId,
    /// Another host that says the VM is active there, as the first does.
    pub conflict: Option<HostId>,
}

/// Decides by what the hosts say and by where the VM was. `None` where no host has it.
pub fn place(claims: &[Claim], was: Option<&HostId>) -> Option<Placement> {
    let at = |claim: &Claim| Placement { host: claim.host.clone(), conflict: None };
    let before = claims.iter().find(|claim| Some(&claim.host) == was);
    let mut active = claims.iter().filter(|claim| claim.active && claim.connected);
    let is_at_work = |claim: &&Claim| claim.connected && (claim.active || claim.operates);
    if let Some(before) = before.filter(is_at_work) {
        let other = active.find(|claim| claim.host != before.host);
        return Some(Placement { conflict: other.map(|claim| claim.host.clone()), ..at(before) });
    }
    if let Some(first) = active.next() {
        return Some(Placement { conflict: active.next().map(|claim| claim.host.clone()), ..at(first) });
    }
    if let Some(before) = before.filter(|claim| claim.active || claim.operates || claim.snapshots > 0) {
        return Some(at(before));
    }
    let mut with_snapshots = claims.iter().filter(|claim| claim.snapshots > 0 && claim.connected);
    match (with_snapshots.next(), with_snapshots.next(), before) {
        (_, Some(_), Some(before)) => Some(at(before)),
        (None, None, Some(before)) => {
            Some(at(claims.iter().find(|claim| claim.is_new && claim.connected).unwrap_or(before)))
        }
        (Some(one), ..) => Some(at(one)),
        (None, ..) => claims.iter().find(|claim| claim.connected).or(claims.first()).map(at),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn claim(host: &str, connected: bool, active: bool, snapshots: usize) -> Claim {
        Claim { host: host.parse().unwrap(), connected, active, snapshots, is_new: false, operates: false }
    }

    fn placed(claims: &[Claim], was: &str) -> (String, Option<String>) {
        let was = was.parse().ok();
        let found = place(claims, was.as_ref()).unwrap();
        (found.host.to_string(), found.conflict.map(|host| host.to_string()))
    }

    fn there(host: &str) -> (String, Option<String>) {
        (host.to_owned(), None)
    }

    fn disputed(host: &str, other: &str) -> (String, Option<String>) {
        (host.to_owned(), Some(other.to_owned()))
    }

    #[test]
    fn a_vm_is_where_it_is_active() {
        let (off, on) = (claim("alpha", true, false, 2), claim("beta", true, true, 0));
        assert_eq!(placed(&[off.clone(), on.clone()], "alpha"), there("beta"));
        // It came from a host that is lost.
        let lost = claim("alpha", false, true, 2);
        assert_eq!(placed(&[lost.clone(), on], "alpha"), there("beta"));
        // What a lost host said last counts until another runs it.
        assert_eq!(placed(&[lost, claim("beta", true, false, 1)], "alpha"), there("alpha"));
    }

    #[test]
    fn two_that_run_it_are_a_conflict_that_ends_with_either() {
        let both = [claim("alpha", true, true, 0), claim("beta", true, true, 1)];
        assert_eq!(placed(&both, "beta"), disputed("beta", "alpha"));
        assert_eq!(placed(&both, "alpha"), disputed("alpha", "beta"));
        let [alpha, beta] = both;
        assert_eq!(placed(&[Claim { active: false, ..alpha.clone() }, beta.clone()], "alpha"), there("beta"));
        assert_eq!(placed(&[alpha.clone(), Claim { connected: false, ..beta.clone() }], "beta"), there("alpha"));
        // Of two that nobody knew before, neither is believed.
        assert_eq!(placed(&[alpha, beta], "gamma").1, Some("beta".to_owned()));
    }

    #[test]
    fn an_operation_keeps_it_where_it_was_begun() {
        let busy = Claim { operates: true, ..claim("alpha", true, false, 0) };
        let on = claim("beta", true, true, 0);
        assert_eq!(placed(&[busy.clone(), on.clone()], "alpha"), disputed("alpha", "beta"));
        let lost = Claim { connected: false, ..busy };
        assert_eq!(placed(&[lost.clone(), claim("beta", true, false, 3)], "alpha"), there("alpha"));
        assert_eq!(placed(&[lost, on], "alpha"), there("beta"));
    }

    #[test]
    fn off_it_is_where_its_snapshots_are() {
        let (none, some) = (claim("alpha", true, false, 0), claim("beta", true, false, 3));
        assert_eq!(placed(&[none.clone(), some.clone()], "alpha"), there("beta"));
        assert_eq!(placed(&[none.clone(), some.clone()], "beta"), there("beta"));
        let copies = claim("alpha", true, false, 5);
        assert_eq!(placed(&[copies.clone(), some.clone()], "beta"), there("beta"), "copies elsewhere change nothing");
        assert_eq!(placed(&[copies, some], "gamma"), there("alpha"));
        // A host that is lost gets nothing by what it once had.
        let lost = claim("alpha", false, false, 2);
        assert_eq!(placed(&[lost.clone(), claim("beta", true, false, 0)], "beta"), there("beta"));
        assert_eq!(placed(&[lost.clone(), claim("beta", true, false, 0)], "gamma"), there("beta"));
        assert_eq!(placed(&[lost, claim("beta", true, false, 0)], "alpha"), there("alpha"), "it keeps what it had");
        let neither = [none, claim("beta", true, false, 0)];
        assert_eq!(placed(&neither, "beta"), there("beta"), "it stays");
        let [first, second] = neither.clone();
        let new = [Claim { is_new: true, ..first.clone() }, second];
        assert_eq!(placed(&new, "beta"), there("alpha"), "it was just defined there");
        let with_snapshots = [Claim { is_new: true, ..first }, claim("beta", true, false, 1)];
        assert_eq!(placed(&with_snapshots, "beta"), there("beta"));
        assert_eq!(placed(&neither, "gamma"), there("alpha"));
        assert_eq!(place(&[], None), None);
    }

    proptest! {
        #[test]
        fn a_decision_stays_until_something_changes(
            facts in prop::collection::vec((any::<bool>(), any::<bool>(), 0_usize..3, any::<bool>()), 1..5), was in 0_usize..6,
        ) {
            let claims: Vec<Claim> = facts.into_iter().enumerate().map(|(number, (connected, active, snapshots, operates))| {
                Claim { operates, ..claim(&format!("host-{number}"), connected, active, snapshots) }
            }).collect();
            let was: HostId = format!("host-{was}").parse().unwrap();
            let first = place(&claims, Some(&was)).unwrap();
            prop_assert_eq!(place(&claims, Some(&first.host)).unwrap(), first.clone());
            let at = claims.iter().find(|claim| claim.host == first.host).unwrap();
            let runs = |claim: &&Claim| claim.active && claim.connected;
            let is_any_connected = claims.iter().any(|claim| claim.connected);
            prop_assert!(at.connected || at.host == was || !is_any_connected, "{at:?} is lost and got it");
            // Whoever runs it is asked, or the VM is in conflict.
            if let Some(other) = claims.iter().find(|claim| runs(claim) && claim.host != first.host) {
                prop_assert!(first.conflict.is_some(), "{} runs it and {at:?} has it", other.host);
            }
        }
    }
}
