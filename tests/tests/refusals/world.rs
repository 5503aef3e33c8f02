//! A machine with a snapshot, another one, and whoever asks.

use std::time::Duration;

use proto::v1;
use tests::client::{self, Grpc, Refusal};
use tests::cluster::Leaf;
use tests::guest::Guest;
use tests::lab::{Lab, Traces};
use tokio::time::timeout;

use crate::calls::Call;
use crate::forge::Forge;

/// How long an answer may take: the first message of a stream comes at once, and that of an operation when it was taken on.
const ANSWER: Duration = Duration::from_secs(60);

pub(crate) struct World {
    pub(crate) lab: Lab,
    /// Whom all calls are about.
    pub(crate) guest: Guest,
    /// Whose snapshots are nobody's loss.
    pub(crate) spare: Guest,
    pub(crate) snapshot: v1::Snapshot,
    /// The operation that took it.
    pub(crate) operation: String,
    before: Traces,
}

impl World {
    pub(crate) async fn start() -> Self {
        let lab = Lab::start().unwrap();
        let spare = Guest::new(&lab.images().unwrap(), "spare").unwrap();
        lab.daemon().unwrap().define(&spare).unwrap();
        let guest = lab.guest("student").await.unwrap();
        guest.write('A').unwrap();
        let taken = lab.client.done(lab.client.create(&guest.vm(), "before exam", "").await).await.unwrap();
        let snapshot = lab.client.snapshot(&taken.snapshot).await.unwrap();
        lab.client.vm_in_state(&spare.vm(), v1::VmState::Shutoff).await.unwrap();
        guest.write('B').unwrap();
        let before = lab.traces(&guest).await.unwrap();
        Self { lab, guest, spare, snapshot, operation: taken.name, before }
    }

    pub(crate) fn vm(&self) -> String {
        self.guest.vm()
    }

    /// An issuer that may grant little, and whose tokens are good for one destructive call.
    pub(crate) fn careful(&self) -> Forge {
        let identity = self.lab.cluster.identity();
        let (issuer, key, jwks) = identity.careful_issuer();
        Forge::new(issuer, identity.kid(), &key, &jwks)
    }

    /// Fails if anything is not as it was: in the catalogue, in libvirt, in the image, in the guest.
    pub(crate) async fn unchanged(&self, after: &str) {
        assert_eq!(self.lab.traces(&self.guest).await.unwrap(), self.before, "{after}");
        assert_eq!(self.guest.report().unwrap().disk, 'B', "{after}");
        let active = v1::ListOperationsRequest { vm: self.vm(), active_only: true, ..Default::default() };
        let active: v1::ListOperationsResponse =
            self.lab.client.call((client::OPERATIONS, "ListOperations"), &active).await.unwrap();
        assert!(active.operations.is_empty(), "{after}: {active:?}");
    }

    /// Certificates that are wrong on a listener for `right`: of another authority, and of ours with another name.
    pub(crate) fn wrong_leaves(&self, right: &str) -> (Leaf, Leaf) {
        let identity = self.lab.cluster.identity();
        let other = if right == "gateway" { "agent/alpha" } else { "gateway" };
        (identity.of_another_authority(right).unwrap(), identity.issue("another-name", other).unwrap())
    }
}

/// The first message of the answer, or the refusal.
pub(crate) async fn ask(face: &Grpc, call: &Call, token: &str) -> Result<Vec<u8>, Refusal> {
    let Call { service, method, request, .. } = call;
    let sent = client::Call { service, method, request, token, request_id: "" };
    let answer = async {
        let mut stream = face.open(sent).await?;
        Ok(stream.message().await?.unwrap_or_default())
    };
    timeout(ANSWER, answer).await.unwrap_or_else(|_| panic!("{service}/{method}: no answer"))
}

/// All messages of the answer, for as long as it takes to end.
pub(crate) async fn carry_out(face: &Grpc, call: &Call, token: &str) -> Result<Vec<Vec<u8>>, Refusal> {
    let Call { service, method, request, .. } = call;
    let sent = client::Call { service, method, request, token, request_id: "" };
    let answer = async {
        let (mut stream, mut all) = (face.open(sent).await?, Vec::new());
        while let Some(message) = stream.message().await? {
            all.push(message);
            // These end with their token only; what they begin with is told by then.
            if method == "WatchHost" || (method == "WatchVm" && all.len() == 2) {
                break;
            }
        }
        Ok(all)
    };
    timeout(ANSWER, answer).await.unwrap_or_else(|_| panic!("{service}/{method}: no end"))
}
