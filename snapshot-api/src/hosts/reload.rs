//! Following the hosts that the configuration file lists, also after it was changed.
//!
//! 1. A file that cannot be used changes nothing.
//! 2. A host that is listed no more is not followed any longer. What was to run there ends, and its VMs belong to other hosts that have
//!    them, as if the service had been started without it.
//! 3. A host whose address or identity has changed is followed anew; what runs there is followed on.
//! 4. Each change is in the audit trail.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use mtls::client::{ClientTimeouts, channel};
use mtls::{TlsError, TlsFiles};
use snapshot_core::audit::{Event, Outcome, Source};
use snapshot_core::ids::HostId;
use snapshot_core::{Error, Reason};
use tokio_util::sync::CancellationToken;

use crate::agents::Agent;
use crate::app::App;
use crate::config::{Config, ConfigError, HostConfig};
use crate::own_tokens::OwnTokens;
use crate::store::{Ending, StoreError};

/// The method that the audit trail names. It is no RPC: root's SIGHUP asks for it.
const METHOD: &str = "ReloadHosts";

/// How long a request that found a host may take until its operation is written down, at the most.
const ON_ITS_WAY: Duration = Duration::from_secs(60);

/// The time between two tries to end what was to run on hosts that were removed.
const AGAIN: Duration = Duration::from_secs(5);

/// Follows the hosts of a configuration file.
pub struct Following {
    path: PathBuf,
    tls: TlsFiles,
    own: Arc<OwnTokens>,
    now: BTreeMap<HostId, Followed>,
}

struct Followed {
    config: HostConfig,
    agent: Agent,
    /// Ends the following of this host alone.
    leaving: CancellationToken,
}

