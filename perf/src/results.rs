// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What `perf.json` holds. README.md documents it; whoever changes it raises [`SCHEMA`].

use anyhow::{Context, Result, ensure};
use ivsmc_lab::measure::{TRANSPORTS, Transport, median};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// The version of what `perf.json` holds.
pub const SCHEMA: u32 = 1;

/// All of a run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Results {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Where and how it was measured.
    pub environment: Environment,
    /// How far apart the two processors under the guests were each time before something was measured: half a round trip
    /// of a word between them, in nanoseconds.
    #[serde(default)]
    pub distances: Vec<f64>,
    /// What was measured.
    pub figures: Vec<Figure>,
}

/// Where and how it was measured.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Environment {
    /// When it began, in UTC.
    pub date: String,
    /// The machine, in words.
    pub machine: String,
    /// `lab` or `kvm`.
    pub platform: String,
    /// Processors of the system that runs the VMMs, and their model.
    pub host: String,
    /// Its kernel.
    pub host_kernel: String,
    /// The VMM.
    pub vmm: String,
    /// What moves virtio-net's frames.
    pub virtio_net: String,
    /// The guests' kernel and its flavour.
    pub guest_kernel: String,
    /// Processors of each guest.
    pub guest_cpus: u8,
    /// The upper bound of ivpci's polling, in microseconds.
    pub poll_us: u64,
    /// How often everything was measured.
    pub repetitions: usize,
    /// Whether it was the short suite.
    pub quick: bool,
    /// The workloads that were asked for.
    pub workloads: Vec<String>,
}

/// What was measured with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", untagged)]
pub enum Subject {
    /// A transport.
    Transport(Transport),
    /// No transport at all: a bound of what one can reach.
    Limit(Limit),
}

/// The bounds' name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Limit {
    /// The only one.
    Limit,
}

/// What belongs to the bounds.
pub const LIMIT: Subject = Subject::Limit(Limit::Limit);

/// The transports, in the order in which they are shown.
pub fn transports() -> impl Iterator<Item = Subject> {
    TRANSPORTS.into_iter().map(Subject::Transport)
}

/// Which of two values is the better one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Better {
    /// The lower one.
    Lower,
    /// The higher one.
    Higher,
}

/// What a workload was run with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// In words.
    pub name: String,
    /// Bytes of a message.
    pub size: Option<u64>,
    /// Connections at the same time.
    pub streams: Option<u64>,
}

/// One thing that was measured, once in each repetition.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Figure {
    /// What was run.
    pub workload: String,
    /// With what.
    pub point: Point,
    /// Over what.
    pub transport: Subject,
    /// What was measured of it.
    pub metric: String,
    /// In which unit.
    pub unit: String,
    /// What would be better.
    pub better: Better,
    /// The values, in the order in which they were measured.
    pub samples: Vec<f64>,
}

impl Figure {
    /// The median.
    pub fn median(&self) -> f64 {
        median(&self.samples)
    }

    /// The least and the greatest.
    pub fn range(&self) -> (f64, f64) {
        let fold = |best: fn(f64, f64) -> f64| self.samples.iter().copied().fold(f64::NAN, best);
        (fold(f64::min), fold(f64::max))
    }

    /// The median of the distances from the median.
    pub fn deviation(&self) -> f64 {
        let middle = self.median();
        let distances: Vec<f64> = self.samples.iter().map(|x| (x - middle).abs()).collect();
        median(&distances)
    }

    /// The same in parts of the median: the figure's noise. 0 for one that is 0.
    pub fn noise(&self) -> f64 {
        match self.median() {
            0.0 => 0.0,
            middle => self.deviation() / middle.abs(),
        }
    }

    /// Whether both are of the same thing.
    pub fn is_of(&self, other: &Figure) -> bool {
        self.workload == other.workload
            && self.point.name == other.point.name
            && self.transport == other.transport
            && self.metric == other.metric
            && self.unit == other.unit
    }
}

impl Results {
    /// Adds a sample to its figure.
    pub fn add(&mut self, sample: Figure) {
        match self.figures.iter_mut().find(|figure| figure.is_of(&sample)) {
            Some(figure) => figure.samples.extend(sample.samples),
            None => self.figures.push(sample),
        }
    }

