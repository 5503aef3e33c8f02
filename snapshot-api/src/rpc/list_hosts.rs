//! ListHosts: the configured hosts.

use proto::v1;
use snapshot_core::Error;
use snapshot_core::ids::HostId;

use crate::app::{App, Call};
use crate::page::Page;
use crate::view;

pub fn call(app: &App, call: Call<v1::ListHostsRequest>) -> Result<v1::ListHostsResponse, Error> {
    call.authorize_admin()?;
    let page = Page::parse(call.message.page_size, &call.message.page_token, "ListHosts")?;
    let after: Option<HostId> = page.after()?;
    let hosts = app.hosts.all();
    let later = hosts.iter().filter(|(name, _)| after.as_ref().is_none_or(|after| *name > after));
    let mut rows: Vec<_> = later.take(page.fetch()).collect();
    let next_page_token = page.cut(&mut rows, |(name, _)| name.to_string());
    let hosts = rows.into_iter().map(|(_, agent)| view::host::host(app, agent)).collect::<Result<_, _>>()?;
    Ok(v1::ListHostsResponse { hosts, next_page_token })
}
