// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The run: two guests, booted once; repetitions in which all transports take turns, so that whatever changes on the
//! machine meanwhile meets all of them.

use crate::costs::{Costs, Snapshot, Value, Work};
use crate::results::{Environment, Figure, LIMIT, Point, Results, SCHEMA, Subject};
use crate::trace;
use crate::workloads::{self, Workload};
use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use ivsmc_lab::distance;
use ivsmc_lab::lab::Lab;
use ivsmc_lab::measure::{self, TRANSPORTS, Transport, backend};
use ivsmc_lab::pair::{From, Pair};
use ivsmc_lab::sockperf::{Proof, Server};
use ivsmc_traffic::agent::Command;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

/// The file that results are written to.
pub const RESULTS: &str = "perf.json";
/// The first port of servers; each gets its own, because a port is not free at once after use.
const FIRST_PORT: u16 = 20000;
/// How long a server may take to end.
const PATIENCE: Duration = Duration::from_secs(20);
/// How much of what a program moved has to have passed through SMC-D, by SMC's own count.
const MOST: f64 = 0.9;

/// What is measured, and how often.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// Fewer sizes, shorter: a few minutes in all
    #[arg(long)]
    quick: bool,
    /// How often to measure everything [default: 5, with --quick 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=99))]
    repetitions: Option<u16>,
    /// Only these workloads
    #[arg(long, value_enum, value_name = "WORKLOAD", value_delimiter = ',')]
    only: Vec<Workload>,
    /// Processors of each guest
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=8))]
    cpus: u8,
    /// The machine in words, for the report
    #[arg(long, value_name = "TEXT", default_value = "")]
    machine: String,
}

impl Options {
    fn repetitions(&self) -> usize {
        let default = if self.quick { 3 } else { 5 };
        self.repetitions.map_or(default, usize::from)
    }

    fn workloads(&self) -> Vec<Workload> {
        let all = Workload::value_variants().iter().copied();
        let is_usual = |workload| self.only.is_empty() && workload != Workload::Trace;
        all.filter(|&workload| is_usual(workload) || self.only.contains(&workload))
            .collect()
    }
}

/// A run.
pub struct Run<'a> {
    options: &'a Options,
    /// The guests.
    pub pair: Pair,
    results: Results,
    ports: std::ops::RangeFrom<u16>,
}

/// A server that runs in guest a.
pub struct Started {
    id: u64,
    line: String,
}

/// Measures, and writes the results to [`RESULTS`] after each repetition.
pub fn run(lab: &Lab, options: &Options) -> Result<()> {
    let start = Instant::now();
    let step = |text: &str| println!("[{:5.0} s] {text}", start.elapsed().as_secs_f64());
    step(&format!(
        "platform {}, VMM {}: booting two guests",
        lab.platform, lab.vmm
    ));
    let [a, b] = Pair::guests(lab)?.map(|guest| guest.cpus(options.cpus));
    let (a, b) = (a.start(lab)?, b.start(lab)?);
    let pair = Pair::of(a.ready()?, b.ready()?)?;
    if options.cpus == 1 {
        measure::pin(&pair)?;
    }
    let mut run = Run {
        options,
        pair,
        results: Results {
            schema: SCHEMA,
            environment: Environment::default(),
            distances: Vec::new(),
            figures: Vec::new(),
        },
        ports: FIRST_PORT..,
    };
    let result = run.repetitions(lab, &step);
    result.map_err(|error| run.pair.explain(error))?;
    run.pair.check_health()
}

