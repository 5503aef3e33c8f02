//! Orphans of a host: read from it each time, and deleted by it for whom the token is of.

use proto::agent::{DeleteOrphanRequest, ListOrphansRequest};
use proto::v1;
use snapshot_core::ids::OrphanId;
use snapshot_core::{Error, Reason};

use super::operations::request;
use super::{Agent, orphan_answer};

impl Agent {
    /// Orphans after an id, in the order of ids, as many as asked for at most.
    pub async fn list_orphans(
        &self,
        token: &str,
        request_id: &str,
        after: Option<OrphanId>,
        count: usize,
    ) -> Result<Vec<(OrphanId, v1::Orphan)>, Error> {
        self.check_reachable()?;
        let message = ListOrphansRequest {
            page_size: u32::try_from(count).unwrap_or(u32::MAX),
            after_orphan_id: after.map(|id| id.to_string()).unwrap_or_default(),
        };
        let mut client = self.client.clone();
        let told = self.answer(client.list_orphans(request(token, request_id, message))).await?.orphans;
        let mut last = after;
        let mut all = Vec::new();
        for orphan in told.into_iter().take(count) {
            let (id, orphan) = orphan_answer::checked(&self.host, orphan)?;
            // A caller would go through the same pages for ever.
            if last.is_some_and(|last| id <= last) {
                return Err(Error::new(
                    Reason::HostProtocol,
                    "the host lists orphans in another order than that of their ids",
                ));
            }
            last = Some(id);
            all.push((id, orphan));
        }
        Ok(all)
    }

    /// Deletes an orphan, or only makes the checks. Tells what it was.
    pub async fn delete_orphan(
        &self,
        token: &str,
        request_id: &str,
        id: OrphanId,
        etag: &str,
        validate_only: bool,
    ) -> Result<v1::Orphan, Error> {
        self.check_reachable()?;
        let message = DeleteOrphanRequest { orphan_id: id.to_string(), etag: etag.to_owned(), validate_only };
        let mut client = self.client.clone();
        let told = self.answer(client.delete_orphan(request(token, request_id, message))).await?;
        let (told, orphan) = orphan_answer::checked(&self.host, told.orphan.unwrap_or_default())?;
        if told != id {
            return Err(Error::new(Reason::HostProtocol, "the host tells of another orphan than it was asked about"));
        }
        Ok(orphan)
    }
}
