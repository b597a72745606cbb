// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Two VMs of real KVM, each with a few bytes of guest and a real device: guest A's store to its doorbell interrupts
//! guest B, thousands of times, also while the VMM masks and unmasks B's vector, and none is lost.
//!
//! Interrupts that come quickly become one. So the guests take turns: A counts a round, writes its number to
//! the window, rings, and waits until B's interrupt handler has answered with that number. A lost interrupt
//! leaves A waiting for ever. That the handler's answer is in the window at all shows that memory works too.
//!
//! It needs no more of KVM than real mode, an irqchip, ioeventfd and irqfd, and so runs where KVM is emulated.

#![cfg(target_arch = "x86_64")]

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kvm_bindings::{
    KVM_IRQ_ROUTING_MSI, KvmIrqRouting, kvm_irq_routing_entry, kvm_msi, kvm_segment,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{IoEventAddress, Kvm, NoDatamatch, VcpuExit, VcpuFd, VmFd};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};
use vmm_device_ivsmc::{Config, Device, Fabric, Host, Syscall, Window};
use vmm_sys_util::eventfd::EventFd;

/// How many rounds each of the three parts has at least.
const ROUNDS: u32 = 5000;
/// How many times at least B's vector is masked and unmasked in the last of them.
const MASKS: u64 = 1000;
/// An interrupt that has not come after this long is lost. (On idle native KVM it takes some microseconds.)
const PATIENCE: Duration = Duration::from_secs(20);
/// How long a part may take.
const LIMIT: Duration = Duration::from_secs(180);

const RAM: usize = 0x10000;
const BAR0: u64 = 0xe000_0000;
const BAR2: u64 = 0x1_0000_0000 - 0x1800_0000; // 0xe800_0000
const LAPIC: u64 = 0xfee0_0000;
const VECTOR: u32 = 0x40;

/// Where in B's memory its handler counts interrupts. (The code has this number, and two offsets in the window:
/// 0, where A says which round it rang for, and 0x40, where B says which it has seen.)
const COUNT: usize = 0x2000;

const CODE: usize = 0x1000;
const HANDLER: usize = 0x1100;

/// Guest A. In: ES is BAR0, DI the doorbell's offset, ECX what to store there, GS the window, EBP the rounds,
/// EBX those that are done.
const RINGER: &[u8] = &[
    0x66, 0x43, // next: inc ebx
    0x65, 0x66, 0x89, 0x1e, 0x00, 0x00, // mov gs:[0], ebx
    0x26, 0x66, 0x89, 0x0d, // mov es:[di], ecx
    0x65, 0x66, 0x39, 0x1e, 0x40, 0x00, // wait: cmp gs:[0x40], ebx
    0x75, 0xf8, // jne wait
    0x66, 0x39, 0xeb, // cmp ebx, ebp
    0x75, 0xe7, // jne next
    0xe6, 0xf4, // out 0xf4, al
    0xf4, // hlt
];

/// Guest B sleeps, interrupts enabled.
const SLEEPER: &[u8] = &[
    0xfb, // sti
    0xf4, // hlt
    0xeb, 0xfd, // jmp to the hlt
];

/// Guest B's interrupt handler. In: GS is the window, FS the LAPIC, EBP the rounds.
const ANSWERER: &[u8] = &[
    0x66, 0x50, // push eax
    0x66, 0xff, 0x06, 0x00, 0x20, // inc dword [0x2000]
    0x64, 0x66, 0xc7, 0x06, 0xb0, 0x00, 0x00, 0x00, 0x00, 0x00, // mov dword fs:[0xb0], 0: EOI
    0x65, 0x66, 0xa1, 0x00, 0x00, // mov eax, gs:[0]
    0x65, 0x66, 0xa3, 0x40, 0x00, // mov gs:[0x40], eax
    0x66, 0x39, 0xe8, // cmp eax, ebp
    0x75, 0x02, // jne done
    0xe6, 0xf4, // out 0xf4, al
    0x66, 0x58, // done: pop eax
    0xcf, // iret
];

/// What this host's KVM does for a device.
struct KvmHost {
    vm: Arc<VmFd>,
    /// Whether vector 1 is masked. Vector 0, for changes of links, always is.
    is_masked: Mutex<bool>,
}

const FIRST_SLOT: u32 = 1;
const FIRST_GSI: u32 = 24;

fn gsi(vector: usize) -> u32 {
    FIRST_GSI + vector as u32
}

