// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! The command line. Options are spelled as Cloud Hypervisor spells them.

use std::path::PathBuf;
use std::str::FromStr;

use clap::{ArgAction, Parser, ValueEnum};
use vmm_device_ivsmc::Config;

use crate::layout;

const MAX_CPUS: u8 = 8;
/// The kernel is loaded at 16 MiB and needs room to unpack.
const MIN_MEMORY: u64 = 64 << 20;
/// The longest name of a network interface.
const MAX_TAP_NAME: usize = 15;

/// A small VMM that hosts the ivsmc device.
#[derive(Clone, Debug, Parser)]
#[command(version)]
pub struct Options {
    /// The Linux kernel: a bzImage or a vmlinux
    #[arg(long, value_name = "FILE")]
    pub kernel: PathBuf,
    /// The initramfs
    #[arg(long, value_name = "FILE")]
    pub initramfs: Option<PathBuf>,
    /// The kernel's command line
    #[arg(long, value_name = "TEXT", default_value = "", allow_hyphen_values = true,
          value_parser = parse_cmdline)]
    pub cmdline: String,
    /// Processors: boot=N, 1 to 8
    #[arg(long, value_name = "boot=N", default_value = "boot=1")]
    pub cpus: Cpus,
    /// Memory: size=N, with K, M or G
    #[arg(long, value_name = "size=N", default_value = "size=512M")]
    pub memory: Memory,
    /// A network device on a tap: tap=NAME, and if need be mac=ADDRESS and vhost=on|off
    #[arg(long, value_name = "tap=NAME,...", num_args = 1..)]
    pub net: Vec<Net>,
    /// The serial port: off, tty or file=PATH
    #[arg(long, value_name = "off|tty|file=PATH", default_value = "off")]
    pub serial: Serial,
    /// There is no virtio console: off
    #[arg(long, value_name = "off", default_value = "off")]
    pub console: Console,
    /// ivsmc devices
    #[arg(long, value_name = "path=SOCKET,...", num_args = 1..,
          help = format!("An ivsmc device: {},id=<device_id>", Config::SYNTAX))]
    pub ivsmc: Vec<Ivsmc>,
    /// What happens on a system call that a thread should not make: it ends the VMM (true), nothing
    /// (false), or the kernel logs it (log)
    #[arg(long, value_name = "true|false|log", default_value = "true")]
    pub seccomp: Seccomp,
    /// Log more; twice: even more
    #[arg(short, action = ArgAction::Count)]
    pub verbose: u8,
}

fn parse_cmdline(text: &str) -> Result<String, String> {
    if text.len() >= layout::CMDLINE_SIZE {
        let (length, max) = (text.len(), layout::CMDLINE_SIZE - 1);
        return Err(format!("it is {length} bytes long; up to {max} would do"));
    }
    if !text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
        return Err("only printable ASCII would do".into());
    }
    Ok(text.into())
}

/// `key=value,key=value`: hands each pair to `set`, which says whether it knows the key.
fn parse_list(
    text: &str,
    syntax: &str,
    mut set: impl FnMut(&str, &str) -> Result<bool, String>,
) -> Result<(), String> {
    let mut seen = Vec::new();
    for item in text.split(',') {
        let (key, value) = item
            .split_once('=')
            .ok_or_else(|| format!("'{item}' is no key=value; {syntax} would do"))?;
        if seen.contains(&key) {
            return Err(format!("'{key}' is given twice; once would do"));
        }
        if !set(key, value)? {
            return Err(format!("there is no '{key}'; {syntax} would do"));
        }
        seen.push(key);
    }
    Ok(())
}

/// Number of processors.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cpus(pub u8);

impl FromStr for Cpus {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut cpus = None;
        parse_list(text, "boot=N", |key, value| {
            if key == "boot" {
                cpus = value
                    .parse()
                    .ok()
                    .filter(|count| (1..=MAX_CPUS).contains(count));
            }
            Ok(key == "boot")
        })?;
        cpus.map(Cpus)
            .ok_or_else(|| format!("boot=1 to boot={MAX_CPUS} would do"))
    }
}

/// Bytes of memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Memory(pub u64);

impl FromStr for Memory {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut bytes = None;
        parse_list(text, "size=N", |key, value| {
            if key == "size" {
                bytes = parse_size(value);
            }
            Ok(key == "size")
        })?;
        let good = bytes.filter(|bytes| *bytes >= MIN_MEMORY && bytes % (1 << 20) == 0);
        good.map(Memory).ok_or_else(|| {
            format!(
                "a multiple of 1M, from size={}M to size=1024G, would do",
                MIN_MEMORY >> 20
            )
        })
    }
}

