//! What somebody else can do to a kernel that holds what it was given, and whether an audit finds it.

use shunt::{
    diff::{
        Differ,
        audit::{Audit, Finding},
    },
    kernel::{fake::FakeKernel, step::Actual},
};
use shunt_common::{
    address::{Address, Prefix},
    net::Port,
    service::{self, Backend, ServiceKey, SourceRange},
};

/// An audit from begin to end.
pub(crate) fn look_over(differ: &Differ, kernel: &FakeKernel) -> Finding {
    let mut audit = Audit::default();
    loop {
        match audit.step(differ, kernel).expect("the fake can always be read") {
            Finding::GoesOn => {}
            finding => return finding,
        }
    }
}

/// A kernel that holds this after everything that somebody could do to it, one thing at a time; host routes are not an audit's business.
pub(crate) fn tampered(held: &Actual) -> Vec<Actual> {
    let mut all = Vec::new();
    let mut after = |tamper: &dyn Fn(&mut Actual)| {
        let mut held = held.clone();
        tamper(&mut held);
        all.push(held);
    };
    for (&addr, &address) in &held.addresses {
        let other = Address { ifindex: 99, ..address };
        after(&|held| {
            held.addresses.remove(&addr);
        });
        after(&|held| {
            held.addresses.insert(addr, other);
        });
    }
    for (&prefix, &route) in &held.routes {
        let longer = Prefix { len: prefix.len + 1, ..prefix };
        after(&|held| {
            held.routes.remove(&prefix);
        });
        after(&|held| {
            held.routes.insert(longer, route);
        });
    }
    for (&key, &service) in &held.services {
        let (other, elsewhere) =
            (service::Service { affinity_secs: 1, ..service }, ServiceKey { port: Port::from_host(9), ..key });
        after(&|held| {
            held.services.remove(&key);
        });
        after(&|held| {
            held.services.insert(key, other);
        });
        after(&|held| {
            held.services.insert(elsewhere, service);
        });
        for slot in service.cluster.slots().chain(service.outside.slots()) {
            after(&|held| {
                held.slots.insert(slot, u32::MAX);
            });
            after(&|held| {
                held.slots.remove(&slot);
            });
        }
    }
    for &range in &held.source_ranges {
        let longer = SourceRange { len: range.len + 1, ..range };
        after(&|held| {
            held.source_ranges.remove(&range);
        });
        after(&|held| {
            held.source_ranges.insert(longer);
        });
    }
    for (&index, &ports) in &held.node_ports {
        after(&|held| {
            held.node_ports.remove(&index);
        });
        after(&|held| {
            held.node_ports.insert(index, !ports);
        });
    }
    for (&id, &backend) in &held.backends {
        let other = Backend { flags: 99, ..backend };
        after(&|held| {
            held.backends.insert(id, other);
        });
        after(&|held| {
            held.backends.insert(id + 1000, other);
        });
    }
    after(&|held| {
        held.node_ports.insert(3071, 1);
    });
    all
}
