// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A virtual machine, from power-on to power-off or reset.

use std::io::{self, stdin};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};
use kvm_bindings::{
    KVM_INTERNAL_ERROR_DELIVERY_EV, KVM_SYSTEM_EVENT_RESET, KVM_SYSTEM_EVENT_SHUTDOWN, kvm_msi,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
use log::{debug, error, warn};
use vm_memory::{GuestAddress, GuestMemory, GuestMemoryMmap, GuestMemoryRegion};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};
use vmm_sys_util::poll::PollContext;
use vmm_sys_util::signal::{Killable, SIGRTMIN};
use vmm_sys_util::terminal::Terminal;

use crate::bus::{Bus, Exit};
use crate::interrupts::Interrupts;
use crate::ivsmc::{FabricThread, Ivsmc};
use crate::memory::DeviceMemory;
use crate::net::{Net, Tap};
use crate::options::{Options, Seccomp};
use crate::pci::Pci;
use crate::seccomp::Thread;
use crate::serial::Console;
use crate::{Signals, acpi, boot, cpu, layout, lock};

/// What VMs are built of, and what outlives them.
pub struct Parts {
    /// The host's KVM.
    pub kvm: Kvm,
    /// The command line.
    pub options: Options,
    /// The serial port's other end.
    pub console: Option<Console>,
    /// The taps, one for each network device.
    pub taps: Vec<Arc<Tap>>,
}

/// Runs one VM, from power-on until it ends, or is stopped by a signal.
pub fn run(parts: &Parts, signals: &Signals) -> Result<Exit> {
    let Parts {
        kvm,
        options,
        console,
        taps,
    } = parts;
    let vm = Arc::new(kvm.create_vm().context("KVM_CREATE_VM")?);
    let memory = guest_memory(&vm, options.memory.0)?;
    vm.set_identity_map_address(layout::KVM_IDENTITY_MAP)
        .context("KVM_SET_IDENTITY_MAP_ADDR")?;
    vm.set_tss_address(layout::KVM_TSS as usize)
        .context("KVM_SET_TSS_ADDR")?;
    vm.create_irq_chip().context("KVM_CREATE_IRQCHIP")?;
    let interrupts = Interrupts::new(vm.clone()).context("KVM_SET_GSI_ROUTING")?;

    let cpuid = cpu::supported_cpuid(kvm)?;
    let cpus = options.cpus.0;
    let mmio64 = layout::mmio64(options.memory.0, cpu::physical_bits(&cpuid));
    let machine = acpi::Machine {
        cpus,
        mmio64,
        serial: console.is_some(),
    };
    let entry = boot::load(&memory, options, &machine)?;

    let mut slot = memory.num_regions() as u32;
    let memory = DeviceMemory::new(memory);
    let mut pci = Pci::new(mmio64);
    for (net, tap) in options.net.iter().zip(taps) {
        let net = Arc::new(Net::new(
            vm.clone(),
            &interrupts,
            memory.clone(),
            tap.clone(),
            net,
            options.seccomp,
        )?);
        let user = Arc::downgrade(&net);
        memory.tell(user);
        pci.add(net)?;
    }
    let mut fabrics = Vec::new();
    for ivsmc in &options.ivsmc {
        let (vm, memory) = (vm.clone(), memory.clone());
        let (device, fabric) = Ivsmc::new(vm, &interrupts, memory, ivsmc, slot, options.seccomp)?;
        fabrics.push(fabric);
        pci.add(Arc::new(device))?;
        slot += u32::from(ivsmc.config.max_peers);
    }
    let serial = match console {
        Some(console) => Some(Mutex::new(
            console.port(interrupts.pin(layout::SERIAL_IRQ)?),
        )),
        None => None,
    };
    let bus = Arc::new(Bus { serial, pci });

    let mut vcpus = Vec::new();
    for id in 0..cpus {
        let vcpu = vm.create_vcpu(id.into()).context("KVM_CREATE_VCPU")?;
        cpu::configure(&vcpu, &cpuid, id, cpus, entry)?;
        vcpus.push(vcpu);
    }
    // Declared last, it is dropped first: no processor runs while the devices go.
    let mut processors = Processors {
        end: Arc::new(End::new()?),
        threads: Vec::new(),
    };
    for (id, vcpu) in vcpus.into_iter().enumerate() {
        processors.start(id, vcpu, bus.clone(), options.seccomp)?;
    }
    // Not earlier: a VM that never runs joins nobody.
    fabrics.iter().for_each(FabricThread::resume);
    let nmi = || {
        processors.tell_where_they_are();
        send_nmi(&vm);
    };
    let state = || fabrics.iter().for_each(FabricThread::take_state);
    wait(&bus, console.as_ref(), &processors.end, signals, nmi, state)
}

