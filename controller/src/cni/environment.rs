//! What the runtime says in environment variables.

use std::{ffi::OsString, path::PathBuf};

use super::protocol::{CniError, code};
use crate::attachment::{AttachmentKey, KeyError, PodIdentity};

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Add,
    Del,
    Check,
    Gc,
    Status,
    Version,
}

/// The variables that the command needs, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Environment {
    pub(super) command: Command,
    /// For ADD, DEL and CHECK.
    attachment: Option<AttachmentKey>,
    netns: Option<PathBuf>,
    /// From `CNI_ARGS`.
    pub(super) pod: PodIdentity,
}

impl Environment {
    /// Reads variables through `get`. `CNI_PATH` is not asked for: this plugin delegates to no other.
    pub(super) fn read(get: impl Fn(&str) -> Option<OsString>) -> Result<Self, CniError> {
        let text = |name: &str| match get(name).map(OsString::into_string) {
            None => Ok(String::new()),
            Some(Ok(value)) => Ok(value),
            Some(Err(_)) => Err(invalid(name, "is not UTF-8")),
        };
        let word = text("CNI_COMMAND")?;
        let command = match word.as_str() {
            "ADD" => Command::Add,
            "DEL" => Command::Del,
            "CHECK" => Command::Check,
            "GC" => Command::Gc,
            "STATUS" => Command::Status,
            "VERSION" => Command::Version,
            _ => return Err(invalid("CNI_COMMAND", &format!("is {word:?}, not ADD, DEL, CHECK, GC, STATUS or VERSION"))),
        };
        let mut environment = Self { command, attachment: None, netns: None, pod: PodIdentity::default() };
        if !matches!(command, Command::Add | Command::Del | Command::Check) {
            return Ok(environment);
        }
        let (id, ifname, netns) = (text("CNI_CONTAINERID")?, text("CNI_IFNAME")?, text("CNI_NETNS")?);
        let needs_netns = command != Command::Del;
        let missing: Vec<&str> = [
            ("CNI_CONTAINERID", id.is_empty()),
            ("CNI_IFNAME", ifname.is_empty()),
            ("CNI_NETNS", needs_netns && netns.is_empty()),
        ]
        .into_iter()
        .filter_map(|(name, is_missing)| is_missing.then_some(name))
        .collect();
        if !missing.is_empty() {
            return Err(CniError::new(
                code::ENVIRONMENT,
                format!("required environment variables are missing: {}", missing.join(", ")),
            ));
        }
        environment.attachment = Some(AttachmentKey::new(id, ifname).map_err(|error| match &error {
            KeyError::ContainerId(_) => invalid("CNI_CONTAINERID", &format!("is refused: {error}")),
            KeyError::Ifname(_) => invalid("CNI_IFNAME", &format!("is refused: {error}")),
        })?);
        if needs_netns && !netns.starts_with('/') {
            return Err(invalid(
                "CNI_NETNS",
                &format!("is {netns:?}, not an absolute path like /run/netns/NAME or /proc/PID/ns/net"),
            ));
        }
        environment.netns = (!netns.is_empty()).then(|| netns.into());
        if command == Command::Add {
            environment.pod = identity(&text("CNI_ARGS")?)?;
        }
        Ok(environment)
    }

    /// The attachment; present for every command that has one.
    pub(super) fn attachment(&self) -> Result<&AttachmentKey, CniError> {
        self.attachment.as_ref().ok_or_else(|| invalid("CNI_CONTAINERID", "is missing"))
    }

    /// The pod's namespace; present for ADD and CHECK.
    pub(super) fn netns(&self) -> Result<&PathBuf, CniError> {
        self.netns.as_ref().ok_or_else(|| invalid("CNI_NETNS", "is missing"))
    }
}

/// What Kubernetes' runtimes add: `K8S_POD_NAMESPACE=...;K8S_POD_NAME=...;K8S_POD_UID=...`. Other keys are others' business.
fn identity(args: &str) -> Result<PodIdentity, CniError> {
    let mut pod = PodIdentity::default();
    for pair in args.split(';').filter(|pair| !pair.is_empty()) {
        let Some((key, value)) = pair.split_once('=') else {
            return Err(invalid("CNI_ARGS", &format!("has {pair:?}, which is not KEY=VALUE")));
        };
        match key {
            "K8S_POD_NAMESPACE" => value.clone_into(&mut pod.namespace),
            "K8S_POD_NAME" => value.clone_into(&mut pod.name),
            "K8S_POD_UID" => value.clone_into(&mut pod.uid),
            _ => {}
        }
    }
    Ok(pod)
}

fn invalid(name: &str, problem: &str) -> CniError {
    CniError::new(code::ENVIRONMENT, format!("the environment variable {name} {problem}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Environment, CniError> {
        Environment::read(|name| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value)))
    }

    #[test]
    fn a_kubelets_add_is_understood() {
        let environment = read(&[
            ("CNI_COMMAND", "ADD"),
            ("CNI_CONTAINERID", "c1"),
            ("CNI_IFNAME", "eth0"),
            ("CNI_NETNS", "/run/netns/x"),
            (
                "CNI_ARGS",
                "IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=c1;K8S_POD_UID=u-1",
            ),
        ])
        .unwrap();
        assert_eq!(environment.command, Command::Add);
        assert_eq!(environment.attachment().unwrap(), &AttachmentKey::new("c1", "eth0").unwrap());
        assert_eq!(environment.netns().unwrap().to_str(), Some("/run/netns/x"));
        let pod = PodIdentity { namespace: "ns".to_owned(), name: "web-0".to_owned(), uid: "u-1".to_owned() };
        assert_eq!(environment.pod, pod);
    }

    #[test]
    fn a_delete_needs_no_namespace_and_a_version_nothing() {
        read(&[("CNI_COMMAND", "DEL"), ("CNI_CONTAINERID", "c1"), ("CNI_IFNAME", "eth0"), ("CNI_ARGS", "nonsense")]).unwrap();
        for command in ["VERSION", "GC", "STATUS"] {
            read(&[("CNI_COMMAND", command)]).unwrap();
        }
    }

    #[test]
    fn what_is_missing_or_wrong_is_named_with_code_4() {
        let base = [("CNI_COMMAND", "ADD"), ("CNI_CONTAINERID", "c1"), ("CNI_IFNAME", "eth0"), ("CNI_NETNS", "/run/netns/x")];
        for (name, value, expected) in [
            ("CNI_COMMAND", "", "CNI_COMMAND"),
            ("CNI_COMMAND", "add", "CNI_COMMAND is \"add\""),
            ("CNI_CONTAINERID", "", "missing: CNI_CONTAINERID"),
            ("CNI_CONTAINERID", "../c1", "CNI_CONTAINERID is refused"),
            ("CNI_IFNAME", "", "missing: CNI_IFNAME"),
            ("CNI_IFNAME", "a/b", "CNI_IFNAME is refused"),
            ("CNI_IFNAME", "interface-of-17ch", "CNI_IFNAME is refused"),
            ("CNI_NETNS", "", "missing: CNI_NETNS"),
            ("CNI_NETNS", "relative", "CNI_NETNS is \"relative\""),
        ] {
            let variables = base.map(|(key, old)| (key, if key == name { value } else { old }));
            let error = read(&variables).unwrap_err();
            assert_eq!(error.code, code::ENVIRONMENT, "{error}");
            assert!(error.to_string().contains(expected), "{error}");
        }
        let error = read(&[("CNI_COMMAND", "ADD")]).unwrap_err().to_string();
        assert!(error.contains("CNI_CONTAINERID, CNI_IFNAME, CNI_NETNS"), "{error}");
    }
}
