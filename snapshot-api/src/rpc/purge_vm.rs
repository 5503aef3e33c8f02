//! PurgeVm: deletes every snapshot of a machine that is going away.

use proto::{names, v1};
use snapshot_core::authority::Action;
use snapshot_core::operation::Request;
use snapshot_core::{Error, Reason};

use super::delete_snapshot::already_gone;
use crate::app::{App, Call};
use crate::mutation::{Options, fingerprint, mutate};

pub async fn call(app: &App, call: Call<v1::PurgeVmRequest>) -> Result<v1::Operation, Error> {
    let request = &call.message;
    let vm = names::parse_vm("name", &request.name)?;
    let permit = call.authorize(vm, Action::Purge)?;
    if request.force {
        call.authorize(vm, Action::Force)?;
    }
    let same = v1::PurgeVmRequest { request_id: String::new(), validate_only: false, ..request.clone() };
    let options = Options {
        request_id: &request.request_id,
        request_id_required: true,
        validate_only: request.validate_only,
        etag: "",
        fingerprint: fingerprint("PurgeVm", &same),
    };
    match mutate(app, &call, permit, options, Request::Purge { force: request.force }).await {
        Err(error) if request.allow_missing && error.reason() == Reason::VmNotFound => {
            Ok(already_gone(names::vm(vm), String::new(), v1::OperationKind::Purge))
        }
        result => result,
    }
}
