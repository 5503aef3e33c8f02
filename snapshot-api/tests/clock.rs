//! What a wall clock that jumps does to callers: nothing but that their tokens are refused while it is wrong.

#![expect(clippy::unwrap_used, reason = "a test may panic, and its helpers are part of it")]

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use capability::{IssuerConfig, Signer, Verifier, generate_issuer_key};
use proto::convert::Inventory;
use proto::v1::snapshot_service_server::SnapshotService as _;
use proto::{names, v1};
use snapshot_api::app::App;
use snapshot_api::audit::Audit;
use snapshot_api::clock::Clock;
use snapshot_api::service::Services;
use snapshot_api::store::Store;
use snapshot_core::Reason;
use snapshot_core::authority::{Action, Grant, VmSelector};
use snapshot_core::ids::VmId;
use snapshot_core::quota::Limits;
use snapshot_core::vm::{Nvram, OrphanSummary, VmFacts, VmState};
use tempfile::TempDir;
use tokio::time::Instant;
use tokio_stream::StreamExt as _;
use tokio_util::sync::CancellationToken;
use tonic::Request;

const NOW: i64 = 1_800_000_000_000;
const HOUR: i64 = 3_600_000;
const JUMPS: [i64; 4] = [0, HOUR, -HOUR, -NOW];

struct Api {
    services: Services,
    jump: Arc<AtomicI64>,
    token: String,
    vm: VmId,
    _folder: TempDir,
}

impl Api {
    /// An API whose clock can be set, with one machine, and a token for a minute.
    async fn start() -> Self {
        let folder = TempDir::new().unwrap();
        let (key, jwks) = (folder.path().join("key.pem"), folder.path().join("jwks.json"));
        generate_issuer_key(&key, &jwks, "k").unwrap();
        let issuer = IssuerConfig { any_vm: true, ..IssuerConfig::new("i", jwks, [Action::Read]) };
        let grant = Grant { vm: VmSelector::Any, actions: [Action::Read].into() };
        let token = Signer::load(&key, "k", "i").unwrap().mint("user", vec![grant], 60, NOW / 1000).unwrap();
        let store = Store::open(&folder.path().join("catalogue.db")).unwrap();
        let vm = VmId::from_uuid(uuid::Uuid::from_u128(1));
        store.put_inventory("alpha".parse().unwrap(), inventory(vm), NOW).await.unwrap();
        let jump = Arc::new(AtomicI64::new(0));
        let (jumped, begun) = (jump.clone(), Instant::now());
        let clock = Clock::from_fn(move || {
            NOW + i64::try_from(begun.elapsed().as_millis()).unwrap() + jumped.load(Ordering::Relaxed)
        });
        let verifier = Arc::new(Verifier::load(vec![issuer]).unwrap());
        let hosts = Arc::default();
        let (audit, user_quota) = (Audit::new(store.clone(), clock.clone()), Limits::default());
        let (limits, stopping) = (Arc::default(), CancellationToken::new());
        let app = App { store, hosts, verifier, limits, audit, user_quota, clock, stopping };
        Self { services: Services::new(app), jump, token, vm, _folder: folder }
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("authorization", format!("Bearer {}", self.token).parse().unwrap());
        request
    }
}

fn inventory(id: VmId) -> Inventory {
    let vm = VmFacts {
        id,
        name: "desk".to_owned(),
        state: VmState::Running,
        persistent: true,
        has_managed_save: false,
        block_job_disk: None,
        memory_bytes: 1,
        disks: Vec::new(),
        nvram: Nvram::Absent,
        missing_medium: None,
        orphans: OrphanSummary::default(),
        restrictions: Vec::new(),
    };
    Inventory { vm, snapshots: Vec::new(), sequence: 1, unobserved: false }
}

#[tokio::test(start_paused = true)]
async fn a_watch_ends_with_its_token_by_the_monotonic_clock() {
    for jump in JUMPS {
        let api = Api::start().await;
        let request = v1::WatchVmRequest { name: names::vm(api.vm), resume_token: String::new() };
        let mut stream = api.services.watch_vm(api.request(request)).await.unwrap().into_inner();
        let begun = Instant::now();
        api.jump.store(jump, Ordering::Relaxed);
        let end = loop {
            match stream.next().await.unwrap() {
                Ok(_) => {}
                Err(status) => break status,
            }
        };
        assert_eq!(proto::status::reason(&end), Some(Reason::TokenExpired));
        let lasted = begun.elapsed();
        assert!((Duration::from_secs(59)..Duration::from_secs(62)).contains(&lasted), "{jump}: {lasted:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn while_the_clock_is_wrong_tokens_are_refused_and_then_taken_again() {
    let api = Api::start().await;
    for jump in JUMPS {
        api.jump.store(jump, Ordering::Relaxed);
        let answer = api.services.get_vm(api.request(v1::GetVmRequest { name: names::vm(api.vm) })).await;
        match jump {
            0 => assert_eq!(answer.unwrap().into_inner().name, names::vm(api.vm)),
            _ => assert_eq!(proto::status::reason(&answer.unwrap_err()), Some(Reason::TokenExpired)),
        }
    }
    api.jump.store(0, Ordering::Relaxed);
    assert!(api.services.get_vm(api.request(v1::GetVmRequest { name: names::vm(api.vm) })).await.is_ok());
}
