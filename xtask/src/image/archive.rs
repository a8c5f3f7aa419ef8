//! An image of one file as an archive that every tool takes: an OCI image layout, with the `manifest.json` beside it that
//! `docker load` reads.
//!
//! The same file gives the same bytes: no clock, no order of a hash map, no user of this machine enters.

use std::{
    collections::{BTreeMap, HashMap},
    io::Write as _,
};

use anyhow::Result;
use flate2::{Compression, GzBuilder};
use oci_spec::image::{
    Arch, ConfigBuilder, Descriptor, Digest, HistoryBuilder, ImageConfigurationBuilder, ImageIndexBuilder,
    ImageManifestBuilder, MediaType, OciLayoutBuilder, Os, PlatformBuilder, RootFsBuilder, Sha256Digest,
};
use serde::Serialize;
use sha2::Digest as _;

/// Where the layout keeps content.
const BLOBS: &str = "blobs/sha256";

/// What the image is.
pub(super) struct Image {
    /// Path of the file in the image, which is its entry point.
    pub(super) entrypoint: &'static str,
    /// Arguments if a container names none.
    pub(super) command: &'static [&'static str],
    /// The program, linked statically.
    pub(super) program: Vec<u8>,
    /// What it runs on.
    pub(super) arch: Arch,
    /// Registry and repository.
    pub(super) name: &'static str,
    /// The tag.
    pub(super) version: &'static str,
    /// `org.opencontainers.image.*`.
    pub(super) labels: BTreeMap<&'static str, String>,
}

/// Blobs by the hex digits of their SHA-256.
#[derive(Default)]
struct Blobs(BTreeMap<String, Vec<u8>>);

impl Blobs {
    fn add(&mut self, kind: MediaType, content: Vec<u8>) -> Result<Descriptor> {
        let digest = sha256(&content);
        let descriptor = Descriptor::new(kind, content.len() as u64, digest.parse::<Sha256Digest>()?);
        self.0.insert(digest, content);
        Ok(descriptor)
    }
}

impl Image {
    /// The archive's bytes.
    ///
    /// # Errors
    /// None with sound labels: what the writers of JSON and tar would say.
    pub(super) fn archive(&self) -> Result<Vec<u8>> {
        let mut blobs = Blobs::default();
        let files = self.layer()?;
        let config = self.configuration(&files)?;
        let config = blobs.add(MediaType::ImageConfig, json(&config)?)?;
        let layer = blobs.add(MediaType::ImageLayerGzip, compressed(&files)?)?;

        // The loader of Docker wants paths, and decompresses what it finds there.
        let docker = serde_json::json!([{
            "Config": blob_path(config.digest()),
            "Layers": [blob_path(layer.digest())],
            "RepoTags": [format!("{}:{}", self.name, self.version)],
        }]);
        let manifest = ImageManifestBuilder::default()
            .schema_version(2u32)
            .media_type(MediaType::ImageManifest)
            .config(config)
            .layers([layer])
            .annotations(self.labels())
            .build()?;
        let mut manifest = blobs.add(MediaType::ImageManifest, json(&manifest)?)?;
        manifest.set_platform(Some(PlatformBuilder::default().architecture(self.arch.clone()).os(Os::Linux).build()?));
        manifest.set_annotations(Some(HashMap::from([
            ("io.containerd.image.name".to_owned(), format!("{}:{}", self.name, self.version)),
            ("org.opencontainers.image.ref.name".to_owned(), self.version.to_owned()),
        ])));
        let index = ImageIndexBuilder::default()
            .schema_version(2u32)
            .media_type(MediaType::ImageIndex)
            .manifests([manifest])
            .build()?;
        let layout = OciLayoutBuilder::default().image_layout_version("1.0.0".to_owned()).build()?;

        let mut archive = Tar::new();
        archive.directory("blobs/")?;
        archive.directory("blobs/sha256/")?;
        for (digest, content) in &blobs.0 {
            archive.file(&format!("{BLOBS}/{digest}"), 0o644, content)?;
        }
        archive.file("index.json", 0o644, &json(&index)?)?;
        archive.file("manifest.json", 0o644, &json(&docker)?)?;
        archive.file("oci-layout", 0o644, &json(&layout)?)?;
        archive.finish()
    }

    /// The one layer, uncompressed.
    fn layer(&self) -> Result<Vec<u8>> {
        let mut layer = Tar::new();
        layer.file(self.entrypoint.trim_start_matches('/'), 0o755, &self.program)?;
        layer.finish()
    }

    fn configuration(&self, files: &[u8]) -> Result<impl Serialize> {
        let config = ConfigBuilder::default()
            .user("0")
            .entrypoint([self.entrypoint.to_owned()])
            .cmd(self.command.iter().map(|&word| word.to_owned()).collect::<Vec<_>>())
            .working_dir("/")
            .labels(self.labels())
            .build()?;
        let history = HistoryBuilder::default().created_by("cargo xtask image").build()?;
        Ok(ImageConfigurationBuilder::default()
            .architecture(self.arch.clone())
            .os(Os::Linux)
            .config(config)
            .rootfs(RootFsBuilder::default().typ("layers").diff_ids([format!("sha256:{}", sha256(files))]).build()?)
            .history([history])
            .build()?)
    }

    fn labels(&self) -> HashMap<String, String> {
        self.labels.iter().map(|(&key, value)| (key.to_owned(), value.clone())).collect()
    }
}

/// A tar whose entries belong to root and have no age.
struct Tar(tar::Builder<Vec<u8>>);

impl Tar {
    fn new() -> Self {
        Self(tar::Builder::new(Vec::new()))
    }

