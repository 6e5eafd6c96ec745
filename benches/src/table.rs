//! The results for people.

use crate::race::{Run, Standing};

/// (least, median, most) of a figure.
fn spread(runs: &[Run], figure: impl Fn(&Run) -> f64) -> (f64, f64, f64) {
    let mut values: Vec<f64> = runs.iter().map(figure).collect();
    values.sort_by(f64::total_cmp);
    match values.as_slice() {
        [] => (f64::NAN, f64::NAN, f64::NAN),
        values => (values[0], values[values.len() / 2], values[values.len() - 1]),
    }
}

/// Prints medians with spreads, and ratios to the last QEMU.
pub fn print(results: &[Standing]) {
    let reference = results.iter().rev().find(|result| result.name.starts_with("QEMU"));
    println!(
        "{:<22} {:>21} {:>21} {:>7} {:>13} {:>13}",
        "", "user CPU, s", "to the shell, s", "RSS MiB", "user / QEMU", "wall / QEMU"
    );
    for result in results {
        let user = spread(&result.runs, |run| run.user);
        let wall = spread(&result.runs, |run| run.to_shell);
        let resident = spread(&result.runs, |run| run.resident).1;
        let ratio = |ours: f64, figure: fn(&Run) -> f64| match reference {
            Some(reference) => format!("{:.2}x", ours / spread(&reference.runs, figure).1),
            None => "-".into(),
        };
        println!(
            "{:<22} {:>7.2} ({:>5.2}-{:>5.2}) {:>7.2} ({:>5.2}-{:>5.2}) {:>7.0} {:>13} {:>13}",
            result.name,
            user.1,
            user.0,
            user.2,
            wall.1,
            wall.0,
            wall.2,
            resident,
            ratio(user.1, |run| run.user),
            ratio(wall.1, |run| run.to_shell),
        );
    }
    for result in results {
        let Some(report) = result.statistics.as_ref().map(|statistics| &statistics["report"]) else {
            continue;
        };
        let number = |name: &str| report[name].as_f64().unwrap_or(f64::NAN);
        println!(
            "{}: {:.0} M instructions ({:.1}% interpreted, {:.0} M/s of user CPU), {} blocks, {} compiled in {:.2} s, {} TLB fills",
            result.name,
            number("instructions") / 1e6,
            100.0 * number("interpreted") / number("instructions"),
            number("instructions") / 1e6 / number("user_seconds"),
            number("blocks"),
            number("compiled"),
            number("compile_seconds"),
            number("tlb_fills"),
        );
    }
}