/// Why the file was not taken over.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// The file cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// No connection can be made of what it says of a host.
    #[error(transparent)]
    Channel(#[from] TlsError),
    /// The file lists no host, and may have been cut short.
    #[error("the file lists no host: remove the last one by a restart")]
    NoHosts,
    /// The catalogue failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What has to be done for the hosts to be as they are configured.
#[derive(Debug, Default, PartialEq, Eq)]
struct Difference {
    added: Vec<HostConfig>,
    removed: Vec<HostId>,
    changed: Vec<HostConfig>,
}

fn difference(now: &BTreeMap<HostId, HostConfig>, wanted: &[HostConfig]) -> Difference {
    let is_wanted = |host: &&HostId| wanted.iter().any(|config| config.name == **host);
    let removed = now.keys().filter(|host| !is_wanted(host)).cloned().collect();
    let (known, added): (Vec<_>, Vec<_>) = wanted.iter().cloned().partition(|config| now.contains_key(&config.name));
    let changed = known.into_iter().filter(|config| now.get(&config.name) != Some(config)).collect();
    Difference { added, removed, changed }
}

impl Following {
    /// Nothing is followed before [`Self::begin`].
    pub fn new(path: PathBuf, tls: TlsFiles, own: Arc<OwnTokens>) -> Self {
        Self { path, tls, own, now: BTreeMap::new() }
    }

    /// Follows these hosts, with which the service starts. What was to run on others ends.
    pub async fn begin(&mut self, app: &App, hosts: &[HostConfig]) -> Result<(), ReloadError> {
        self.take_over(app, hosts)?;
        Ok(end_stranded(app).await?)
    }

    /// Reads the file again and follows the hosts that it lists now. Other settings are those of the start.
    pub async fn reload(&mut self, app: &App) {
        let config = Config::load(&self.path).map_err(ReloadError::from);
        let taken = match config {
            Ok(config) if config.hosts.is_empty() && !self.now.is_empty() => Err(ReloadError::NoHosts),
            Ok(config) => self.take_over(app, &config.hosts),
            Err(error) => Err(error),
        };
        match taken {
            Ok(difference) => {
                tell(app, &difference).await;
                if !difference.removed.is_empty() {
                    tokio::spawn(end_stranded_of_removed(app.clone()));
                }
            }
            Err(error) => tracing::error!(%error, "new list of hosts not usable, the hosts from before stay"),
        }
    }

    fn take_over(&mut self, app: &App, hosts: &[HostConfig]) -> Result<Difference, ReloadError> {
        let now = self.now.iter().map(|(host, followed)| (host.clone(), followed.config.clone())).collect();
        let difference = difference(&now, hosts);
        // All of them, before anything is changed.
        let new: Vec<Followed> = difference
            .added
            .iter()
            .chain(&difference.changed)
            .map(|config| self.connect(app, config))
            .collect::<Result<_, ReloadError>>()?;
        for host in &difference.removed {
            if let Some(left) = self.now.remove(host) {
                left.leaving.cancel();
                left.agent.is_left();
            }
        }
        for followed in new {
            tokio::spawn(followed.agent.clone().follow());
            if let Some(before) = self.now.insert(followed.config.name.clone(), followed) {
                before.leaving.cancel();
            }
        }
        app.hosts.replace(self.now.iter().map(|(host, followed)| (host.clone(), followed.agent.clone())).collect());
        Ok(difference)
    }

    fn connect(&self, app: &App, config: &HostConfig) -> Result<Followed, ReloadError> {
        let leaving = app.stopping.child_token();
        let channel = channel(&config.uri, self.tls.clone(), config.peer.clone(), ClientTimeouts::default())?;
        let (store, clock, own) = (app.store.clone(), app.clock.clone(), Arc::clone(&self.own));
        let agent = Agent::new(config.name.clone(), channel, store, clock, own, leaving.clone());
        Ok(Followed { config: config.clone(), agent, leaving })
    }
}

/// Written at once: none of them is one of many alike.
async fn tell(app: &App, difference: &Difference) {
    let mut events = Vec::new();
    let names = |hosts: &[HostConfig]| hosts.iter().map(|config| config.name.clone()).collect::<Vec<_>>();
    let all = [
        (names(&difference.added), "was added"),
        (difference.removed.clone(), "was removed"),
        (names(&difference.changed), "has another address or identity"),
    ];
    for (hosts, what) in all {
        for host in hosts {
            tracing::info!(%host, what, "the configuration of hosts has changed");
            let source = Source { method: METHOD.to_owned(), ..Source::default() };
            let detail = format!("{} {what}", proto::names::host(&host));
            events.push(Event { detail, ..Event::new(app.clock.now_ms(), source, Outcome::Accepted) });
        }
    }
    if !events.is_empty()
        && let Err(error) = app.store.record(events).await
    {
        tracing::warn!(%error, "the change of hosts could not be written to the audit trail");
    }
}

/// Until the catalogue takes it; and once more when what was on its way to a host that was removed is written down.
async fn end_stranded_of_removed(app: App) {
    for pause in [Duration::ZERO, ON_ITS_WAY] {
        tokio::time::sleep(pause).await;
        while let Err(error) = end_stranded(&app).await {
            tracing::warn!(%error, "operations of hosts that are not configured any more could not be ended; trying again");
            tokio::time::sleep(AGAIN).await;
        }
    }
}

/// Ends what was to run on hosts that are not configured any more, so that no VM stays locked by it, and gives their VMs to hosts that
/// have them, too.
pub async fn end_stranded(app: &App) -> Result<(), StoreError> {
    let all = app.hosts.all();
    let hosts: Vec<_> = all.keys().collect();
    for row in app.store.stranded_operations(&hosts)? {
        let name = proto::names::host(&row.host);
        let message = format!("{name} is not configured any more: how the operation ended is not known");
        let error = Error::new(Reason::HostUnreachable, message).with("host", name);
        app.store.end(row.id, Ending::failed(error), app.clock.now_ms()).await?;
    }
    app.store.lose_others(&hosts, app.clock.now_ms()).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &str, port: u16) -> HostConfig {
        let peer = format!("spiffe://example.test/agent/{name}").parse().unwrap();
        HostConfig { name: name.parse().unwrap(), uri: format!("https://127.0.0.1:{port}"), peer }
    }

    #[test]
    fn hosts_are_added_removed_and_followed_anew_by_what_is_configured() {
        let now: BTreeMap<_, _> =
            ["alpha", "beta", "gamma"].into_iter().map(|name| (name.parse().unwrap(), host(name, 1))).collect();
        let wanted = [host("alpha", 1), host("beta", 2), host("delta", 1)];
        let expected = Difference {
            added: vec![host("delta", 1)],
            removed: vec!["gamma".parse().unwrap()],
            changed: vec![host("beta", 2)],
        };
        assert_eq!(difference(&now, &wanted), expected);
        let all: Vec<HostConfig> = now.values().cloned().collect();
        assert_eq!(difference(&now, &all), Difference::default());
        assert_eq!(difference(&now, &[]).removed.len(), 3);
        assert_eq!(difference(&BTreeMap::new(), &all).added, all);
    }
}