/// Allocates memory and gives it to the guest.
fn guest_memory(vm: &VmFd, size: u64) -> Result<GuestMemoryMmap> {
    let ranges: Vec<_> = layout::ram(size)
        .into_iter()
        .map(|(address, size)| (GuestAddress(address), size as usize))
        .collect();
    let memory = GuestMemoryMmap::from_ranges(&ranges)
        .with_context(|| format!("--memory size={}M: the host has not so much", size >> 20))?;
    for (slot, region) in (0..).zip(memory.iter()) {
        // SAFETY: the range is the region's mapping, whose content the advice does not change.
        let huge = unsafe {
            libc::madvise(
                region.as_ptr().cast(),
                region.len() as usize,
                libc::MADV_HUGEPAGE,
            )
        };
        if huge != 0 {
            debug!("no huge pages: {}", io::Error::last_os_error());
        }
        let region = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: region.start_addr().0,
            memory_size: region.len(),
            userspace_addr: region.as_ptr() as u64,
        };
        // SAFETY: the mapping is the memory's own and outlives the VM's processors, for `run` keeps it until
        // they have ended.
        unsafe { vm.set_user_memory_region(region) }.context("KVM_SET_USER_MEMORY_REGION")?;
    }
    Ok(memory)
}

/// The end of a VM's life: the first that calls it wins.
struct End {
    exit: OnceLock<Exit>,
    over: AtomicBool,
    event: EventFd,
    /// How often processors were asked where they are.
    asked: AtomicU32,
}

impl End {
    fn new() -> Result<Self> {
        let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        Ok(End {
            exit: OnceLock::new(),
            over: AtomicBool::new(false),
            event,
            asked: AtomicU32::new(0),
        })
    }

    fn set(&self, exit: Exit) {
        let _ = self.exit.set(exit);
        self.over.store(true, Ordering::Release);
        if let Err(error) = self.event.write(1) {
            error!("cannot tell that the VM has ended: {error}");
        }
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }
}

/// Interrupts the first processor, whatever it does: as a message whose delivery mode is NMI.
fn send_nmi(vm: &VmFd) {
    let message = kvm_msi {
        address_lo: 0xfee0_0000,
        data: 4 << 8,
        ..Default::default()
    };
    if let Err(error) = vm.signal_msi(message) {
        error!("an NMI cannot be sent: KVM_SIGNAL_MSI: {error}");
    }
}

/// Waits until the VM ends or is stopped; passes on what is typed meanwhile, and does what signals ask for.
fn wait(
    bus: &Bus,
    console: Option<&Console>,
    end: &End,
    signals: &Signals,
    nmi: impl Fn(),
    state: impl Fn(),
) -> Result<Exit> {
    const END: u32 = 0;
    const STOP: u32 = 1;
    const NMI: u32 = 2;
    const STATE: u32 = 3;
    const INPUT: u32 = 4;
    let poll = PollContext::<u32>::new()?;
    poll.add(&end.event, END)?;
    poll.add(&signals.stop, STOP)?;
    poll.add(&signals.nmi, NMI)?;
    poll.add(&signals.state, STATE)?;
    let serial = bus
        .serial
        .as_ref()
        .filter(|_| console.is_some_and(Console::reads_stdin));
    if serial.is_some() && poll.add(&stdin(), INPUT).is_err() {
        debug!("standard input cannot be waited for: the guest gets no input");
    }
    loop {
        for event in poll.wait()?.iter() {
            match (event.token(), serial) {
                (END, _) => return Ok(end.exit.get().copied().unwrap_or(Exit::Failed)),
                (STOP, _) => return Ok(Exit::Stopped),
                (NMI, _) => {
                    signals.nmi.read()?;
                    nmi();
                }
                (STATE, _) => {
                    signals.state.read()?;
                    state();
                }
                (_, Some(serial)) => {
                    let mut input = [0; 64];
                    // The guest takes its time; what does not fit in its FIFO is lost, as on a real line.
                    match stdin().lock().read_raw(&mut input) {
                        Ok(length @ 1..) => {
                            if let Err(error) = lock(serial).enqueue_raw_bytes(&input[..length]) {
                                debug!("serial input: {error:?}");
                            }
                        }
                        _ => poll.delete(&stdin())?,
                    }
                }
                _ => {}
            }
        }
    }
}

/// The processors' threads. Dropping them ends them: they must not outlive the guest's memory.
struct Processors {
    end: Arc<End>,
    threads: Vec<JoinHandle<()>>,
}

impl Processors {
    fn start(&mut self, id: usize, vcpu: VcpuFd, bus: Arc<Bus>, seccomp: Seccomp) -> Result<()> {
        let end = self.end.clone();
        let body = move || {
            let mut vcpu = vcpu;
            let exit = match Thread::Vcpu.confine(seccomp) {
                Ok(()) => run_vcpu(id, &mut vcpu, &bus, &end),
                Err(error) => {
                    error!("{error:#}");
                    Exit::Failed
                }
            };
            end.set(exit);
        };
        let thread = thread::Builder::new().name(format!("vcpu{id}")).spawn(body);
        self.threads.push(thread.context("a processor's thread")?);
        Ok(())
    }
}

impl Processors {
    /// Has each of them log where it is: for a guest that hangs, and does not even take an NMI.
    fn tell_where_they_are(&self) {
        self.end.asked.fetch_add(1, Ordering::Relaxed);
        self.threads.iter().for_each(kick);
    }
}

