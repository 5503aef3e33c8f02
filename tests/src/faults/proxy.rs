//! A way between two processes that can be cut: a TCP proxy on the loopback interface.

use std::sync::Arc;

use anyhow::Result;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::script::Cut;
use crate::ports;

/// The state of a way; `None` is whole.
type State = Option<Cut>;

/// A way to a port. Dropping it ends its connections.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    state: Arc<watch::Sender<State>>,
    accepting: JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
        self.state.send_replace(Some(Cut::Dropped));
    }
}

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Requests,
    Answers,
}

impl Proxy {
    /// Opens a way to a port of 127.0.0.1.
    pub fn to(target: u16) -> Result<Self> {
        let port = ports::free()?;
        let listener = std::net::TcpListener::bind(("127.0.0.1", port))?;
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let state = Arc::new(watch::Sender::new(None));
        let cuts = Arc::clone(&state);
        let accepting = tokio::spawn(async move {
            loop {
                let Ok((caller, _)) = listener.accept().await else { continue };
                tokio::spawn(carry(caller, target, cuts.subscribe()));
            }
        });
        Ok(Self { port, state, accepting })
    }

    /// The port to call.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Cuts it, or makes it whole again.
    pub fn set(&self, state: State) {
        self.state.send_replace(state);
    }
}

async fn carry(caller: TcpStream, target: u16, cuts: watch::Receiver<State>) {
    // Closing the caller's connection at once is what a process that is not there looks like.
    if *cuts.borrow() == Some(Cut::Dropped) {
        return;
    }
    let Ok(server) = TcpStream::connect(("127.0.0.1", target)).await else { return };
    let ((from_caller, to_caller), (from_server, to_server)) = (caller.into_split(), server.into_split());
    let requests = pump(from_caller, to_server, Direction::Requests, cuts.clone());
    let answers = pump(from_server, to_caller, Direction::Answers, cuts);
    // The end of one direction ends the other: dropping both closes both connections.
    tokio::select! {
        () = requests => {}
        () = answers => {}
    }
}

async fn pump(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, direction: Direction, mut cuts: watch::Receiver<State>) {
    let mut buffer = vec![0; 16 * 1024];
    let mut muted = false;
    loop {
        let state = *cuts.borrow_and_update();
        match (state, direction) {
            (Some(Cut::Dropped), _) => return,
            (None | Some(Cut::Stalled), _) if muted => return,
            (Some(Cut::Mute), Direction::Answers) => muted = true,
            (Some(Cut::HalfClosed), Direction::Requests) => {
                let _ = to.shutdown().await;
                // The answers go on until the server ends them.
                let _ = cuts.wait_for(|state| *state != Some(Cut::HalfClosed)).await;
                return;
            }
            (Some(Cut::Stalled), _) => {
                if cuts.changed().await.is_err() {
                    return;
                }
                continue;
            }
            (None | Some(Cut::Mute | Cut::HalfClosed), _) => {}
        }
        let count = tokio::select! {
            changed = cuts.changed() => {
                if changed.is_err() {
                    return;
                }
                continue;
            }
            read = from.read(&mut buffer) => match read {
                Ok(count) if count > 0 => count,
                Ok(_) | Err(_) => return,
            },
        };
        if !muted && to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    async fn echo() -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut from, mut to) = stream.split();
                    let _ = tokio::io::copy(&mut from, &mut to).await;
                });
            }
        });
        port
    }

    async fn say(stream: &mut TcpStream) -> Option<u8> {
        stream.write_all(b"x").await.ok()?;
        let heard = tokio::time::timeout(Duration::from_millis(300), stream.read_u8()).await;
        heard.ok()?.ok()
    }

    #[tokio::test]
    async fn a_way_carries_until_it_is_cut_and_again_when_it_is_whole() {
        let proxy = Proxy::to(echo().await).unwrap();
        let mut stream = TcpStream::connect(("127.0.0.1", proxy.port())).await.unwrap();
        assert_eq!(say(&mut stream).await, Some(b'x'));
        proxy.set(Some(Cut::Stalled));
        assert_eq!(say(&mut stream).await, None);
        proxy.set(None);
        assert_eq!(tokio::time::timeout(Duration::from_secs(20), stream.read_u8()).await.unwrap().unwrap(), b'x');
        for cut in [Cut::Dropped, Cut::Mute, Cut::HalfClosed] {
            let mut stream = TcpStream::connect(("127.0.0.1", proxy.port())).await.unwrap();
            assert_eq!(say(&mut stream).await, Some(b'x'), "before {cut:?}");
            proxy.set(Some(cut));
            assert_eq!(say(&mut stream).await, None, "{cut:?}");
            proxy.set(None);
            let rest = tokio::time::timeout(Duration::from_secs(20), stream.read_u8()).await.unwrap();
            assert!(rest.is_err(), "after {cut:?} the connection is closed");
        }
    }
}
