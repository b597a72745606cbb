// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `ivsmc-conformance`: what a program sees of TCP, of SMC-D, and of SMC that fell back to TCP.

use clap::{Parser, Subcommand};
use ivsmc_conformance::agent::{self, Order};
use ivsmc_conformance::hub::Plan;
use ivsmc_conformance::outcome::{Run, Transport};
use ivsmc_conformance::{cases, end, report};
use std::error::Error;
use std::fs::File;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Makes the same system calls over TCP and over SMC, and tells what a program sees.
#[derive(Parser)]
#[command(version)]
struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run ends of cases for whoever connects. There is no protection: it is for test guests only
    Serve {
        /// The port to listen on
        #[arg(long, default_value_t = agent::PORT)]
        port: u16,
    },
    /// Run cases, both ends in this system if no agents are given
    Run(RunOptions),
    /// List the cases
    List,
    /// Write docs/tcp.md from what runs have seen
    Report {
        /// Files that runs have written
        #[arg(required = true)]
        runs: Vec<PathBuf>,
        /// The file to write
        #[arg(long, default_value = "docs/tcp.md")]
        output: PathBuf,
    },
    #[command(hide = true)]
    End { order: String },
}

#[derive(clap::Args)]
struct RunOptions {
    /// What the sockets are: tcp, smc, fallback
    #[arg(long, default_value = "tcp")]
    transport: Transport,
    /// The agent that runs clients
    #[arg(long, value_name = "ADDRESS:PORT", requires = "server")]
    client: Option<SocketAddr>,
    /// The agent that runs servers
    #[arg(long, value_name = "ADDRESS:PORT", requires = "client")]
    server: Option<SocketAddr>,
    /// The server's address
    #[arg(long, default_value = "127.0.0.1")]
    address: Ipv4Addr,
    /// The server's IPv6 address
    #[arg(long, default_value = "::1")]
    address6: Ipv6Addr,
    /// Only cases whose name or group contains this; can be given more than once
    #[arg(long)]
    filter: Vec<String>,
    /// How many cases at once
    #[arg(long, default_value_t = 8)]
    parallel: usize,
    /// Milliseconds between what the two ends do
    #[arg(long, default_value_t = 40)]
    settle: u64,
    /// Seconds after which what does not end counts as hanging
    #[arg(long, default_value_t = 5)]
    limit: u64,
    /// How often to run them all; cases that are not the same each time are told
    #[arg(long, default_value_t = 1)]
    repeat: u32,
    /// A run over TCP to compare with
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,
    /// The kernel: mended, mainline, or the name of another that begins so
    #[arg(long, default_value = "mainline")]
    kernel: String,
    /// The file to write what was seen to
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    let done = match Options::parse().command {
        Command::Serve { port } => serve(port),
        Command::Run(options) => run(&options),
        Command::List => {
            for case in cases::all() {
                println!("{}: {}", case.group, case.name);
            }
            Ok(())
        }
        Command::Report { runs, output } => write_report(&runs, &output),
        Command::End { order } => serde_json::from_str::<Order>(&order)
            .map_err(Into::into)
            .and_then(|order| end::main(order).map_err(Into::into)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ivsmc-conformance: {error}");
            ExitCode::FAILURE
        }
    }
}

fn serve(port: u16) -> Result<(), Box<dyn Error>> {
    Ok(agent::serve(&TcpListener::bind((
        Ipv4Addr::UNSPECIFIED,
        port,
    ))?)?)
}

fn read(file: &PathBuf) -> Result<Run, Box<dyn Error>> {
    serde_json::from_reader(File::open(file)?)
        .map_err(|error| format!("{}: {error}", file.display()).into())
}

fn run(options: &RunOptions) -> Result<(), Box<dyn Error>> {
    let (client, server) = match (options.client, options.server) {
        (Some(client), Some(server)) => (client, server),
        _ => {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
            let here = listener.local_addr()?;
            std::thread::spawn(move || agent::serve(&listener));
            (here, here)
        }
    };
    let plan = Plan {
        client,
        server,
        address: options.address,
        address6: options.address6,
        transport: options.transport,
        parallel: options.parallel,
        settle: Duration::from_millis(options.settle),
        limit: Duration::from_secs(options.limit),
    };
    let wanted = |case: &cases::Named| {
        let contains = |text: &String| case.name.contains(text) || case.group.contains(text);
        options.filter.is_empty() || options.filter.iter().any(contains)
    };
    let quiet = options.against.is_some() || options.repeat > 1;
    let outcomes = plan.run(wanted, |outcome| {
        if !quiet {
            println!("{outcome}");
        }
    });
    let run = Run {
        transport: options.transport,
        within: client.ip() == server.ip(),
        kernel: options.kernel.clone(),
        cases: outcomes,
    };
    for _ in 1..options.repeat {
        for (first, again) in run.cases.iter().zip(plan.run(wanted, |_| {})) {
            if *first != again {
                println!("varies: {first}\n    and {again}");
            }
        }
    }
    if let Some(file) = &options.against {
        let tcp = read(file)?;
        let differing = run.differing(&tcp);
        for case in &differing {
            if let Some(right) = tcp.cases.iter().find(|right| right.name == case.name) {
                println!("{case}\n    TCP: {}", right.observations.join("  "));
            }
        }
        println!("{} of {} differ", differing.len(), run.cases.len());
    }
    if let Some(file) = &options.json {
        std::fs::write(file, serde_json::to_string_pretty(&run)?)?;
    }
    Ok(())
}

fn write_report(files: &[PathBuf], output: &PathBuf) -> Result<(), Box<dyn Error>> {
    let runs = files.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    std::fs::write(output, report::markdown(&runs))?;
    Ok(())
}
