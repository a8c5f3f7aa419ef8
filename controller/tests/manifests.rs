//! The manifests, as `cargo xtask manifests` rendered them, say what the agent understands and what the documentation says of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    path::{Path, PathBuf},
};

use k8s_openapi::{
    api::{
        apps::v1::DaemonSet,
        core::v1::{ConfigMap, Container, ServiceAccount},
        rbac::v1::{ClusterRole, ClusterRoleBinding},
    },
    serde::{Serialize, de::DeserializeOwned},
};
use serde_json::Value;
use shunt::config::Config;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Every overlay, and `base`, by name.
fn rendered() -> BTreeMap<String, Manifests> {
    let dir = env::var_os("SHUNT_MANIFESTS").map_or_else(|| root().join("target/manifests"), PathBuf::from);
    let entries = fs::read_dir(&dir).unwrap_or_else(|error| {
        panic!("{}: {error}: run `cargo xtask manifests`, and name where it wrote in SHUNT_MANIFESTS", dir.display())
    });
    let read = |path: PathBuf| {
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        (name.clone(), Manifests::parse(&name, &fs::read_to_string(path).unwrap()))
    };
    entries.map(|entry| read(entry.unwrap().path())).collect()
}

/// The documents of one overlay.
struct Manifests {
    service_account: ServiceAccount,
    role: ClusterRole,
    binding: ClusterRoleBinding,
    configs: Vec<ConfigMap>,
    daemon_set: DaemonSet,
}

impl Manifests {
    fn parse(name: &str, text: &str) -> Self {
        let mut by_kind: BTreeMap<String, Vec<Value>> = BTreeMap::new();
        for document in serde_yaml::Deserializer::from_str(text) {
            let value = <Value as serde::Deserialize>::deserialize(document).unwrap();
            by_kind.entry(value["kind"].as_str().unwrap().to_owned()).or_default().push(value);
        }
        let mut one = |kind: &str| -> Value {
            let found = by_kind.remove(kind).unwrap_or_else(|| panic!("{name} has no {kind}"));
            <[Value; 1]>::try_from(found).unwrap_or_else(|found| panic!("{name} has {} of {kind}", found.len()))[0].clone()
        };
        let manifests = Self {
            service_account: strictly(one("ServiceAccount")),
            role: strictly(one("ClusterRole")),
            binding: strictly(one("ClusterRoleBinding")),
            daemon_set: strictly(one("DaemonSet")),
            configs: by_kind.remove("ConfigMap").unwrap().into_iter().map(strictly).collect(),
        };
        assert!(by_kind.is_empty(), "{name} has kinds that no test knows: {:?}", by_kind.keys());
        manifests
    }

    fn agent(&self) -> &Container {
        let containers = &self.daemon_set.spec.template.spec.as_ref().unwrap().containers;
        assert_eq!(containers.len(), 1);
        &containers[0]
    }

    /// The ConfigMap whose name starts so; a hash of its content ends it.
    fn config(&self, name: &str) -> Option<&BTreeMap<String, String>> {
        let is_it = |config: &&ConfigMap| {
            let full = config.metadata.name.as_deref().unwrap_or_default();
            full.strip_prefix(name).is_some_and(|hash| hash.len() == 11 && hash.starts_with('-'))
        };
        self.configs.iter().find(is_it).and_then(|config| config.data.as_ref())
    }
}

/// A document as its type; a field that the type doesn't know would be lost on the way back.
fn strictly<T: DeserializeOwned + Serialize>(document: Value) -> T {
    let object: T = serde_json::from_value(document.clone()).unwrap_or_else(|error| panic!("{error} in {document:#}"));
    let back = serde_json::to_value(&object).unwrap();
    assert_eq!(back, document, "the types of the API know less than is written (left: what they know)");
    object
}

/// Rows of a table in a page, cell by cell, whose first cell holds code: `| `X` | ... |`.
fn rows(page: &str) -> Vec<Vec<String>> {
    let text = fs::read_to_string(root().join(page)).unwrap_or_else(|error| panic!("{page}: {error}"));
    let cells = |line: &str| line.trim_matches('|').split(" | ").map(|cell| cell.trim().replace('`', "")).collect();
    text.lines().filter(|line| line.starts_with("| `")).map(cells).collect()
}

