//! GetVm: one machine, with what can be asked of it now.

use proto::{names, v1};
use snapshot_core::Error;
use snapshot_core::authority::Action;

use crate::app::{App, Call};
use crate::view;

pub fn call(app: &App, call: Call<v1::GetVmRequest>) -> Result<v1::Vm, Error> {
    let vm = names::parse_vm("name", &call.message.name)?;
    let reader = call.authorize(vm, Action::Read)?;
    Ok(view::with_capabilities(app, &app.store.vm(vm)?, &reader)?)
}
