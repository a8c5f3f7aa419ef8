//! Routes and source ranges, which the kernel keeps in tries: asked for one that is gone, it answers with a shorter one that covers it.

use std::net::Ipv4Addr;

use shunt::{
    compile::Compiler,
    diff::{
        Capacities, Differ,
        audit::{Audit, Finding},
    },
    kernel::{
        fake::{Dangling, FakeKernel},
        step::{Actual, Holding, Kernel, Part, Step},
    },
    model::{Changes, Exposure, Model, Node, Protocol, Service, ServicePort, TunnelEnd},
};
use shunt_common::service::SourceRange;

use crate::{long_runs::slice, name, view};

/// A kernel that shows one entry at a time, and begins anew when the last one that it showed is gone, as a trie does.
struct Trickle(FakeKernel);

impl Kernel for Trickle {
    type Error = Dangling;
    type Cursor = Option<Holding>;

    fn carry_out(&mut self, steps: &[Step]) -> Result<(), (usize, Dangling)> {
        self.0.carry_out(steps)
    }

    fn read_back(&mut self) -> Result<Actual, Dangling> {
        self.0.read_back()
    }

    fn holds(&self, holding: &Holding) -> Result<bool, Dangling> {
        self.0.holds(holding)
    }

    fn walk(&self, part: Part, cursor: &mut Self::Cursor, visit: &mut dyn FnMut(&Holding)) -> Result<bool, Dangling> {
        let mut all = Vec::new();
        self.0.walk(part, &mut (), &mut |holding| all.push(holding.clone()))?;
        let shown = cursor.as_ref().and_then(|last| all.iter().position(|holding| holding == last));
        let Some(next) = all.get(shown.map_or(0, |last| last + 1)) else { return Ok(true) };
        visit(next);
        *cursor = Some(next.clone());
        Ok(false)
    }
}

struct Scene {
    model: Model,
    compiler: Compiler,
    differ: Differ,
    kernel: Trickle,
}

impl Scene {
    /// A load balancer that lets two ranges in of which one covers the other, and some nodes.
    fn new() -> Self {
        let differ = Differ::new(&Actual::default(), Capacities::default());
        let mut scene =
            Self { model: Model::default(), compiler: Compiler::new(view()), differ, kernel: Trickle(FakeKernel::default()) };
        let mut changes = Changes::default();
        scene.model.put_slice(&name("web"), &"web".into(), slice(1, 1..2), &mut changes);
        scene.model.put_service(service(&COVERED), &mut changes);
        (1..4).for_each(|host| scene.model.put_node(node(host), &mut changes));
        scene.follow(&changes);
        let held = scene.kernel.0.held();
        assert_eq!((held.routes.len(), held.source_ranges.len()), (3 + 2, 2), "two routes say what is not masqueraded");
        scene
    }

    /// A node and a range come, or go.
    fn change(&mut self, is_more: bool) {
        let mut changes = Changes::default();
        if is_more {
            self.model.put_node(node(0), &mut changes);
            self.model.put_service(service(&[COVERED[0], COVERED[1], "10.1.0.0/16"]), &mut changes);
        } else {
            self.model.remove_node(&"n100".into(), &mut changes);
            self.model.put_service(service(&COVERED), &mut changes);
        }
        self.follow(&changes);
    }

    fn follow(&mut self, changes: &Changes) {
        let patch = self.compiler.update(&self.model, changes);
        let plan = self.differ.plan(self.compiler.desired(), &patch);
        assert!(!plan.steps.is_empty());
        self.kernel.carry_out(&plan.steps).unwrap();
    }

    /// Removes the longer of the two ranges past everybody.
    fn tamper(&mut self) -> SourceRange<shunt_common::net::V4> {
        let mut held = self.kernel.0.held().clone();
        let longer = *held.source_ranges.iter().find(|range| range.len == 32 + 8).unwrap();
        held.source_ranges.remove(&longer);
        self.kernel.0 = FakeKernel::holding(held);
        longer
    }
}

const COVERED: [&str; 2] = ["0.0.0.0/0", "10.0.0.0/8"];

fn node(host: u8) -> Node {
    let address = Ipv4Addr::new(192, 0, 2, 100 + host);
    Node {
        name: format!("n{}", 100 + host).into(),
        addresses: vec![address.into()],
        pod_cidrs: format!("10.244.{}.0/24", 100 + host).parse().into_iter().collect(),
        tunnel: TunnelEnd { public_ip: Some(address), vtep_mac: None, direct_return: false },
        zone: None,
    }
}

fn service(ranges: &[&str]) -> Service {
    Service {
        name: name("web"),
        created: 0,
        cluster_ips: [Ipv4Addr::new(10, 96, 0, 1).into()].into(),
        ports: vec![ServicePort { name: "http".into(), port: 80, node_port: None, protocol: Protocol::Tcp }].into(),
        exposure: Some(Box::new(Exposure {
            load_balancer_ips: [Ipv4Addr::new(203, 0, 113, 1).into()].into(),
            external_ips: [].into(),
            local: false,
            source_ranges: ranges.iter().filter_map(|range| range.parse().ok()).collect(),
            health_check_port: None,
        })),
        internal_local: false,
        publish_not_ready: false,
        affinity_secs: None,
    }
}

/// Goes on to the end, or for some steps.
fn go_on(audit: &mut Audit<Trickle>, scene: &Scene, steps: usize) -> Finding {
    for _ in 0..steps {
        let finding = audit.step(&scene.differ, &scene.kernel).unwrap();
        if finding != Finding::GoesOn {
            return finding;
        }
    }
    Finding::GoesOn
}

#[test]
fn a_range_that_is_gone_under_one_that_covers_it_is_found_missing() {
    let mut scene = Scene::new();
    assert_eq!(go_on(&mut Audit::default(), &scene, usize::MAX), Finding::AsKnown);
    let gone = scene.tamper();
    assert!(scene.kernel.holds(&Holding::SourceRange(gone)).unwrap(), "the shorter one answers");
    assert_eq!(go_on(&mut Audit::default(), &scene, usize::MAX), Finding::Differs);
}

#[test]
fn what_changes_under_a_walk_is_not_somebody_elses_doing_and_hides_nothing() {
    let mut scene = Scene::new();
    let mut steps = 0;
    while {
        let mut audit = Audit::default();
        let is_under_way = go_on(&mut audit, &scene, steps) == Finding::GoesOn;
        scene.change(steps % 2 == 0);
        if is_under_way {
            assert_eq!(go_on(&mut audit, &scene, usize::MAX), Finding::AsKnown, "changed after {steps} steps");
        }
        is_under_way
    } {
        let mut audit = Audit::default();
        let mut tampered = Scene {
            model: scene.model.clone(),
            compiler: scene.compiler.clone(),
            differ: scene.differ.clone(),
            kernel: Trickle(scene.kernel.0.clone()),
        };
        tampered.tamper();
        if go_on(&mut audit, &tampered, steps) == Finding::GoesOn {
            tampered.change(steps % 2 == 1);
            assert_eq!(go_on(&mut audit, &tampered, usize::MAX), Finding::Differs, "changed after {steps} steps");
        }
        steps += 1;
    }
    assert!(steps > 20, "{steps} steps reach into every walk");
}

#[test]
fn an_audit_among_changes_without_end_comes_to_its_own() {
    let mut scene = Scene::new();
    let mut audit = Audit::default();
    for round in 0..1000 {
        if go_on(&mut audit, &scene, 1) != Finding::GoesOn {
            return;
        }
        scene.change(round % 2 == 0);
    }
    panic!("it goes on for ever");
}
