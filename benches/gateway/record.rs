//! Keeps the figures that a run is compared with in a file of the tree, and compares.

use std::collections::BTreeSet;
use std::fmt::{self, Write as _};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::Part;
use crate::report::{Comparand, Figure};
use crate::rig::Result;
use crate::statistics::{Spread, Verdict, compare};

/// Holds a recorded figure.
#[derive(Serialize, Deserialize)]
struct RecordedFigure {
    measure: String,
    era: String,
    compared: Comparand,
    median: f64,
    min: f64,
    max: f64,
    /// How far a run may be from the median, as a share of it.
    tolerance: f64,
}

impl RecordedFigure {
    fn matches(&self, figure: &Figure) -> bool {
        self.measure == figure.measure && self.era == figure.era.name() && self.compared == figure.compared
    }
}

/// Rewrites the record.
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

/// Holds the outcome of a comparison with the record.
#[derive(Default)]
pub struct Comparison {
    /// Recorded and measured side by side, as a Markdown table.
    pub table: String,
    /// Each figure that is worse than the record by more than its tolerance.
    pub worse: Vec<String>,
    /// Each that is better by more than that: the record can be tightened.
    pub improved: Vec<String>,
    /// Each that only the record or only the run has.
    pub missing: Vec<String>,
    /// The parts of the run in which figures got worse.
    pub worse_parts: BTreeSet<Part>,
}

impl Comparison {
    /// Says whether nothing got worse and nothing is missing.
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
            writeln!(f, "What improved can be recorded anew with --record.")?;
        }
        f.write_str(if self.passed() { "The check has passed." } else { "The check has FAILED." })
    }
}

/// Compares a run of these parts with the record. Recorded figures of other parts are left out.
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
        let said = format!(
            "{measure}, {era}: {:.2} recorded, {:.2} measured ({change:+.0} %, tolerance {tolerance:.0} %)",
            entry.median, spread.median,
        );
        let verdict = match verdict {
            Verdict::WithinTolerance => "",
            Verdict::Worse => {
                comparison.worse.push(said);
                comparison.worse_parts.insert(figure.part);
                "worse"
            }
            Verdict::Improved => {
                comparison.improved.push(said);
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
