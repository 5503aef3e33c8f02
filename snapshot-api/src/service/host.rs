//! HostService.

use proto::v1;
use proto::v1::host_service_server::HostService;
use tonic::{Request, Response, Status};

use super::Services;
use crate::rpc;

#[tonic::async_trait]
impl HostService for Services {
    async fn list_hosts(
        &self,
        request: Request<v1::ListHostsRequest>,
    ) -> Result<Response<v1::ListHostsResponse>, Status> {
        self.call("ListHosts", request, async |app, call| rpc::list_hosts::call(&app, call)).await
    }

    async fn get_host(&self, request: Request<v1::GetHostRequest>) -> Result<Response<v1::Host>, Status> {
        self.call("GetHost", request, async |app, call| rpc::get_host::call(&app, call)).await
    }

    async fn reconcile_host(
        &self,
        request: Request<v1::ReconcileHostRequest>,
    ) -> Result<Response<v1::ReconcileHostResponse>, Status> {
        self.call("ReconcileHost", request, async |app, call| rpc::reconcile_host::call(&app, call).await).await
    }

    async fn list_orphans(
        &self,
        request: Request<v1::ListOrphansRequest>,
    ) -> Result<Response<v1::ListOrphansResponse>, Status> {
        self.call("ListOrphans", request, async |app, call| rpc::list_orphans::call(&app, call).await).await
    }

    async fn delete_orphan(&self, request: Request<v1::DeleteOrphanRequest>) -> Result<Response<v1::Orphan>, Status> {
        self.call("DeleteOrphan", request, async |app, call| rpc::delete_orphan::call(&app, call).await).await
    }
}
