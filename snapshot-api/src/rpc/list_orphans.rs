//! ListOrphans: the orphans of a host, or of all hosts, as the hosts tell them now.
//!
//! The hosts are asked one after the other, in the order of their names, until the page is full. The next page goes on after the last orphan.

use proto::{names, v1};
use snapshot_core::Error;
use snapshot_core::ids::{HostId, OrphanId};

use super::get_host::find_host;
use crate::agents::Agent;
use crate::app::{App, Call};
use crate::page::Page;

const ALL_HOSTS: &str = "hosts/-";

pub async fn call(app: &App, call: Call<v1::ListOrphansRequest>) -> Result<v1::ListOrphansResponse, Error> {
    call.authorize_admin()?;
    let v1::ListOrphansRequest { parent, page_size, page_token } = &call.message;
    let page = Page::parse(*page_size, page_token, ("ListOrphans", parent))?;
    let after: Option<Place> = page.after()?;
    let only = match parent.as_str() {
        ALL_HOSTS => None,
        name => Some(find_host(app, &names::parse_host("parent", name)?)?),
    };
    let mut answer = v1::ListOrphansResponse::default();
    let begins = |agent: &&Agent| after.as_ref().is_none_or(|place| *agent.host() >= place.host);
    let all = app.hosts.all();
    let all = all.values().filter(|_| only.is_none());
    for agent in only.iter().chain(all).filter(begins) {
        let beyond = after.as_ref().filter(|place| place.host == *agent.host()).map(|place| place.id);
        let wanted = page.size - answer.orphans.len();
        let found = match agent.list_orphans(&call.token, &call.request_id, beyond, wanted).await {
            Ok(found) => found,
            Err(error) if only.is_none() => {
                tracing::info!(host = %agent.host(), reason = %error.reason(), %error, "a host does not list its orphans");
                answer.unreachable.push(names::host(agent.host()));
                continue;
            }
            Err(error) => return Err(error),
        };
        let last = found.last().map(|(id, _)| *id);
        answer.orphans.extend(found.into_iter().map(|(_, orphan)| orphan));
        if let Some(id) = last.filter(|_| answer.orphans.len() >= page.size) {
            answer.next_page_token = page.token(&format!("{}/{id}", agent.host()));
            break;
        }
    }
    Ok(answer)
}

/// Where a page ended.
struct Place {
    host: HostId,
    id: OrphanId,
}

impl std::str::FromStr for Place {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (host, id) = text.split_once('/').ok_or(())?;
        Ok(Self { host: host.parse().map_err(|_| ())?, id: id.parse().map_err(|_| ())? })
    }
}