impl KvmHost {
    /// Masks vector 1 by taking its route away, whatever eventfds are connected to it; unmasks it by putting the
    /// route back, and then delivers it once, for what was signalled meanwhile is lost.
    fn mask(&self, mask: bool) {
        let mut is_masked = self.is_masked.lock().unwrap();
        let mut route = kvm_irq_routing_entry {
            gsi: gsi(1),
            type_: KVM_IRQ_ROUTING_MSI,
            ..Default::default()
        };
        route.u.msi.address_lo = LAPIC as u32;
        route.u.msi.data = VECTOR;
        let routes = if mask { &[][..] } else { &[route][..] };
        let routes = KvmIrqRouting::from_entries(routes).unwrap();
        self.vm.set_gsi_routing(&routes).unwrap();
        if *is_masked && !mask {
            let message = kvm_msi {
                address_lo: LAPIC as u32,
                data: VECTOR,
                ..Default::default()
            };
            self.vm.signal_msi(message).unwrap();
        }
        *is_masked = mask;
    }

    fn map(&self, link: usize, gpa: u64, host: u64, size: u64) -> io::Result<()> {
        let region = kvm_userspace_memory_region {
            slot: FIRST_SLOT + link as u32,
            guest_phys_addr: gpa,
            memory_size: size,
            userspace_addr: host,
            flags: 0,
        };
        // SAFETY: the device keeps the window mapped until it has been taken out of the guest.
        Ok(unsafe { self.vm.set_user_memory_region(region) }?)
    }
}

impl Host for KvmHost {
    fn map_window(&self, link: usize, gpa: u64, window: &Window) -> io::Result<()> {
        self.map(link, gpa, window.host_addr() as u64, window.len())
    }

    fn unmap_window(&self, link: usize, gpa: u64, window: &Window) -> io::Result<()> {
        self.map(link, gpa, window.host_addr() as u64, 0)
    }

    fn set_doorbell(&self, gpa: u64, value: Option<u32>, fd: &EventFd) -> io::Result<()> {
        let address = IoEventAddress::Mmio(gpa);
        Ok(match value {
            Some(value) => self.vm.register_ioevent(fd, &address, value),
            None => self.vm.register_ioevent(fd, &address, NoDatamatch),
        }?)
    }

    fn clear_doorbell(&self, gpa: u64, value: Option<u32>, fd: &EventFd) -> io::Result<()> {
        let address = IoEventAddress::Mmio(gpa);
        Ok(match value {
            Some(value) => self.vm.unregister_ioevent(fd, &address, value),
            None => self.vm.unregister_ioevent(fd, &address, NoDatamatch),
        }?)
    }

    fn connect_vector(&self, vector: usize, fd: &EventFd) -> io::Result<()> {
        Ok(self.vm.register_irqfd(fd, gsi(vector))?)
    }

    fn disconnect_vector(&self, vector: usize, fd: &EventFd) -> io::Result<()> {
        Ok(self.vm.unregister_irqfd(fd, gsi(vector))?)
    }

    fn raise(&self) -> io::Result<()> {
        Ok(())
    }
}

/// A guest's memory in this process.
struct Ram(*mut u8);

// SAFETY: it is memory that stays for the whole test, and all accesses are volatile or before the guest runs.
unsafe impl Send for Ram {}
// SAFETY: as above.
unsafe impl Sync for Ram {}

impl Ram {
    fn write(&self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= RAM);
        // SAFETY: it is within the memory, as was just checked.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.0.add(at), bytes.len()) };
    }

    fn word(&self, at: usize) -> u32 {
        assert!(at + 4 <= RAM && at.is_multiple_of(4));
        // SAFETY: it is within the memory, as was just checked.
        unsafe { self.0.add(at).cast::<u32>().read_volatile() }
    }
}

/// What a device asks of KVM: KVM_SET_USER_MEMORY_REGION, KVM_IOEVENTFD, KVM_IRQFD.
const KVM_REQUESTS: [u64; 3] = [0x4020_ae46, 0x4040_ae79, 0x4020_ae76];

/// From now on this thread ends the process if it makes any other system call.
fn confine(syscalls: &[Syscall]) {
    let rule = |argument, value| {
        let (kind, equal) = (SeccompCmpArgLen::Dword, SeccompCmpOp::Eq);
        let condition = SeccompCondition::new(argument, kind, equal, value).unwrap();
        SeccompRule::new(vec![condition]).unwrap()
    };
    let mut rules = BTreeMap::<i64, Vec<SeccompRule>>::new();
    for Syscall { number, argument } in syscalls {
        let rules = rules.entry(*number).or_default();
        rules.extend(argument.map(|(argument, value)| rule(argument, value.into())));
    }
    rules.insert(
        libc::SYS_ioctl,
        KVM_REQUESTS.map(|request| rule(1, request)).into(),
    );
    let (other, listed) = (SeccompAction::KillProcess, SeccompAction::Allow);
    let filter = SeccompFilter::new(rules, other, listed, TargetArch::x86_64).unwrap();
    let program: BpfProgram = filter.try_into().unwrap();
    seccompiler::apply_filter(&program).unwrap();
}

