//! What works with which VM: every operation on VMs of many forms, as administrators and other tools make them.
//!
//! Each cell either works, and the guest or `qemu-io` reads the right data, from the VM's disks and from its neighbours'; or it is
//! refused beforehand with its reason, and nothing changes. GetVm, the plan and the operation have to agree. The outcome is the
//! table in docs/vm-matrix.md, which `make vm-matrix` writes anew; with libvirt and QEMU of another release (`DEBIAN=…`), a record
//! that the page tells of.

#![expect(clippy::unwrap_used, reason = "a test may panic, and its helpers are part of it")]

mod cell;
mod draft;
mod examine;
mod forms;
mod record;
mod table;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use tests::client::Client;
use tests::lab::Lab;

use self::examine::{Examined, Examiner};
use self::forms::Form;

/// VMs that are examined at the same time.
const AT_ONCE: usize = 4;

/// Examines a form, and removes what was made for it.
async fn examine(lab: &Lab, form: &Form) -> Examined {
    let daemon = lab.daemon().unwrap();
    let machine = match form.make(&lab.images().unwrap()) {
        Ok(machine) => machine,
        Err(error) => return Examined { violations: vec![format!("cannot be made: {error:#}")], ..Default::default() },
    };
    // A token is not valid for as long as all forms may take.
    let client = Client::admin(&lab.cluster).unwrap();
    let mut examined = Examiner::new(&client, daemon, &machine).examine().await;
    for act in &machine.end {
        if let Err(error) = act(daemon, &machine) {
            examined.violations.push(format!("at its end: {error:#}"));
        }
    }
    let _ = machine.virsh(daemon, "destroy", &[]);
    examined
}

/// Examines all of these forms, some at a time; in their order. Guests and `qemu-io` are waited for without giving the thread up, so
/// each worker has one for itself.
#[expect(clippy::print_stdout, reason = "a test that takes minutes says how far it is")]
async fn examine_all(forms: &Arc<Vec<Form>>) -> Vec<Examined> {
    println!("with {}", table::versions());
    let (lab, next) = (Arc::new(Lab::live("").unwrap()), Arc::new(AtomicUsize::new(0)));
    let worker = |(lab, next, forms): (Arc<Lab>, Arc<AtomicUsize>, Arc<Vec<Form>>)| async move {
        let mut done = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let Some(form) = forms.get(number) else { return done };
            let begun = Instant::now();
            let examined = examine(&lab, form).await;
            println!("{:>5.1} s  {}  {:?}", begun.elapsed().as_secs_f32(), form.name, examined.violations);
            done.push((number, examined));
        }
    };
    let workers: Vec<_> =
        (0..AT_ONCE).map(|_| tokio::spawn(worker((lab.clone(), next.clone(), forms.clone())))).collect();
    let mut all = Vec::new();
    for worker in workers {
        all.extend(worker.await.unwrap());
    }
    all.sort_by_key(|(number, _)| *number);
    all.into_iter().map(|(_, examined)| examined).collect()
}

/// `STRANGE_VMS=all` examines every form and compares the table; `STRANGE_VMS=word` those whose name has the word,
/// or one of several with `|` between. Without it one form of each group is examined.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn every_operation_works_or_is_refused_beforehand() {
    let all = forms::all();
    let wanted = std::env::var("STRANGE_VMS").unwrap_or_default();
    let chosen: Arc<Vec<Form>> = Arc::new(all.into_iter().filter(|form| form.is_wanted(&wanted)).collect());
    assert!(!chosen.is_empty(), "no form is called {wanted:?}");
    let examined = examine_all(&chosen).await;
    let violations: Vec<String> = chosen
        .iter()
        .zip(&examined)
        .flat_map(|(form, examined)| examined.violations.iter().map(|it| format!("{}: {it}", form.name)))
        .collect();
    table::compare(&chosen, &examined, wanted == "all");
    assert!(violations.is_empty(), "{} violations:\n{}", violations.len(), violations.join("\n"));
}

#[test]
fn there_are_at_least_eighty_forms_and_each_has_a_name_of_its_own() {
    let names: std::collections::BTreeSet<&str> = forms::all().iter().map(|form| form.name).collect();
    assert_eq!(names.len(), forms::all().len());
    assert!(names.len() >= 80, "{}", names.len());
}
