//! ListOperations: operations on machines the caller may read, newest first.

use proto::{names, v1};
use snapshot_core::Error;
use snapshot_core::authority::{Action, visible_vms};

use crate::app::{App, Call};
use crate::page::Page;
use crate::store::OperationFilter;
use crate::view;

pub fn call(app: &App, call: Call<v1::ListOperationsRequest>) -> Result<v1::ListOperationsResponse, Error> {
    let request = &call.message;
    let query = ("ListOperations", &request.vm, request.active_only);
    let page = Page::parse(request.page_size, &request.page_token, query)?;
    let vm = match request.vm.as_str() {
        "" => None,
        name => Some(names::parse_vm("vm", name)?),
    };
    if let Some(vm) = vm {
        call.authorize(vm, Action::Read)?;
        app.store.vm(vm)?;
    }
    let filter = OperationFilter {
        visible: visible_vms(&call.caller),
        vm,
        active_only: request.active_only,
        before: page.after()?,
    };
    let mut rows = app.store.operations(&filter, page.fetch())?;
    let next_page_token = page.cut(&mut rows, |row| row.seq.to_string());
    Ok(v1::ListOperationsResponse { operations: rows.iter().map(view::operation).collect(), next_page_token })
}
