//! Writes the recorded figures to a file of the repository, and compares a run with them.

use std::collections::BTreeSet;
use std::fmt::{self, Write as _};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::Part;
use crate::report::{Comparand, Figure};
use crate::rig::Result;
use crate::statistics::{Spread, Verdict, compare};

/// A recorded figure.
#[derive(Serialize, Deserialize)]
struct RecordedFigure {
    measure: String,
    era: String,
    compared: Comparand,
    median: f64,
    min: f64,
    max: f64,
    /// The permitted deviation of a run from the median, as a share of the median.
    tolerance: f64,
}

impl RecordedFigure {
    fn matches(&self, figure: &Figure) -> bool {
        self.measure == figure.measure && self.era == figure.era.name() && self.compared == figure.compared
    }
}

/// Writes the recorded figures.
pub async fn write(path: &Path, figures: &[Figure]) -> Result<()> {
    let entry = |figure: &Figure| {
        let Spread { median, min, max, .. } = figure.spread;
        let round = |value: f64| (value * 1000.0).round() / 1000.0;
        RecordedFigure {
            measure: figure.measure.clone(),
            era: figure.era.name().to_owned(),
            compared: figure.compared,
            median: round(median),
            min: round(min),
            max: round(max),
            tolerance: figure.spread.tolerance(),
        }
    };
    let entries: Vec<RecordedFigure> = figures.iter().map(entry).collect();
    let mut text = serde_json::to_string_pretty(&entries)?;
    text.push('\n');
    Ok(tokio::fs::write(path, text).await?)
}

/// The outcome of a comparison with the recorded figures.
#[derive(Default)]
pub struct Comparison {
    /// A Markdown table of recorded and measured figures.
    pub table: String,
    /// The figures that are worse than recorded by more than their tolerance.
    pub worse: Vec<String>,
    /// The figures that are better than recorded by more than their tolerance: they can be recorded again.
    pub improved: Vec<String>,
    /// The figures that are only recorded or only measured.
    pub missing: Vec<String>,
    /// The parts of the run with figures that are worse.
    pub worse_parts: BTreeSet<Part>,
}

impl Comparison {
    /// Returns true if no figure is worse and none is missing.
    pub fn passed(&self) -> bool {
        self.worse.is_empty() && self.missing.is_empty()
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.table)?;
        let kinds = [("MISSING", &self.missing), ("WORSE", &self.worse), ("improved", &self.improved)];
        for (kind, lines) in kinds {
            for line in lines {
                writeln!(f, "{kind}: {line}")?;
            }
        }
        if !self.improved.is_empty() {
            writeln!(f, "Record the improved figures with --record.")?;
        }
        f.write_str(if self.passed() { "check passed" } else { "check FAILED" })
    }
}

/// Compares a run with the recorded figures. Unless `all_parts` is set, recorded figures that were not measured are
/// ignored.
pub async fn check(path: &Path, figures: &[Figure], all_parts: bool) -> Result<Comparison> {
    let text =
        tokio::fs::read_to_string(path).await.map_err(|error| format!("{}: {error}", path.display()))?;
    let entries: Vec<RecordedFigure> = serde_json::from_str(&text)?;
    let mut comparison = Comparison::default();
    let table = &mut comparison.table;
    writeln!(table, "| measure | era | compared | recorded | tolerance | measured | change | |")?;
    writeln!(table, "|---|---|---|---:|---:|---:|---:|---|")?;
    for figure in figures {
        let Figure { measure, era, spread, .. } = figure;
        let Some(entry) = entries.iter().find(|entry| entry.matches(figure)) else {
            comparison.missing.push(format!("{measure}, {era}: measured, but not recorded"));
            continue;
        };
        let change = 100.0 * (spread.median / entry.median - 1.0);
        let tolerance = 100.0 * entry.tolerance;
        let verdict = compare(entry.median, entry.tolerance, spread.median);
        let line = format!(
            "{measure}, {era}: {:.2} recorded, {:.2} measured ({change:+.0} %, tolerance {tolerance:.0} %)",
            entry.median, spread.median,
        );
        let verdict = match verdict {
            Verdict::WithinTolerance => "",
            Verdict::Worse => {
                comparison.worse.push(line);
                comparison.worse_parts.insert(figure.part);
                "worse"
            }
            Verdict::Improved => {
                comparison.improved.push(line);
                "improved"
            }
        };
        let compared = match figure.compared {
            Comparand::RatioToFloor => "÷ floor",
            Comparand::Value => "value",
        };
        writeln!(
            table,
            "| {measure} | {era} | {compared} | {:.2} ({:.2}..{:.2}) | {tolerance:.0} % | {:.2} ({:.2}..{:.2}) | \
             {change:+.1} % | {verdict} |",
            entry.median, entry.min, entry.max, spread.median, spread.min, spread.max,
        )?;
    }
    if all_parts {
        let unmeasured = entries.iter().filter(|entry| !figures.iter().any(|figure| entry.matches(figure)));
        let missing =
            unmeasured.map(|entry| format!("{}, {}: recorded, but not measured", entry.measure, entry.era));
        comparison.missing.extend(missing);
    }
    Ok(comparison)
}
