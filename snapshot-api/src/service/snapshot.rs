//! SnapshotService.

use proto::v1;
use proto::v1::snapshot_service_server::SnapshotService;
use tonic::{Request, Response, Status};

use super::Services;
use crate::rpc;
use crate::watch::Messages;

#[tonic::async_trait]
impl SnapshotService for Services {
    type WatchVmStream = Messages<v1::WatchVmResponse>;

    async fn list_vms(&self, request: Request<v1::ListVmsRequest>) -> Result<Response<v1::ListVmsResponse>, Status> {
        self.call("ListVms", request, async |app, call| rpc::list_vms::call(&app, call)).await
    }

    async fn get_vm(&self, request: Request<v1::GetVmRequest>) -> Result<Response<v1::Vm>, Status> {
        self.call("GetVm", request, async |app, call| rpc::get_vm::call(&app, call)).await
    }

    async fn create_snapshot(
        &self,
        request: Request<v1::CreateSnapshotRequest>,
    ) -> Result<Response<v1::Operation>, Status> {
        self.call("CreateSnapshot", request, async |app, call| rpc::create_snapshot::call(&app, call).await).await
    }

    async fn get_snapshot(&self, request: Request<v1::GetSnapshotRequest>) -> Result<Response<v1::Snapshot>, Status> {
        self.call("GetSnapshot", request, async |app, call| rpc::get_snapshot::call(&app, call)).await
    }

    async fn list_snapshots(
        &self,
        request: Request<v1::ListSnapshotsRequest>,
    ) -> Result<Response<v1::ListSnapshotsResponse>, Status> {
        self.call("ListSnapshots", request, async |app, call| rpc::list_snapshots::call(&app, call)).await
    }

    async fn update_snapshot(
        &self,
        request: Request<v1::UpdateSnapshotRequest>,
    ) -> Result<Response<v1::Operation>, Status> {
        self.call("UpdateSnapshot", request, async |app, call| rpc::update_snapshot::call(&app, call).await).await
    }

    async fn revert_to_snapshot(
        &self,
        request: Request<v1::RevertToSnapshotRequest>,
    ) -> Result<Response<v1::Operation>, Status> {
        self.call("RevertToSnapshot", request, async |app, call| rpc::revert_to_snapshot::call(&app, call).await).await
    }

    async fn delete_snapshot(
        &self,
        request: Request<v1::DeleteSnapshotRequest>,
    ) -> Result<Response<v1::Operation>, Status> {
        self.call("DeleteSnapshot", request, async |app, call| rpc::delete_snapshot::call(&app, call).await).await
    }

    async fn purge_vm(&self, request: Request<v1::PurgeVmRequest>) -> Result<Response<v1::Operation>, Status> {
        self.call("PurgeVm", request, async |app, call| rpc::purge_vm::call(&app, call).await).await
    }

    async fn watch_vm(&self, request: Request<v1::WatchVmRequest>) -> Result<Response<Self::WatchVmStream>, Status> {
        self.call("WatchVm", request, async |app, call| rpc::watch_vm::call(&app, call)).await
    }
}