/// A size up to 1 TiB.
fn parse_size(text: &str) -> Option<u64> {
    let (digits, shift) = match text.as_bytes().last()? {
        b'K' => (&text[..text.len() - 1], 10),
        b'M' => (&text[..text.len() - 1], 20),
        b'G' => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let bytes = digits.parse::<u64>().ok()?.checked_mul(1 << shift)?;
    (bytes <= 1 << 40).then_some(bytes)
}

/// A network device.
#[derive(Clone, Debug, PartialEq)]
pub struct Net {
    /// The tap's name.
    pub tap: String,
    /// The guest's address; one is made from the tap's name if none is given.
    pub mac: [u8; 6],
    /// May the host's kernel move the packets?
    pub vhost: bool,
}

impl Net {
    const SYNTAX: &str = "tap=NAME,mac=ADDRESS,vhost=on|off";
}

impl FromStr for Net {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (mut tap, mut mac, mut vhost) = (None, None, true);
        parse_list(text, Self::SYNTAX, |key, value| {
            match key {
                "tap" => tap = Some(value.to_owned()),
                "mac" => mac = Some(parse_mac(value)?),
                "vhost" => {
                    vhost = match value {
                        "on" => true,
                        "off" => false,
                        _ => return Err(format!("vhost={value}: on or off would do")),
                    }
                }
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        let tap = tap.ok_or("a tap is missing; tap=NAME would do")?;
        let good = |byte| (b'!'..=b'~').contains(&byte) && byte != b'/' && byte != b'%';
        if tap.is_empty() || tap.len() > MAX_TAP_NAME || !tap.bytes().all(good) {
            return Err(format!(
                "tap={tap}: a name of 1 to {MAX_TAP_NAME} characters would do"
            ));
        }
        Ok(Net {
            mac: mac.unwrap_or_else(|| mac_of(&tap)),
            tap,
            vhost,
        })
    }
}

fn parse_mac(text: &str) -> Result<[u8; 6], String> {
    let bytes: Option<Vec<u8>> = text
        .split(':')
        .map(|part| {
            u8::from_str_radix(part, 16)
                .ok()
                .filter(|_| part.len() == 2)
        })
        .collect();
    bytes
        .and_then(|bytes| <[u8; 6]>::try_from(bytes).ok())
        .filter(|mac| mac[0] & 1 == 0 && *mac != [0; 6])
        .ok_or_else(|| format!("mac={text}: a unicast address as 02:00:00:00:00:01 would do"))
}

/// A locally administered address that differs from one tap's name to another's (FNV-1a).
fn mac_of(tap: &str) -> [u8; 6] {
    let hash = tap.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    });
    let [a, b, c, d, e, ..] = hash.to_le_bytes();
    [0x02, a, b, c, d, e]
}

/// An ivsmc device.
#[derive(Clone, Debug, PartialEq)]
pub struct Ivsmc {
    /// What to call it in the log.
    pub id: String,
    /// What the device itself wants to know.
    pub config: Config,
}

impl FromStr for Ivsmc {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut id = String::new();
        let config = Config::parse_with(text, |option, value| {
            let is_id = option == "id";
            if is_id {
                id = value.into();
            }
            is_id
        });
        let config = config.map_err(|error| error.to_string())?;
        config.validate().map_err(|error| error.to_string())?;
        if id.is_empty() {
            id = config.path.display().to_string();
        }
        Ok(Ivsmc { id, config })
    }
}

/// Where the serial port leads.
#[derive(Clone, Debug, PartialEq)]
pub enum Serial {
    /// There is none.
    Off,
    /// To the terminal.
    Tty,
    /// Its output goes to a file.
    File(PathBuf),
}

impl FromStr for Serial {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.strip_prefix("file=")) {
            ("off" | "null", _) => Ok(Serial::Off),
            ("tty", _) => Ok(Serial::Tty),
            (_, Some(path)) if !path.is_empty() => Ok(Serial::File(path.into())),
            _ => Err("off, tty or file=PATH would do".into()),
        }
    }
}

/// What Cloud Hypervisor has as its virtio console; here it can only be off.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Console {
    /// No console.
    Off,
}

