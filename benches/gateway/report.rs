//! What was measured, as a Markdown table and as JSON.

use std::fmt;

use serde_json::{Value, json};

use crate::rig::Era;

/// One line of the table: up to two figures (such as p50 and p99) for each way to the server.
#[derive(Default)]
pub struct Row {
    measure: String,
    era: Option<Era>,
    unit: &'static str,
    target: &'static str,
    direct: Vec<f64>,
    floor: Vec<f64>,
    evenkeel: Vec<f64>,
}

impl Row {
    pub fn new(measure: impl Into<String>, unit: &'static str) -> Self {
        Self { measure: measure.into(), unit, ..Self::default() }
    }

    pub fn era(self, era: Era) -> Self {
        Self { era: Some(era), ..self }
    }

    pub fn direct(self, figures: impl Into<Vec<f64>>) -> Self {
        Self { direct: figures.into(), ..self }
    }

    pub fn floor(self, figures: impl Into<Vec<f64>>) -> Self {
        Self { floor: figures.into(), ..self }
    }

    pub fn evenkeel(self, figures: impl Into<Vec<f64>>) -> Self {
        Self { evenkeel: figures.into(), ..self }
    }

    /// What evenkeel is meant to reach.
    pub fn target(self, target: &'static str) -> Self {
        Self { target, ..self }
    }

    fn json(&self) -> Value {
        json!({
            "measure": self.measure,
            "era": self.era.map(Era::name),
            "unit": self.unit,
            "direct": self.direct,
            "floor": self.floor,
            "evenkeel": self.evenkeel,
            "target": self.target,
        })
    }
}

/// All that was measured, and what could not be.
pub struct Report {
    machine: String,
    rows: Vec<Row>,
    failures: Vec<String>,
}

impl Report {
    pub fn new(machine: String) -> Self {
        Self { machine, rows: Vec::new(), failures: Vec::new() }
    }

    pub fn add(&mut self, row: Row) {
        self.rows.push(row);
    }

    pub fn fail(&mut self, failure: String) {
        self.failures.push(failure);
    }

    pub fn failed(&self) -> bool {
        !self.failures.is_empty()
    }

    pub fn json(&self) -> Value {
        json!({
            "machine": self.machine,
            "rows": self.rows.iter().map(Row::json).collect::<Vec<_>>(),
            "failures": self.failures,
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n", self.machine)?;
        writeln!(f, "| measure | era | unit | direct | floor | evenkeel | target |")?;
        writeln!(f, "|---|---|---|---:|---:|---:|---:|")?;
        for row in &self.rows {
            let era = row.era.map_or("", Era::name);
            let [direct, floor, evenkeel] =
                [&row.direct, &row.floor, &row.evenkeel].map(|cell| figures(cell));
            writeln!(
                f,
                "| {} | {era} | {} | {direct} | {floor} | {evenkeel} | {} |",
                row.measure, row.unit, row.target
            )?;
        }
        for failure in &self.failures {
            writeln!(f, "\nFAILED: {failure}")?;
        }
        Ok(())
    }
}

fn figures(figures: &[f64]) -> String {
    let texts: Vec<String> = figures
        .iter()
        .map(|&figure| match figure.abs() {
            size if size < 10.0 => format!("{figure:.2}"),
            size if size < 100.0 => format!("{figure:.1}"),
            _ => format!("{figure:.0}"),
        })
        .collect();
    if texts.is_empty() { "–".to_owned() } else { texts.join(" / ") }
}
