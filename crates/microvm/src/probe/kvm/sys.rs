//! The child that talks to `/dev/kvm`, and the guest it runs.
//!
//! The child is a fork without an exec: it only makes system calls (and small allocations, which glibc allows after
//! `fork`), touches nothing of its parent's, and leaves by `_exit`. The machine belongs to its address space, so nothing
//! of it outlives the child.

#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, pidfd_open, pidfd_send_signal, waitpid};

use super::Stage;

/// What the child says, once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Answer {
    /// The [`Stage`] that failed, or that all is done.
    pub(super) stage: u8,
    pub(super) errno: i32,
    pub(super) version: i32,
    /// Rounds the guest made.
    pub(super) rounds: u64,
    /// Processor time they took.
    pub(super) nanoseconds: u64,
}

const SIZE: usize = 25;

impl Answer {
    fn to_bytes(self) -> [u8; SIZE] {
        let mut bytes = [0; SIZE];
        bytes[0] = self.stage;
        bytes[1..5].copy_from_slice(&self.errno.to_ne_bytes());
        bytes[5..9].copy_from_slice(&self.version.to_ne_bytes());
        bytes[9..17].copy_from_slice(&self.rounds.to_ne_bytes());
        bytes[17..].copy_from_slice(&self.nanoseconds.to_ne_bytes());
        bytes
    }

    fn from_bytes(bytes: [u8; SIZE]) -> Answer {
        let four = |at: usize| i32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        let eight = |at: usize| {
            let mut number = [0; 8];
            number.copy_from_slice(&bytes[at..at + 8]);
            u64::from_ne_bytes(number)
        };
        Answer {
            stage: bytes[0],
            errno: four(1),
            version: four(5),
            rounds: eight(9),
            nanoseconds: eight(17),
        }
    }
}

/// Runs the guest in a child for at most `longest`; `None` if the child says nothing within `patience`.
pub(super) fn ask(rounds: u64, longest: Duration, patience: Duration) -> io::Result<Option<Answer>> {
    in_child(patience, || {
        // SAFETY: this is the child, whose signals and timers are its own.
        unsafe { interrupt_after(longest) };
        let mut answer = Answer::default();
        let mut stage = Stage::Open;
        match attempt(rounds, &mut stage, &mut answer) {
            Ok(()) => answer.stage = Stage::Done as u8,
            Err(error) => {
                answer.stage = stage as u8;
                answer.errno = error.errno();
            }
        }
        answer
    })
}

/// A child that never answers, for the test of giving it up.
#[cfg(test)]
pub(super) fn hang(patience: Duration) -> io::Result<Option<Answer>> {
    in_child(patience, || {
        loop {
            std::thread::sleep(Duration::from_secs(1));
        }
    })
}

/// Forks, lets the child work out an answer, and waits for it until `patience` is over. The child is dead afterwards,
/// unless the kernel does not let go of it: then it is left behind rather than waited for.
fn in_child(patience: Duration, work: impl FnOnce() -> Answer) -> io::Result<Option<Answer>> {
    let begin = Instant::now();
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    // SAFETY: the child runs `work`, which makes system calls and allocations only; glibc keeps malloc usable after a fork
    // of a process with threads. It shares no lock with the parent's other threads and never returns from here.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let bytes = work().to_bytes();
            let _ = rustix::io::write(&writer, &bytes);
            // SAFETY: _exit(2) has no preconditions; nothing of the parent's is flushed or run.
            unsafe { libc::_exit(0) }
        }
        pid => {
            drop(writer);
            let pid = Pid::from_raw(pid).ok_or_else(|| io::Error::other("fork gave no pid"))?;
            await_child(pid, reader, patience.saturating_sub(begin.elapsed()))
        }
    }
}

fn await_child(pid: Pid, reader: OwnedFd, patience: Duration) -> io::Result<Option<Answer>> {
    let child = pidfd_open(pid, PidfdFlags::empty())?;
    let answered = readable(&reader, patience);
    let mut bytes = [0; SIZE];
    let answer =
        (answered && File::from(reader).read_exact(&mut bytes).is_ok()).then(|| Answer::from_bytes(bytes));
    // A child that answered is leaving; taking a machine down may take a while, and is not worth waiting for.
    let _ = pidfd_send_signal(&child, Signal::KILL);
    if readable(&child, Duration::from_millis(10)) {
        let _ = waitpid(Some(pid), WaitOptions::NOHANG);
    } else {
        // Reaped when it goes, or by whoever inherits it.
        let reaper = std::thread::Builder::new().name("kvm probe".to_owned());
        let _ = reaper.spawn(move || waitpid(Some(pid), WaitOptions::empty()).is_ok());
    }
    Ok(answer)
}