    fn directory(&mut self, path: &str) -> Result<()> {
        self.add(path, tar::EntryType::Directory, 0o755, &[])
    }

    fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.add(path, tar::EntryType::Regular, mode, content)
    }

    fn add(&mut self, path: &str, kind: tar::EntryType, mode: u32, content: &[u8]) -> Result<()> {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(content.len() as u64);
        Ok(self.0.append_data(&mut header, path, content)?)
    }

    fn finish(self) -> Result<Vec<u8>> {
        Ok(self.0.into_inner()?)
    }
}

fn blob_path(digest: &Digest) -> String {
    format!("{BLOBS}/{}", digest.digest())
}

/// JSON with sorted keys: labels and annotations are hash maps on their way here.
fn json(value: &impl Serialize) -> Result<Vec<u8>> {
    let mut value = serde_json::to_value(value)?;
    value.sort_all_objects();
    Ok(serde_json::to_vec(&value)?)
}

fn compressed(content: &[u8]) -> Result<Vec<u8>> {
    // Without a file name, a time or an operating system in its header.
    let mut writer = GzBuilder::new().mtime(0).operating_system(255).write(Vec::new(), Compression::best());
    writer.write_all(content)?;
    Ok(writer.finish()?)
}

fn sha256(content: &[u8]) -> String {
    sha2::Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use flate2::read::GzDecoder;
    use serde_json::Value;

    use super::*;

    fn image() -> Image {
        Image {
            entrypoint: "/shunt",
            command: &["agent"],
            program: b"\x7fELF, as far as this test goes".repeat(100),
            arch: Arch::Amd64,
            name: "registry.example/shunt",
            version: "1.2.3",
            labels: ["a", "b", "c", "d", "e"].map(|key| (key, format!("value of {key}"))).into(),
        }
    }

    fn entries(archive: &[u8]) -> BTreeMap<String, (u32, Vec<u8>)> {
        let mut found = BTreeMap::new();
        for entry in tar::Archive::new(archive).entries().unwrap() {
            let mut entry = entry.unwrap();
            assert_eq!(entry.header().mtime().unwrap(), 0);
            assert_eq!((entry.header().uid().unwrap(), entry.header().gid().unwrap()), (0, 0));
            let path = entry.path().unwrap().to_str().unwrap().to_owned();
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            found.insert(path, (entry.header().mode().unwrap(), content));
        }
        found
    }

    fn document(entries: &BTreeMap<String, (u32, Vec<u8>)>, path: &str) -> Value {
        serde_json::from_slice(&entries[path].1).unwrap()
    }

    /// What a descriptor names, after checking that it is what it says.
    fn blob(entries: &BTreeMap<String, (u32, Vec<u8>)>, descriptor: &Value) -> Vec<u8> {
        let digest = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
        let content = entries[&format!("{BLOBS}/{digest}")].1.clone();
        assert_eq!(sha256(&content), digest);
        assert_eq!(descriptor["size"], content.len());
        content
    }

    #[test]
    fn the_same_program_gives_the_same_bytes() {
        let first = image().archive().unwrap();
        for _ in 0..8 {
            assert!(image().archive().unwrap() == first, "a hash map's order, a clock or the like got in");
        }
    }

    #[test]
    fn every_descriptor_names_what_is_there_down_to_the_program() {
        let entries = entries(&image().archive().unwrap());
        assert_eq!(document(&entries, "oci-layout"), serde_json::json!({"imageLayoutVersion": "1.0.0"}));
        let index = document(&entries, "index.json");
        let named = &index["manifests"][0];
        assert_eq!(named["annotations"]["org.opencontainers.image.ref.name"], "1.2.3");
        assert_eq!(named["annotations"]["io.containerd.image.name"], "registry.example/shunt:1.2.3");
        assert_eq!(named["platform"], serde_json::json!({"architecture": "amd64", "os": "linux"}));

        let manifest: Value = serde_json::from_slice(&blob(&entries, named)).unwrap();
        assert_eq!(manifest["annotations"]["c"], "value of c");
        let config: Value = serde_json::from_slice(&blob(&entries, &manifest["config"])).unwrap();
        assert_eq!(config["config"]["Entrypoint"], serde_json::json!(["/shunt"]));
        assert_eq!(config["config"]["Cmd"], serde_json::json!(["agent"]));
        assert_eq!(config["config"]["User"], "0");
        assert_eq!(config["config"]["Labels"]["c"], "value of c");

        let mut files = Vec::new();
        GzDecoder::new(blob(&entries, &manifest["layers"][0]).as_slice()).read_to_end(&mut files).unwrap();
        assert_eq!(config["rootfs"]["diff_ids"], serde_json::json!([format!("sha256:{}", sha256(&files))]));
        let files = self::entries(&files);
        assert_eq!(files.len(), 1, "nothing but the program");
        assert_eq!(files["shunt"], (0o755, image().program));
    }

    #[test]
    fn docker_finds_the_same_blobs() {
        let entries = entries(&image().archive().unwrap());
        let docker = document(&entries, "manifest.json");
        let index = document(&entries, "index.json");
        let manifest: Value = serde_json::from_slice(&blob(&entries, &index["manifests"][0])).unwrap();
        let path = |descriptor: &Value| descriptor["digest"].as_str().unwrap().replace("sha256:", "blobs/sha256/");
        assert_eq!(docker[0]["Config"], path(&manifest["config"]));
        assert_eq!(docker[0]["Layers"], serde_json::json!([path(&manifest["layers"][0])]));
        assert_eq!(docker[0]["RepoTags"], serde_json::json!(["registry.example/shunt:1.2.3"]));
    }
}