    /// A figure.
    pub fn figure(
        &self,
        workload: &str,
        point: &str,
        transport: Subject,
        metric: &str,
        unit: &str,
    ) -> Option<&Figure> {
        self.figures.iter().find(|figure| {
            figure.workload == workload
                && figure.point.name == point
                && figure.transport == transport
                && figure.metric == metric
                && figure.unit == unit
        })
    }

    /// Reads a file that an earlier run left.
    pub fn load(file: &Path) -> Result<Self> {
        let explain = || {
            let file = file.display();
            format!(
                "{file} is not a perf.json of this suite; give a file that `cargo xtask perf` left"
            )
        };
        let text = std::fs::read(file).with_context(explain)?;
        #[derive(Deserialize)]
        struct Version {
            schema: u32,
        }
        let Version { schema } = serde_json::from_slice(&text).with_context(explain)?;
        ensure!(
            schema == SCHEMA,
            "{}: its schema is {schema}, and this suite's is {SCHEMA}: measure anew with this one",
            file.display()
        );
        let results: Results = serde_json::from_slice(&text).with_context(explain)?;
        let bad = results.figures.iter().find(|figure| {
            figure.samples.is_empty() || !figure.samples.iter().all(|value| value.is_finite())
        });
        if let Some(bad) = bad {
            return Err(anyhow::anyhow!("{} has no numbers", bad.metric)).with_context(explain);
        }
        Ok(results)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn figure(
        workload: &str,
        (point, size, streams): (&str, u64, u64),
        transport: Subject,
        (metric, unit, better): (&str, &str, Better),
        samples: &[f64],
    ) -> Figure {
        Figure {
            workload: workload.into(),
            point: Point {
                name: point.into(),
                size: Some(size),
                streams: Some(streams),
            },
            transport,
            metric: metric.into(),
            unit: unit.into(),
            better,
            samples: samples.to_vec(),
        }
    }

    pub(crate) fn results(figures: Vec<Figure>) -> Results {
        Results {
            schema: SCHEMA,
            environment: Environment {
                platform: "lab".into(),
                virtio_net: "vhost-net".into(),
                ..Environment::default()
            },
            distances: vec![50.0, 260.0],
            figures,
        }
    }

    pub(crate) const TCP: Subject = Subject::Transport(Transport::TcpVirtioNet);
    const P50: (&str, &str, Better) = ("p50", "us", Better::Lower);

    #[test]
    fn samples_are_summed_up() {
        let mut all = results(vec![]);
        for value in [4.0, 1.0, 2.0, 9.0, 3.0] {
            all.add(figure("w", ("64 B", 64, 1), TCP, P50, &[value]));
        }
        let [one] = &all.figures[..] else { panic!() };
        assert_eq!((one.median(), one.range()), (3.0, (1.0, 9.0)));
        assert_eq!(one.deviation(), 1.0);
        assert!((one.noise() - 1.0 / 3.0).abs() < 1e-9);
    }

    #[test]
    fn files_are_read_back_and_bad_ones_are_explained() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("perf.json");
        let mut all = results(vec![
            figure("w", ("64 B", 64, 1), TCP, P50, &[1.5]),
            figure("w", ("64 B", 64, 1), LIMIT, P50, &[1.0]),
        ]);
        std::fs::write(&file, serde_json::to_vec(&all).unwrap()).unwrap();
        let read = Results::load(&file).unwrap();
        assert!(read.figure("w", "64 B", LIMIT, "p50", "us").is_some());
        let text = std::fs::read_to_string(&file).unwrap();
        assert!(
            text.contains(r#""transport":"tcp-virtio-net""#)
                && text.contains(r#""transport":"limit""#)
        );

        all.schema = 99;
        let other = serde_json::to_string(&all).unwrap();
        let empty = text.replace("[1.5]", "[]");
        for (bad, why) in [
            ("{}", "not a perf.json"),
            (&other, "schema is 99"),
            (&empty, "no numbers"),
        ] {
            std::fs::write(&file, bad).unwrap();
            let error = format!("{:#}", Results::load(&file).unwrap_err());
            assert!(error.contains(why), "{error}");
        }
        assert!(Results::load(&folder.path().join("none")).is_err());
    }
}