fn readable(fd: &impl AsFd, patience: Duration) -> bool {
    let timeout = Timespec {
        tv_sec: patience.as_secs() as i64,
        tv_nsec: i64::from(patience.subsec_nanos()),
    };
    let mut fds = [PollFd::new(fd, PollFlags::IN)];
    poll(&mut fds, Some(&timeout)).is_ok_and(|ready| ready > 0)
}

/// Has SIGALRM end the running system call after a while.
///
/// # Safety
/// Changes the process' signal handling; only for a child of its own.
unsafe fn interrupt_after(longest: Duration) {
    extern "C" fn nothing(_: libc::c_int) {}
    let handler: extern "C" fn(libc::c_int) = nothing;
    let timer = libc::itimerval {
        // Again and again, should the first one come just before the guest is entered.
        it_interval: libc::timeval {
            tv_sec: 0,
            tv_usec: 5000,
        },
        it_value: libc::timeval {
            tv_sec: longest.as_secs() as libc::time_t,
            tv_usec: longest.subsec_micros() as libc::suseconds_t,
        },
    };
    // SAFETY: both structures are valid for the calls; the handler does nothing, so it is async-signal-safe. Without
    // SA_RESTART the call that runs the guest comes back with EINTR.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as libc::sighandler_t;
        libc::sigaction(libc::SIGALRM, &raw const action, std::ptr::null_mut());
        let mut signals: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut signals);
        libc::sigaddset(&raw mut signals, libc::SIGALRM);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const signals, std::ptr::null_mut());
        libc::setitimer(libc::ITIMER_REAL, &raw const timer, std::ptr::null_mut());
    }
}

type Attempt<T> = Result<T, kvm_ioctls::Error>;

fn attempt(rounds: u64, stage: &mut Stage, answer: &mut Answer) -> Attempt<()> {
    let kvm = open()?;
    *stage = Stage::Version;
    answer.version = kvm.get_api_version();
    if answer.version != 12 {
        return Err(kvm_ioctls::Error::new(libc::ENOTSUP));
    }
    *stage = Stage::CreateMachine;
    let machine = kvm.create_vm()?;
    *stage = Stage::Memory;
    let memory = Memory::new()?;
    memory.put(guest::CODE_AT, &guest::CODE);
    guest::prepare_memory(&memory);
    memory.attach(&machine)?;
    *stage = Stage::CreateProcessor;
    let mut processor = machine.create_vcpu(0)?;
    *stage = Stage::Registers;
    guest::prepare_processor(&kvm, &machine, &processor, rounds)?;
    *stage = Stage::Run;
    let begin = processor_time();
    match processor.run() {
        // The guest's own end, whichever way its architecture tells it.
        Ok(_) => {}
        Err(error) if error.errno() == libc::EINTR => {}
        Err(error) => return Err(error),
    }
    answer.nanoseconds = processor_time().saturating_sub(begin);
    answer.rounds = rounds.saturating_sub(guest::left(&processor)?);
    Ok(())
}

fn open() -> Attempt<Kvm> {
    let file = File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .map_err(|e| kvm_ioctls::Error::new(e.raw_os_error().unwrap_or(libc::EIO)))?;
    // SAFETY: the descriptor was just opened and is given away here; the type is a wrapper round it.
    Ok(unsafe { Kvm::from_raw_fd(std::os::fd::IntoRawFd::into_raw_fd(file)) })
}

/// What this thread has used of the processor, in nanoseconds; what a guest runs counts to it.
fn processor_time() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// The guest's memory. Never unmapped: the child ends.
struct Memory {
    start: *mut u8,
}

impl Memory {
    const SIZE: usize = 64 << 10;

    fn new() -> Attempt<Memory> {
        // SAFETY: a new private mapping where the kernel chooses touches no memory that exists.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                Memory::SIZE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(kvm_ioctls::Error::last());
        }
        Ok(Memory { start: start.cast() })
    }

    fn put(&self, at: usize, bytes: &[u8]) {
        assert!(
            at + bytes.len() <= Memory::SIZE,
            "the guest's layout is a constant"
        );
        // SAFETY: the mapping is `SIZE` bytes long, which was just checked, and no reference into it exists.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.start.add(at), bytes.len()) };
    }

    fn attach(&self, machine: &VmFd) -> Attempt<()> {
        let region = kvm_userspace_memory_region {
            slot: 0,
            flags: 0,
            guest_phys_addr: guest::MEMORY_AT,
            memory_size: Memory::SIZE as u64,
            userspace_addr: self.start as u64,
        };
        // SAFETY: the region is the mapping above, which lives as long as the process.
        unsafe { machine.set_user_memory_region(region) }
    }
}

