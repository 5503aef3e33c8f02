//! GetHost: one host.

use proto::{names, v1};
use snapshot_core::ids::HostId;
use snapshot_core::{Error, Reason};

use crate::agents::Agent;
use crate::app::{App, Call};
use crate::view;

pub fn call(app: &App, call: Call<v1::GetHostRequest>) -> Result<v1::Host, Error> {
    call.authorize_admin()?;
    Ok(view::host::host(app, &find(app, &call.message.name)?)?)
}

/// The agent of a host by its resource name.
pub fn find(app: &App, name: &str) -> Result<Agent, Error> {
    find_host(app, &names::parse_host("name", name)?)
}

/// The agent of a host by its id.
pub fn find_host(app: &App, id: &HostId) -> Result<Agent, Error> {
    app.hosts.get(id).ok_or_else(|| {
        let name = names::host(id);
        Error::new(Reason::HostNotFound, format!("{name} does not exist")).with("host", name)
    })
}
