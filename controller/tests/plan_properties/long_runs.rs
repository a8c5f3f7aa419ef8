//! Runs of slots that are too long for one step of an audit: looked over in lots, whatever changes between two of them.

use std::{cell::Cell, net::Ipv4Addr};

use shunt::{
    compile::{Compiler, NodeView},
    config::LoadBalancer,
    diff::{
        Capacities, Differ,
        audit::{Audit, Finding, LOT},
    },
    kernel::{
        fake::{Dangling, FakeKernel},
        step::{Actual, Holding, Kernel, Part, Step},
    },
    model::{Changes, Endpoint, EndpointPort, EndpointSlice, Model, Protocol, Service, ServicePort},
};

use crate::{name, view};

/// Enough for a run of more than a lot, and for a Maglev table of 16,381 slots.
const ENDPOINTS: u8 = 250;

/// A kernel that counts the entries it is asked for.
#[derive(Default)]
struct Metered {
    kernel: FakeKernel,
    asked: Cell<usize>,
}

impl Kernel for Metered {
    type Error = Dangling;
    type Cursor = ();

    fn carry_out(&mut self, steps: &[Step]) -> Result<(), (usize, Dangling)> {
        self.kernel.carry_out(steps)
    }

    fn read_back(&mut self) -> Result<Actual, Dangling> {
        self.kernel.read_back()
    }

    fn holds(&self, holding: &Holding) -> Result<bool, Dangling> {
        let entries = if let Holding::Slots(_, ids) = holding { ids.len() } else { 1 };
        self.asked.set(self.asked.get() + entries);
        self.kernel.holds(holding)
    }

    fn walk(&self, part: Part, cursor: &mut (), visit: &mut dyn FnMut(&Holding)) -> Result<bool, Dangling> {
        self.kernel.walk(part, cursor, visit)
    }
}

/// A Service among others, with the endpoints from a first one on.
struct Scene {
    model: Model,
    compiler: Compiler,
    differ: Differ,
    kernel: Metered,
}

impl Scene {
    fn new(load_balancer: LoadBalancer) -> Self {
        let mut model = Model::default();
        let mut changes = Changes::default();
        for (service, last) in [("a", 1), ("b", 2), ("c", 3)] {
            model.put_service(
                Service {
                    name: name(service),
                    created: 0,
                    cluster_ips: [Ipv4Addr::new(10, 96, 0, last).into()].into(),
                    ports: vec![ServicePort { name: "http".into(), port: 80, node_port: None, protocol: Protocol::Tcp }].into(),
                    exposure: None,
                    internal_local: false,
                    publish_not_ready: false,
                    affinity_secs: None,
                },
                &mut changes,
            );
            let count = if service == "b" { ENDPOINTS } else { 3 };
            model.put_slice(&name(service), &service.into(), slice(last, 0..count), &mut changes);
        }
        // Twice the addresses, so that it is more than one lot without Maglev too.
        model.put_slice(&name("b-more"), &"b".into(), slice(9, 0..ENDPOINTS), &mut changes);
        let mut compiler = Compiler::new(NodeView { load_balancer, ..view() });
        let differ = Differ::new(&Actual::default(), Capacities::default());
        let patch = compiler.update(&model, &changes);
        let mut scene = Self { model, compiler, differ, kernel: Metered::default() };
        let plan = scene.differ.plan(scene.compiler.desired(), &patch);
        scene.kernel.carry_out(&plan.steps).unwrap();
        scene
    }

    /// Endpoints of the long run come and go.
    fn change(&mut self, first: u8) {
        self.put(slice(2, first..ENDPOINTS));
    }

    /// The endpoints stay, and turn out to be this node's: what is written of them has nothing to do with slots.
    fn place_here(&mut self) {
        let mut here = slice(2, 0..ENDPOINTS);
        here.endpoints.iter_mut().for_each(|endpoint| endpoint.node = Some("n0".into()));
        let steps = self.put(here);
        assert!(steps.iter().all(|step| matches!(step, Step::PutBackend { .. })), "{steps:?}");
    }

