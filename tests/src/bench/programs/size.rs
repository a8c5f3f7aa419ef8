//! How large a program is to the kernel: what it verified, what it made of that, how deep the stack may get.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use aya::{
    Ebpf, EbpfLoader, VerifierLogLevel,
    programs::{Program, ProgramError},
};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};
use shunt::kernel::{programs::OBJECT, skb::SkbAccess};

use crate::test_run::dataplane::Dataplane;

/// The size of a program, functions that it calls included.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Size {
    /// Instructions that the verifier walked, on all paths.
    pub(super) verified: u32,
    /// Instructions that it left, its own rewriting and inlining included.
    pub(super) translated: u32,
    /// Bytes of machine code.
    pub(super) machine_code: u32,
    /// Bytes of stack of the program and of each function, in the object's order.
    pub(super) stack: Vec<u32>,
}

/// Every program of the object, by its name, as it is for a node of the packet tests.
///
/// Nothing else may open a file in this process at the same time: see [`verifier_logs`].
///
/// # Errors
/// The kernel refuses a program, or doesn't tell of it.
pub(super) fn all() -> Result<BTreeMap<String, Size>> {
    let (node, skb) = (Dataplane::node(1), SkbAccess::of_this_kernel()?);
    let mut loader = EbpfLoader::new();
    loader.override_global("NODE", &node, true);
    loader.override_global("SKB", skb.layout(), true).override_global("SOCK", skb.sock(), true);
    let mut ebpf = loader.verifier_log_level(VerifierLogLevel::STATS).load(&skb.patch(OBJECT))?;
    let stacks = stacks(&mut ebpf)?;
    ebpf.programs_mut().map(|(name, program)| Ok((name.to_owned(), size(name, program, &stacks)?))).collect()
}

fn size(name: &str, program: &mut Program, stacks: &BTreeMap<String, Vec<u32>>) -> Result<Size> {
    load(program).with_context(|| name.to_owned())?;
    let info = program.info().with_context(|| name.to_owned())?;
    // struct bpf_insn has eight bytes.
    let translated = info.size_translated().map(|bytes| bytes / 8);
    Ok(Size {
        verified: info
            .verified_instruction_count()
            .context("the kernel doesn't count verified instructions (Linux 5.16 does)")?,
        translated: translated.context("the kernel doesn't say how long programs are")?,
        machine_code: info.size_jitted(),
        stack: stacks.get(name).cloned().unwrap_or_default(),
    })
}

fn load(program: &mut Program) -> Result<(), ProgramError> {
    match program {
        Program::SchedClassifier(program) => program.load(),
        Program::Xdp(program) => program.load(),
        Program::CgroupSockAddr(program) => program.load(),
        Program::CgroupSock(program) => program.load(),
        other => panic!("programs of type {:?} are not loaded here", other.prog_type()),
    }
}

/// Stack depths, which the kernel tells in the verifier's log alone.
fn stacks(ebpf: &mut Ebpf) -> Result<BTreeMap<String, Vec<u32>>> {
    let logs = verifier_logs(ebpf)?;
    logs.into_iter()
        .map(|(name, log)| {
            let line = log.lines().find_map(|line| line.strip_prefix("stack depth "));
            let depths =
                line.context("the verifier's log tells of no stack depth")?.split('+').map(|depth| Ok(depth.trim().parse()?));
            Ok((name, depths.collect::<Result<_>>()?))
        })
        .collect()
}

/// What the verifier says of each program.
///
/// aya keeps the log of a program that is refused and drops that of one that is not. So a program is verified to its end and refused at the very
/// last step, where the kernel gives it a file descriptor: by a limit of none for this process.
fn verifier_logs(ebpf: &mut Ebpf) -> Result<BTreeMap<String, String>> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, 0, hard)?;
    let outcomes: Vec<_> = ebpf.programs_mut().map(|(name, program)| (name.to_owned(), load(program))).collect();
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard)?;
    outcomes
        .into_iter()
        .map(|(name, outcome)| match outcome {
            Err(ProgramError::LoadError { io_error, verifier_log }) if io_error.raw_os_error() == Some(libc::EMFILE) => {
                Ok((name, verifier_log.to_string()))
            }
            Err(error) => Err(error).context(name),
            Ok(()) => bail!("{name} was loaded without a file descriptor"),
        })
        .collect()
}
