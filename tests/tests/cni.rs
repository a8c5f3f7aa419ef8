//! The CNI plugin through the real agent, called as a runtime calls it.
//!
//! ```text
//!   n1 -- pods
//! ```

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use shunt_lab::{
    lab::Lab,
    node::Node,
    pod::{Call, Pod, answer},
    topology::PAIR,
    traffic::ping::ping,
};

fn call<'a>(command: &'a str, pod: &'a Pod, netns: &'a str, extra: Value) -> Call<'a> {
    Call { command, container: &pod.container, netns, pod: &pod.name, extra }
}

/// The error code of a call that must fail.
fn code(node: &Node, call: &Call<'_>) -> Result<u64> {
    let output = call.on(node)?;
    ensure!(!output.status.success(), "{} succeeded", call.command);
    let error: Value = serde_json::from_slice(&output.stdout).context("an error must be JSON on stdout")?;
    ensure!(error["msg"].as_str().is_some_and(|message| !message.is_empty()), "{error}");
    error["code"].as_u64().with_context(|| format!("no code in {error}"))
}

#[test]
fn a_pod_has_its_address_a_route_and_a_permanent_neighbour() -> Result<()> {
    let lab = Lab::build(&PAIR)?;
    let pod = lab.pod("n1", "a")?;
    ensure!(pod.address.octets()[..3] == [10, 244, 1], "{}", pod.address);
    let addresses = pod.netns.ip("-o -4 addr show dev eth0")?;
    ensure!(addresses.contains(&format!("{}/32", pod.address)), "{addresses}");
    let routes = pod.netns.ip("route show default")?;
    ensure!(routes.contains("169.254.1.1") && routes.contains("eth0"), "{routes}");
    let neighbours = pod.netns.ip("neigh show 169.254.1.1")?;
    ensure!(neighbours.contains("PERMANENT"), "{neighbours}");
    let link = pod.netns.ip("-o link show eth0")?;
    ensure!(link.contains("mtu 1450"), "{link}");
    ensure!(pod.result["cniVersion"] == "1.1.0" && pod.result["interfaces"].as_array().is_some_and(|list| list.len() == 2));
    ensure!(ping(&lab.node("n1").netns, pod.address, 2, 0.05, 56)?.received == 2);
    Ok(())
}

#[test]
fn check_passes_until_something_is_changed() -> Result<()> {
    let lab = Lab::build(&PAIR)?;
    let n1 = lab.node("n1");
    let pod = lab.pod("n1", "a")?;
    let netns = pod.netns.path().display().to_string();
    let check = call("CHECK", &pod, &netns, json!({ "prevResult": pod.result }));
    answer(&check.on(n1)?)?;
    pod.netns.ip("route del default")?;
    code(n1, &check)?;
    Ok(())
}

#[test]
fn del_is_idempotent_and_frees_everything_but_not_the_address_at_once() -> Result<()> {
    let lab = Lab::build(&PAIR)?;
    let n1 = lab.node("n1");
    let links = || Ok::<_, anyhow::Error>(n1.netns.ip("-o link show")?.lines().count());
    let before = links()?;
    let pod = lab.pod("n1", "a")?;
    ensure!(links()? == before + 1);
    let address = pod.address;
    let netns = pod.netns.path().display().to_string();
    for _ in 0..3 {
        answer(&call("DEL", &pod, &netns, Value::Null).on(n1)?)?;
    }
    answer(&call("DEL", &pod, "", Value::Null).on(n1)?).context("DEL without a namespace, as after a reboot")?;
    ensure!(links()? == before);
    ensure!(!n1.netns.ip("route show")?.contains(&address.to_string()));
    let next = lab.pod("n1", "b")?;
    ensure!(next.address != address, "an address is not given again at once");
    Ok(())
}

