//! Faults as they happen: one after another at their moments; each is put right by itself after its wait, as a service
//! manager or an administrator would, while the next may already be on its way.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::broadcast::error::RecvError;
use tokio::task::{JoinSet, block_in_place};
use tokio::time::timeout;

use super::calm::Trouble;
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
        let (world, blow) = (Arc::clone(world), *blow);
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

/// Waits for the moment; the machine whose operation it was, when it came.
async fn wait_for(world: &World, moment: Moment) -> Option<usize> {
    let mut phases = world.phases.subscribe();
    let (wanted, after): (fn(Phase) -> Option<usize>, Duration) = match moment {
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
        timeout(MOMENT, heard).await.ok().flatten()
    };
    tokio::time::sleep(after).await;
    hit
}

enum Struck {
    Missed,
    Hit(futures_util::future::BoxFuture<'static, Result<()>>),
}

async fn strike(world: &Arc<World>, blow: &Blow, machine: usize) -> Result<Struck> {
    let when = blow.moment.word();
    let told = |world: &World, what: &str| {
        world.history.tell("FAULT", &format!("{what} ({when}), for {:?}", blow.wait));
        world.history.count(what);
    };
    let name = world.machines[machine].guest.name().to_owned();
    let wait = blow.wait;
    let kind = |fault: &str| format!("fault {fault}");
    Ok(match blow.fault {
        Fault::Kill(Target::Qemu) => {
            let Some(_trouble) = world.calm.trouble().await else { return Ok(Struck::Missed) };
            if qemu(world, machine).is_err() {
                return Ok(Struck::Missed);
            }
            world.crash(machine);
            world.history.tell("FAULT", &format!("kill qemu of {name} ({when})"));
            block_in_place(|| kill_by_pid_file(&world.pid_file(machine), &world.images()));
            world.crash(machine);
            world.history.count(&format!("kill qemu, {when}"));
            Struck::Hit(Box::pin(async { Ok(()) }))
        }
        Fault::Kill(target) => {
            let world = Arc::clone(world);
            if !come_up(&world, target).await? {
                return Ok(Struck::Missed);
            }
            if target == Target::Daemon && world.calm.trouble().await.map(Trouble::keep_up).is_none() {
                return Ok(Struck::Missed);
            }
            world.history.tell("FAULT", &format!("kill {} ({when}), down for {wait:?}", target.word()));
            world.with_process(target, Process::kill)?;
            world.history.count(&format!("kill {}, {when}", target.word()));
            Struck::Hit(Box::pin(async move {
                tokio::time::sleep(wait).await;
                world.start_again(target)?;
                world.history.tell("FAULT", &format!("{} is started", target.word()));
                if target == Target::Daemon {
                    world.calm.over();
                }
                Ok(())
            }))
        }
        Fault::Stop(Target::Qemu) => {
            let Some(trouble) = world.calm.trouble().await else { return Ok(Struck::Missed) };
            let Ok(pid) = qemu(world, machine) else { return Ok(Struck::Missed) };
            trouble.keep_up();
            kill_process(pid, Signal::STOP).ok();
            told(world, &kind(&format!("stop qemu of {name}")));
            let world = Arc::clone(world);
            Struck::Hit(Box::pin(async move {
                tokio::time::sleep(wait).await;
                // It may be gone by now: libvirt kills one that does not answer when it is to end.
                if qemu(&world, machine).is_ok_and(|now| now == pid) {
                    kill_process(pid, Signal::CONT).ok();
                }
                world.calm.over();
                Ok(())
            }))
        }
        Fault::Stop(target) => {
            let world = Arc::clone(world);
            if target == Target::Daemon && world.calm.trouble().await.map(Trouble::keep_up).is_none() {
                return Ok(Struck::Missed);
            }
            if world.with_process(target, |process| process.signal(Signal::STOP)).is_err() {
                if target == Target::Daemon {
                    world.calm.over();
                }
                return Ok(Struck::Missed);
            }
            told(&world, &kind(&format!("stop {}", target.word())));
            Struck::Hit(Box::pin(async move {
                tokio::time::sleep(wait).await;
                // It may have been killed meanwhile; another that was started since does not mind.
                let _ = world.with_process(target, |process| process.signal(Signal::CONT));
                if target == Target::Daemon {
                    world.calm.over();
                }
                Ok(())
            }))
        }
        Fault::Cut(link, cut) => {
            told(world, &kind(&format!("cut {link:?} {cut:?}")));
            world.way(link)?.set(Some(cut));
            let world = Arc::clone(world);
            Struck::Hit(Box::pin(async move {
                tokio::time::sleep(wait).await;
                world.way(link)?.set(None);
                Ok(())
            }))
        }
        Fault::Fill(store) => {
            let world = Arc::clone(world);
            if store == Store::Images && world.calm.trouble().await.map(Trouble::keep_up).is_none() {
                return Ok(Struck::Missed);
            }
            told(&world, &kind(&format!("fill {store:?}")));
            let leave = if store == Store::Journal { 0 } else { LEFT };
            // Somebody else may fill it at this very moment.
            let _ = block_in_place(|| world.space(store)?.fill(leave));
            Struck::Hit(Box::pin(async move {
                tokio::time::sleep(wait).await;
                world.space(store)?.clear();
                if store == Store::Images {
                    world.calm.over();
                }
                Ok(())
            }))
        }
    })
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
    for link in [Link::Front, Link::Middle, Link::Back] {
        world.way(link)?.set(None::<Cut>);
    }
    for target in [Target::Daemon, Target::Agent, Target::Api, Target::Gateway] {
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