struct Vm {
    device: Arc<Device>,
    host: Arc<KvmHost>,
    fabric: Option<JoinHandle<()>>,
    ram: Arc<Ram>,
    vcpu: Option<VcpuFd>,
    _vm: Arc<VmFd>,
}

impl Vm {
    fn new(kvm: &Kvm, config: Config) -> Self {
        let vm = Arc::new(kvm.create_vm().unwrap());
        vm.set_tss_address(0xfffb_d000).unwrap();
        vm.create_irq_chip().unwrap();
        let vcpu = vm.create_vcpu(0).unwrap();
        // SAFETY: new memory at an address of the kernel's choice; it stays for the whole test.
        let ram = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                RAM,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert_ne!(ram, libc::MAP_FAILED);
        let region = kvm_userspace_memory_region {
            slot: 0,
            guest_phys_addr: 0,
            memory_size: RAM as u64,
            userspace_addr: ram as u64,
            flags: 0,
        };
        // SAFETY: the memory stays for the whole test.
        unsafe { vm.set_user_memory_region(region) }.unwrap();

        // The LAPIC has to be enabled by software.
        let mut lapic = vcpu.get_lapic().unwrap();
        lapic.regs[0xf0] = -1;
        lapic.regs[0xf1] = 1;
        vcpu.set_lapic(&lapic).unwrap();

        let host = Arc::new(KvmHost {
            vm: vm.clone(),
            is_masked: Mutex::new(true),
        });
        let (device, mut fabric) = Device::new("test", config, host.clone(), None).unwrap();
        let reaper = fabric.reaper().unwrap();
        std::thread::spawn(move || reaper.run());
        device.place_registers(Some(BAR0)).unwrap();
        device.place_windows(Some(BAR2)).unwrap();
        // Vector 1 is what B's handler answers.
        host.mask(false);
        device.resume();
        let fabric = Some(std::thread::spawn(move || {
            confine(Fabric::SYSCALLS);
            fabric.run();
        }));
        Vm {
            device,
            host,
            fabric,
            ram: Arc::new(Ram(ram.cast())),
            vcpu: Some(vcpu),
            _vm: vm,
        }
    }

