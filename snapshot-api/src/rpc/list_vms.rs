//! ListVms: the machines the caller may read, of every host.

use proto::{names, v1};
use snapshot_core::Error;
use snapshot_core::authority::visible_vms;

use crate::app::{App, Call};
use crate::page::Page;
use crate::store::VmFilter;
use crate::view;

pub fn call(app: &App, call: Call<v1::ListVmsRequest>) -> Result<v1::ListVmsResponse, Error> {
    let request = &call.message;
    let page = Page::parse(request.page_size, &request.page_token, ("ListVms", &request.host))?;
    let host = match request.host.as_str() {
        "" => None,
        name => Some(names::parse_host("host", name)?),
    };
    let filter = VmFilter { visible: visible_vms(&call.caller), host, after: page.after()? };
    let mut rows = app.store.vms(&filter, page.fetch())?;
    let next_page_token = page.cut(&mut rows, |row| row.id.to_string());
    Ok(v1::ListVmsResponse { vms: rows.iter().map(|row| view::vm(app, row)).collect(), next_page_token })
}
