//! Faults as they happen: one after another at their moments; each is put right by itself after its wait, as a service
//! manager or an administrator would, while the next may already be on its way.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use futures_util::future::BoxFuture;
use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::broadcast::error::RecvError;
use tokio::task::{JoinSet, block_in_place};
use tokio::time::timeout;

use super::script::{Blow, Cut, Fault, Link, Moment, Store, Target};
use super::world::{Phase, World};
use crate::processes::Process;
use crate::scratch::kill_by_pid_file;

/// How long a fault waits for its moment.
const MOMENT: Duration = Duration::from_secs(6);
/// How long a kill waits for its victim to be up again.
const VICTIM: Duration = Duration::from_secs(10);
const AGAIN: Duration = Duration::from_millis(50);
/// What is left of a full file system: enough to begin something, and not to end it.
const LEFT: u64 = 192 * 1024;

/// Lets all faults happen; returns when all are put right.
pub async fn strike_all(world: &Arc<World>, blows: &[Blow]) -> Result<()> {
    let mut repairs: JoinSet<Result<()>> = JoinSet::new();
    for blow in blows {
        let hit = wait_for(world, blow.moment).await;
        let machine = match hit {
            Some(machine) if blow.which % 4 != 0 => machine,
            _ => (blow.which % world.machines.len() as u64) as usize,
        };
        let (world, blow) = (Arc::clone(world), aimed(world, blow));
        match strike(&world, &blow, machine).await? {
            Struck::Missed => world.history.count("missed: its victim was not there"),
            Struck::Hit(repair) => {
                repairs.spawn(repair);
            }
        }
        while let Some(done) = repairs.try_join_next() {
            done??;
        }
    }
    while let Some(done) = repairs.join_next().await {
        done??;
    }
    Ok(())
}

/// With more than one host, every other fault of what a host has is one of the other host.
fn aimed(world: &World, blow: &Blow) -> Blow {
    let mut blow = *blow;
    if !world.has_other_host() || blow.which >> 32 & 1 == 0 {
        return blow;
    }
    blow.fault = match blow.fault {
        Fault::Kill(target) => Fault::Kill(target.of_other_host()),
        Fault::Stop(target) => Fault::Stop(target.of_other_host()),
        Fault::Cut(Link::Back, cut) => Fault::Cut(Link::OtherBack, cut),
        other @ (Fault::Cut(..) | Fault::Fill(_)) => other,
    };
    blow
}

/// The VM of an operation's phase, if a lane drives it; `None` for another phase than the one that is waited for.
type Heard = fn(Phase) -> Option<Option<usize>>;

/// Waits for the moment; the machine whose operation it was, when it came.
async fn wait_for(world: &World, moment: Moment) -> Option<usize> {
    let mut phases = world.phases.subscribe();
    let (wanted, after): (Heard, Duration) = match moment {
        Moment::Any(after) => (|_| None, after),
        Moment::Dispatch(after) => {
            (|phase| if let Phase::Dispatched(machine) = phase { Some(machine) } else { None }, after)
        }
        Moment::Running(after) => {
            (|phase| if let Phase::Running(machine) = phase { Some(machine) } else { None }, after)
        }
    };
    let hit = if matches!(moment, Moment::Any(_)) {
        None
    } else {
        let heard = async {
            loop {
                match phases.recv().await {
                    Ok(phase) => {
                        if let Some(machine) = wanted(phase) {
                            return Some(machine);
                        }
                    }
                    Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return None,
                }
            }
        };
        timeout(MOMENT, heard).await.ok().flatten().flatten()
    };
    tokio::time::sleep(after).await;
    hit
}

type Repair = BoxFuture<'static, Result<()>>;

enum Struck {
    Missed,
    Hit(Repair),
}

/// What libvirt leaves behind of other tools' work when these happen is not the service's.
fn troubles_libvirt(fault: Fault) -> bool {
    match fault {
        Fault::Kill(target) | Fault::Stop(target) => {
            matches!(target, Target::Daemon | Target::OtherDaemon | Target::Qemu)
        }
        Fault::Fill(store) => store == Store::Images,
        Fault::Cut(..) => false,
    }
}

async fn strike(world: &Arc<World>, blow: &Blow, machine: usize) -> Result<Struck> {
    if !troubles_libvirt(blow.fault) {
        return strike_at(Arc::clone(world), blow, machine).await;
    }
    let Some(trouble) = world.calm.trouble().await else { return Ok(Struck::Missed) };
    Ok(match strike_at(Arc::clone(world), blow, machine).await? {
        Struck::Missed => Struck::Missed,
        Struck::Hit(repair) => {
            trouble.keep_up();
            let world = Arc::clone(world);
            Struck::Hit(Box::pin(async move {
                let repaired = repair.await;
                world.calm.over();
                repaired
            }))
        }
    })
}

