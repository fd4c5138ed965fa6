//! Collects the figures of all rounds, and prints them as a Markdown table and as JSON.

use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::Part;
use crate::rig::Era;
use crate::statistics::{Spread, median, ratios};

/// The subject of a figure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BenchSubject {
    /// The server itself, without anything in between.
    Direct,
    /// The minimal program that does the same as evenkeel.
    Floor,
    /// The evenkeel program to measure.
    Evenkeel,
    /// Another build of evenkeel.
    Against,
}

impl BenchSubject {
    const ALL: [Self; 4] = [Self::Direct, Self::Floor, Self::Evenkeel, Self::Against];
}

/// The value of a measure that is compared with the recorded figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Comparand {
    /// Evenkeel's figure divided by that of the floor in the same round.
    RatioToFloor,
    /// Evenkeel's figure itself.
    Value,
}

/// A measure: one line of the table.
#[derive(Clone, Debug)]
pub struct Measure {
    name: String,
    era: Era,
    unit: &'static str,
    target: &'static str,
    compared: Option<Comparand>,
}

impl Measure {
    /// Creates a measure that is not compared with the recorded figures.
    pub fn new(name: impl Into<String>, era: Era, unit: &'static str) -> Self {
        Self { name: name.into(), era, unit, target: "", compared: None }
    }

    /// Sets the target figure of evenkeel.
    pub fn target(self, target: &'static str) -> Self {
        Self { target, ..self }
    }

    /// Enables the comparison with the recorded figures. Less must be better.
    pub fn compared(self, compared: Comparand) -> Self {
        Self { compared: Some(compared), ..self }
    }
}

/// The figures of a measure: for each subject and round, those of one or more short batches.
struct MeasureRow {
    part: Part,
    measure: Measure,
    figures: [Vec<Vec<f64>>; BenchSubject::ALL.len()],
}

impl MeasureRow {
    fn batches(&self, subject: BenchSubject) -> &[Vec<f64>] {
        self.figures.get(subject as usize).map_or(&[], Vec::as_slice)
    }

    fn spread(&self, subject: BenchSubject) -> Option<Spread> {
        Spread::of(&self.rounds(subject))
    }

    fn rounds(&self, subject: BenchSubject) -> Vec<f64> {
        self.batches(subject).iter().filter_map(|batches| median(batches)).collect()
    }

    fn ratio(&self, twin: BenchSubject) -> Option<Spread> {
        Spread::of(&ratios(self.batches(BenchSubject::Evenkeel), self.batches(twin)))
    }

    fn json(&self) -> Value {
        let figures: serde_json::Map<String, Value> = BenchSubject::ALL
            .iter()
            .map(|&subject| (format!("{subject:?}").to_lowercase(), json!(self.rounds(subject))))
            .collect();
        json!({
            "measure": self.measure.name,
            "era": self.measure.era.name(),
            "unit": self.measure.unit,
            "target": self.measure.target,
            "rounds": figures,
            "ratioToFloor": ratios(self.batches(BenchSubject::Evenkeel), self.batches(BenchSubject::Floor)),
            "ratioToAgainst": ratios(self.batches(BenchSubject::Evenkeel), self.batches(BenchSubject::Against)),
        })
    }
}

/// A figure that is compared with the recorded ones, with its spread over all rounds.
pub struct Figure {
    pub part: Part,
    pub measure: String,
    pub era: Era,
    pub compared: Comparand,
    pub spread: Spread,
}

/// All figures and failures of a run.
pub struct Report {
    machine: String,
    part: Part,
    rows: Vec<MeasureRow>,
    failures: Vec<String>,
}

impl Report {
    pub fn new(machine: String) -> Self {
        Self { machine, part: Part::Calls, rows: Vec::new(), failures: Vec::new() }
    }

    /// Begins a part: figures that are added afterwards belong to it.
    pub fn begin_part(&mut self, part: Part) {
        self.part = part;
    }

    /// Adds the batches of one round of one subject. Batches at one position are compared with each other.
    pub fn add(&mut self, measure: &Measure, subject: BenchSubject, batches: impl Into<Vec<f64>>) {
        let existing = self
            .rows
            .iter()
            .position(|row| row.measure.name == measure.name && row.measure.era == measure.era);
        let index = existing.unwrap_or_else(|| {
            self.rows.push(MeasureRow {
                part: self.part,
                measure: measure.clone(),
                figures: Default::default(),
            });
            self.rows.len() - 1
        });
        if let Some(rounds) = self.rows.get_mut(index).and_then(|row| row.figures.get_mut(subject as usize)) {
            rounds.push(batches.into());
        }
    }

    pub fn add_failure(&mut self, failure: String) {
        self.failures.push(failure);
    }

    pub fn has_failures(&self) -> bool {
        !self.failures.is_empty()
    }

    /// Returns all figures that are compared with the recorded ones.
    pub fn figures(&self) -> Vec<Figure> {
        let figure = |row: &MeasureRow| {
            let compared = row.measure.compared?;
            let spread = match compared {
                Comparand::RatioToFloor => row.ratio(BenchSubject::Floor),
                Comparand::Value => row.spread(BenchSubject::Evenkeel),
            };
            Some(Figure {
                part: row.part,
                measure: row.measure.name.clone(),
                era: row.measure.era,
                compared,
                spread: spread?,
            })
        };
        self.rows.iter().filter_map(figure).collect()
    }

    pub fn json(&self) -> Value {
        json!({
            "machine": self.machine,
            "rows": self.rows.iter().map(MeasureRow::json).collect::<Vec<_>>(),
            "failures": self.failures,
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let against = self.rows.iter().any(|row| !row.batches(BenchSubject::Against).is_empty());
        writeln!(f, "{}\n", self.machine)?;
        let (more, line) =
            if against { (" against | evenkeel ÷ against |", "---:|---:|") } else { ("", "") };
        writeln!(
            f,
            "| measure | era | unit | direct | floor | evenkeel | evenkeel ÷ floor |{more} target |"
        )?;
        writeln!(f, "|---|---|---|---:|---:|---:|---:|{line}---|")?;
        for row in &self.rows {
            let Measure { name, era, unit, target, .. } = &row.measure;
            let middle = |subject| row.spread(subject).map(|spread| format_figure(spread.median));
            let cells = [
                middle(BenchSubject::Direct),
                middle(BenchSubject::Floor),
                row.spread(BenchSubject::Evenkeel).map(|spread| spread.to_string()),
                row.ratio(BenchSubject::Floor).map(|spread| spread.to_string()),
            ];
            let more = [
                middle(BenchSubject::Against),
                row.ratio(BenchSubject::Against).map(|spread| spread.to_string()),
            ];
            let cells: Vec<String> = cells
                .into_iter()
                .chain(more.into_iter().filter(|_| against))
                .map(|cell| cell.unwrap_or_else(|| "–".to_owned()))
                .collect();
            writeln!(f, "| {name} | {era} | {unit} | {} | {target} |", cells.join(" | "))?;
        }
        for failure in &self.failures {
            writeln!(f, "\nFAILED: {failure}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}..{})", format_figure(self.median), format_figure(self.min), format_figure(self.max))
    }
}

fn format_figure(figure: f64) -> String {
    match figure.abs() {
        size if size < 10.0 => format!("{figure:.2}"),
        size if size < 100.0 => format!("{figure:.1}"),
        _ => format!("{figure:.0}"),
    }
}
