// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `ivsmc-traffic`: the tests' hand in a guest.

use clap::{Args, Parser, Subcommand};
use ivsmc_guest::socket::{self, Transport};
use ivsmc_traffic::hold::What;
use ivsmc_traffic::limits::End;
use ivsmc_traffic::service::{self, Failure};
use ivsmc_traffic::traffic::{self, Expect, Target};
use ivsmc_traffic::{agent, bpf, cursors, ivshmem, kexec, limits, sockets, splice, windows};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Runs programs for the tests, and makes traffic that checks itself.
#[derive(Parser)]
#[command(version)]
struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run programs for a client outside
    Agent {
        /// Where to listen
        #[arg(long, default_value_t = agent::PORT)]
        port: u16,
    },
    /// Serve the connections of all the others
    Serve {
        /// Where to listen
        #[arg(long)]
        port: u16,
        /// Use SMC sockets
        #[arg(long)]
        smc: bool,
    },
    /// Send messages and wait for each to come back
    PingPong {
        #[command(flatten)]
        client: Client,
        /// Bytes in a message
        #[arg(long, default_value_t = 64)]
        size: u32,
        /// How many messages
        #[arg(long, default_value_t = 1000)]
        count: u64,
    },
    /// Send and receive at the same time
    Bulk {
        #[command(flatten)]
        client: Client,
        /// Bytes to the server
        #[arg(long, default_value_t = 16 << 20)]
        up: u64,
        /// Bytes from the server
        #[arg(long, default_value_t = 16 << 20)]
        down: u64,
    },
    /// Many connections at once, each with data both ways
    Many {
        #[command(flatten)]
        client: Client,
        /// How many
        #[arg(long, default_value_t = 100)]
        connections: u64,
        /// Bytes each way, on each
        #[arg(long, default_value_t = 1 << 18)]
        bytes: u64,
    },
    /// Open and close connections
    Churn {
        #[command(flatten)]
        client: Client,
        /// How many
        #[arg(long, default_value_t = 2000)]
        count: u64,
        /// How many at the same time
        #[arg(long, default_value_t = 4)]
        parallel: u64,
    },
    /// Many connections at once with none before; count what becomes of them
    Cold {
        #[command(flatten)]
        client: Client,
        /// How many
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..))]
        connections: u64,
        /// Bytes each way, on each
        #[arg(long, default_value_t = 10_000)]
        bytes: u64,
    },
    /// Open connections until a file appears; count what becomes of them
    Restless {
        #[command(flatten)]
        client: Client,
        /// How many at the same time
        #[arg(long, default_value_t = 4)]
        parallel: u64,
        /// Bytes each way, on each
        #[arg(long, default_value_t = 1 << 20)]
        bytes: u64,
        /// The file
        #[arg(long)]
        until: PathBuf,
    },
    /// Exchange data on one connection until a file appears
    Stream {
        #[command(flatten)]
        client: Client,
        /// Bytes each way, after which both ends judge
        #[arg(long, default_value_t = 1 << 20)]
        bytes: u64,
        /// Milliseconds from one exchange to the next
        #[arg(long, default_value_t = 0)]
        pause: u64,
        /// The file
        #[arg(long)]
        until: PathBuf,
        /// A file that has the number of exchanges that have been right
        #[arg(long)]
        progress: PathBuf,
    },
    /// Receive until something ends the connections; count how they end
    Receive {
        #[command(flatten)]
        client: Client,
        /// How many
        #[arg(long, default_value_t = 50)]
        connections: u64,
        /// A file to create when data has arrived on all of them
        #[arg(long)]
        flowing: PathBuf,
    },
    /// Hold connections on which nothing happens until a file appears
    Idle {
        #[command(flatten)]
        client: Client,
        /// How many
        #[arg(long, default_value_t = 100)]
        connections: u64,
        /// A file to create when they are there
        #[arg(long)]
        ready: PathBuf,
        /// The file
        #[arg(long)]
        until: PathBuf,
    },
    /// Keep what one has of a connection until a file appears, whatever becomes of the connection
    Hold {
        #[command(flatten)]
        client: Client,
        /// What to keep
        #[arg(long)]
        what: What,
        /// A file to create when it is kept
        #[arg(long)]
        ready: PathBuf,
        /// The file
        #[arg(long)]
        until: PathBuf,
    },
    /// Open a socket of each kind, and say what they are
    Sockets,
    /// Count the kernel's BPF programs, maps and links
    Bpf,
    /// Open sockets in many threads, beside processes that do the same and are killed
    Storm {
        /// How many threads
        #[arg(long, default_value_t = 64)]
        threads: u32,
        /// How many sockets in each
        #[arg(long, default_value_t = 10_000)]
        count: u32,
    },
    /// Execute another kernel at once
    Kexec {
        /// The kernel, a bzImage
        #[arg(long)]
        kernel: PathBuf,
        /// Its initramfs
        #[arg(long)]
        initramfs: PathBuf,
        /// Its command line
        #[arg(long)]
        command_line: String,
    },
    /// Be a hostile guest: write cursors into the CDC headers of the buffers in which the peer receives
    Cursors {
        /// How many
        #[arg(long)]
        mutations: u64,
        /// Seed of what is written where and when
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Splice out of the socket into a file, and send the file with sendfile
    Splice {
        #[command(flatten)]
        client: Client,
        /// Bytes each way
        #[arg(long, default_value_t = 4 << 20)]
        bytes: u64,
    },
    /// Splice out of the socket into a pipe, and double that with tee()
    Tee {
        #[command(flatten)]
        client: Client,
        /// Bytes
        #[arg(long, default_value_t = 4 << 20)]
        bytes: u64,
    },
    /// Splice out of the socket onto a disk, past the page cache
    ToDisk {
        #[command(flatten)]
        client: Client,
        /// Bytes, whole blocks of 4 KiB
        #[arg(long, default_value_t = 4 << 20)]
        bytes: u64,
        /// The disk, whose content is overwritten
        #[arg(long)]
        disk: PathBuf,
    },
    /// Splice what comes on SMC-D connections into plain TCP connections, and back
    Proxy {
        /// Where to listen
        #[arg(long)]
        port: u16,
        /// Where to connect to, as ADDRESS:PORT
        #[arg(long)]
        to: SocketAddrV4,
    },
    /// Traffic of all kinds and sizes, one piece after the other
    Mix {
        #[command(flatten)]
        client: Client,
        /// How many pieces
        #[arg(long, default_value_t = 20)]
        runs: u64,
    },
    /// Look at, and into, the windows of an ivsmc device, past any driver
    Windows {
        #[command(subcommand)]
        action: Windows,
    },
    /// Use an ivshmem device as a stock user does, through VFIO
    Ivshmem {
        #[command(subcommand)]
        action: Ivshmem,
    },
}

