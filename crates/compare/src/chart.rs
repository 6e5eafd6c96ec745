//! The results as one HTML page with SVG bar charts, self-contained: it opens from disk and loads nothing.
//!
//! Bars are on a logarithmic scale, since operations differ by orders of magnitude. Emulations are not charted.

use std::fmt::Write;

use crate::comparison::{Column, Comparison, Section, number};

const COLORS: [&str; 6] = ["#2563eb", "#f59e0b", "#059669", "#a855f7", "#dc2626", "#64748b"];
const LABELS: f64 = 170.0;
const BARS: f64 = 640.0;
const VALUES: f64 = 90.0;
const BAR: f64 = 11.0;
const GAP: f64 = 8.0;

/// The page.
pub fn page(comparison: &Comparison) -> String {
    let mut html = String::from(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>Transvisor: comparison</title>\n<style>\
         body{font:14px sans-serif;margin:2em;color:#111;background:#fff}table{border-collapse:collapse;margin:1em 0}\
         td,th{padding:2px 10px;text-align:right;border-bottom:1px solid #ddd}td:first-child,th:first-child{text-align:left}\
         .needs td,.needs th{text-align:left}.emulated{color:#999}</style>\n<h1>Comparison</h1>\n",
    );
    // Writing to a String can't fail.
    let _ = writeln!(html, "<p>{}; {} rounds, in turn.</p>", escape(&comparison.host), comparison.rounds);
    for section in &comparison.sections {
        let _ = writeln!(
            html,
            "<h2>{}</h2>\n<p>{}; less is better.</p>",
            escape(&section.name),
            escape(&section.unit)
        );
        html.push_str(&svg(section));
        html.push_str(&table(section));
    }
    html.push_str("<h2>What each technique needs</h2>\n<table class=\"needs\">\n<tr><th></th><th>columns</th><th>of the host</th><th>of the guest</th></tr>\n");
    for need in &comparison.needs {
        let (technique, columns) = (need.technique.name(), escape(&need.columns.join(", ")));
        let (host, guest) = (escape(need.of_host), escape(need.of_guest));
        let _ =
            writeln!(html, "<tr><td>{technique}</td><td>{columns}</td><td>{host}</td><td>{guest}</td></tr>");
    }
    html.push_str("</table>\n<ul>\n");
    for line in &comparison.notes {
        let _ = writeln!(html, "<li>{}</li>", escape(line));
    }
    for line in &comparison.left_out {
        let _ = writeln!(html, "<li>left out: {}</li>", escape(line));
    }
    html.push_str("</ul>\n</html>\n");
    html
}

/// Bars of everyone who is no emulation.
pub fn svg(section: &Section) -> String {
    let columns: Vec<&Column> =
        section.columns.iter().filter(|column| !column.emulated && !column.figures.is_empty()).collect();
    let medians = || {
        columns
            .iter()
            .flat_map(|column| column.figures.values())
            .map(|figure| figure.median)
            .filter(|m| *m > 0.0)
    };
    let (Some(least), Some(most)) = (medians().min_by(f64::total_cmp), medians().max_by(f64::total_cmp))
    else {
        return "<p>Nothing to chart.</p>\n".into();
    };
    // A decade below the least, so that no bar vanishes.
    let (low, high) = ((least / 2.0).log10().floor(), most.log10().ceil());
    let x = |value: f64| LABELS + BARS * ((value.log10() - low) / (high - low).max(1.0)).clamp(0.0, 1.0);
    let row_height = BAR * columns.len() as f64 + GAP;
    let top = 26.0 + 16.0 * columns.len() as f64;
    let height = top + row_height * section.rows.len() as f64 + 8.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{}\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"11\">\n",
        LABELS + BARS + VALUES
    );
    for (number, column) in columns.iter().enumerate() {
        let y = 4.0 + 16.0 * number as f64;
        let color = COLORS[number % COLORS.len()];
        let _ = writeln!(
            svg,
            "<rect x=\"{LABELS}\" y=\"{y}\" width=\"11\" height=\"11\" fill=\"{color}\"/><text x=\"{}\" y=\"{}\">{} ({})</text>",
            LABELS + 16.0,
            y + 10.0,
            escape(&column.name),
            column.technique.name()
        );
    }
    let mut decade = low;
    while decade <= high {
        let at = x(10f64.powf(decade));
        let _ = writeln!(
            svg,
            "<line x1=\"{at:.1}\" y1=\"{top}\" x2=\"{at:.1}\" y2=\"{height}\" stroke=\"#ddd\"/><text x=\"{at:.1}\" y=\"{}\" \
             fill=\"#777\" text-anchor=\"middle\">{}</text>",
            top - 4.0,
            power(decade)
        );
        decade += 1.0;
    }
    for (row_number, row) in section.rows.iter().enumerate() {
        let y = top + row_height * row_number as f64 + GAP / 2.0;
        let middle = y + BAR * columns.len() as f64 / 2.0 + 4.0;
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{middle:.1}\" text-anchor=\"end\">{}</text>",
            LABELS - 8.0,
            escape(row)
        );
        for (place, column) in columns.iter().enumerate() {
            let Some(figure) = column.figures.get(row).filter(|figure| figure.median > 0.0) else { continue };
            let (at, end) = (y + BAR * place as f64, x(figure.median));
            let _ = writeln!(
                svg,
                "<rect x=\"{LABELS}\" y=\"{at:.1}\" width=\"{:.1}\" height=\"{}\" fill=\"{}\"><title>{}: {}</title></rect>\
                 <text x=\"{:.1}\" y=\"{:.1}\" font-size=\"9\">{}</text>",
                end - LABELS,
                BAR - 1.0,
                COLORS[place % COLORS.len()],
                escape(&column.name),
                number(figure.median),
                end + 3.0,
                at + BAR - 2.0,
                number(figure.median)
            );
        }
    }
    svg.push_str("</svg>\n");
    svg
}

/// A power of ten in its shortest form.
fn power(exponent: f64) -> String {
    if (-3.0..=6.0).contains(&exponent) {
        format!("{}", 10f64.powi(exponent as i32))
    } else {
        format!("1e{exponent}")
    }
}

fn table(section: &Section) -> String {
    let mut html = String::from("<table>\n<tr><th></th>");
    let class = |column: &Column| if column.emulated { " class=\"emulated\"" } else { "" };
    for column in &section.columns {
        let (label, technique) = (escape(&column.label()), column.technique.name());
        let _ = write!(html, "<th{}>{label}<br><small>{technique}</small></th>", class(column));
    }
    html.push_str("</tr>\n");
    for row in &section.rows {
        let _ = write!(html, "<tr><td>{}</td>", escape(row));
        for column in &section.columns {
            let text = match (column.figures.get(row), section.ratio(column, row)) {
                (Some(figure), Some(ratio)) => {
                    let (least, most) = (number(figure.least), number(figure.most));
                    format!("{} ({least} to {most}), {ratio:.2}x", number(figure.median))
                }
                (Some(figure), None) => number(figure.median),
                (None, _) => "-".into(),
            };
            let _ = write!(html, "<td{}>{text}</td>", class(column));
        }
        html.push_str("</tr>\n");
    }
    html.push_str("</table>\n");
    for column in &section.columns {
        if let Some(failure) = &column.failure {
            let _ = writeln!(html, "<p>{} failed: {}</p>", escape(&column.label()), escape(failure));
        }
    }
    html
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::comparison::tests::section;

    #[test]
    fn an_emulation_is_in_the_table_and_not_in_the_chart() {
        let section = section();
        let chart = svg(&section);
        assert!(!chart.contains("kvm") && chart.contains("translate"), "{chart}");
        // Three contestants with three figures each, and three squares of the legend.
        assert_eq!(chart.matches("<rect").count(), 12);
        let comparison = Comparison {
            version: 1,
            host: "a host".into(),
            rounds: 1,
            needs: crate::comparison::needs(std::slice::from_ref(&section)),
            notes: vec!["a note".into()],
            left_out: vec![],
            sections: vec![section],
        };
        let page = page(&comparison);
        assert!(page.contains("kvm (EMULATED)") && page.contains("class=\"emulated\""));
        assert!(
            page.contains("<small>paravirtualization</small>")
                && page.contains("<td>nothing but its processor</td>")
        );
        assert!(page.contains("QEMU &lt;7.2&gt;") && !page.contains("QEMU <7.2>"));
        assert!(!page.contains("src=") && !page.contains("href="));
    }

    #[test]
    fn without_figures_there_is_no_chart() {
        let mut section = section();
        section.columns.truncate(1);
        assert!(svg(&section).contains("Nothing to chart"));
    }
}