impl Run<'_> {
    fn repetitions(&mut self, lab: &Lab, step: &dyn Fn(&str)) -> Result<()> {
        let workloads = self.options.workloads();
        let repetitions = self.options.repetitions();
        // There is a driver to ask for its parameter only while one is loaded.
        Transport::SmcdNocopy.prepare(lab, &mut self.pair)?;
        self.results.environment = environment(lab, self.options, &mut self.pair)?;
        for repetition in 1..=repetitions {
            for transport in TRANSPORTS {
                transport.prepare(lab, &mut self.pair)?;
                self.warm_up(transport)?;
                for &workload in &workloads {
                    if workload != Workload::Limits {
                        let words = transport.words(backend(lab.vmm));
                        step(&format!(
                            "{repetition} of {repetitions}: {words}: {}",
                            workload.name()
                        ));
                        self.results.distances.extend(distance::look()?);
                        workload.run(self, transport)?;
                    }
                }
            }
            if workloads.contains(&Workload::Limits) {
                step(&format!("{repetition} of {repetitions}: limits"));
                workloads::limits(self).context("limits")?;
                // Whatever is measured next starts from a driver with our parameters.
                self.pair.set_mode(ivsmc_lab::guest::Mode::Copy)?;
            }
            std::fs::write(lab.out.join(RESULTS), serde_json::to_vec(&self.results)?)?;
        }
        Ok(())
    }

    /// Everything that happens once only happens here; and there is a link group from here on, without which
    /// mainline's SMC lets many connections that are opened at once fall back.
    fn warm_up(&mut self, transport: Transport) -> Result<()> {
        let traffic = "ping-pong --count 200 --size 4096";
        let (port, option) = workloads::service(transport);
        self.pair
            .traffic_with(From::B, traffic, port, option)
            .map(drop)
    }

    /// One of two values, the first for the short suite.
    pub fn pick<T>(&self, quick: T, full: T) -> T {
        if self.options.quick { quick } else { full }
    }

    /// Seconds of one measurement.
    pub fn seconds(&self) -> u32 {
        self.pick(1, 2)
    }

    /// The same for sockperf, which does not count what it does in the beginning and at the end.
    fn sockperf_seconds(&self) -> u32 {
        self.pick(2, 3)
    }

    /// A number that nothing else has.
    pub fn port(&mut self) -> Result<u16> {
        self.ports.next().context("no port is left")
    }

    /// Where servers are.
    pub fn server_address(&self) -> Ipv4Addr {
        self.pair.a.address()
    }

    /// Starts a server.
    pub fn start_server(&mut self, transport: Transport, line: &str, port: u16) -> Result<Started> {
        let id = self.pair.a.start_server(&transport.program(line), port)?;
        let line = line.to_owned();
        Ok(Started { id, line })
    }

    /// Ends one.
    pub fn stop_server(&mut self, server: Started) -> Result<()> {
        let agent = self.pair.a.agent();
        agent.kill(server.id, libc::SIGKILL)?;
        let ended = agent.wait(server.id, PATIENCE)?;
        ended
            .with_context(|| format!("`{}` does not end", server.line))
            .map(drop)
    }

    /// Counters now.
    pub fn snapshot(&mut self) -> Result<Snapshot> {
        Snapshot::before(&mut self.pair)
    }

    /// What has been counted since then.
    pub fn since(&mut self, before: &Snapshot) -> Result<Costs> {
        Snapshot::since(&mut self.pair, before)
    }

    /// Runs a client, whose output `understand` takes apart; records that and what it cost.
    pub fn client(
        &mut self,
        workload: Workload,
        transport: Transport,
        point: Point,
        program: &Command,
        understand: impl FnOnce(&str) -> Result<(Vec<Value>, Work)>,
    ) -> Result<()> {
        let before = self.snapshot()?;
        let output = self.pair.b.check(program)?;
        let costs = self.since(&before)?;
        let (values, work) = understand(&output)?;
        prove(transport, &costs, work, true).with_context(|| format!("`{program}`"))?;
        self.record(workload, &point, transport, values);
        self.record(workload, &point, transport, costs.of(work));
        Ok(())
    }

    /// Runs sockperf's clients, one for each size, with the proof that they offer time for.
    pub fn with_sockperf(
        &mut self,
        workload: Workload,
        transport: Transport,
        what: &str,
        sizes: &[u64],
        understand: impl Fn(u64, &str) -> Result<(Vec<Value>, Work)>,
    ) -> Result<()> {
        let port = self.port()?;
        let server = Server::start(&mut self.pair, transport, port)?;
        for &size in sizes {
            let what = format!("{what} -m {size}");
            let mut before = None;
            let seconds = self.sockperf_seconds();
            let output = self.sockperf(&server, &what, seconds, |pair| {
                before = Some(Snapshot::before(pair)?);
                Ok(())
            })?;
            let costs = self.since(&before.context("no snapshot")?)?;
            let (values, work) = understand(size, &output)?;
            prove(transport, &costs, work, false)?;
            let point = workloads::message(size);
            self.record(workload, &point, transport, values);
            self.record(workload, &point, transport, costs.of(work));
        }
        server.stop(&mut self.pair)
    }

    /// Runs sockperf's client while one of the guests records where its time goes.
    pub fn traced(
        &mut self,
        transport: Transport,
        what: &str,
        size: u64,
        (role, from): (&str, From),
    ) -> Result<()> {
        trace::prepare(self.pair.ends(from).0)?;
        let port = self.port()?;
        let server = Server::start(&mut self.pair, transport, port)?;
        let mut recorder = None;
        let line = format!("{what} -m {size}");
        self.sockperf(&server, &line, trace::SECONDS, |pair| {
            recorder = Some(trace::record(pair.ends(from).0)?);
            Ok(())
        })?;
        let guest = self.pair.ends(from).0;
        guest
            .agent()
            .wait(recorder.context("nothing was recorded")?, PATIENCE)?;
        let values = trace::read(guest, "sockperf", size)?;
        let mut point = workloads::message(size);
        point.name = format!("{what}, {size} B, {role}");
        self.record(Workload::Trace, &point, transport, values);
        server.stop(&mut self.pair)
    }

    /// Runs a client of sockperf's; gives what it wrote. Its connection has to be of the server's transport.
    fn sockperf(
        &mut self,
        server: &Server,
        what: &str,
        seconds: u32,
        connected: impl FnOnce(&mut Pair) -> Result<()>,
    ) -> Result<String> {
        let (output, proof) = server.client(&mut self.pair, what, seconds, connected)?;
        if let Some(Proof::FellBack(reason)) = proof {
            bail!("sockperf's connection fell back to TCP: {reason}");
        }
        Ok(output)
    }

    /// Records values of a transport.
    pub fn record(
        &mut self,
        workload: Workload,
        point: &Point,
        transport: Transport,
        values: Vec<Value>,
    ) {
        self.add(
            workload.name(),
            point,
            Subject::Transport(transport),
            values,
        );
    }

    /// Records values of a bound.
    pub fn record_limit(&mut self, name: &str, point: &Point, values: Vec<Value>) {
        self.add(name.to_owned(), point, LIMIT, values);
    }

    fn add(&mut self, workload: String, point: &Point, transport: Subject, values: Vec<Value>) {
        for (metric, unit, better, value) in values {
            self.results.add(Figure {
                workload: workload.clone(),
                point: point.clone(),
                transport,
                metric,
                unit: unit.into(),
                better,
                samples: vec![value],
            });
        }
    }
}