/// What the seccomp filters do.
#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub enum Seccomp {
    /// End the VMM.
    True,
    /// There are no filters.
    False,
    /// Log.
    Log,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error<T: FromStr<Err = String>>(text: &str) -> String {
        T::from_str(text)
            .err()
            .unwrap_or_else(|| panic!("{text:?} is accepted"))
    }

    #[test]
    fn processors_are_1_to_8() {
        assert_eq!("boot=1".parse(), Ok(Cpus(1)));
        assert_eq!("boot=8".parse(), Ok(Cpus(8)));
        for text in [
            "",
            "boot",
            "boot=",
            "boot=0",
            "boot=9",
            "boot=1,boot=2",
            "max=2",
            "boot=-1",
        ] {
            assert!(error::<Cpus>(text).contains("would do"), "{text:?}");
        }
    }

    #[test]
    fn memory_has_units() {
        assert_eq!("size=64M".parse(), Ok(Memory(64 << 20)));
        assert_eq!("size=2G".parse(), Ok(Memory(2 << 30)));
        assert_eq!("size=1048576K".parse(), Ok(Memory(1 << 30)));
        for text in [
            "size=63M",
            "size=G",
            "size=",
            "size=65537K",
            "size=2T",
            "size=2000G",
            "2G",
        ] {
            assert!(error::<Memory>(text).contains("would do"), "{text:?}");
        }
        assert!(error::<Memory>("size=99999999999999999999G").contains("would do"));
    }

    #[test]
    fn nets_have_a_tap_and_an_address() {
        let net: Net = "tap=t0,mac=02:00:00:00:00:aF,vhost=off".parse().unwrap();
        assert_eq!(
            net,
            Net {
                tap: "t0".into(),
                mac: [2, 0, 0, 0, 0, 0xaf],
                vhost: false
            }
        );
        let (a, b): (Net, Net) = ("tap=a".parse().unwrap(), "tap=b".parse().unwrap());
        assert_ne!(a.mac, b.mac);
        assert_eq!(a.mac[0], 2);
        for text in [
            "",
            "mac=02:00:00:00:00:01",
            "tap=",
            "tap=0123456789abcdef",
            "tap=a/b",
            "tap=t%d",
            "tap=t,mac=03:00:00:00:00:01",
            "tap=t,mac=00:00:00:00:00:00",
            "tap=t,mac=02:00:00:00:00",
            "tap=t,mac=02:00:00:00:00:1",
            "tap=t,mac=02:00:00:00:00:01:02",
            "tap=t,vhost=maybe",
            "tap=t,fast=on",
        ] {
            assert!(error::<Net>(text).contains("would do"), "{text:?}");
        }
    }

    #[test]
    fn ivsmc_devices_have_names() {
        let named: Ivsmc = "path=/a,peer=[/b,/c],id=smc0".parse().unwrap();
        assert_eq!((named.id.as_str(), named.config.peers.len()), ("smc0", 2));
        let nameless: Ivsmc = "path=/a".parse().unwrap();
        assert_eq!(nameless.id, "/a");
        assert!(error::<Ivsmc>("path=/a,size=1M").contains("at least 2M"));
        assert!(error::<Ivsmc>("path=/a,pear=/b").contains("'pear'"));
    }

    #[test]
    fn serial_ports_lead_somewhere() {
        assert_eq!("off".parse(), Ok(Serial::Off));
        assert_eq!("tty".parse(), Ok(Serial::Tty));
        assert_eq!("file=/a=b".parse(), Ok(Serial::File("/a=b".into())));
        for text in ["", "file=", "on"] {
            assert!(error::<Serial>(text).contains("would do"), "{text:?}");
        }
    }

    #[test]
    fn a_whole_command_line() {
        let line = "vmm --kernel k --cpus boot=2 --memory size=128M --net tap=a tap=b --net tap=c \
                    --serial file=s --console off --seccomp log --cmdline -x=1 -vv";
        let options = Options::try_parse_from(line.split_whitespace()).unwrap();
        assert_eq!(options.net.len(), 3);
        assert_eq!(options.cmdline, "-x=1");
        assert_eq!((options.seccomp, options.verbose), (Seccomp::Log, 2));
        let bad =
            Options::try_parse_from(["vmm", "--kernel", "k", "--cpus", "boot=9"]).unwrap_err();
        let text = bad.to_string();
        for part in ["--cpus", "'boot=9'", "boot=8 would do"] {
            assert!(text.contains(part), "{text}");
        }
    }
}