    fn read(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.device.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    /// Lets the guest run until it does an OUT. It begins at `CODE`.
    fn run(&mut self, doorbell: u16, value: u32, done: u32, rounds: u32) -> JoinHandle<VcpuFd> {
        let mut vcpu = self.vcpu.take().unwrap();
        let mut sregs = vcpu.get_sregs().unwrap();
        let segment = |base: u64| kvm_segment {
            base,
            limit: 0xffff,
            selector: (base >> 4) as u16,
            type_: 3,
            present: 1,
            s: 1,
            ..Default::default()
        };
        sregs.cs = kvm_segment {
            type_: 11,
            ..segment(0)
        };
        (sregs.ds, sregs.ss) = (segment(0), segment(0));
        (sregs.es, sregs.fs, sregs.gs) = (segment(BAR0), segment(LAPIC), segment(BAR2));
        sregs.idt.base = 0;
        sregs.idt.limit = 0x3ff;
        vcpu.set_sregs(&sregs).unwrap();
        let mut regs = vcpu.get_regs().unwrap();
        regs.rip = CODE as u64;
        regs.rsp = 0xf000;
        regs.rflags = 2;
        regs.rdi = u64::from(doorbell);
        regs.rcx = u64::from(value);
        regs.rbx = u64::from(done);
        regs.rbp = u64::from(rounds);
        vcpu.set_regs(&regs).unwrap();
        std::thread::spawn(move || {
            loop {
                match vcpu.run() {
                    Ok(VcpuExit::IoOut(0xf4, _)) => return vcpu,
                    // KVM alone takes doorbells to the other guest, and no access is to anything else.
                    Ok(other) => panic!("a guest came out of KVM: {other:?}"),
                    Err(error) if error.errno() == libc::EINTR => {}
                    Err(error) => panic!("KVM_RUN: {error}"),
                }
            }
        })
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        self.device.shutdown();
        if let Some(fabric) = self.fabric.take() {
            let _ = fabric.join();
        }
    }
}

fn config(folder: &Path, name: &str, peers: &[&str]) -> Config {
    let peers = peers.iter().map(|peer| folder.join(peer)).collect();
    Config {
        peers,
        window_size: 2 << 20,
        max_peers: 2,
        vectors: 2,
        ..Config::new(folder.join(name))
    }
}

fn wait(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < end, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// One part: rounds `done` + 1 to `rounds`, with A's doorbell at that offset.
fn part(name: &str, a: &mut Vm, b: &mut Vm, doorbell: u16, value: u32, done: u32, rounds: u32) {
    let before = b.ram.word(COUNT);
    let start = Instant::now();
    let sleeper = b.run(0, 0, 0, rounds);
    let ringer = a.run(doorbell, value, done, rounds);
    let mut progress = (before, start);
    while !(ringer.is_finished() && sleeper.is_finished()) {
        let count = b.ram.word(COUNT);
        if count != progress.0 {
            progress = (count, Instant::now());
        } else if progress.1.elapsed() > PATIENCE {
            let count = count - before;
            panic!("{name}: lost after {count} interrupts");
        }
        assert!(start.elapsed() < LIMIT, "{name}: too slow");
        std::thread::sleep(Duration::from_millis(1));
    }
    a.vcpu = Some(ringer.join().unwrap());
    b.vcpu = Some(sleeper.join().unwrap());
    let count = b.ram.word(COUNT) - before;
    let rounds = rounds - done;
    let each = start.elapsed().as_nanos() / u128::from(rounds);
    println!("{name}: {rounds} rounds, {count} interrupts, {each} ns a round");
    assert!(count >= rounds);
}

#[test]
fn a_store_in_one_guest_interrupts_the_other() {
    let kvm = match Kvm::new() {
        Ok(kvm) => kvm,
        Err(error) => {
            println!("SKIPPED: cannot open /dev/kvm: {error}");
            return;
        }
    };
    let folder = tempfile::tempdir().unwrap();
    let mut a = Vm::new(&kvm, config(folder.path(), "a", &["b"]));
    let mut b = Vm::new(&kvm, config(folder.path(), "b", &[]));
    a.ram.write(CODE, RINGER);
    b.ram.write(CODE, SLEEPER);
    b.ram.write(HANDLER, ANSWERER);
    b.ram.write(
        4 * VECTOR as usize,
        &[HANDLER as u8, (HANDLER >> 8) as u8, 0, 0],
    );
    wait("the link is up", || {
        a.read(0x1000) == 1 && b.read(0x1000) == 1
    });

    part("link's doorbell", &mut a, &mut b, 0x2004, 0, 0, ROUNDS);

    let value = b.read(0x08) << 16 | 1;
    part(
        "Doorbell register",
        &mut a,
        &mut b,
        0x0c,
        value,
        ROUNDS,
        2 * ROUNDS,
    );

    // The same while B's vector is masked and unmasked all the time.
    let stop = Arc::new(AtomicBool::new(false));
    let masks = Arc::new(AtomicU64::new(0));
    let masker = {
        let (stop, masks, host) = (stop.clone(), masks.clone(), b.host.clone());
        std::thread::spawn(move || {
            let mut step = 0x2545_f491_u32;
            let mut random = || {
                step = step.wrapping_mul(0x0019_660d).wrapping_add(0x3c6e_f35f);
                step >> 16
            };
            while !stop.load(Ordering::Relaxed) {
                host.mask(true);
                pause(random());
                host.mask(false);
                masks.fetch_add(1, Ordering::Relaxed);
                pause(random());
            }
        })
    };
    let mut done = 2 * ROUNDS;
    while done == 2 * ROUNDS || masks.load(Ordering::Relaxed) < MASKS {
        part(
            "while masking",
            &mut a,
            &mut b,
            0x2004,
            0,
            done,
            done + ROUNDS,
        );
        done += ROUNDS;
    }
    stop.store(true, Ordering::Relaxed);
    masker.join().unwrap();
    let masks = masks.load(Ordering::Relaxed);
    println!("masked and unmasked {masks} times");
}

/// Nothing, a moment, or a sleep, so that masks meet the rounds at any point.
fn pause(random: u32) {
    match random % 4 {
        0 => {}
        1 => std::thread::yield_now(),
        _ => std::thread::sleep(Duration::from_micros(u64::from(random % 64))),
    }
}