#[test]
fn pods_made_at_once_all_get_different_addresses() -> Result<()> {
    let lab = Lab::build(&PAIR)?;
    let pods: Vec<Result<Pod>> = std::thread::scope(|scope| {
        let makers: Vec<_> = (0..8)
            .map(|number| {
                let lab = &lab;
                scope.spawn(move || lab.pod("n1", &format!("p{number}")))
            })
            .collect();
        makers.into_iter().map(|maker| maker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    });
    let addresses: BTreeSet<_> = pods.into_iter().map(|pod| pod.map(|pod| pod.address)).collect::<Result<_>>()?;
    ensure!(addresses.len() == 8, "{addresses:?}");
    Ok(())
}

#[test]
fn gc_removes_what_the_runtime_does_not_know() -> Result<()> {
    let lab = Lab::build(&PAIR)?;
    let n1 = lab.node("n1");
    let (kept, lost) = (lab.pod("n1", "kept")?, lab.pod("n1", "lost")?);
    let valid = json!({ "cni.dev/valid-attachments": [{ "containerID": kept.container, "ifname": "eth0" }] });
    let gc = Call { command: "GC", container: "", netns: "", pod: "", extra: valid };
    answer(&gc.on(n1)?)?;
    ensure!(ping(&n1.netns, kept.address, 2, 0.05, 56)?.received == 2);
    ensure!(!n1.netns.ip("route show")?.contains(&lost.address.to_string()), "the lost pod is still there");
    Ok(())
}

#[test]
fn status_says_whether_the_agent_is_there() -> Result<()> {
    let mut lab = Lab::build(&PAIR)?;
    let status = Call { command: "STATUS", container: "", netns: "", pod: "", extra: Value::Null };
    answer(&status.on(lab.node("n1"))?)?;
    lab.node_mut("n1").kill_agent()?;
    // Spec 1.1.0: 50, the plugin is not available; 51, and existing containers may have limited connectivity.
    ensure!([50, 51].contains(&code(lab.node("n1"), &status)?));
    Ok(())
}

#[test]
fn add_without_an_agent_asks_to_try_again() -> Result<()> {
    let mut lab = Lab::build(&PAIR)?;
    lab.node_mut("n1").kill_agent()?;
    let n1 = lab.node("n1");
    let netns = n1.netns.create_beside(&format!("{}-late", n1.netns.name()))?;
    let path = netns.path().display().to_string();
    let add = Call { command: "ADD", container: "late", netns: &path, pod: "late", extra: Value::Null };
    ensure!(code(n1, &add)? == 11, "spec: 11, try again later");
    Ok(())
}

#[test]
fn adding_a_second_time_does_not_break_the_first() -> Result<()> {
    let lab = Lab::build(&PAIR)?;
    let n1 = lab.node("n1");
    let pod = lab.pod("n1", "a")?;
    let netns = pod.netns.path().display().to_string();
    let _ = call("ADD", &pod, &netns, Value::Null).on(n1)?;
    ensure!(ping(&n1.netns, pod.address, 2, 0.05, 56)?.received == 2);
    Ok(())
}

#[test]
fn wrong_configurations_are_refused_with_the_codes_of_the_spec() -> Result<()> {
    let lab = Lab::build(&PAIR)?;
    let n1 = lab.node("n1");
    let add =
        |container: &'static str, netns: &'static str, extra: Value| Call { command: "ADD", container, netns, pod: "", extra };
    let here = "/proc/self/ns/net";
    ensure!(code(n1, &add("x", here, json!({ "cniVersion": "0.1.0" })))? == 1, "1: incompatible version");
    ensure!(code(n1, &add("x", "", Value::Null))? == 4, "4: invalid environment");
    ensure!(code(n1, &add("", here, Value::Null))? == 4, "4: invalid environment");
    ensure!(
        code(n1, &add("x", here, json!({ "agentSocket": 7 })))? >= 6,
        "6 or 7: the configuration cannot be decoded or is invalid"
    );
    Ok(())
}
