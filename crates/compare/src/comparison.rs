//! Results of any kind in one shape: rows (operations, workloads) by columns (contestants), and the table for people.

use std::{collections::BTreeMap, fmt};

use serde::Serialize;

use crate::{
    boot,
    contestant::{Contestant, Family},
    statistics::{Figure, geometric_mean},
    workloads,
};

/// One contestant.
#[derive(Clone, Debug, Serialize)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// What it is.
    pub family: Family,
    /// By a KVM that is an emulation: no figure of it says anything of hardware.
    pub emulated: bool,
    /// Why there are no more figures.
    pub failure: Option<String>,
    /// By row.
    pub figures: BTreeMap<String, Figure>,
    /// Rows that it left out, with the reason.
    pub skipped: BTreeMap<String, String>,
}

/// A table.
#[derive(Clone, Debug, Serialize)]
pub struct Section {
    /// What was measured.
    pub name: String,
    /// In which unit; less is better.
    pub unit: String,
    /// Contestants.
    pub columns: Vec<Column>,
    /// Rows, in order.
    pub rows: Vec<String>,
}

/// Everything that `compare` measured.
#[derive(Clone, Debug, Serialize)]
pub struct Comparison {
    /// Version of this format.
    pub version: u32,
    /// The host, named by its features.
    pub host: String,
    /// Runs of each.
    pub rounds: usize,
    /// What each column needs from guest and host.
    pub needs: Vec<String>,
    /// What was left out, and why.
    pub left_out: Vec<String>,
    /// The tables.
    pub sections: Vec<Section>,
}

impl Section {
    /// CPU times of workloads.
    pub fn of_workloads(results: &workloads::Results, contestants: &[Contestant]) -> Self {
        let columns = results.standings.iter().map(|standing| Column {
            name: standing.name.clone(),
            family: standing.family,
            emulated: is_emulated(&standing.name, contestants),
            failure: None,
            figures: standing.costs.iter().map(|(name, cost)| (name.clone(), cost.cpu.clone())).collect(),
            skipped: BTreeMap::new(),
        });
        Self {
            name: "compute".into(),
            unit: "CPU seconds (user and system, all threads)".into(),
            columns: columns.collect(),
            rows: results.workloads.clone(),
        }
    }

    /// Times of boots.
    pub fn of_boots(results: &boot::Results, contestants: &[Contestant]) -> Self {
        let rows = ["CPU to init", "wall to init", "CPU to shell", "wall to shell"];
        let columns = results.standings.iter().map(|standing| {
            let figures = [
                &standing.cpu_to_init,
                &standing.wall_to_init,
                &standing.cpu_to_shell,
                &standing.wall_to_shell,
            ];
            Column {
                name: standing.name.clone(),
                family: standing.family,
                emulated: is_emulated(&standing.name, contestants),
                failure: None,
                figures: rows
                    .iter()
                    .zip(figures)
                    .map(|(row, figure)| ((*row).into(), figure.clone()))
                    .collect(),
                skipped: BTreeMap::new(),
            }
        });
        Self {
            name: results.group.clone(),
            unit: "seconds".into(),
            columns: columns.collect(),
            rows: rows.map(str::to_owned).to_vec(),
        }
    }

    /// The column that ratios are to: the first that is no emulation and did not fail.
    pub fn reference(&self) -> Option<&Column> {
        self.columns
            .iter()
            .find(|column| !column.emulated && !column.figures.is_empty() && column.family != Family::Native)
    }

    /// How many times as long as the reference a column takes for a row. An emulation is compared with nobody.
    pub fn ratio(&self, column: &Column, row: &str) -> Option<f64> {
        if column.emulated {
            return None;
        }
        let reference = self.reference()?.figures.get(row)?;
        Some(column.figures.get(row)?.median / reference.median)
    }

    /// The geometric mean of a column's ratios, over rows that both have.
    pub fn mean_ratio(&self, column: &Column) -> Option<f64> {
        geometric_mean(self.rows.iter().filter_map(|row| self.ratio(column, row)))
    }
}

fn is_emulated(name: &str, contestants: &[Contestant]) -> bool {
    contestants.iter().any(|contestant| contestant.name == name && contestant.emulated)
}

