//! OperationService.

use proto::v1;
use proto::v1::operation_service_server::OperationService;
use tonic::{Request, Response, Status};

use super::Services;
use crate::rpc;
use crate::watch::Messages;

#[tonic::async_trait]
impl OperationService for Services {
    type WatchOperationStream = Messages<v1::WatchOperationResponse>;

    async fn get_operation(
        &self,
        request: Request<v1::GetOperationRequest>,
    ) -> Result<Response<v1::Operation>, Status> {
        self.call("GetOperation", request, async |app, call| rpc::get_operation::call(&app, call)).await
    }

    async fn list_operations(
        &self,
        request: Request<v1::ListOperationsRequest>,
    ) -> Result<Response<v1::ListOperationsResponse>, Status> {
        self.call("ListOperations", request, async |app, call| rpc::list_operations::call(&app, call)).await
    }

    async fn cancel_operation(
        &self,
        request: Request<v1::CancelOperationRequest>,
    ) -> Result<Response<v1::Operation>, Status> {
        self.call("CancelOperation", request, async |app, call| rpc::cancel_operation::call(&app, call).await).await
    }

    async fn watch_operation(
        &self,
        request: Request<v1::WatchOperationRequest>,
    ) -> Result<Response<Self::WatchOperationStream>, Status> {
        self.call("WatchOperation", request, async |app, call| rpc::watch_operation::call(&app, call)).await
    }
}