#[derive(Subcommand)]
enum Windows {
    /// The device and its links
    List,
    /// Write a mark of this guest's into each page of each window; ivpci must not use them
    Fill {
        /// Seed of the marks
        #[arg(long)]
        seed: u64,
    },
    /// Look for marks in all of the device's memory
    Search {
        /// Seeds of the marks, separated by commas
        #[arg(long, required = true, value_delimiter = ',')]
        seeds: Vec<u64>,
    },
    /// Have a link that ivpci uses end and come up again
    Flap {
        /// Its number
        #[arg(long)]
        link: usize,
    },
}

#[derive(Subcommand)]
enum Ivshmem {
    /// Take interrupts, each with a message
    Receive {
        /// How many
        #[arg(long)]
        count: u32,
    },
    /// Send messages to the receiver at the other end, and ring for each
    Send {
        /// How many
        #[arg(long)]
        count: u32,
    },
    /// Give the device back to the kernel's drivers
    Release,
    /// Send a word to and fro through the shared memory; no driver may have the device
    Word(Limit),
    /// Copy messages of 64 KiB through the shared memory; no driver may have the device
    Copies(Limit),
    /// Ring to and fro
    Doorbell {
        #[command(flatten)]
        limit: Limit,
        /// How often
        #[arg(long, default_value_t = 1000)]
        count: u32,
    },
}

#[derive(Args)]
struct Limit {
    /// Be the end that answers, or receives
    #[arg(long)]
    second: bool,
    /// A number that both ends have, and no earlier run had
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..1 << 24))]
    run: u32,
    /// For how long
    #[arg(long, default_value_t = 1)]
    seconds: u64,
}

impl Limit {
    fn end(&self) -> End {
        if self.second { End::Second } else { End::First }
    }

    fn time(&self) -> Duration {
        Duration::from_secs(self.seconds)
    }
}

#[derive(Args)]
struct Client {
    /// The server, as ADDRESS:PORT
    #[arg(long)]
    connect: SocketAddrV4,
    /// Use SMC sockets
    #[arg(long)]
    smc: bool,
    /// What the connections have to be; by default smcd with --smc
    #[arg(long)]
    expect: Option<Expect>,
    /// Seed of the data
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Seconds that all of it may take
    #[arg(long, default_value_t = 120)]
    timeout: u64,
    /// Seconds without a byte after which a connection counts as hung
    #[arg(long, default_value_t = service::SILENCE.as_secs())]
    patience: u64,
}