async fn strike_at(world: Arc<World>, blow: &Blow, machine: usize) -> Result<Struck> {
    let (when, wait) = (blow.moment.word(), blow.wait);
    let told = |what: &str| world.history.tell("FAULT", &format!("{what} ({when}), for {wait:?}"));
    let name = world.machines[machine].guest.name();
    match blow.fault {
        Fault::Kill(Target::Qemu) => {
            if qemu(&world, machine).is_err() {
                return Ok(Struck::Missed);
            }
            told(&format!("kill qemu of {name}"));
            // Before, because its lane may notice at once; and after, because it may have looked in between.
            world.crash(machine);
            block_in_place(|| kill_by_pid_file(&world.pid_file(machine), &world.images()));
            world.crash(machine);
            world.history.count(&format!("kill qemu, {when}"));
            Ok(Struck::Hit(Box::pin(async { Ok(()) })))
        }
        Fault::Kill(target) => {
            if !come_up(&world, target).await? {
                return Ok(Struck::Missed);
            }
            told(&format!("kill {}", target.word()));
            world.with_process(target, Process::kill)?;
            world.history.count(&format!("kill {}, {when}", target.word()));
            Ok(after(wait, move || {
                world.history.tell("FAULT", &format!("{} is started", target.word()));
                world.start_again(target)
            }))
        }
        Fault::Stop(Target::Qemu) => {
            let Ok(pid) = qemu(&world, machine) else { return Ok(Struck::Missed) };
            told(&format!("stop qemu of {name}"));
            world.history.count("fault stop qemu");
            kill_process(pid, Signal::STOP).ok();
            Ok(after(wait, move || {
                // It may be gone by now: libvirt kills one that does not answer when it is to end.
                if qemu(&world, machine).is_ok_and(|now| now == pid) {
                    kill_process(pid, Signal::CONT).ok();
                }
                Ok(())
            }))
        }
        Fault::Stop(target) => {
            if world.with_process(target, |process| process.signal(Signal::STOP)).is_err() {
                return Ok(Struck::Missed);
            }
            told(&format!("stop {}", target.word()));
            world.history.count(&format!("fault stop {}", target.word()));
            Ok(after(wait, move || {
                // It may have been killed meanwhile; another that was started since does not mind.
                let _ = world.with_process(target, |process| process.signal(Signal::CONT));
                Ok(())
            }))
        }
        Fault::Cut(link, cut) => {
            told(&format!("cut {link:?} {cut:?}"));
            world.history.count(&format!("fault cut {link:?} {cut:?}"));
            world.way(link)?.set(Some(cut));
            Ok(after(wait, move || {
                world.way(link)?.set(None);
                Ok(())
            }))
        }
        Fault::Fill(store) => {
            told(&format!("fill {store:?}"));
            world.history.count(&format!("fault fill {store:?}"));
            let leave = if store == Store::Journal { 0 } else { LEFT };
            // Somebody else may fill it at this very moment.
            let _ = block_in_place(|| world.space(store)?.fill(leave));
            Ok(after(wait, move || {
                world.space(store)?.clear();
                Ok(())
            }))
        }
    }
}

/// Puts it right after a while.
fn after(wait: Duration, repair: impl FnOnce() -> Result<()> + Send + 'static) -> Struck {
    Struck::Hit(Box::pin(async move {
        tokio::time::sleep(wait).await;
        repair()
    }))
}

/// Waits until a process that was killed before is up again.
async fn come_up(world: &World, target: Target) -> Result<bool> {
    let up = async {
        while !world.with_process(target, |process| Ok(process.is_running()))? {
            tokio::time::sleep(AGAIN).await;
        }
        anyhow::Ok(())
    };
    Ok(timeout(VICTIM, up).await.is_ok())
}

/// The process id of a machine's QEMU, when it runs and is ours.
fn qemu(world: &World, machine: usize) -> Result<Pid> {
    let text = fs::read_to_string(world.pid_file(machine))?;
    let pid: i32 = text.trim().parse()?;
    let command = fs::read(Path::new("/proc").join(pid.to_string()).join("cmdline"))?;
    let ours = String::from_utf8_lossy(&command).contains(&*world.images().to_string_lossy());
    ensure!(ours, "{pid} is not ours");
    Pid::from_raw(pid).context("a process id")
}

/// Puts right whatever is wrong still: everything runs, nothing is cut, stopped or full.
pub fn repair(world: &World) -> Result<()> {
    for store in [Store::Images, Store::Journal, Store::Catalogue] {
        world.space(store)?.clear();
    }
    for way in world.ways() {
        way.set(None::<Cut>);
    }
    let others = [Target::OtherDaemon, Target::OtherAgent].into_iter().filter(|_| world.has_other_host());
    for target in [Target::Daemon, Target::Agent, Target::Api, Target::Gateway].into_iter().chain(others) {
        world.start_again(target)?;
        world.with_process(target, |process| process.signal(Signal::CONT))?;
    }
    for machine in 0..world.machines.len() {
        if let Ok(pid) = qemu(world, machine) {
            kill_process(pid, Signal::CONT).ok();
        }
    }
    Ok(())
}