    fn put(&mut self, slice: EndpointSlice) -> Vec<Step> {
        let mut changes = Changes::default();
        self.model.put_slice(&name("b"), &"b".into(), slice, &mut changes);
        let patch = self.compiler.update(&self.model, &changes);
        let plan = self.differ.plan(self.compiler.desired(), &patch);
        assert!(!plan.steps.is_empty());
        self.kernel.carry_out(&plan.steps).unwrap();
        plan.steps
    }
}

/// Ready endpoints at 10.244.`net`.`hosts`.
pub(crate) fn slice(net: u8, hosts: std::ops::Range<u8>) -> EndpointSlice {
    let endpoint = |host| Endpoint {
        address: Ipv4Addr::new(10, 244, net, host).into(),
        ready: true,
        serving: true,
        terminating: false,
        node: None,
        hints: None,
    };
    EndpointSlice {
        ports: vec![EndpointPort { name: "http".into(), port: 8080, protocol: Protocol::Tcp }].into(),
        endpoints: hosts.map(endpoint).collect(),
    }
}

/// Goes on to the end, or for some steps.
fn go_on(audit: &mut Audit<Metered>, scene: &Scene, steps: usize) -> Finding {
    for _ in 0..steps {
        scene.kernel.asked.set(0);
        let finding = audit.step(&scene.differ, &scene.kernel).unwrap();
        let asked = scene.kernel.asked.get();
        assert!(asked < 2 * LOT, "{asked} entries in one step");
        if finding != Finding::GoesOn {
            return finding;
        }
    }
    Finding::GoesOn
}

const BOTH: [(LoadBalancer, u32); 2] = [(LoadBalancer::Random, 2 * ENDPOINTS as u32), (LoadBalancer::Maglev, 16_381)];

#[test]
fn a_long_run_is_looked_over_in_lots_and_each_slot_of_it() {
    for (load_balancer, count) in BOTH {
        let mut scene = Scene::new(load_balancer);
        assert_eq!(go_on(&mut Audit::default(), &scene, usize::MAX), Finding::AsKnown);
        let held = scene.kernel.kernel.held().clone();
        let run = held.services.values().map(|service| service.cluster).max_by_key(|run| run.count).unwrap();
        assert_eq!(run.count, count);
        for slot in [run.base, run.base + LOT as u32 - 1, run.base + LOT as u32, run.base + count - 1] {
            let mut tampered = held.clone();
            tampered.slots.insert(slot, u32::MAX);
            scene.kernel.kernel = FakeKernel::holding(tampered);
            assert_eq!(go_on(&mut Audit::default(), &scene, usize::MAX), Finding::Differs, "slot {slot}");
        }
    }
}

#[test]
fn a_run_that_changes_under_an_audit_is_not_taken_for_somebody_elses_doing() {
    for (load_balancer, _) in BOTH {
        let mut scene = Scene::new(load_balancer);
        let mut met = 0;
        for before in 0..100 {
            let mut audit = Audit::default();
            if go_on(&mut audit, &scene, before) != Finding::GoesOn {
                break;
            }
            if audit.is_unprepared() {
                met += 1;
                audit.prepare();
                assert!(!audit.is_unprepared());
            }
            scene.change(1 + before as u8 % 2);
            assert_eq!(go_on(&mut audit, &scene, usize::MAX), Finding::AsKnown, "changed after {before} steps");
        }
        assert_eq!(met, 1, "one group has a long run");
    }
}

#[test]
fn a_run_that_is_kept_by_a_change_is_looked_over_to_its_end() {
    for (load_balancer, _) in BOTH {
        let mut scene = Scene::new(load_balancer);
        let mut audit = Audit::default();
        while !audit.is_unprepared() {
            assert_eq!(go_on(&mut audit, &scene, 1), Finding::GoesOn);
        }
        assert_eq!(go_on(&mut audit, &scene, 1), Finding::GoesOn, "its first lot");
        scene.place_here();
        let mut held = scene.kernel.kernel.held().clone();
        let run = held.services.values().map(|service| service.cluster).max_by_key(|run| run.count).unwrap();
        held.slots.insert(run.slots().end - 1, u32::MAX);
        scene.kernel.kernel = FakeKernel::holding(held);
        assert_eq!(go_on(&mut audit, &scene, usize::MAX), Finding::Differs);
    }
}
