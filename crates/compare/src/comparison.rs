//! Results of any kind in one shape: rows (operations, workloads) by columns (contestants), and the table for people.

use std::{collections::BTreeMap, fmt};

use serde::Serialize;

use crate::{
    boot,
    contestant::{Contestant, Family, Technique},
    failure::{self, Failure},
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
    /// How it runs its guest.
    pub technique: Technique,
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

/// What a technique needs.
#[derive(Clone, Debug, Serialize)]
pub struct Need {
    /// Which.
    pub technique: Technique,
    /// Columns that use it.
    pub columns: Vec<String>,
    /// Of the host.
    pub of_host: &'static str,
    /// Of the guest.
    pub of_guest: &'static str,
}

/// What the techniques of all columns need, in the order of the columns.
pub fn needs(sections: &[Section]) -> Vec<Need> {
    let mut needs: Vec<Need> = Vec::new();
    for column in sections.iter().flat_map(|section| &section.columns) {
        let technique = column.technique;
        let place = needs.iter().position(|need| need.technique == technique).unwrap_or_else(|| {
            let (of_host, of_guest) = (technique.needs_of_host(), technique.needs_of_guest());
            needs.push(Need { technique, columns: vec![], of_host, of_guest });
            needs.len() - 1
        });
        let columns = &mut needs[place].columns;
        if !columns.contains(&column.label()) {
            columns.push(column.label());
        }
    }
    needs
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
    /// What each technique needs from guest and host.
    pub needs: Vec<Need>,
    /// What else a reader should know.
    pub notes: Vec<String>,
    /// What was left out, and why.
    pub left_out: Vec<String>,
    /// The tables.
    pub sections: Vec<Section>,
}

impl Section {
    /// CPU times of workloads.
    pub fn of_workloads(results: &workloads::Results, contestants: &[Contestant]) -> Self {
        let columns = contestants.iter().map(|contestant| {
            let standing = results.standings.iter().find(|standing| standing.name == contestant.name);
            let costs = standing.into_iter().flat_map(|standing| &standing.costs);
            Column {
                figures: costs.map(|(name, cost)| (name.clone(), cost.cpu.clone())).collect(),
                ..Column::of(contestant, &results.failures)
            }
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
        type Row = (&'static str, fn(&boot::Standing) -> &Figure);
        const ROWS: [Row; 4] = [
            ("CPU to init", |standing| &standing.cpu_to_init),
            ("wall to init", |standing| &standing.wall_to_init),
            ("CPU to shell", |standing| &standing.cpu_to_shell),
            ("wall to shell", |standing| &standing.wall_to_shell),
        ];
        let columns = contestants.iter().map(|contestant| {
            let standing = results.standings.iter().find(|standing| standing.name == contestant.name);
            let figures = |standing: &boot::Standing| {
                ROWS.map(|(name, figure)| (name.to_owned(), figure(standing).clone())).into_iter().collect()
            };
            Column {
                figures: standing.map(figures).unwrap_or_default(),
                ..Column::of(contestant, &results.failures)
            }
        });
        Self {
            name: results.group.clone(),
            unit: "seconds".into(),
            columns: columns.collect(),
            rows: ROWS.map(|(name, _)| name.to_owned()).to_vec(),
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
        let (own, reference) = (column.figures.get(row)?.median, self.reference()?.figures.get(row)?.median);
        // What was too short to be measured has no ratio.
        (own > 0.0 && reference > 0.0).then(|| own / reference)
    }

    /// The geometric mean of a column's ratios, over rows that both have.
    pub fn mean_ratio(&self, column: &Column) -> Option<f64> {
        geometric_mean(self.rows.iter().filter_map(|row| self.ratio(column, row)))
    }
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
    /// A contestant's, without figures.
    pub(crate) fn of(contestant: &Contestant, failures: &[Failure]) -> Self {
        Self {
            name: contestant.name.clone(),
            family: contestant.family,
            technique: contestant.technique,
            emulated: contestant.emulated,
            failure: failure::of(failures, &contestant.name),
            figures: BTreeMap::new(),
            skipped: BTreeMap::new(),
        }
    }

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
        write!(f, "\n{:<20}", "")?;
        for column in &self.columns {
            write!(f, " {:>26}", column.technique.name())?;
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
        for need in &self.needs {
            writeln!(f, "{} ({}) needs", need.technique.name(), need.columns.join(", "))?;
            writeln!(f, "    of the host: {}", need.of_host)?;
            writeln!(f, "    of the guest: {}", need.of_guest)?;
        }
        for line in &self.notes {
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

    fn column(
        name: &str,
        family: Family,
        technique: Technique,
        emulated: bool,
        costs: &[(&str, f64)],
    ) -> Column {
        let figure = |cost: f64| Figure::of(vec![cost]).unwrap();
        Column {
            name: name.into(),
            family,
            technique,
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
                column("kvm", Family::Ours, Technique::Hardware, true, &[("in", 9000.0), ("out", 9000.0)]),
                column(
                    "translate",
                    Family::Ours,
                    Technique::Translation,
                    false,
                    &[("in", 200.0), ("out", 100.0), ("smc", 50.0)],
                ),
                column(
                    "translate + paravirt",
                    Family::Ours,
                    Technique::Paravirtualization,
                    false,
                    &[("in", 100.0), ("out", 100.0), ("hypercall", 50.0)],
                ),
                column(
                    "QEMU <7.2>",
                    Family::Qemu,
                    Technique::Translation,
                    false,
                    &[("in", 100.0), ("out", 200.0), ("smc", 50.0)],
                ),
            ],
            rows: vec!["in".into(), "out".into(), "smc".into(), "hypercall".into()],
        }
    }

    #[test]
    fn ratios_are_to_the_first_that_is_no_emulation() {
        let section = section();
        assert_eq!(section.reference().unwrap().name, "translate");
        assert_eq!(section.ratio(&section.columns[3], "in"), Some(0.5));
        assert_eq!(section.ratio(&section.columns[0], "in"), None);
        assert!((section.mean_ratio(&section.columns[3]).unwrap() - 1.0).abs() < 1e-12);
        // Rows that one side lacks don't count.
        assert_eq!(section.ratio(&section.columns[2], "hypercall"), None);
        assert!((section.mean_ratio(&section.columns[2]).unwrap() - 0.5f64.sqrt()).abs() < 1e-12);
    }

    #[test]
    fn an_emulation_is_labelled_in_the_table() {
        let text = section().to_string();
        assert!(text.contains("kvm (EMULATED)") && text.contains("0.50x"), "{text}");
    }

    #[test]
    fn each_technique_says_what_it_needs() {
        let needs = needs(&[section(), section()]);
        let columns: Vec<_> =
            needs.iter().map(|need| (need.technique.name(), need.columns.join(", "))).collect();
        assert_eq!(
            columns,
            [
                ("hardware assistance", "kvm (EMULATED)".to_owned()),
                ("translation", "translate, QEMU <7.2>".to_owned()),
                ("paravirtualization", "translate + paravirt".to_owned()),
            ]
        );
        assert!(needs[2].of_guest.contains("changed") && needs[0].of_host.contains("VT-x"));
    }

    #[test]
    fn numbers_have_three_digits() {
        assert_eq!([1234.6, 12.34, 1.234, 0.1234].map(number), ["1235", "12.3", "1.23", "0.123"]);
    }
}