/// Proves by SMC's own statistics in both guests that it was SMC-D, or that it was not.
fn prove(transport: Transport, costs: &Costs, work: Work, connects: bool) -> Result<()> {
    let [server, client] = &costs.smc;
    let fallbacks = server.server_fallbacks + client.client_fallbacks;
    ensure!(fallbacks == 0, "{fallbacks} connections fell back to TCP");
    let (made, taken) = (client.client_connections, server.server_connections);
    let moved = (server.sent_bytes + client.sent_bytes) as f64;
    if transport.is_smc() {
        // Not that they are as many: one that ends as soon as it is there can be counted by one side only.
        ensure!(
            (made > 0 && taken > 0) || !connects,
            "{made} SMC-D connections were made, and {taken} accepted"
        );
        ensure!(
            moved >= work.bytes * MOST,
            "{moved} bytes went over SMC-D, of {}",
            work.bytes
        );
    } else {
        ensure!(
            made + taken == 0 && moved == 0.0,
            "what was to be TCP was SMC-D"
        );
    }
    Ok(())
}

fn environment(lab: &Lab, options: &Options, pair: &mut Pair) -> Result<Environment> {
    let date = std::process::Command::new("date")
        .args(["-u", "+%FT%TZ"])
        .output()?;
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo")?;
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let guest = pair.a.shell("uname -r")?;
    let poll = pair.a.shell("cat /sys/module/ivpci/parameters/poll_us")?;
    Ok(Environment {
        date: String::from_utf8_lossy(&date.stdout).trim().to_owned(),
        machine: options.machine.clone(),
        platform: lab.platform.to_string(),
        host: format!(
            "{} x {}",
            std::thread::available_parallelism()?,
            model.map_or("unknown", |(_, model)| model)
        ),
        host_kernel: release.trim().to_owned(),
        vmm: lab.vmm.to_string(),
        virtio_net: backend(lab.vmm).to_owned(),
        guest_kernel: format!("{} ({})", guest.trim(), lab.kernel),
        guest_cpus: options.cpus,
        poll_us: poll.trim().parse()?,
        repetitions: options.repetitions(),
        quick: options.quick,
        workloads: options
            .workloads()
            .into_iter()
            .map(Workload::name)
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use ivsmc_guest::statistics::Statistics;

    #[test]
    fn a_fallback_is_no_proof() {
        let costs = |a: Statistics, b: Statistics| Costs {
            seconds: 1.0,
            counts: Default::default(),
            smc: [a, b],
            memory: 0.0,
        };
        let server = Statistics {
            server_connections: 2,
            ..Statistics::default()
        };
        let client = Statistics {
            client_connections: 2,
            sent_bytes: 950,
            ..Statistics::default()
        };
        let work = |bytes| Work {
            messages: 1.0,
            bytes,
        };
        let smc = Transport::SmcdCopy;
        assert!(prove(smc, &costs(server, client), work(1000.0), true).is_ok());
        assert!(prove(smc, &costs(server, client), work(2000.0), true).is_err());
        assert!(prove(smc, &costs(server, Statistics::default()), work(0.0), true).is_err());
        assert!(
            prove(
                smc,
                &costs(Statistics::default(), Statistics::default()),
                work(0.0),
                true
            )
            .is_err()
        );
        let fallen = Statistics {
            client_fallbacks: 1,
            ..client
        };
        assert!(prove(smc, &costs(server, fallen), work(1000.0), true).is_err());
        let tcp = Transport::TcpVirtioNet;
        assert!(prove(tcp, &costs(server, client), work(1000.0), true).is_err());
        assert!(
            prove(
                tcp,
                &costs(Statistics::default(), Statistics::default()),
                work(1e3),
                true
            )
            .is_ok()
        );
    }
}
