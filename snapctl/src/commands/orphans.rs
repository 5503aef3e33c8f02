//! `orphans` and `delete-orphan`: for administrators.
//!
//! A deletion shows what the orphan holds, as the host's own checks tell it, and has it confirmed. It carries the etag of what was shown.

use proto::v1;

use super::{PAGE, host_name};
use crate::arguments::DeleteOrphan;
use crate::confirm::confirm;
use crate::connection::Service;
use crate::failure::Failure;
use crate::out::Out;
use crate::{lookup, show};

pub(super) async fn list(service: &Service, out: &Out, host: Option<String>) -> Result<(), Failure> {
    let all = all(service, host.as_deref()).await?;
    for host in &all.unreachable {
        let host = lookup::id(host);
        out.aside(&format!("orphans of {host} are not listed; snapctl orphans --host {host} tells why\n"));
    }
    out.answer("ListOrphansResponse", &all, show::orphans)
}

async fn all(service: &Service, host: Option<&str>) -> Result<v1::ListOrphansResponse, Failure> {
    let parent = host_name(host.unwrap_or("-"));
    let mut request = v1::ListOrphansRequest { parent, page_size: PAGE, ..Default::default() };
    let mut all = v1::ListOrphansResponse::default();
    loop {
        let page = service.hosts.clone().list_orphans(request.clone()).await?.into_inner();
        all.orphans.extend(page.orphans);
        all.unreachable.extend(page.unreachable);
        if page.next_page_token.is_empty() {
            all.unreachable.sort_unstable();
            all.unreachable.dedup();
            return Ok(all);
        }
        request.page_token = page.next_page_token;
    }
}

pub(super) async fn delete(service: &Service, out: &Out, it: DeleteOrphan) -> Result<(), Failure> {
    let orphan = choose(all(service, host_of(&it.orphan)).await?.orphans, &it.orphan)?;
    let request = v1::DeleteOrphanRequest { name: orphan.name, etag: orphan.etag, validate_only: true };
    let mut hosts = service.hosts.clone();
    let shown = match hosts.delete_orphan(request.clone()).await {
        Ok(shown) => shown.into_inner(),
        Err(status) => return Err(status.into()),
    };
    if it.dry_run {
        return out.answer("Orphan", &shown, show::orphan);
    }
    if !it.yes {
        out.aside(&show::orphan(&shown));
    }
    confirm(out, it.yes, "Delete this file? What it holds cannot be restored.")?;
    let request = v1::DeleteOrphanRequest { validate_only: false, ..request };
    let deleted = hosts.delete_orphan(request).await?.into_inner();
    out.answer("Orphan", &deleted, |orphan| format!("deleted {}\n", show::clean(&orphan.path)))
}

/// The host in a full name.
fn host_of(called: &str) -> Option<&str> {
    called.strip_prefix("hosts/")?.split('/').next()
}

/// By its full name, its id, or the beginning of its id as `orphans` lists it.
fn choose(all: Vec<v1::Orphan>, called: &str) -> Result<v1::Orphan, Failure> {
    let is_it = |orphan: &v1::Orphan| orphan.name == called || lookup::id(&orphan.name).starts_with(called);
    let mut found = all.into_iter().filter(is_it);
    match (called.is_empty(), found.next(), found.next()) {
        (false, Some(one), None) => Ok(one),
        (false, Some(_), Some(_)) => {
            Err(Failure::usage(format!("several orphans begin with {called:?}; take a whole id")))
        }
        _ => Err(Failure::usage(format!("there is no orphan {called:?}; snapctl orphans lists them"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_orphan_is_found_by_its_name_and_by_what_only_its_id_begins_with() {
        let named = |id: &str| v1::Orphan { name: format!("hosts/alpha/orphans/{id}"), ..Default::default() };
        let found = |called: &str| choose(vec![named("aab"), named("aac")], called).map(|it| it.name);
        assert_eq!(found("aab").unwrap(), "hosts/alpha/orphans/aab");
        assert_eq!(found("hosts/alpha/orphans/aac").unwrap(), "hosts/alpha/orphans/aac");
        assert!(found("aa").is_err() && found("").is_err() && found("b").is_err());
        assert_eq!((host_of("hosts/alpha/orphans/aac"), host_of("aac")), (Some("alpha"), None));
    }
}