#[test]
fn every_overlay_renders_and_each_document_is_of_its_type() {
    let names: Vec<_> = rendered().into_keys().collect();
    let mut overlays: Vec<_> = fs::read_dir(root().join("manifests/overlays"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    overlays.push("base".to_owned());
    overlays.sort();
    assert_eq!(names, overlays);
}

#[test]
fn the_agent_understands_its_settings_and_answers_where_it_is_probed() {
    for (name, manifests) in rendered() {
        let text = &manifests.config("shunt").unwrap_or_else(|| panic!("{name} has no settings"))["agent.yaml"];
        let config = Config::parse(text).unwrap_or_else(|error| panic!("{name}: {error}"));
        let agent = manifests.agent();
        for probe in [&agent.startup_probe, &agent.liveness_probe, &agent.readiness_probe] {
            let get = probe
                .as_ref()
                .and_then(|probe| probe.http_get.as_ref())
                .unwrap_or_else(|| panic!("{name}: a probe is missing"));
            let k8s_openapi::apimachinery::pkg::util::intstr::IntOrString::Int(port) = get.port else {
                panic!("a port by name")
            };
            let probed = format!("{}:{port}", get.host.as_deref().unwrap());
            assert_eq!(config.http_listen.map(|listen| listen.to_string()), Some(probed), "{name}");
        }
        for dir in [config.cni_conf_dir, config.cni_bin_dir] {
            let dir = dir.unwrap_or_else(|| panic!("{name}: a CNI directory is not set"));
            assert!(mounts(&manifests).contains_key(dir.to_str().unwrap()), "{name}: {} is not mounted", dir.display());
        }
    }
}

/// Host paths by the path that they are mounted at.
fn mounts(manifests: &Manifests) -> BTreeMap<String, String> {
    let spec = manifests.daemon_set.spec.template.spec.as_ref().unwrap();
    let host_path = |name: &str| {
        let volume = spec.volumes.iter().flatten().find(|volume| volume.name == name).unwrap();
        volume.host_path.as_ref().map(|host| host.path.clone())
    };
    let mounts = manifests.agent().volume_mounts.iter().flatten();
    mounts.filter_map(|mount| Some((mount.mount_path.clone(), host_path(&mount.name)?))).collect()
}

#[test]
fn the_command_line_is_one_that_the_agent_takes() {
    for (name, manifests) in rendered() {
        // A Node's name that cannot be is refused only after everything before it was taken.
        let agent = manifests.agent();
        assert_eq!(agent.command, None, "{name}: the image has its entry point");
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_shunt"));
        command.args(agent.args.as_ref().unwrap()).arg("--help").env_clear();
        let output = command.output().unwrap();
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        let env: BTreeSet<_> = agent.env.iter().flatten().map(|variable| variable.name.as_str()).collect();
        assert_eq!(env, BTreeSet::from(["NODE_NAME"]), "{name}");
    }
}

#[test]
fn privileges_are_those_of_the_documentation() {
    let page = rows("docs/security.md");
    let written = |name: &str| -> Vec<String> {
        let meant = page.iter().filter(|row| name == "takeover" || !row[1].starts_with("takeover only"));
        meant.filter_map(|row| row[0].strip_prefix("CAP_").map(str::to_owned)).collect()
    };
    for (name, manifests) in rendered() {
        let context = manifests.agent().security_context.as_ref().unwrap();
        let capabilities = context.capabilities.as_ref().unwrap();
        assert_eq!(capabilities.add.as_ref(), Some(&written(&name)), "{name}: docs/security.md lists others");
        assert_eq!(capabilities.drop.as_deref(), Some(&["ALL".to_owned()][..]), "{name}");
        assert_eq!((context.privileged, context.allow_privilege_escalation), (Some(false), Some(false)), "{name}");
        assert_eq!(context.read_only_root_filesystem, Some(true), "{name}");
        let spec = manifests.daemon_set.spec.template.spec.as_ref().unwrap();
        assert_eq!((spec.host_network, spec.host_pid, spec.host_ipc), (Some(true), None, None), "{name}");
        assert_eq!(spec.init_containers, None, "{name}");
    }
}

#[test]
fn host_paths_are_those_of_the_documentation() {
    let written: BTreeSet<String> =
        rows("docs/security.md").iter().map(|row| row[0].clone()).filter(|path| path.starts_with('/')).collect();
    let mut used = BTreeSet::new();
    for (name, manifests) in rendered() {
        for path in mounts(&manifests).into_values() {
            assert!(written.contains(&path), "{name} mounts {path}, of which docs/security.md knows nothing");
            used.insert(path);
        }
    }
    assert_eq!(written, used, "docs/security.md has paths that nothing mounts");
}

#[test]
fn verbs_are_those_of_the_documentation() {
    // | `resource` | `group` | `verbs` | why |
    let written: BTreeSet<_> =
        rows("docs/security.md").into_iter().filter(|row| row.len() == 4).map(|row| row[..3].to_vec()).collect();
    for (name, manifests) in rendered() {
        let mut granted = BTreeSet::new();
        for rule in manifests.role.rules.as_ref().unwrap() {
            assert_eq!((&rule.resource_names, &rule.non_resource_urls), (&None, &None), "{name}");
            for group in rule.api_groups.as_ref().unwrap() {
                for resource in rule.resources.as_ref().unwrap() {
                    let group = if group.is_empty() { "core" } else { group };
                    granted.insert(vec![resource.clone(), group.to_owned(), rule.verbs.join(", ")]);
                }
            }
        }
        assert_eq!(granted, written, "{name} (right: docs/security.md)");
        let account = &manifests.binding.subjects.as_ref().unwrap()[0];
        assert_eq!(Some(&account.name), manifests.service_account.metadata.name.as_ref());
        assert_eq!(account.namespace, manifests.service_account.metadata.namespace);
        assert_eq!(Some(&manifests.binding.role_ref.name), manifests.role.metadata.name.as_ref());
    }
}

#[test]
fn what_the_agent_asks_for_is_granted() {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    // | group | `resource` | verbs | for |
    let table = text.lines().skip_while(|line| !line.starts_with("| group |")).skip(2).take_while(|line| line.starts_with('|'));
    let asked: Vec<Vec<String>> =
        table.map(|line| line.trim_matches('|').split('|').map(|cell| cell.trim().replace('`', "")).collect()).collect();
    assert!(!asked.is_empty());
    for (name, manifests) in rendered() {
        for row in &asked {
            let (group, resource) = (if row[0] == "core" { "" } else { &row[0] }, &row[1]);
            let rules = manifests.role.rules.iter().flatten();
            let of_it = rules.filter(|rule| {
                rule.api_groups.iter().flatten().any(|known| known == group)
                    && rule.resources.iter().flatten().any(|known| known == resource)
            });
            let granted: BTreeSet<&str> = of_it.flat_map(|rule| rule.verbs.iter().map(String::as_str)).collect();
            for verb in row[2].split(", ") {
                assert!(granted.contains(verb), "{name} doesn't grant {verb} on {resource}");
            }
        }
    }
}

#[test]
fn the_agent_is_there_first_goes_last_and_waits_for_nobody() {
    for (name, manifests) in rendered() {
        let spec = &manifests.daemon_set.spec;
        let pod = spec.template.spec.as_ref().unwrap();
        assert_eq!(pod.priority_class_name.as_deref(), Some("system-node-critical"), "{name}");
        let everything = pod.tolerations.iter().flatten().any(|t| t.operator.as_deref() == Some("Exists") && t.key.is_none());
        assert!(everything, "{name}: a taint keeps the agent away");
        assert_eq!(pod.dns_policy.as_deref(), Some("Default"), "{name}: the cluster's resolver needs the agent");
        let resources = manifests.agent().resources.as_ref().unwrap();
        assert!(resources.limits.is_none() && resources.requests.is_some(), "{name}");
        let image = manifests.agent().image.as_deref().unwrap();
        assert_eq!(image, concat!("ghcr.io/shunt-net/shunt:", env!("CARGO_PKG_VERSION")), "{name}");
        assert!(spec.update_strategy.as_ref().unwrap().rolling_update.as_ref().unwrap().max_unavailable.is_some(), "{name}");
    }
}

#[test]
fn where_there_is_no_kube_proxy_the_api_server_is_named_by_its_own_address() {
    for (name, manifests) in rendered() {
        let from = &manifests.agent().env_from.as_ref().unwrap()[0].config_map_ref.as_ref().unwrap();
        assert_eq!(from.optional, Some(true));
        let address = manifests.config("shunt-api-server");
        if name == "base" {
            assert!(address.is_none(), "{name}");
            continue;
        }
        let address = address.unwrap_or_else(|| panic!("{name}: without kube-proxy the ClusterIP leads nowhere"));
        let keys: Vec<_> = address.keys().map(String::as_str).collect();
        assert_eq!(keys, ["KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"], "{name}");
        assert!(address["KUBERNETES_SERVICE_PORT"].parse::<u16>().is_ok(), "{name}");
        assert!(from.name.starts_with("shunt-api-server-"), "{name}: the DaemonSet doesn't name the ConfigMap that is there");
    }
}