/// Three digits, whatever the magnitude.
pub(crate) fn number(value: f64) -> String {
    let decimals = match value {
        value if value >= 100.0 => 0,
        value if value >= 10.0 => 1,
        value if value >= 1.0 => 2,
        _ => 3,
    };
    format!("{value:.decimals$}")
}

/// "35.1 ±4%": median, and half of the spread.
fn cell(figure: &Figure) -> String {
    let percent = 50.0 * (figure.most - figure.least) / figure.median.max(f64::MIN_POSITIVE);
    format!("{} ±{percent:.0}%", number(figure.median))
}

impl Column {
    /// The name for people, with the label that an emulation must have.
    pub fn label(&self) -> String {
        if self.emulated { format!("{} (EMULATED)", self.name) } else { self.name.clone() }
    }
}

impl fmt::Display for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let reference = self.reference().map_or("nobody", |column| column.name.as_str());
        writeln!(
            f,
            "{}: {}; median ±half of the spread, and times {reference}; less is better",
            self.name, self.unit
        )?;
        write!(f, "{:<20}", "")?;
        for column in &self.columns {
            write!(f, " {:>26}", column.label())?;
        }
        writeln!(f)?;
        for row in &self.rows {
            write!(f, "{row:<20}")?;
            for column in &self.columns {
                let text = match (column.figures.get(row), self.ratio(column, row)) {
                    (Some(figure), Some(ratio)) => format!("{} {:>7}", cell(figure), format!("{ratio:.2}x")),
                    (Some(figure), None) => cell(figure),
                    (None, _) => "-".into(),
                };
                write!(f, " {text:>26}")?;
            }
            writeln!(f)?;
        }
        write!(f, "{:<20}", "geometric mean")?;
        for column in &self.columns {
            let mean = self.mean_ratio(column).map_or("-".into(), |mean| format!("{mean:.2}x"));
            write!(f, " {mean:>26}")?;
        }
        writeln!(f)?;
        for column in &self.columns {
            if let Some(failure) = &column.failure {
                writeln!(f, "{} failed: {failure}", column.label())?;
            }
            for (row, why) in &column.skipped {
                writeln!(f, "{} has no {row}: {why}", column.label())?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "host: {}; {} rounds, in turn\n", self.host, self.rounds)?;
        for section in &self.sections {
            writeln!(f, "{section}")?;
        }
        for line in &self.needs {
            writeln!(f, "{line}")?;
        }
        for line in &self.left_out {
            writeln!(f, "left out: {line}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn column(name: &str, family: Family, emulated: bool, costs: &[(&str, f64)]) -> Column {
        let figure = |cost: f64| Figure::of(vec![cost]).unwrap();
        Column {
            name: name.into(),
            family,
            emulated,
            failure: None,
            figures: costs.iter().map(|(row, cost)| ((*row).into(), figure(*cost))).collect(),
            skipped: BTreeMap::new(),
        }
    }

    pub(crate) fn section() -> Section {
        Section {
            name: "nanobench".into(),
            unit: "ns".into(),
            columns: vec![
                column("kvm", Family::Ours, true, &[("in", 9000.0), ("out", 9000.0)]),
                column("translate", Family::Ours, false, &[("in", 200.0), ("out", 100.0)]),
                column("QEMU <7.2>", Family::Qemu, false, &[("in", 100.0), ("out", 200.0)]),
            ],
            rows: vec!["in".into(), "out".into()],
        }
    }

    #[test]
    fn ratios_are_to_the_first_that_is_no_emulation() {
        let section = section();
        assert_eq!(section.reference().unwrap().name, "translate");
        assert_eq!(section.ratio(&section.columns[2], "in"), Some(0.5));
        assert_eq!(section.ratio(&section.columns[0], "in"), None);
        assert!((section.mean_ratio(&section.columns[2]).unwrap() - 1.0).abs() < 1e-12);
    }

    #[test]
    fn an_emulation_is_labelled_in_the_table() {
        let text = section().to_string();
        assert!(text.contains("kvm (EMULATED)") && text.contains("0.50x"), "{text}");
    }

    #[test]
    fn numbers_have_three_digits() {
        assert_eq!([1234.6, 12.34, 1.234, 0.1234].map(number), ["1235", "12.3", "1.23", "0.123"]);
    }
}