/// Counts a register down in 64-bit mode and halts.
#[cfg(target_arch = "x86_64")]
mod guest {
    use super::{Attempt, Kvm, Memory, VcpuFd, VmFd};

    pub(super) const MEMORY_AT: u64 = 0;
    pub(super) const CODE_AT: usize = 0x4000;
    /// `loop: dec rcx; jnz loop; hlt`
    pub(super) const CODE: [u8; 6] = [0x48, 0xff, 0xc9, 0x75, 0xfb, 0xf4];

    /// Three tables that map the first two megabytes to themselves (Intel SDM 3A, 4.5.4): present, writable, and the last
    /// one a large page.
    pub(super) fn prepare_memory(memory: &Memory) {
        memory.put(0x1000, &0x2003u64.to_le_bytes());
        memory.put(0x2000, &0x3003u64.to_le_bytes());
        memory.put(0x3000, &0x0083u64.to_le_bytes());
    }

    pub(super) fn prepare_processor(kvm: &Kvm, _: &VmFd, processor: &VcpuFd, rounds: u64) -> Attempt<()> {
        let features = kvm.get_supported_cpuid(kvm_bindings::KVM_MAX_CPUID_ENTRIES)?;
        processor.set_cpuid2(&features)?;
        let mut special = processor.get_sregs()?;
        special.cr3 = 0x1000;
        // PAE; protection, numeric errors, extension type and paging; long mode enabled and active.
        special.cr4 = 1 << 5;
        special.cr0 = 1 | 1 << 4 | 1 << 5 | 1 << 31;
        special.efer = 1 << 8 | 1 << 10;
        let mut segment = special.cs;
        segment.base = 0;
        segment.limit = 0xffff_ffff;
        segment.present = 1;
        segment.dpl = 0;
        segment.s = 1;
        segment.g = 1;
        segment.db = 0;
        segment.l = 1;
        segment.type_ = 11;
        segment.selector = 8;
        special.cs = segment;
        segment.l = 0;
        segment.db = 1;
        segment.type_ = 3;
        segment.selector = 16;
        special.ds = segment;
        special.es = segment;
        special.fs = segment;
        special.gs = segment;
        special.ss = segment;
        processor.set_sregs(&special)?;
        let mut registers = processor.get_regs()?;
        registers.rip = CODE_AT as u64;
        registers.rcx = rounds;
        registers.rflags = 2;
        processor.set_regs(&registers)
    }

    pub(super) fn left(processor: &VcpuFd) -> Attempt<u64> {
        Ok(processor.get_regs()?.rcx)
    }
}

/// Counts a register down and writes where no memory is.
#[cfg(target_arch = "aarch64")]
mod guest {
    use super::{Attempt, Kvm, Memory, VcpuFd, VmFd};

    pub(super) const MEMORY_AT: u64 = 0x4000_0000;
    pub(super) const CODE_AT: usize = 0;
    /// `loop: subs x0, x0, #1; b.ne loop; str x0, [x1]`
    pub(super) const CODE: [u8; 12] = [
        0x00, 0x04, 0x00, 0xf1, 0xe1, 0xff, 0xff, 0x54, 0x20, 0x00, 0x00, 0xf9,
    ];

    /// `KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE`, then the register's place in `struct kvm_regs`.
    const CORE: u64 = 0x6030_0000_0010_0000;
    const X0: u64 = CORE;
    const PROGRAM_COUNTER: u64 = CORE + 64;
    /// `ARM64_SYS_REG(3, 0, 1, 0, 0)`.
    const SCTLR_EL1: u64 = 0x6030_0000_0013_c080;

    pub(super) fn prepare_memory(_: &Memory) {}

    pub(super) fn prepare_processor(_: &Kvm, machine: &VmFd, processor: &VcpuFd, rounds: u64) -> Attempt<()> {
        let mut kind = kvm_bindings::kvm_vcpu_init::default();
        machine.get_preferred_target(&mut kind)?;
        processor.vcpu_init(&kind)?;
        // Instructions are cached though the MMU is off: its reset value, and the bit I.
        processor.set_one_reg(SCTLR_EL1, &(0x30c5_0830u64 | 1 << 12).to_le_bytes())?;
        processor.set_one_reg(X0, &rounds.to_le_bytes())?;
        processor.set_one_reg(PROGRAM_COUNTER, &MEMORY_AT.to_le_bytes())?;
        Ok(())
    }

    pub(super) fn left(processor: &VcpuFd) -> Attempt<u64> {
        let mut bytes = [0; 8];
        processor.get_one_reg(X0, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }
}
