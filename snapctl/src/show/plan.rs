//! What would be done and lost.

use proto::v1;

use super::{clean, duration, size};

/// A plan in sentences.
pub(crate) fn plan(plan: &v1::OperationPlan) -> String {
    let mut text = String::from("This would be done:\n");
    for step in &plan.steps {
        text += &format!("  - {}\n", clean(&step.description));
    }
    if plan.bytes_written > 0 {
        text += &format!("  About {} would be written.\n", size(plan.bytes_written));
    }
    if plan.pauses {
        let long = plan.predicted_pause.as_ref().map(|pause| format!(", for about {}", duration(pause)));
        text += &format!("  The machine stands still meanwhile{}.\n", long.unwrap_or_default());
    }
    text + &losses(plan)
}

fn losses(plan: &v1::OperationPlan) -> String {
    let is_change =
        |index: usize| plan.loss_details.get(index).is_some_and(|loss| loss.kind() == v1::LossKind::Definition);
    let list = |title: &str, changes: bool| {
        let chosen = plan.losses.iter().enumerate().filter(|(index, _)| is_change(*index) == changes);
        let lines: String = chosen.map(|(_, loss)| format!("  - {}\n", clean(loss))).collect();
        if lines.is_empty() { lines } else { format!("{title}\n{lines}") }
    };
    let (lost, changed) =
        (list("This would be lost for good:", false), list("These settings of the VM would change:", true));
    match lost.is_empty() {
        true => format!("Nothing would be lost.\n{changed}"),
        false => lost + &changed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lost_is_told_and_so_is_that_nothing_is() {
        let nothing = plan(&v1::OperationPlan::default());
        assert!(nothing.ends_with("Nothing would be lost.\n"), "{nothing}");
        let losses = vec!["all that was written".to_owned()];
        let told = plan(&v1::OperationPlan { losses, bytes_written: 2048, pauses: true, ..Default::default() });
        assert!(told.contains("lost for good:\n  - all that was written") && told.contains("2.0 KiB"), "{told}");
    }

    #[test]
    fn settings_that_change_are_told_apart_from_what_is_lost() {
        let detail = |kind: v1::LossKind| v1::Loss { kind: kind.into(), ..Default::default() };
        let memory = "memory: 64 MiB \u{2192} 16 MiB".to_owned();
        let told = plan(&v1::OperationPlan {
            losses: vec!["the programs".to_owned(), memory.clone()],
            loss_details: vec![detail(v1::LossKind::RunningState), detail(v1::LossKind::Definition)],
            ..Default::default()
        });
        let expected = "lost for good:\n  - the programs\nThese settings of the VM would change:\n  - memory: 64 MiB";
        assert!(told.contains(expected), "{told}");
        let told = plan(&v1::OperationPlan {
            losses: vec![memory],
            loss_details: vec![detail(v1::LossKind::Definition)],
            ..Default::default()
        });
        assert!(told.contains("Nothing would be lost.\nThese settings of the VM would change:\n"), "{told}");
    }
}
