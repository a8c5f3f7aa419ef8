//! Rules of legacy iptables, written by the real program into a network namespace of the test's own. Needs root and `iptables-legacy`.

use std::{process::Command, thread};

use nix::sched::{CloneFlags, unshare};
use shunt::kernel::xtables;

#[test]
fn tables_of_legacy_iptables_are_searched_for_a_name() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    let body = || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        iptables("-t nat -N KUBE-SERVICES");
        iptables("-t nat -A PREROUTING -j KUBE-SERVICES");
        iptables("-t filter -N OTHERS");
        assert_eq!(xtables::tables_with("KUBE-").unwrap(), ["nat"]);
        assert_eq!(xtables::tables_with("OTHERS").unwrap(), ["filter"]);
        assert!(xtables::tables_with("NOBODYS").unwrap().is_empty());
    };
    if let Err(panic) = thread::spawn(body).join() {
        std::panic::resume_unwind(panic);
    }
}

fn iptables(arguments: &str) {
    // Where root's programs are: not every caller's PATH says so.
    let output = Command::new("/usr/sbin/iptables-legacy").args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "iptables-legacy {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}