impl Drop for Processors {
    fn drop(&mut self) {
        self.end.set(Exit::Stopped);
        self.threads.drain(..).for_each(kick_and_join);
    }
}

/// How often in a row a processor is asked again to do what it could not do while it delivered an event.
const DELIVERY_TRIES: u32 = 8;

/// What KVM could not do, and where: without it such an end says nothing.
struct InternalError {
    /// Whether it was to emulate an instruction while, as KVM understood it, an event was being delivered.
    is_delivery: bool,
    text: String,
}

fn internal_error(vcpu: &mut VcpuFd) -> InternalError {
    let registers = vcpu.get_regs().unwrap_or_default();
    // SAFETY: the exit was an internal error, and then KVM has filled in this part of the union.
    let internal = unsafe { vcpu.get_kvm_run().__bindgen_anon_1.internal };
    let count = (internal.ndata as usize).min(internal.data.len());
    let text = format!(
        "KVM internal error {}, data {:x?}, rip {:#x}, rax {:#x}, rcx {:#x}, rsi {:#x}, rdi {:#x}",
        internal.suberror,
        &internal.data[..count],
        registers.rip,
        registers.rax,
        registers.rcx,
        registers.rsi,
        registers.rdi
    );
    InternalError {
        is_delivery: internal.suberror == KVM_INTERNAL_ERROR_DELIVERY_EV,
        text,
    }
}

/// Where a processor is, and what it is about to be interrupted by.
fn place(vcpu: &VcpuFd) -> String {
    let (registers, system) = (
        vcpu.get_regs().unwrap_or_default(),
        vcpu.get_sregs().unwrap_or_default(),
    );
    format!(
        "rip {:#x}, rsp {:#x}, rflags {:#x}, cr2 {:#x}, cr3 {:#x}, {:?}",
        registers.rip,
        registers.rsp,
        registers.rflags,
        system.cr2,
        system.cr3,
        vcpu.get_vcpu_events()
    )
}

/// Runs a processor until the VM's life ends.
fn run_vcpu(id: usize, vcpu: &mut VcpuFd, bus: &Bus, end: &End) -> Exit {
    let (mut tries, mut asked) = (0, 0);
    while !end.is_over() {
        if end.asked.load(Ordering::Relaxed) != asked {
            asked = end.asked.load(Ordering::Relaxed);
            warn!("vCPU {id} is at {}", place(vcpu));
        }
        let result = vcpu.run();
        if !matches!(result, Ok(VcpuExit::InternalError)) {
            tries = 0;
        }
        let exit = match result {
            Ok(VcpuExit::MmioRead(address, data)) => {
                bus.read(address, data);
                None
            }
            Ok(VcpuExit::MmioWrite(address, data)) => {
                bus.write(address, data);
                None
            }
            Ok(VcpuExit::IoIn(port, data)) => {
                bus.port_read(port, data);
                None
            }
            Ok(VcpuExit::IoOut(port, data)) => bus.port_write(port, data),
            Ok(VcpuExit::Shutdown | VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_RESET, _)) => {
                error!("vCPU {id} triple-faulted: the VM is reset");
                Some(Exit::Reset)
            }
            Ok(VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _)) => Some(Exit::PowerOff),
            Ok(VcpuExit::Intr) => None,
            Ok(VcpuExit::InternalError) => {
                let error = internal_error(vcpu);
                tries += 1;
                // QEMU's emulation of SVM leaves the type of the last event in EXITINTINFO, marked as not
                // valid, and KVM (since 6.14) looks at the type alone: a guest's first exit after a page
                // fault of its own then cannot be MMIO. Nothing has happened yet, and the next time
                // the field is empty, so asking again does it.
                if error.is_delivery && tries <= DELIVERY_TRIES {
                    debug!("vCPU {id} tries again after {}", error.text);
                    None
                } else {
                    error!("vCPU {id} cannot go on: {}", error.text);
                    Some(Exit::Failed)
                }
            }
            Ok(exit) => {
                error!("vCPU {id} cannot go on: {exit:?}");
                Some(Exit::Failed)
            }
            // A signal, or a processor that waits to be woken.
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => None,
            Err(error) => {
                error!("vCPU {id} cannot go on: KVM_RUN: {error}");
                Some(Exit::Failed)
            }
        };
        if let Some(exit) = exit {
            return exit;
        }
    }
    Exit::Stopped
}

/// Gets a thread out of KVM_RUN.
fn kick(thread: &JoinHandle<()>) {
    if let Err(error) = thread.kill(SIGRTMIN()) {
        debug!("a vCPU's thread cannot be signalled: {error}");
    }
}

/// Gets a thread out of KVM_RUN and waits for its end.
fn kick_and_join(thread: JoinHandle<()>) {
    // A signal that comes just before KVM_RUN is lost, hence again and again.
    while !thread.is_finished() {
        kick(&thread);
        thread::sleep(Duration::from_millis(1));
    }
    if thread.join().is_err() {
        error!("a vCPU's thread has panicked");
    }
}