impl Client {
    fn run<R: serde::Serialize>(
        &self,
        traffic: impl FnOnce(Target, u64) -> Result<R, Failure>,
    ) -> Result<(), Failure> {
        traffic::watchdog(Duration::from_secs(self.timeout))?;
        let default = if self.smc { Expect::Smcd } else { Expect::Any };
        let target = Target {
            address: self.connect,
            transport: transport(self.smc),
            expect: self.expect.unwrap_or(default),
            patience: Duration::from_secs(self.patience),
        };
        print(&traffic(target, self.seed)?)
    }
}

fn print(report: &impl serde::Serialize) -> Result<(), Failure> {
    println!("{}", serde_json::to_string(report)?);
    Ok(())
}

fn transport(smc: bool) -> Transport {
    if smc { Transport::Smc } else { Transport::Tcp }
}

fn main() -> ExitCode {
    match run(Options::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ivsmc-traffic: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Agent { port } => Ok(agent::serve(&TcpListener::bind((
            Ipv4Addr::UNSPECIFIED,
            port,
        ))?)?),
        Command::Serve { port, smc } => {
            let address = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port);
            Ok(service::serve(&socket::listen(address, transport(smc))?)?)
        }
        Command::PingPong {
            client,
            size,
            count,
        } => client.run(|target, seed| target.ping_pong(seed, size, count)),
        Command::Bulk { client, up, down } => {
            client.run(|target, seed| target.bulk(seed, up, down))
        }
        Command::Many {
            client,
            connections,
            bytes,
        } => client.run(|target, seed| target.many(seed, connections, bytes)),
        Command::Churn {
            client,
            count,
            parallel,
        } => client.run(|target, seed| target.churn(seed, count, parallel)),
        Command::Cold {
            client,
            connections,
            bytes,
        } => client.run(|target, seed| target.cold(seed, connections, bytes)),
        Command::Restless {
            client,
            parallel,
            bytes,
            until,
        } => client.run(|target, seed| target.restless(seed, parallel, bytes, &until)),
        Command::Stream {
            client,
            bytes,
            pause,
            until,
            progress,
        } => {
            let pause = Duration::from_millis(pause);
            client.run(|target, seed| target.stream(seed, bytes, pause, &until, &progress))
        }
        Command::Receive {
            client,
            connections,
            flowing,
        } => client.run(|target, seed| target.receive(seed, connections, &flowing)),
        Command::Cursors { mutations, seed } => print(&cursors::mutate(mutations, seed)?),
        Command::Idle {
            client,
            connections,
            ready,
            until,
        } => client.run(|target, _| target.idle(connections, &ready, &until)),
        Command::Hold {
            client,
            what,
            ready,
            until,
        } => client.run(|target, seed| target.hold(seed, what, &ready, &until)),
        Command::Sockets => print(&sockets::kinds()),
        Command::Bpf => print(&bpf::objects()?),
        Command::Storm { threads, count } => print(&sockets::storm(threads, count)?),
        Command::Kexec {
            kernel,
            initramfs,
            command_line,
        } => kexec::execute(&kernel, &initramfs, &command_line),
        Command::Splice { client, bytes } => client.run(|target, seed| target.splice(seed, bytes)),
        Command::Tee { client, bytes } => client.run(|target, seed| target.tee(seed, bytes)),
        Command::ToDisk {
            client,
            bytes,
            disk,
        } => client.run(|target, seed| target.to_disk(seed, bytes, &disk)),
        Command::Proxy { port, to } => {
            let address = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, port);
            let listener = socket::listen(address, Transport::Smc)?;
            Ok(splice::proxy(&listener, to)?)
        }
        Command::Mix { client, runs } => client.run(|target, seed| target.mix(seed, runs)),
        Command::Windows { action } => match action {
            Windows::List => print(&windows::list()?),
            Windows::Fill { seed } => print(&windows::fill(seed)?),
            Windows::Search { seeds } => print(&windows::search(&seeds)?),
            Windows::Flap { link } => windows::flap(link),
        },
        Command::Ivshmem { action } => match action {
            Ivshmem::Receive { count } => ivshmem::receive(count),
            Ivshmem::Send { count } => ivshmem::send(count),
            Ivshmem::Release => ivshmem::release(),
            Ivshmem::Word(limit) => print(&limits::word(limit.end(), limit.run, limit.time())?),
            Ivshmem::Copies(limit) => print(&limits::copies(limit.end(), limit.run, limit.time())?),
            Ivshmem::Doorbell { limit, count } => {
                print(&limits::doorbell(limit.end(), limit.run, count)?)
            }
        },
    }
}
