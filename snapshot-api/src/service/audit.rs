//! AuditService.

use proto::v1;
use proto::v1::audit_service_server::AuditService;
use tonic::{Request, Response, Status};

use super::Services;
use crate::rpc;

#[tonic::async_trait]
impl AuditService for Services {
    async fn list_audit_events(
        &self,
        request: Request<v1::ListAuditEventsRequest>,
    ) -> Result<Response<v1::ListAuditEventsResponse>, Status> {
        self.call("ListAuditEvents", request, async |app, call| rpc::list_audit_events::call(&app, call)).await
    }
}
