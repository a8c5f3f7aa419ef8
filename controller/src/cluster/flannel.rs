//! Names of the Node annotations by which flannel's nodes, and ours, know each other's tunnel ends (flannel's
//! pkg/subnet/kube/annotations.go, with its default prefix).

/// Outer destination of tunnel packets.
pub(crate) const PUBLIC_IP: &str = "flannel.alpha.coreos.com/public-ip";
/// What an administrator wants that to be.
pub(crate) const PUBLIC_IP_OVERWRITE: &str = "flannel.alpha.coreos.com/public-ip-overwrite";
/// `vxlan`, for nodes that we speak with.
pub(crate) const BACKEND_TYPE: &str = "flannel.alpha.coreos.com/backend-type";
/// `{"VNI":1,"VtepMAC":"02:42:ac:11:00:02"}`; with `"DirectReturn":true` behind that if a node of ours wrote it.
pub(crate) const BACKEND_DATA: &str = "flannel.alpha.coreos.com/backend-data";
/// `true` on nodes that take part.
pub(crate) const SUBNET_MANAGER: &str = "flannel.alpha.coreos.com/kube-subnet-manager";
