//! The results for people.

use compare::{
    boot,
    contestant::Family,
    statistics::{Figure, geometric_mean},
    workloads::{Cost, Results, Standing},
};

/// Workloads whose mean is of interest: a name, and the workloads.
pub type Mean = (&'static str, fn(&str) -> bool);

/// "1.23 (1.20-1.31)".
fn spread(figure: &Figure) -> String {
    format!("{:.2} ({:.2}-{:.2})", figure.median, figure.least, figure.most)
}

/// "0.596 ±4%": half of the spread.
fn brief(figure: &Figure) -> String {
    let percent = 50.0 * (figure.most - figure.least) / figure.median;
    format!("{:.3} ±{percent:.0}%", figure.median)
}

/// A ratio of two figures, or nothing.
fn times(ratio: Option<f64>) -> String {
    ratio.map_or("-".into(), |ratio| format!("{ratio:.2}x"))
}

/// Boots: medians with spreads, and ratios to the best QEMU.
pub fn boots(results: &boot::Results) {
    println!("{}: seconds and MiB; ratios to the best QEMU, below 1 is better", results.group);
    println!(
        "{:<24} {:>18} {:>18} {:>18} {:>18} {:>9} {:>9} {:>6} {:>12}",
        "",
        "CPU to init",
        "wall to init",
        "CPU to shell",
        "wall to shell",
        "CPU/QEMU",
        "wall/QEMU",
        "peak",
        "beyond guest"
    );
    let best = |figure: fn(&boot::Standing) -> &Figure| {
        let qemus = results.standings.iter().filter(|standing| standing.family == Family::Qemu);
        qemus.map(|standing| figure(standing).median).min_by(f64::total_cmp)
    };
    let (best_cpu, best_wall) = (best(|s| &s.cpu_to_init), best(|s| &s.wall_to_init));
    for standing in &results.standings {
        println!(
            "{:<24} {:>18} {:>18} {:>18} {:>18} {:>9} {:>9} {:>6.0} {:>12.0}",
            standing.name,
            spread(&standing.cpu_to_init),
            spread(&standing.wall_to_init),
            spread(&standing.cpu_to_shell),
            spread(&standing.wall_to_shell),
            times(best_cpu.map(|best| standing.cpu_to_init.median / best)),
            times(best_wall.map(|best| standing.wall_to_init.median / best)),
            standing.peak.median,
            standing.beyond_guest.median,
        );
    }
    for standing in &results.standings {
        engine(&standing.name, standing.statistics.as_ref());
    }
    println!();
}

/// What an engine of ours says about itself.
fn engine(name: &str, statistics: Option<&serde_json::Value>) {
    let Some(report) = statistics.map(|statistics| &statistics["report"]) else { return };
    let number = |name: &str| report[name].as_f64().unwrap_or(f64::NAN);
    println!(
        "  {name}: {:.0} M instructions ({:.1}% interpreted, {:.0} M/s of user CPU), {} blocks, {} compiled in {:.2} s, {} TLB fills",
        number("instructions") / 1e6,
        100.0 * number("interpreted") / number("instructions"),
        number("instructions") / 1e6 / number("user_seconds"),
        number("blocks"),
        number("compiled"),
        number("compile_seconds"),
        number("tlb_fills"),
    );
}

/// Workloads: a table of CPU times, and one of ratios with geometric means.
pub fn workloads(title: &str, results: &Results, means: &[Mean]) {
    println!("{title}: CPU seconds (user and system, all threads); ± is half of the spread");
    print!("{:<20}", "");
    for standing in &results.standings {
        print!(" {:>24}", standing.name);
    }
    println!();
    for workload in &results.workloads {
        print!("{workload:<20}");
        for standing in &results.standings {
            print!(" {:>24}", standing.costs.get(workload).map_or("-".into(), |cost| brief(&cost.cpu)));
        }
        println!();
    }
    println!();
    ratios(title, results, means);
    for standing in &results.standings {
        engine(&standing.name, standing.statistics.as_ref());
    }
    println!();
}

/// A column of ratios: how a contestant compares with the best of a family.
struct Column<'a> {
    standing: &'a Standing,
    name: &'static str,
    family: Family,
    figure: fn(&Cost) -> f64,
}

impl Column<'_> {
    /// To the best QEMU: how many times as fast. To native: how many times as slow.
    fn ratio(&self, results: &Results, workload: &str) -> Option<f64> {
        let own = (self.figure)(self.standing.costs.get(workload)?);
        let others = results.standings.iter().filter(|other| other.family == self.family);
        let costs = others.filter_map(|other| other.costs.get(workload));
        let best = costs.map(self.figure).min_by(f64::total_cmp)?;
        Some(if self.family == Family::Native { own / best } else { best / own })
    }
}

fn columns(standing: &Standing) -> Vec<Column<'_>> {
    let column = |name, family, figure| Column { standing, name, family, figure };
    let native = column("/native CPU", Family::Native, |cost| cost.cpu.median);
    match standing.family {
        Family::Native => vec![],
        Family::Qemu => vec![native],
        Family::Ours => vec![
            column("QEMU/ CPU", Family::Qemu, |cost| cost.cpu.median),
            column("QEMU/ wall", Family::Qemu, |cost| cost.wall.median),
            // What a busy host makes slower is in no least value, if there are rounds enough.
            column("QEMU/ least", Family::Qemu, |cost| cost.cpu.least),
            native,
        ],
    }
}

/// Every column on every line, then the geometric means.
fn ratios(title: &str, results: &Results, means: &[Mean]) {
    let groups: Vec<_> = results.standings.iter().map(columns).filter(|group| !group.is_empty()).collect();
    if groups.is_empty() {
        return;
    }
    println!(
        "{title}: QEMU/ is how many times as fast as the best QEMU on the line (least: by the least CPU time of all rounds), /native how many times as slow as native"
    );
    print!("{:<20}", "");
    for group in &groups {
        print!(" | {:<1$}", group[0].standing.name, (group.len() * 12 - 1).max(22));
    }
    print!("\n{:<20}", "");
    let row = |cells: &dyn Fn(&Column<'_>) -> String| {
        for group in &groups {
            let cells: Vec<_> = group.iter().map(|column| format!("{:>11}", cells(column))).collect();
            print!(" | {:<22}", cells.join(" "));
        }
        println!();
    };
    row(&|column| column.name.to_owned());
    for workload in &results.workloads {
        print!("{workload:<20}");
        row(&|column| times(column.ratio(results, workload)));
    }
    for (name, belongs) in means {
        print!("{name:<20}");
        let members = || results.workloads.iter().filter(|name| belongs(name));
        row(&|column| {
            let values: Option<Vec<f64>> = members().map(|name| column.ratio(results, name)).collect();
            times(values.and_then(geometric_mean))
        });
    }
}
